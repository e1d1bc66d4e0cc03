"""Search fine-tuning for DFEW: the combined loss's alpha and the hyper-parameters beside it, judged over the folds.

    python experiments/tune_dfew.py --config experiments/configs/tune_dfew.yaml --output output/study_dfew
    python experiments/tune_dfew.py --demo [encoder=vit|mamba]     # the whole job on the synthetic world, in minutes

A trial is one configuration, fine-tuned on each fold in turn and scored on validation clips taken out of train; its
running mean over folds decides whether it is pruned. The winner's models stay in `trials/<id>/fold_<k>/`, and
`evaluate.py` opens the test clips with them, once. The same command in the same folder goes on after a stop.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, Field

from mien.data_pipelines import clips, splits
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments import evaluate, finetune, prepare, pretrain, report
from mien.experiments.finetune import FinetuneConfig
from mien.platform import checkpoint, cluster, interrupt, tune
from mien.platform import config as settings
from mien.platform.cluster import ClusterConfig
from mien.platform.config import ConfigError, plain, rebuild, run_program, with_overrides
from mien.platform.preflight import FORCE, preflight
from mien.platform.progress import live_table, table
from mien.platform.run import Run, interruptible
from mien.platform.shortcomings import Needs
from mien.platform.space import Choice, Range, Space
from mien.platform.study import Record, StudyConfig
from mien.platform.watching import trial_rows
from mien.platform.worker import Here

# What is searched, by the dotted names of the fine-tuning settings.
SPACE: Space = {
    "task.alpha": Range(low=0.1, high=10, log=True),
    "optim.lr": Range(low=3e-4, high=3e-3, log=True),
    "optim.layer_decay": Choice(values=(0.65, 0.75, 0.85)),
    "drop_path": Range(low=0, high=0.2),
}
RECIPES = Path(__file__).resolve().parent / "configs"


class TuneConfig(BaseModel, frozen=True, extra="forbid"):
    """A study: where it is judged, what is searched, and how long."""

    manifests: tuple[str, ...] = Field(
        ("output/dfew/manifest.parquet",), description="manifests made by prepare.py; of several, all folds of each"
    )
    folds: tuple[int, ...] | None = Field(None, description="folds a trial is judged on, in order; null: all")
    space: Space = Field(SPACE, description="what is searched: fine-tuning settings and their ranges or choices")
    finetune: FinetuneConfig = FinetuneConfig()
    study: StudyConfig = StudyConfig()
    cluster: ClusterConfig = ClusterConfig()


class DemoConfig(BaseModel, frozen=True, extra="forbid"):
    """The whole job on the synthetic world."""

    encoder: str = Field("lgi_former", description="lgi_former, vit or mamba, as large as configs/encoders.yaml has it")


def judged_folds(config: TuneConfig) -> dict[str, dict[str, Any]]:
    """Return the settings of each (dataset, fold) a trial is judged on, by a name for its folder.

    Raises ConfigError where a manifest is missing, saying how to get one.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in config.manifests:
        if not Path(path).is_file():
            raise ConfigError(
                f"there is no manifest at {Path(path).absolute()}; make it from DFEW as its owner ships it with\n"
                "  python experiments/prepare.py dfew root=FOLDER_OF_DFEW --output output/dfew\n"
                "or see the whole job on a synthetic world with\n  python experiments/tune_dfew.py --demo"
            )
        manifest = Manifest.read(path, config.finetune.data.root)
        there = splits.folds(manifest)
        if there and (absent := set(config.folds or ()) - set(there)):
            raise ConfigError(
                f"folds must be among {there}, which {path} has, but got {sorted(absent)}; leave them out"
            )
        folds: list[int | None] = [fold for fold in there if config.folds is None or fold in config.folds]
        prefix = f"{manifest.name}_" if len(config.manifests) > 1 else ""
        for fold in folds or [None]:
            name = f"{prefix}{fold or 1}"
            if name in found:
                raise ConfigError(f"manifests of a study must have different names, but two are {manifest.name!r}")
            found[name] = {"data.manifest": str(Path(path).absolute()), "data.fold": fold}
    return found


def try_space(config: TuneConfig) -> None:
    """Raise ConfigError, before the first trial, for a searched setting that does not exist or takes no such value."""
    for key, entry in config.space.items():
        for value in entry.examples():
            with_overrides(config.finetune, {key: value})
    for point in config.study.start_points:
        if unknown := point.keys() - config.space.keys():
            raise ConfigError(f"study.start_points name what is searched, but {sorted(unknown)} are not in space")
        with_overrides(config.finetune, point)


def about(config: TuneConfig, output: Path) -> dict[str, str]:
    """Return what the cluster's list of jobs is to say of a study."""
    datasets = [Manifest.read(path, config.finetune.data.root).name for path in config.manifests]
    alpha = config.space["task.alpha"].examples() if "task.alpha" in config.space else []
    return {
        "study": output.absolute().name,
        "dataset": ", ".join(datasets),
        "alpha": f"{min(alpha):g} to {max(alpha):g}" if alpha else "not searched",
        "storage": str(output.absolute()),
    }


def first_fold(config: TuneConfig, folds: dict[str, dict[str, Any]]) -> tuple[FinetuneConfig, finetune.Fold]:
    """Return the first fold's run, opened: what is wrong with checkpoint or clips is said before Ray starts."""
    return finetune.opened(with_overrides(config.finetune, next(iter(folds.values()))))


def judge(
    params: dict[str, Any], fold: str, folder: Path, context: dict[str, Any], here: Here | None = None
) -> dict[str, float]:
    """Fine-tune one configuration on one fold in a trial's process, one of several with `here`; return its scores."""
    base = rebuild(FinetuneConfig, context["finetune"])
    config = with_overrides(base, params | context["folds"][fold])
    sources = clips.shared(context["clips"][config.data.manifest])
    found = finetune.finetune(config, folder, sources, interrupt=interrupt.TOLD, here=here)
    if here is None or here.rank == 0:
        checkpoint.settle(folder / "checkpoints")
    return {name: found[name] for name in ("uar", "war", "angular_error_deg") if name in found}


def study(config: TuneConfig, output: Path, *, force: bool = False) -> Record:
    """Run the study in `output`, or what is left of it; return the winner. `force` goes on whatever preflight finds."""
    folds = judged_folds(config)
    try_space(config)
    first_fold(config, folds)
    with (
        Run.start(output, config, seed=config.study.seed),
        cluster.connect(config.cluster, about(config, output)),
        live_table("trials") as show_trials,
    ):
        preflight(Needs(output), force=force)
        # Clips are read once and stay encoded; trials share them, and none waits for another's data tasks.
        shared = {}
        for path in dict.fromkeys(fold["data.manifest"] for fold in folds.values()):
            manifest = Manifest.read(path, config.finetune.data.root)
            shared[path] = clips.share(manifest, np.arange(len(manifest)), manifest.root)
        context = {"finetune": plain(config.finetune), "folds": folds, "clips": shared}
        winner = tune.run_study(
            judge,
            config.space,
            list(folds),
            config.study,
            output,
            context,
            lambda records: show_trials(trial_rows(records, config.study.objectives[0])),
        )
    print(f"winner: trial {winner['trial']}, {winner['objective']} {winner['value']} on validation, {winner['params']}")
    return winner


def encoder_of(config: DemoConfig) -> dict[str, Any]:
    """Return the settings of the demo's encoder. Raises ConfigError for one of another name."""
    recipe = RECIPES / "encoders.yaml"
    known: dict[str, dict[str, Any]] = yaml.safe_load(recipe.read_text(encoding="utf-8"))["encoders"]
    if config.encoder not in known:
        raise ConfigError(f"encoder must be one of {', '.join(known)}, as {recipe} has it; got {config.encoder!r}")
    return known[config.encoder]


def demo(name: str, encoder: dict[str, Any], output: Path, *, force: bool = False) -> None:
    """Do the whole job on the synthetic world: render, pretrain an encoder, search, evaluate, report."""
    began = time.monotonic()
    stages: dict[str, float] = {}
    data = output / "data"
    recipes = RECIPES / name

    def chapter(title: str, stage: str) -> None:
        stages[stage] = time.monotonic() - began
        print(f"\n== {title} ({stages[stage]:.0f} s)", flush=True)

    chapter("A synthetic world of faces", "prepare")
    prepare.prepare_world(settings.load(WorldConfig, recipes / "world.yaml", {}), data)
    # One cluster for all that follows: starting Ray takes as long as a fold. Its workers may stand in other folders.
    here = output.absolute()
    searched = settings.load(
        TuneConfig,
        recipes / "study.yaml",
        {"manifests": [str(here / "data" / prepare.LABELLED)], "finetune.pretrained": str(here / "pretrain")},
    )
    pretrained = settings.load(
        pretrain.PretrainConfig,
        recipes / "pretrain.yaml",
        {"data.manifest": str(here / "data" / prepare.UNLABELLED), "task.backbone.encoder": encoder},
    )
    with cluster.connect(searched.cluster, about(searched, output / "study")):
        chapter("Pretraining on unlabelled videos", "pretrain")
        pretrain.pretrain(pretrained, output / "pretrain", force=force)
        chapter("A study over alpha and five folds", "study")
        study(searched, output / "study", force=force)
    chapter("The winner meets the test clips", "evaluate")
    evaluate.main([str(output / "study")])
    chapter("Report", "report")
    report.main([str(output / "study"), "--output", str(output / "report.html")])
    print(f"\ndone in {time.monotonic() - began:.0f} s")


def run_demo(flag: str, flags: dict[str, str], argv: Sequence[str]) -> None:
    """Read the demo's command line and do the demo, in a folder of the encoder's own."""
    try:
        call = settings.parse(DemoConfig, argv, __doc__, flags=flags)
    except ConfigError as error:
        raise ConfigError(f"--{flag} has its own recipes, in {RECIPES}, and takes encoder= alone: {error}") from None
    name, encoder = flag.replace("-", "_"), encoder_of(call.config)
    if call.dry_run:
        recipes = sorted((RECIPES / name).glob("*.yaml"))
        print(*(recipe.read_text(encoding="utf-8") for recipe in recipes), f"encoder: {encoder}", sep="\n")
        return
    own = Path("output") / (flag if call.config == DemoConfig() else f"{flag}-{call.config.encoder}")
    output = call.output or own
    with interruptible(Run(output), kept=f"all that was finished is kept in {output}"):
        demo(name, encoder, output, force="force" in call.flags)


def main(argv: Sequence[str]) -> None:
    """Read the command line and run the study, or the demo."""
    flags = {
        "demo": "do the whole job on the synthetic world, in about six minutes on two cores; encoder=vit with another",
        "demo-long": "the same with more clips, steps and trials, in under an hour",
    }
    for flag in flags:
        if f"--{flag}" in argv:
            run_demo(flag, flags | FORCE, argv)
            return
    call = settings.parse(TuneConfig, argv, __doc__, flags=flags | FORCE)
    if call.dry_run:
        folds = judged_folds(call.config)
        try_space(call.config)
        print(settings.dump(call.config))
        print(f"up to {call.config.study.trials} trials over {len(folds)} fold(s): {', '.join(folds)}; each fold:")
        found = finetune.run_sizes(*first_fold(call.config, folds))
        table([{"size": name, "value": value} for name, value in found.items()])
        return
    output = call.output or Path("output/study_dfew")
    with interruptible(Run(output), kept=f"trials, finished folds and checkpoints are kept in {output}"):
        study(call.config, output, force="force" in call.flags)


if __name__ == "__main__":
    run_program(main)
