"""Open the test clips, once, with what a study or a run chose on validation.

    python experiments/evaluate.py output/study
    python experiments/evaluate.py output/dfew_fold1 --motion

Of a study, the winner's model of each fold predicts the clips that fold tests, so every clip is predicted by a model
that has not seen its person (where subjects are known). Writes `test/predictions/test.parquet` (of several datasets,
`test_NAME.parquet` each), `test/scores.json` and `test/mistakes/` into the folder. A second call only prints what was
found: choosing after looking at test is what this platform is there to prevent. `--again` evaluates anew and is counted
in `test/opened.jsonl`. `--motion` also scores the clips with their motion spoilt, into `test/motion.json`: frames
shuffled, reversed, or one of them again and again. A model that loses nothing by it does not look at motion.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from pydantic import BaseModel, Field

from mien.data_pipelines import reading
from mien.data_pipelines.sampling import Ablation
from mien.experiments.finetune import FinetuneConfig, Fold, load_run, validate
from mien.platform import pictures, predict, scores
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.progress import progress, table
from mien.platform.run import append, records
from mien.platform.storage import storing, write_whole
from mien.platform.training import device_here

WHOLE: Ablation = "none"
SPOILT: tuple[Ablation, ...] = ("shuffled", "reversed", "still")
MOTION_SCORES = ("uar", "war", "angular_error_deg")


class EvaluateConfig(BaseModel, frozen=True, extra="forbid"):
    """What is evaluated."""

    folder: str = Field("output/demo/study", description="folder of a study or a run; may be given as the first word")
    mistakes: int = Field(12, description="most confident mistakes kept as strips of frames", ge=0)
    seed: int = Field(0, description="seed of the bootstrap", ge=0)


def runs_of(folder: Path) -> dict[str, Path]:
    """Return the run folders to evaluate, by fold: a study's winner's, or the one run that the folder is."""
    winner = folder / "winner.json"
    if winner.is_file():
        trial = json.loads(winner.read_text(encoding="utf-8"))["trial"]
        places = sorted((folder / "trials" / trial).glob("*fold_*"), key=lambda place: (len(place.name), place.name))
        return {place.name.replace("fold_", ""): place for place in places}
    if (folder / "scores.json").is_file():
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return {str(config["data"]["fold"] or 1): folder}
    raise ConfigError(
        f"expected the folder of a finished study (winner.json) or fine-tuning run (scores.json), but {folder} holds "
        "neither; give the folder that --output named, after its program has ended"
    )


@dataclass
class Tested:
    """What the folds of one dataset were tested to be."""

    classes: tuple[str, ...]
    protocol: str
    folds: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: list[pa.Table] = field(default_factory=list)
    gazes: list[np.ndarray] = field(default_factory=list)

    def scores(self, seed: int) -> dict[str, Any]:
        """Return the scores of each fold, their mean, and those of all clips together."""
        train = np.concatenate(self.gazes) if self.gazes else None
        return {
            "folds": self.folds,
            "total": scores.fold_summary(list(self.folds.values())),
            "pooled": scores.scores(pa.concat_tables(self.tables), self.classes, seed, train_gaze=train),
            "protocol": self.protocol,
            "classes": list(self.classes),
        }


def evaluate(config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    """Predict and score the test clips of every fold; return what scores.json holds.

    Datasets are scored apart, since their classes and clips differ: with several, the scores of each stand under
    `datasets` by its name.
    """
    tested, mistakes = test_folds(folder, config.seed)
    each = {name: of.scores(config.seed) for name, of in tested.items()}
    result = next(iter(each.values())) if len(each) == 1 else {"datasets": each}
    output = folder / "test"
    for name, of in tested.items():
        file = "test.parquet" if len(tested) == 1 else f"test_{name}.parquet"
        predict.write(pa.concat_tables(of.tables), output / "predictions" / file)
    keep_mistakes(mistakes, config.mistakes, output / "mistakes")
    write_whole(output / "scores.json", json.dumps(result, indent=1) + "\n")
    return result


def evaluate_motion(config: EvaluateConfig, folder: Path, whole: dict[str, Any]) -> dict[str, Any]:
    """Score the test clips with their motion spoilt, beside the scores of whole clips; return what motion.json holds.

    Frames are shuffled in an order that depends on the clip alone, so it is the same each time.
    """
    found: dict[str, dict[str, Any]] = {
        WHOLE: {name: of["pooled"] for name, of in whole.get("datasets", {"": whole}).items()}
    }
    for ablate in SPOILT:
        tested, _ = test_folds(folder, config.seed, ablate)
        several = len(tested) > 1
        found[ablate] = {name * several: of.scores(config.seed)["pooled"] for name, of in tested.items()}
    write_whole(folder / "test" / "motion.json", json.dumps(found, indent=1) + "\n")
    return found


def test_folds(folder: Path, seed: int, ablate: Ablation = WHOLE) -> tuple[dict[str, Tested], list[dict[str, Any]]]:
    """Predict the test clips of every fold; return what was found by dataset, and the mistakes."""
    tested: dict[str, Tested] = {}
    mistakes = []
    runs = runs_of(folder)
    with progress("evaluating" if ablate == WHOLE else f"evaluating {ablate}", total=len(runs), unit="folds") as bar:
        for name, place in runs.items():
            settings, fold, task = load_run(place)
            if len(fold.split.test) == 0:
                raise ConfigError(f"{place}: its manifest has no test clips for fold {settings.data.fold}")
            if ablate != WHOLE:  # else as it was trained, which can be on spoilt clips
                sampling = fold.read.sampling.model_copy(update={"ablate": ablate})
                fold = fold._replace(read=fold.read.model_copy(update={"sampling": sampling}))
            videos, found = validate(task.to(device_here()), settings, fold, fold.split.test, None, seed)
            of = tested.setdefault(fold.manifest.name, Tested(fold.manifest.classes, fold.split.protocol))
            of.folds[name] = found
            of.tables.append(videos.append_column("fold", pa.array([name] * len(videos))))
            known = scores.known_gaze(fold.manifest.table.take(fold.split.train))
            of.gazes += [] if known is None else [known]
            mistakes += wrong(videos, fold, settings)
            bar.advance()
    return tested, mistakes


def test_sizes(place: Path) -> dict[str, Any]:
    """Return what evaluating a run amounts to; the test clips stay closed."""
    settings, fold, task = load_run(place)
    views = settings.data.sampling.views
    return {
        "run": str(place),
        "test clips": len(fold.split.test),
        "views a clip": views,
        "tokens": settings.task.backbone.tubes.num_tokens,
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
    }


def wrong(videos: pa.Table, fold: Fold, settings: FinetuneConfig) -> list[dict[str, Any]]:
    """Return the clips whose class was taken for another, with all that is needed to draw them."""
    if "probabilities" not in videos.column_names:
        return []
    probabilities = scores.matrix(videos["probabilities"])
    found = []
    for video, row, label, shares in zip(
        videos["video"].to_pylist(), videos["row"].to_pylist(), videos["label"].to_pylist(), probabilities, strict=True
    ):
        answer = int(shares.argmax())
        if label is not None and answer != label:
            names = fold.manifest.classes
            found.append(
                {
                    "video": video,
                    "truth": names[label],
                    "predicted": names[answer],
                    "confidence": float(shares[answer]),
                    "clip": (fold, row),
                }
            )
    return found


def keep_mistakes(mistakes: list[dict[str, Any]], most: int, folder: Path) -> None:
    """Write the most confident mistakes as strips of frames, and mistakes.json that lists them."""
    mistakes = sorted(mistakes, key=lambda mistake: -mistake["confidence"])[:most]
    lines = []
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)  # there may be none, where gaze alone was learned
    for number, mistake in enumerate(mistakes):
        fold, row = mistake.pop("clip")
        clip = reading.read_views(fold.manifest.row(row), row, fold.read)[0]["clip"]
        file = f"{number:03d}.jpg"
        with storing(folder):
            pictures.save(folder / file, pictures.strip(clip))
        lines.append(mistake | {"file": file})
    write_whole(folder / "mistakes.json", json.dumps(lines, indent=1) + "\n")


def main(argv: Sequence[str]) -> None:
    """Read the command line, evaluate unless that was done, and print the scores."""
    call = parse(
        EvaluateConfig,
        argv,
        __doc__,
        flags={
            "again": "evaluate once more, though the test clips were opened before; this is counted",
            "motion": "also score the clips with their frames shuffled, reversed, and frozen",
        },
        first="folder",
    )
    folder = Path(call.config.folder)
    if call.dry_run:
        print(dump(call.config))
        table([test_sizes(place) for place in runs_of(folder).values()])
        return
    output, again = folder / "test", "again" in call.flags
    times = records(output / "opened.jsonl")

    def found(file: str, open_test: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a file says of the test clips, opening them where it is not there or is to be made again."""
        if (output / file).is_file() and not again:
            print(f"the test clips were opened at {times[-1]['time'] if times else 'an unknown time'}; what was found:")
            record: dict[str, Any] = json.loads((output / file).read_text(encoding="utf-8"))
            return record
        result = open_test()
        append(output / "opened.jsonl", {"time": datetime.now(UTC).isoformat(timespec="seconds"), "file": file})
        return result

    result = found("scores.json", lambda: evaluate(call.config, folder))
    for name, of in result.get("datasets", {"": result}).items():
        title = f"test{name and ' of '}{name}, {len(of['folds'])} fold(s), protocol {of['protocol']}"
        print(scores.summary(of["pooled"], title=title))
    if "motion" in call.flags:
        spoilt = found("motion.json", lambda: evaluate_motion(call.config, folder, result))
        table(
            [
                {"frames": ablate, "of": name, **{score: pooled.get(score) for score in MOTION_SCORES}}
                for ablate, of in spoilt.items()
                for name, pooled in of.items()
            ]
        )


if __name__ == "__main__":
    run_program(main)
