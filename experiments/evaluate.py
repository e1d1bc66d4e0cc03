"""Open the test clips, once, with what a study or a run chose on validation.

    python experiments/evaluate.py output/study
    python experiments/evaluate.py output/dfew_fold1 --motion
    python experiments/evaluate.py output/dfew_fold1 manifest=output/mafw/manifest.parquet

Of a study, the winner's model of each fold predicts the clips that fold tests, so every clip is predicted by a model
that has not seen its person (where subjects are known). Writes `test/predictions/test.parquet` (of several datasets,
`test_NAME.parquet` each), `test/scores.json` and `test/mistakes/` into the folder. A second call only prints what was
found: choosing after looking at test is what this platform is there to prevent. `--again` evaluates anew and is counted
in `test/opened.jsonl`. `--motion` also scores the clips with their motion spoilt, into `test/motion.json`: frames
shuffled, reversed, or one of them again and again. A model that loses nothing by it does not look at motion.

With `manifest=` a run is judged on another manifest's test clips, into `test_on_NAME_FINGERPRINT/`. Classes are matched
by name. Clips of others, and those that the run was trained or chosen on, are left out and counted.

In either case the clips are compared with those that the checkpoint was trained on, and what differs is printed with
its known effect: why your number may differ.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml
from pydantic import BaseModel, Field

from mien.data_pipelines import input_differences, other_clips, reading
from mien.data_pipelines.fingerprint import Fingerprint
from mien.data_pipelines.fold import Fold
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.sampling import Ablation
from mien.experiments.finetune import FinetuneConfig, load_task, open_fold, own_clips, train_gaze, validate
from mien.models.backbone import FeatureTask
from mien.platform import pictures, predict, scores
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.folder_lock import FolderLock
from mien.platform.progress import progress, table
from mien.platform.run import append, records
from mien.platform.storage import storing, write_whole
from mien.platform.tested import Tested, wrong
from mien.platform.training import device_here

WHOLE: Ablation = "none"
SPOILT: tuple[Ablation, ...] = ("shuffled", "reversed", "still")
MOTION_SCORES = ("uar", "war", "angular_error_deg")


class EvaluateConfig(BaseModel, frozen=True, extra="forbid"):
    """What is evaluated."""

    folder: str = Field("output/demo/study", description="folder of a study or a run; may be given as the first word")
    mistakes: int = Field(12, description="most confident mistakes kept as strips of frames", ge=0)
    seed: int = Field(0, description="seed of the bootstrap", ge=0)
    manifest: str | None = Field(
        None, description="another manifest to judge one run on; null: the test clips of its own"
    )
    root: str | None = Field(None, description="folder of that manifest's clips, where it has moved since prepare.py")


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


class Opened(NamedTuple):
    """A trained model and the clips that it is judged on."""

    settings: FinetuneConfig
    fold: Fold
    task: FeatureTask
    train_gaze: np.ndarray | None
    inputs: Fingerprint  # of the clips
    trained: dict[str, Fingerprint | None]  # those of what it was trained and pretrained on
    notes: list[str]


def opened(config: EvaluateConfig, place: Path) -> Opened:
    """Return a finished run with its own test clips, or those of the manifest that the config names."""
    settings, task, about = load_task(place)
    trained = about.get("inputs") or {}
    if config.manifest is None:
        fold, notes, path = own_clips(place, settings, about), [], settings.data.manifest
        if len(fold.split.test) == 0:
            raise ConfigError(f"{place}: its manifest has no test clips for fold {settings.data.fold}")
        gaze = train_gaze(fold)
    else:
        own, data = None, settings.data
        if Path(data.manifest).is_file() and Manifest.read(data.manifest).fingerprint() == about["fingerprint"]:
            own = open_fold(settings)
        known = trained.get("trained_on") or {}
        names = known.get("datasets") or (own and set(own.manifest.column("dataset")))
        tubes = settings.task.backbone.tubes
        other = other_clips.open_other(
            Manifest.read(config.manifest, config.root),
            data,
            () if settings.task.name == "gaze" else about["classes"],
            own,
            names,
            frames=tubes.frames,
            size=tubes.size,
            per_frame=settings.task.per_frame,
        )
        fold, notes, path = other.fold, other.notes(), config.manifest
        gaze = None if own is None else train_gaze(own)
    return Opened(settings, fold, task, gaze, fold.fingerprint("test", path), trained, notes)


def compared(of: Opened) -> dict[str, Any]:
    """Return how the clips that a model is judged on differ from those it was trained and pretrained on."""
    found = {"trained on": input_differences.report(of.trained.get("trained_on"), of.inputs)}
    if before := of.trained.get("pretrained_on"):
        found["pretrained on"] = input_differences.report(before, of.inputs, labels=False)
    return found


def why(of: Tested) -> dict[str, Any]:
    """Return the comparisons of all folds as one, by how a model knows the other clips: trained or pretrained on."""
    folds = of.compared.values()
    known = dict.fromkeys(name for each in folds for name in each)
    return {name: input_differences.merged([each[name] for each in folds if name in each]) for name in known}


def tell_why(of: dict[str, Any]) -> None:
    """Print why scores may differ from others, and what was left out."""
    if "why" in of:  # not in records of earlier versions
        print("why your number may differ:")
        for known, report in of["why"].items():
            print("\n".join(f"  - {line}" for line in input_differences.told(report, known)))
        print("".join(f"  - {note}\n" for note in of["notes"]), end="")


def place_of(config: EvaluateConfig, folder: Path) -> Path:
    """Return the folder of what is found: one for the own test clips, and one for each other manifest."""
    if config.manifest is None:
        if config.root is not None:
            raise ConfigError(
                f"root says where another manifest's clips are, but only root={config.root} was given: add "
                "manifest=, or leave root out"
            )
        return folder / "test"
    manifest = Manifest.read(config.manifest, config.root)
    name = re.sub(r"[^\w.+-]", "_", manifest.name)
    return folder / f"test_on_{name}_{manifest.fingerprint()[:8]}"


def evaluate(config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    """Predict and score the test clips of every fold; return what scores.json holds.

    Datasets are scored apart, since their classes and clips differ: with several, the scores of each stand under
    `datasets` by its name.
    """
    tested, mistakes = test_folds(config, folder)
    each = {name: of.scores(config.seed) | {"why": why(of)} for name, of in tested.items()}
    result = next(iter(each.values())) if len(each) == 1 else {"datasets": each}
    output = place_of(config, folder)
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
    pooled = {name: of["pooled"] for name, of in whole.get("datasets", {"": whole}).items()}
    found: dict[str, dict[str, Any]] = {WHOLE: pooled}
    for ablate in SPOILT:
        tested, _ = test_folds(config, folder, ablate)
        found[ablate] = {name * (len(tested) > 1): of.scores(config.seed)["pooled"] for name, of in tested.items()}
    write_whole(place_of(config, folder) / "motion.json", json.dumps(found, indent=1) + "\n")
    return found


def test_folds(
    config: EvaluateConfig, folder: Path, ablate: Ablation = WHOLE
) -> tuple[dict[str, Tested], list[dict[str, Any]]]:
    """Predict the test clips of every fold; return what was found by dataset, and the mistakes."""
    tested: dict[str, Tested] = {}
    mistakes = []
    runs = runs_of(folder)
    if config.manifest is not None and len(runs) > 1:
        raise ConfigError(
            f"another manifest is judged by one model, but {folder} holds {len(runs)}: give one of its runs, such as "
            f"{next(iter(runs.values()))}"
        )
    with progress("evaluating" if ablate == WHOLE else f"evaluating {ablate}", total=len(runs), unit="folds") as bar:
        for name, place in runs.items():
            run = opened(config, place)
            settings, fold = run.settings, run.fold
            if ablate != WHOLE:  # else as it was trained, which can be on spoilt clips
                sampling = fold.read.sampling.model_copy(update={"ablate": ablate})
                fold = fold._replace(read=fold.read.model_copy(update={"sampling": sampling}))
            task, rows = run.task.to(device_here()), fold.split.test
            videos, found = validate(task, settings, fold, rows, None, config.seed, run.train_gaze)
            of = tested.setdefault(fold.manifest.name, Tested(fold.manifest.classes, fold.split.protocol))
            of.add(name, found, videos, run.train_gaze)
            of.inputs[name], of.compared[name], of.notes = run.inputs, compared(run), run.notes
            mistakes += [mistake | {"fold": fold} for mistake in wrong(videos, fold.manifest.classes)]
            bar.advance()
    return tested, mistakes


def test_sizes(config: EvaluateConfig, place: Path) -> dict[str, Any]:
    """Return what evaluating a run amounts to; the test clips stay closed."""
    settings, fold, task, *_ = opened(config, place)
    return {
        "run": str(place),
        "test clips": len(fold.split.test),
        "views a clip": settings.data.sampling.views_told,
        "tokens": settings.task.backbone.tubes.num_tokens,
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
    }


def keep_mistakes(mistakes: list[dict[str, Any]], most: int, folder: Path) -> None:
    """Write the most confident mistakes as strips of frames, and mistakes.json that lists them."""
    mistakes = sorted(mistakes, key=lambda mistake: -mistake["confidence"])[:most]
    lines = []
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)  # there may be none, where gaze alone was learned
    for number, mistake in enumerate(mistakes):
        fold, row, file = mistake.pop("fold"), mistake.pop("row"), f"{number:03d}.jpg"
        clip = reading.read_views(fold.manifest.row(row), row, fold.read)[0]["clip"]
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
    runs = runs_of(folder)
    if call.dry_run:
        print(dump(call.config))
        table([test_sizes(call.config, place) for place in runs.values()])
        return
    output, again = place_of(call.config, folder), "again" in call.flags

    def found(file: str, open_test: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a file says of the test clips, opening them where it is not there or is to be made again."""
        if again or not (output / file).is_file():
            with FolderLock(folder):
                if again or not (output / file).is_file():  # else another program has opened them since
                    result, now = open_test(), datetime.now(UTC).isoformat(timespec="seconds")
                    append(output / "opened.jsonl", {"time": now, "file": file})
                    return result
        times = records(output / "opened.jsonl")
        print(f"the test clips were opened at {times[-1]['time'] if times else 'an unknown time'}; what was found:")
        return dict(json.loads((output / file).read_text(encoding="utf-8")))

    result = found("scores.json", lambda: evaluate(call.config, folder))
    for name, of in result.get("datasets", {"": result}).items():
        title = f"test{name and ' of '}{name}, {len(of['folds'])} fold(s), protocol {of['protocol']}"
        print(scores.summary(of["pooled"], title=title))
        tell_why(of)
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
