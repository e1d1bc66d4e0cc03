"""What a teacher's gaze labels are worth, tried on the synthetic world, where the true gaze is known.

    python experiments/benchmarks/relabelling.py [--output DIR] [seeds=1] [key=value ...]

A teacher learns gaze on one world, and `relabel_gaze.py` labels another, of other people and harder to see, as an
emotion set is beside a gaze set. First figures: the error of these labels, and whether the teacher's spread tells it.
Then students of classes and gaze together, on the same clips of the second world, differ in their gaze labels alone:

    truth       the true ones: what no pseudo-label can give
    told        the teacher's
    weighted    the teacher's, each counting by its spread (`task.spread_scale_deg`, null here: the labels' median)
    none        none: classes alone (a gaze head that nothing taught answers straight ahead)

Students are scored on test clips of people whom neither they nor the teacher have seen, against the true gaze, which
stands in the manifests for the test clips alone. A seed is that of weights and clips, and tests other people; all start
from one pretraining on unlabelled videos. The recipe is `experiments/configs/relabelling.yaml`. The same command goes
on where it stopped; `DIR/relabelling.json` holds the figures of every seed.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines.gaze_labels import with_gaze
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments import finetune, pretrain, relabel_gaze
from mien.experiments.benchmarks.learning import judge, spread
from mien.experiments.finetune import FinetuneConfig
from mien.experiments.prepare import LABELLED, UNLABELLED, prepare_world
from mien.experiments.pretrain import PretrainConfig
from mien.experiments.relabel_gaze import RelabelConfig
from mien.platform import config as settings
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.config import run_program, with_overrides
from mien.platform.progress import progress, table
from mien.platform.storage import write_whole

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "relabelling.yaml"
ARMS = ("truth", "told", "weighted", "none")
SCORES = ("test/angular_error_deg", "test/uar")
# What is claimed: the second arm's error is larger than the first's.
CLAIMS = (("told", "none"), ("weighted", "told"), ("truth", "told"))
LABEL_SCORES = ("angular_error_deg", "constant_error_deg", "sure_error_deg", "unsure_error_deg")


class RelabellingConfig(BaseModel, frozen=True, extra="forbid"):
    """The worlds, and how teacher and students are trained."""

    seeds: int = Field(3, ge=1, le=5, description="seeds, 0 and up, one for each fold")
    processes: int = Field(1, ge=1, description="runs side by side, of one thread each")
    teacher_world: WorldConfig = Field(WorldConfig(), description="people on whom the teacher learns gaze")
    world: WorldConfig = Field(WorldConfig(), description="people who are labelled, and on whom students learn")
    pretrain: PretrainConfig = PretrainConfig()
    teacher: FinetuneConfig = Field(FinetuneConfig(), description="the teacher's training")
    student: FinetuneConfig = Field(FinetuneConfig(), description="the students' training")
    hop: int | None = Field(None, description="frames from a window of the teacher's to the next", ge=1)
    spread_scale_deg: float | None = Field(
        None, description="task.spread_scale_deg of the weighted student; null: the median spread of its labels", gt=0
    )
    cluster: ClusterConfig = ClusterConfig()


def arm_settings(config: RelabellingConfig, arm: str, labels: Path) -> dict[str, Any]:
    """Return how a student differs from the others, beside its manifest."""
    if arm == "weighted":
        spreads = np.array(Manifest.read(labels).column("gaze_spread"), dtype=np.float64)
        scale_deg = config.spread_scale_deg or float(np.degrees(np.nanmedian(spreads)))
        return {"task.spread_scale_deg": scale_deg}
    return {"task.gaze_weight": 0.0} if arm == "none" else {}


def student_manifest(true: Manifest, told: Manifest, fold: int) -> Manifest:
    """Return the clips with the teacher's labels, those of the fold that is tested with the true ones."""
    tested = np.array([number == fold for number in true.column("fold")])
    angles_rad = np.array([true.column(name) for name in ("pitch", "yaw")], dtype=np.float64).T
    told_rad = np.array([told.column(name) for name in ("pitch", "yaw")], dtype=np.float64).T
    spread_rad = np.array(told.column("gaze_spread"), dtype=np.float64)
    return with_gaze(
        true,
        np.where(tested[:, None], angles_rad, told_rad),
        f"{told.notes[-1]}; true in fold {fold}",
        np.where(tested, np.nan, spread_rad),
    )


def relabelled(config: RelabellingConfig, output: Path, seed: int) -> tuple[Path, dict[str, float]]:
    """Label the second world by a seed's teacher; return the students' manifest and how good the labels are."""
    folder = output / "labels" / f"seed_{seed}"
    asked = RelabelConfig(
        checkpoint=str(output / "teacher" / f"seed_{seed}"),
        manifest=str(output / "data" / LABELLED),
        hop=config.hop,
        cluster=config.cluster,
    )
    found = relabel_gaze.relabel(asked, folder)
    assert found is not None  # the world knows every clip's gaze
    made = student_manifest(Manifest.read(asked.manifest), Manifest.read(folder / "manifest.parquet"), seed % 5 + 1)
    made.write(folder / "student.parquet")
    return folder / "student.parquet", {name: found[name] for name in (*LABEL_SCORES, "spread_error_correlation")}


def start_of_run(output: Path, data: Path, seed: int) -> dict[str, Any]:
    """Return the settings of a run of one seed."""
    shared = {"data.manifest": str(data), "data.fold": seed % 5 + 1, "data.split.seed": seed, "loop.seed": seed}
    return shared | {"pretrained": str(output / "pretrain")}


def relabelling(config: RelabellingConfig, output: Path) -> dict[str, Any]:
    """Do all runs that are left to do; return the figures of labels and students."""
    prepare_world(config.teacher_world, output / "teacher_data")
    prepare_world(config.world, output / "data")
    unlabelled = {"data.manifest": str(output / "data" / UNLABELLED)}
    pretrain.pretrain(with_overrides(config.pretrain, unlabelled), output / "pretrain")
    seeds = range(config.seeds)
    for seed in seeds:
        start = start_of_run(output, output / "teacher_data" / LABELLED, seed)
        finetune.finetune(with_overrides(config.teacher, start), output / "teacher" / f"seed_{seed}")
    with connect(config.cluster):
        labels = [relabelled(config, output, seed) for seed in seeds]
    runs: dict[tuple[str, int], Future[dict[str, float]]] = {}
    pool = ProcessPoolExecutor(config.processes, mp_context=get_context("spawn"))
    try:
        for seed, arm in ((seed, arm) for seed in seeds for arm in ARMS):
            told = labels[seed][0]
            data = told if arm in ("told", "weighted") else output / "data" / LABELLED
            run = with_overrides(config.student, start_of_run(output, data, seed) | arm_settings(config, arm, told))
            runs[arm, seed] = pool.submit(judge, run, output / "students" / arm / f"seed_{seed}")
        with progress("students", total=len(runs), unit="runs") as bar:
            for done in runs.values():
                done.result()
                bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    by_arm = {arm: [runs[arm, seed].result() for seed in seeds] for arm in ARMS}
    return figures([quality for _, quality in labels], by_arm)


def figures(labels: Sequence[dict[str, float]], by_arm: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return mean, deviation and every seed's value of the labels' scores, the students' and their differences."""
    error = SCORES[0]
    return {
        "labels": {name: spread([of[name] for of in labels]) for name in labels[0]},
        "students": {
            arm: {name: spread([run[name] for run in runs]) for name in SCORES} for arm, runs in by_arm.items()
        },
        "gains_deg": {
            f"{better} over {worse}": spread(
                [two[error] - one[error] for one, two in zip(by_arm[better], by_arm[worse], strict=True)]
            )
            for better, worse in CLAIMS
        },
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures."""

    def words(figure: dict[str, Any]) -> str:
        return f"{figure['mean']:.3f} +- {figure['sd']:.3f} ({' '.join(f'{value:.3f}' for value in figure['seeds'])})"

    table([{"labels": name, "value": words(figure)} for name, figure in found["labels"].items()])
    table(
        [{"student": arm} | {name: words(scores[name]) for name in SCORES} for arm, scores in found["students"].items()]
    )
    table([{"gain, degrees": name, "value": words(figure)} for name, figure in found["gains_deg"].items()])


def main(argv: Sequence[str]) -> None:
    """Read the command line, do the runs and print what came out."""
    call = settings.parse(RelabellingConfig, ["--config", str(RECIPE), *argv], __doc__)
    config, output = call.config, (call.output or Path("output/benchmarks/relabelling")).absolute()
    if call.dry_run:
        print(settings.dump(config))
        print(f"1 pretraining, {config.seeds} teachers and {len(ARMS) * config.seeds} students in {output}")
        return
    found = relabelling(config, output)
    show(found)
    write_whole(output / "relabelling.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
