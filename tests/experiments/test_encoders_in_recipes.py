"""The encoder is the only change between recipes: each one goes with all three, or says plainly what else to change."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from mien.experiments import finetune, pretrain, tune_dfew
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.platform import checkpoint
from mien.platform.config import plain

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "configs"
ENCODERS = ("lgi_former", "vit", "mamba")
Program = Callable[[Sequence[str]], None]
TUNING: dict[str, Program] = {"study": tune_dfew.main, "tune": tune_dfew.main, "finetune": finetune.main}
# What cannot be as it stands in the recipe, and the words that say which setting to change.
REFUSED = {
    ("pretrain_vit_base.yaml", "lgi_former"): r"mask's window must be its region's .*set mask\.kind to 'window'",
    ("finetune_dfew_lora.yaml", "mamba"): r"lora\.targets: 'q' fits none of these: .*in_proj.*; name one or more",
}


def recipes_of(*kinds: str) -> list[str]:
    found = [path for path in FOLDER.rglob("*.yaml") if path.stem.split("_")[0] in kinds]
    return sorted(path.relative_to(FOLDER).as_posix() for path in found)


def dry_run(program: Program, recipe: str, encoder: str, *words: str) -> None:
    """Run a program dry, and expect it to say the words of REFUSED where it does not go through."""
    call = ["--config", str(FOLDER / recipe), "--dry-run", *words]
    if (recipe, encoder) not in REFUSED:
        return program(call)
    with pytest.raises(ValueError, match=REFUSED[recipe, encoder]):
        program(call)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("recipe", recipes_of("pretrain"))
def test_a_pretraining_takes_any_encoder_by_its_name(
    recipe: str, encoder: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shallow = "task.backbone.encoder.depth=1"  # to be quick
    words = (f"data.manifest={world / 'unlabelled.parquet'}", f"task.backbone.encoder.name={encoder}", shallow)
    dry_run(pretrain.main, recipe, encoder, *words)
    printed = capsys.readouterr().out
    if (recipe, encoder) not in REFUSED:
        assert f"name: {encoder}\n" in printed and "GFLOP a clip" in printed
    if recipe == "pretrain_lgi_base.yaml":
        there = "also on region_tokens" if encoder == "lgi_former" else "not on region_tokens, of which this model has"
        assert there in printed


@pytest.fixture(scope="module")
def pretrained(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return small weights of each encoder, as a pretraining leaves them."""
    encoders = yaml.safe_load(recipes["encoders"].read_text())["encoders"]
    settings = yaml.safe_load(recipes["pretrain"].read_text())["task"]
    found = {}
    for name in ENCODERS:
        backbone = settings["backbone"] | {"encoder": encoders[name]}
        config = MaeConfig.model_validate(settings | {"backbone": backbone})
        found[name] = tmp_path_factory.mktemp("pretrained") / name
        checkpoint.export(found[name], MaskedAutoencoder(config).state_dict(), {"task": plain(config)})
    return found


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("recipe", recipes_of("finetune", "tune", "study"))
def test_what_follows_a_pretraining_takes_the_encoder_that_it_had(
    recipe: str, encoder: str, world: Path, pretrained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    program, manifest = TUNING[Path(recipe).stem.split("_")[0]], world / "manifest.parquet"
    words = [f"data.manifest={manifest}", "data.fold=1", f"pretrained={pretrained[encoder]}"]
    if program is tune_dfew.main:
        words = [f"manifests=[{manifest}]", f"finetune.pretrained={pretrained[encoder]}"]
    dry_run(program, recipe, encoder, *words)
    if (recipe, encoder) not in REFUSED:
        assert "GFLOP a clip" in capsys.readouterr().out


@pytest.mark.parametrize("encoder", ENCODERS)
def test_fine_tuning_from_scratch_takes_any_encoder_by_its_name(encoder: str, world: Path) -> None:
    words = (f"data.manifest={world / 'manifest.parquet'}", "data.fold=1", "task.backbone.encoder.depth=1")
    dry_run(finetune.main, "finetune_dfew.yaml", encoder, *words, f"task.backbone.encoder.name={encoder}")
