"""Clips of another manifest than a model was trained on, to judge it there: whose classes, and which clips are new.

Classes meet by what their names mean (`joining`). A copy of the training set in another form, such as one thinned out
to 16 frames, holds the very clips that were learned from, so what the model has seen is left out, and counted.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mien.data_pipelines import joining, reading
from mien.data_pipelines.fold import DataConfig, Fold
from mien.data_pipelines.manifest import Manifest, ManifestError
from mien.data_pipelines.splits import Split, folds


@dataclass(frozen=True)
class OtherClips:
    """The clips that a model is judged on, a test part alone, with their classes as the model numbers them."""

    fold: Fold
    other_classes: Counter[str]  # clips of classes that the model does not know, left out
    seen: int  # clips that it was trained or chosen on, or whose persons; left out
    checked: bool  # whether that could be looked at

    def notes(self) -> list[str]:
        """Return what is to be known beside a score."""
        found = []
        if self.other_classes:
            said = ", ".join(f"{count:,} {name}" for name, count in self.other_classes.items())
            found.append(f"left out, since the model knows no such class: {said}")
        if self.seen:
            found.append(
                f"left out, since the model was trained or chosen on them or their persons: {self.seen:,} clips"
            )
        if not self.checked:
            found.append("whether the model was trained on some is not known: its own manifest is not there as it was")
        return found


def open_other(
    manifest: Manifest,
    config: DataConfig,
    classes: Sequence[str],
    own: Fold | None,
    datasets: Collection[str] | None,
    *,
    frames: int,
    size: int,
    per_frame: bool = False,
) -> OtherClips:
    """Return the clips of `manifest` on which a model can be judged that was trained as `config` says.

    These are its official test part and the clips of its folds: of the run's own fold alone where it is the run's own
    set in another form. Of a manifest that names neither, all.

    Args:
        manifest: the other clips.
        config: how the run read its own.
        classes: those that the model tells; none where it tells gaze alone.
        own: the run's own clips, where they are known: none that it has seen is judged.
        datasets: names of the sets that the run was trained on, None where they are not known.
        frames: frames of the model's clips.
        size: their height and width in pixels.
        per_frame: whether it answers for each frame, so that the gaze of each is read.

    Raises ManifestError where no clip is left, or where the model knows fewer than two of the manifest's classes.
    """
    rows = _tested(manifest, config.fold, datasets)
    other_classes: Counter[str] = Counter()
    if classes and manifest.classes:
        common = {joining.meaning(name) for name in classes} & {joining.meaning(name) for name in manifest.classes}
        if len(common) < 2:
            raise ManifestError(
                f"a model is judged on two classes or more, but of those of {manifest.name} "
                f"({', '.join(manifest.classes)}) it knows {len(common)}; it tells {', '.join(classes)}"
            )
        before = manifest.take(rows)
        other_classes = joining.matched(before, classes)[1]
        manifest, _ = joining.matched(manifest, classes)
        told = zip(before.column("label"), manifest.table["label"].take(rows).to_pylist(), strict=True)
        rows = rows[[old is None or new is not None for old, new in told]]
    learned = set() if own is None else set(_who(own.manifest.take(np.concatenate([own.split.train, own.split.val]))))
    new = np.ones(len(rows), bool)
    for index, who in _lines(manifest.take(rows)):
        new[index] &= who not in learned
    if not new.any():
        raise ManifestError(
            f"a model is judged on clips that are new to it, but {manifest.name} has none: of {len(rows):,} that would "
            "be tested, all are clips or show persons that it was trained or chosen on; give another manifest"
        )
    table = manifest.table.take(rows)
    if table["label"].null_count == table["pitch"].null_count == len(table):
        raise ManifestError(
            f"a model is judged by labels, but the clips of {manifest.name} have neither class nor gaze"
        )
    none = np.empty(0, np.int64)
    read = reading.for_model(
        config.sampling, config.augment, frames=frames, size=size, root=manifest.root, frame_gaze=per_frame
    )
    fold = Fold(manifest, Split(none, none, rows[new], config.split.protocol, "clip"), read)
    return OtherClips(fold, other_classes, int((~new).sum()), own is not None)


def _tested(manifest: Manifest, fold: int | None, datasets: Collection[str] | None) -> np.ndarray:
    """Return the lines, ascending, that the manifest tests, as far as a run of `fold` has not trained on them."""
    there = folds(manifest)
    same = datasets is None or set(datasets) & set(manifest.column("dataset"))
    chosen = [fold] if same and fold in there else there
    lines = zip(manifest.column("split"), manifest.column("fold"), strict=True)
    tested = np.array([part == "test" or (number is not None and number in chosen) for part, number in lines])
    return np.flatnonzero(tested) if tested.any() else np.arange(len(manifest))


def _lines(manifest: Manifest) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Yield each line with the clip and, where known, the person that it holds."""
    columns = (manifest.column(name) for name in ("dataset", "video", "subject"))
    for line, (dataset, video, subject) in enumerate(zip(*columns, strict=True)):
        yield line, (dataset, "clip", video)
        if subject is not None:
            yield line, (dataset, "person", subject)


def _who(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    return (who for _, who in _lines(manifest))
