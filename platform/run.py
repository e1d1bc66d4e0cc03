"""The run folder: what a program writes, and the only thing the next program reads.

`config.yaml` (complete), `environment.json`, `metrics.jsonl` (a record a line), `tensorboard/`, `dropped.jsonl` (an
unreadable clip a line), `checkpoints/`. A folder belongs to one config: the same one goes on where it was, another is
refused. After `truncate_after` the records are those of a run that was never interrupted.
"""

import hashlib
import json
import math
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from pydantic import BaseModel
from tensorboardX import SummaryWriter

from mien.platform import checkpoint, gauges
from mien.platform.config import ConfigError, rebuild
from mien.platform.folder_lock import FolderLock
from mien.platform.interrupt import Interrupt, Terminated, end_now, on_sigterm
from mien.platform.ownership import refuse_strangers
from mien.platform.provenance import environment, refuse_secrets, this_command
from mien.platform.storage import storing, write_whole


class RunError(ValueError):
    """A folder that belongs to another run, or that is none."""


class Run:
    """One run folder. `Run.start` makes or resumes it; `Run(output)` opens one that is there, as a worker does.

    Who started it alone writes in it, with its workers, until `close`.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.checkpoints = output / "checkpoints"
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._lock: FolderLock | None = None

    @classmethod
    def start(
        cls, output: Path, config: BaseModel | Mapping[str, Any], *, seed: int, command: str | None = None
    ) -> "Run":
        """Make the folder of a run, or go on with it if it holds the same config.

        `config` is complete. A setting that an earlier version of a config class did not have counts as its default,
        which keeps what was. Raises RunError, listing the keys that differ, if the folder holds another config, or if
        `output` is no path but an address; OwnerError if somebody else made it, LockedError if another process has
        started it and not closed it, and SecretError if a secret would be recorded.
        """
        refuse_address(output)
        given, file, run = plain(config), output / "config.yaml", cls(output)
        here = environment(seed, command or this_command())
        refuse_secrets(flat(given) | {"the command line": here["command"]})
        with storing(output):
            output.mkdir(parents=True, exist_ok=True)
            if file.exists():
                refuse_strangers(output)
        with ExitStack() as undone:
            run._lock = undone.enter_context(FolderLock(output))
            with storing(output):
                if file.exists():
                    there = yaml.safe_load(file.read_text(encoding="utf-8"))
                    there = completed(type(config), there) if isinstance(config, BaseModel) else there
                    refuse_other(output, there, given)
                    first = json.loads((output / "environment.json").read_text(encoding="utf-8"))
                    here = first | {"resumed": [*first.get("resumed", []), here]}
            # The config is written last: a folder with a config has everything.
            write_whole(output / "environment.json", json.dumps(here, indent=1) + "\n")
            write_whole(file, yaml.safe_dump(given, sort_keys=False, allow_unicode=True))
            undone.pop_all()
        return run

    def log(self, record: Mapping[str, float | None], split: str = "train") -> None:
        """Append a record with its `step`; other names become `<split>/<name>`, and what is not finite becomes null."""
        step = record["step"]
        values = {f"{split}/{name}": finite(value) for name, value in record.items() if name != "step"}
        append(self.output / "metrics.jsonl", {"step": step, **values})
        gauges.show({"step": step, **values}, run=self.output.name)
        with storing(self.output):
            for name, value in values.items():
                if value is not None:
                    self._tensorboard().add_scalar(name, value, step)

    def dropped(self, record: Mapping[str, Any]) -> None:
        """Append a clip that could not be read."""
        append(self.output / "dropped.jsonl", record)
        gauges.count("clips_dropped", run=self.output.name)

    def hparams(self, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Show a trial in TensorBoard's table of hyper-parameters."""
        known = {key: value if isinstance(value, int | float | str) else str(value) for key, value in params.items()}
        with storing(self.output):
            self._tensorboard().add_hparams(known, dict(metrics), name="trial")

    def truncate_after(self, step: int, position: int | None = None) -> None:
        """Forget, to resume, the records after `step` and the dropped clips from stream position `position` on."""
        cut(self.output / "metrics.jsonl", "step", step + 1)
        if position is not None:
            cut(self.output / "dropped.jsonl", "position", position)
        self._close_events()
        self._purge_step = step + 1

    def close(self) -> None:
        """Bring TensorBoard's events to the disk, and let others write in the folder."""
        self._close_events()
        if self._lock is not None:
            self._lock.release()

    def _close_events(self) -> None:
        if self._writer is not None:
            with storing(self.output):
                self._writer.close()
            self._writer = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _tensorboard(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(str(self.output / "tensorboard"), purge_step=self._purge_step)
        return self._writer


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 letters that stand for a config; its keys' order does not matter."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:12]


def plain(config: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as YAML gives it back: tuples are lists, keys are text."""
    values = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def completed(config_class: type[BaseModel], there: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config that an earlier version wrote, with the settings that are new since then at their defaults."""
    try:
        return plain(rebuild(config_class, there))
    except ConfigError:  # it holds what is no setting any more, which its differences will tell
        return there


def refuse_address(output: Path) -> None:
    """Raise RunError for an address such as s3://bucket/run, which would become a folder `s3:` here."""
    if any(re.fullmatch(r"\w{2,}:", part) for part in output.parts):
        raise RunError(
            f"a run folder is a path, on storage that all nodes see, but {output} is an address: files there are "
            "appended to, renamed and locked, which object storage cannot do. Give --output on NFS, EFS, FSx or Lustre"
        )


def refuse_other(output: Path, there: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise RunError if a folder's config is not the given one."""
    if differ := differences(there, given):
        raise RunError(
            f"a run folder belongs to one config, but {output} was made with another:{differ}\n"
            "give the same settings to go on with it, or another --output to start anew"
        )


def differences(there: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return what differs between two configs, a setting a line; nothing if they are equal."""
    old, new = flat(there), flat(given)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key, "absent") != new.get(key, "absent")]
    lines = [f"\n  {key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} given" for key in keys[:20]]
    return "".join(lines) + (f"\n  and {len(keys) - 20} more" if len(keys) > 20 else "")


def finite(value: float | None) -> float | None:
    """Return a number, or None for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line to a file."""
    with storing(path.parent), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON-lines file, without a last one that a crash cut short; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut(path: Path, key: str, end: int) -> None:
    """Keep the records of a JSON-lines file whose `key` is below `end`."""
    if path.exists():
        kept = [record for record in records(path) if record[key] < end]
        write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))


@contextmanager
def interruptible(
    run: Run, command: str | None = None, *, between_steps: bool = False, kept: str | None = None
) -> Iterator[Interrupt]:
    """Make Ctrl-C and SIGTERM end the program (exit codes 130 and 143), saying where its state is and how to go on.

    With `between_steps` the first one only sets `asked`, for a loop that looks at it after each step; a second one
    stops at once. `kept` says what is kept of a program that is more than one training run.
    """
    interrupt = Interrupt()

    def ask(number: int, frame: FrameType | None) -> None:
        interrupt.asked, interrupt.terminated = True, number == signal.SIGTERM
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, lambda number, frame: end_now())
        print("\nfinishing this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    before = signal.getsignal(signal.SIGINT)
    with on_sigterm(end_now):
        if between_steps:
            signal.signal(signal.SIGINT, ask)
            signal.signal(signal.SIGTERM, ask)
        try:
            yield interrupt
        except KeyboardInterrupt as error:
            if kept is None:
                newest = checkpoint.newest(run.checkpoints)
                kept = f"state kept at {newest}" if newest else "no checkpoint yet, so the next run begins anew"
            print(f"\n{kept}; resume with: {command or this_command()}", file=sys.stderr, flush=True)
            raise SystemExit(143 if isinstance(error, Terminated) else 130) from None
        finally:
            signal.signal(signal.SIGINT, before)
