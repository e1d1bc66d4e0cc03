"""What the system is said to learn, tried on the synthetic world: each claim a comparison, over several seeds.

    python experiments/benchmarks/learning.py [--output DIR] [claims=[motion,alpha]] [key=value ...]

    motion        a model of clips beats the same model on one frame of each clip, repeated
    pretraining   with a tenth of the labels, a pretrained encoder beats one from scratch (with rates of its own)
    alpha         a high alpha gives the better classes, a low one the better gaze
    leak          validation that shares its persons with train scores higher than validation on other persons

A seed is the seed of weights, clips, pretraining and split, and each seed tests other people. The first three claims
are judged on the test clips of people whom nothing has seen. Nothing is selected by these figures, so opening the test
here costs nothing. The leak is one of validation, so there validation scores are compared; the test scores beside them
show which of the two told the truth. The recipe is `experiments/configs/learning.yaml`. Every run is a run folder below
DIR: the same command goes on where it stopped. `DIR/learning.json` holds the figures of every seed.
"""

import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field

from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments import evaluate, finetune, pretrain
from mien.experiments.finetune import FinetuneConfig
from mien.experiments.prepare import LABELLED, UNLABELLED, prepare_world
from mien.experiments.pretrain import PretrainConfig
from mien.platform import config as settings
from mien.platform.config import run_program, with_overrides
from mien.platform.progress import progress, table
from mien.platform.storage import write_whole

Claim = Literal["motion", "pretraining", "alpha", "leak"]
Settings = dict[str, Any]
RECIPE = Path(__file__).resolve().parents[1] / "configs" / "learning.yaml"


class Measure(NamedTuple):
    """One figure of a comparison, as test/uar; the first arm's is to be larger than the second's by `wanted`."""

    name: str
    wanted: float


class LearningConfig(BaseModel, frozen=True, extra="forbid"):
    """The worlds, the trainings and what differs between the two arms of every claim."""

    claims: tuple[Claim, ...] = Field(("motion", "pretraining", "alpha", "leak"), description="claims that are tried")
    seeds: int = Field(3, ge=1, description="seeds, 0 and up; at most one for each fold is of use")
    processes: int = Field(1, ge=1, description="runs side by side, of one thread each")
    world: WorldConfig = Field(WorldConfig(), description="people for motion, pretraining, alpha, and for pretraining")
    leak_world: WorldConfig = Field(WorldConfig(), description="people for leak: few, with many clips each")
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = Field(FinetuneConfig(), description="what all fine-tuning runs share")
    label_ratio: float = Field(0.1, gt=0, le=1, description="pretraining: share of the labels that is used")
    scratch: Settings = Field({}, description="pretraining: fine-tuning settings of the arm from scratch")
    leak: Settings = Field({}, description="leak: fine-tuning settings of both arms")
    alphas: tuple[float, float] = Field((10.0, 0.1), description="alpha: the high one and the low one")


def measures() -> dict[Claim, tuple[Measure, ...]]:
    """Return what is compared for each claim, and by how much it is to differ."""
    return {
        "motion": (Measure("test/uar", 0.1),),
        "pretraining": (Measure("test/uar", 0.05),),
        "alpha": (Measure("test/uar", 0.0), Measure("test/angular_error_deg", 0.0)),
        "leak": (Measure("val/uar", 0.0),),
    }


def arms(claim: Claim, config: LearningConfig) -> dict[str, Settings]:
    """Return the two sides of a comparison: how each differs from what all runs share."""
    fewer = {"data.label_ratio": config.label_ratio}
    high, low = config.alphas
    found: dict[Claim, dict[str, Settings]] = {
        "motion": {"clip": {}, "still": {"data.sampling.ablate": "still"}},
        "pretraining": {"pretrained": fewer, "scratch": fewer | {"pretrained": None} | config.scratch},
        "alpha": {f"alpha_{high:g}": {"task.alpha": high}, f"alpha_{low:g}": {"task.alpha": low}},
        "leak": {"leaky": config.leak | {"data.split.protocol": "leaky"}, "honest": config.leak},
    }
    return found[claim]


def run_config(config: LearningConfig, claim: Claim, arm: Settings, seed: int, output: Path) -> FinetuneConfig:
    """Return the settings of one run."""
    world = "leak_data" if claim == "leak" else "data"
    shared = {
        "data.manifest": str(output / world / LABELLED),
        "data.fold": seed % 5 + 1,
        "data.split.seed": seed,
        "loop.seed": seed,
        "pretrained": str(pretrained(output, seed)),
    }
    return with_overrides(config.finetune, shared | arm)


def pretrained(output: Path, seed: int) -> Path:
    """Return the run folder of a seed's pretraining."""
    return output / "pretrain" / f"seed_{seed}"


def judge(config: FinetuneConfig, folder: Path) -> dict[str, float]:
    """Fine-tune in a run folder and score validation and test; what is done already is only read."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    # Runs side by side would write over one another's lines.
    with (folder / "output.txt").open("a", encoding="utf-8") as file, redirect_stdout(file):
        val = finetune.finetune(config, folder)
        evaluate.main([str(folder), "mistakes=0"])
    test = json.loads((folder / "test" / "scores.json").read_text(encoding="utf-8"))["pooled"]
    return {
        f"{part}/{name}": scores[name]
        for part, scores in (("val", val), ("test", test))
        for name in ("uar", "angular_error_deg", "constant_error_deg")
        if name in scores
    }


def prepare(config: LearningConfig, output: Path) -> None:
    """Render the worlds and pretrain once for every seed."""
    prepare_world(config.world, output / "data")
    if "leak" in config.claims:
        prepare_world(config.leak_world, output / "leak_data")
    for seed in range(config.seeds):
        unlabelled = {"data.manifest": str(output / "data" / UNLABELLED), "loop.seed": seed}
        pretrain.pretrain(with_overrides(config.pretrain, unlabelled), pretrained(output, seed))


def learning(config: LearningConfig, output: Path) -> dict[str, Any]:
    """Do all runs that are left to do; return the figures of every claim."""
    prepare(config, output)
    runs = {
        (claim, name, seed): run_config(config, claim, arm, seed, output)
        for claim in config.claims
        for name, arm in arms(claim, config).items()
        for seed in range(config.seeds)
    }
    found: dict[tuple[Claim, str, int], dict[str, float]] = {}
    pool = ProcessPoolExecutor(config.processes, mp_context=get_context("spawn"))
    try:
        waiting = {
            pool.submit(judge, run, output / claim / name / f"seed_{seed}"): (claim, name, seed)
            for (claim, name, seed), run in runs.items()
        }
        with progress("claims", total=len(runs), unit="runs") as bar:
            for done in as_completed(waiting):
                found[waiting[done]] = done.result()
                bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return {
        claim: verdict(
            {name: [found[claim, name, seed] for seed in range(config.seeds)] for name in arms(claim, config)},
            measures()[claim],
        )
        for claim in config.claims
    }


def verdict(by_arm: dict[str, list[dict[str, float]]], wanted: Sequence[Measure]) -> dict[str, Any]:
    """Return a claim's figures: every arm's scores over its seeds, and the differences that were claimed."""
    one, two = by_arm
    claimed = {}
    for measure in wanted:
        gains = [
            first[measure.name] - second[measure.name] for first, second in zip(by_arm[one], by_arm[two], strict=True)
        ]
        gain = spread(gains)
        claimed[f"{measure.name}: {one} - {two}"] = gain | {
            "wanted": measure.wanted,
            "reached": gain["mean"] >= measure.wanted if measure.wanted else gain["mean"] > 0,
        }
    names = by_arm[one][0]
    return {
        "claimed": claimed,
        "arms": {arm: {name: spread([run[name] for run in runs]) for name in names} for arm, runs in by_arm.items()},
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation and every seed's value."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": deviation, "seeds": list(values)}


def show(found: dict[str, Any]) -> None:
    """Print the figures of every claim."""

    def words(figure: dict[str, Any]) -> str:
        seeds = " ".join(f"{value:.3f}" for value in figure["seeds"])
        return f"{figure['mean']:.3f} +- {figure['sd']:.3f} ({seeds})"

    table(
        [
            {"claim": claim, "arm": arm, **{name: words(scores[name]) for name in scores if "constant" not in name}}
            for claim, figures in found.items()
            for arm, scores in figures["arms"].items()
        ]
    )
    table(
        [
            {
                "claim": claim,
                "measure": name,
                "difference": words(gain),
                "wanted": gain["wanted"],
                "reached": str(gain["reached"]),
            }
            for claim, figures in found.items()
            for name, gain in figures["claimed"].items()
        ]
    )


def main(argv: Sequence[str]) -> None:
    """Read the command line, do the runs and print what came out."""
    call = settings.parse(LearningConfig, ["--config", str(RECIPE), *argv], __doc__)
    config, output = call.config, (call.output or Path("output/benchmarks/learning")).absolute()
    if call.dry_run:
        print(settings.dump(config))
        runs = sum(len(arms(claim, config)) for claim in config.claims) * config.seeds
        print(f"{config.seeds} pretrainings, {runs} fine-tuning runs in {output}")
        return
    found = learning(config, output)
    show(found)
    write_whole(output / "learning.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
