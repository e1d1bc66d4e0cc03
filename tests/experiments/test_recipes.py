"""A recipe names only settings that exist: each one in the repository loads into its program's config."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments.benchmarks.encoders import EncodersConfig
from mien.experiments.benchmarks.learning import LearningConfig
from mien.experiments.benchmarks.relabelling import RelabellingConfig
from mien.experiments.finetune import FinetuneConfig
from mien.experiments.pretrain import PretrainConfig
from mien.experiments.tune_dfew import TuneConfig, try_space
from mien.platform import config as settings

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "configs"
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "clusters")
# By the first word of a recipe's name.
CONFIGS: dict[str, type[BaseModel]] = {
    "encoders": EncodersConfig,
    "finetune": FinetuneConfig,
    "learning": LearningConfig,
    "pretrain": PretrainConfig,
    "relabelling": RelabellingConfig,
    "study": TuneConfig,
    "tune": TuneConfig,
    "world": WorldConfig,
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_a_recipe_loads_and_is_not_only_defaults(recipe: Path) -> None:
    config_class = CONFIGS[recipe.stem.split("_")[0]]
    config = settings.load(config_class, recipe, {})
    assert settings.plain(config) != settings.plain(settings.load(config_class, None, {}))
    assert settings.rebuild(config_class, settings.plain(config)) == config
    if isinstance(config, TuneConfig):
        try_space(config)
        for point in config.study.start_points:
            settings.with_overrides(config.finetune, point)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_a_recipe_says_what_it_is_for(recipe: Path) -> None:
    assert recipe.read_text(encoding="utf-8").startswith("# ")


def test_the_published_recipes_are_the_published_hyper_parameters() -> None:
    pretraining = settings.load(PretrainConfig, FOLDER / "pretrain_lgi_base.yaml", {})
    assert pretraining.optim.lr * pretraining.loop.batch_size / 256 == pytest.approx(1.875e-4)
    assert pretraining.loop.steps_per_epoch(1_091_726) == 6823
    finetuning = settings.load(FinetuneConfig, FOLDER / "finetune_dfew.yaml", {})
    assert finetuning.optim.lr * finetuning.loop.batch_size / 256 == pytest.approx(3.75e-4)
    assert finetuning.task.pooled == "region" and pretraining.optim.decay_anyway == ("region_tokens",)
    assert (finetuning.optim.layer_decay, finetuning.optim.weight_decay, finetuning.loop.epochs) == (0.75, 0.05, 100)
    assert (finetuning.data.mixing.mixup, finetuning.data.mixing.cutmix, finetuning.drop_path) == (0.8, 1.0, 0.1)
