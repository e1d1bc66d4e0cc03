"""The clips of one run: a manifest, split for one fold, and how its rows become clips."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import Field

from mien.data_pipelines import mixing, reading, splits
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.fingerprint import Fingerprint, fingerprint
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.mixing import MixingConfig
from mien.data_pipelines.reading import Files, ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.data_pipelines.splits import Split, SplitConfig
from mien.data_pipelines.unreadable import DropCount, DropLimit, Dropped


class DataConfig(DropLimit, frozen=True, extra="forbid"):
    """Which clips, and how they are read."""

    manifest: str = Field("output/dfew/manifest.parquet", description="manifest made by prepare.py")
    root: str | None = Field(None, description="folder of the clips, where it has moved since prepare.py")
    fold: int | None = Field(1, description="fold to be tested; null: the manifest's own train and test parts", ge=1)
    split: SplitConfig = SplitConfig()
    label_ratio: float = Field(1.0, description="share of the training clips that is used, drawn by class", gt=0, le=1)
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig(kind="finetune")
    mixing: MixingConfig = MixingConfig()
    threads: int = Field(1, description="threads that decode beside the training step, without Ray Data", ge=1)


class Fold(NamedTuple):
    """The clips of one run."""

    manifest: Manifest
    split: Split
    read: ReadConfig

    def fingerprint(self, part: str, path: str) -> Fingerprint:
        """Return the fingerprint of a part's clips (train, val or test) of the manifest that stands at `path`."""
        sizes = {name: len(getattr(self.split, name)) for name in ("train", "val", "test")}
        return fingerprint(
            self.manifest,
            getattr(self.split, part),
            self.read,
            parts=sizes,
            protocol=self.split.protocol,
            path=path,
        )

    def batches(
        self,
        config: "DataConfig",
        batch_size: int,
        seed: int,
        start_step: int,
        note: Callable[[Dropped], None],
        *,
        mixed: bool,
        sources: Files | None = None,
        part: tuple[int, int] | None = None,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Yield training batches from a step on, without end; `note` hears of clips that could not be read.

        `part` is what one of several workers takes of each. Raises DroppedTooManyError.
        """
        stream = reading.local_batches(
            self.manifest,
            self.split.train,
            batch_size,
            seed,
            self.read,
            start_step=start_step,
            threads=config.threads,
            sources=sources,
            part=part,
        )
        count = DropCount(config, "data")
        for step, (arrays, dropped) in enumerate(stream, start=start_step):
            for record in dropped:
                note(record)
            count.add(len(arrays["row"]) + len(dropped), dropped)
            batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
            yield mixing.mix(batch, seed + step, config.mixing) if mixed else batch


def open_clips(config: DataConfig, *, frames: int, size: int, gaze: bool, per_frame: bool) -> Fold:
    """Read the manifest and split it; a clip has the frames and the size that the model takes.

    Where `gaze` is learned, clips are not augmented in ways that it cannot follow; a model that answers `per_frame`
    learns that of each frame.
    """
    manifest = Manifest.read(config.manifest, config.root)
    split = splits.split(manifest, config.fold, config.split)
    split = replace(split, train=splits.fewer_labels(manifest, split.train, config.label_ratio, config.split.seed))
    augment = config.augment.for_gaze() if gaze else config.augment
    read = reading.for_model(
        config.sampling, augment, frames=frames, size=size, root=manifest.root, frame_gaze=per_frame
    )
    return Fold(manifest, split, read)
