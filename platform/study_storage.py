"""Optuna's database as the driver of a study uses it: who alone writes in it need not read it again and again.

Optuna's own cache reads every running trial anew whenever it is asked for trials, because another process might have
written to them, and it is asked several times a fold: 512 trials at a time made that the first thing to break. Only the
driver writes here, so a trial is read again only after a change that it made itself.
"""

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage  # what `optuna.create_study` would use by itself
from optuna.trial import TrialState


class OnlyWriter(_CachedStorage):
    """The database of studies in which no other process writes while this one is open."""

    def __init__(self, url: str) -> None:
        super().__init__(RDBStorage(url))
        self._read: set[int] = set()  # studies
        self._changed: set[int] = set()  # trials

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if study_id not in self._read:
            super()._read_trials_from_remote_storage(study_id)
            self._read.add(study_id)
            self._changed.clear()
        with self._lock:
            for trial_id in self._changed:
                self._add_trials_to_cache(study_id, [self._backend.get_trial(trial_id)])
            self._changed.clear()

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Write a parameter."""
        self._changed.add(trial_id)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Write a state."""
        self._changed.add(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write a value on the way."""
        self._changed.add(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute of ours."""
        self._changed.add(trial_id)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute of Optuna's."""
        self._changed.add(trial_id)
        super().set_trial_system_attr(trial_id, key, value)
