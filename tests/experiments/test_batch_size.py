"""batch_size.py: a run's own steps are tried until they fill the memory, and settings are told with their reasons."""

import json
from pathlib import Path

import pytest

from mien.experiments import batch_size
from mien.platform.capacity import Tried
from mien.platform.config import ConfigError, load

GIB = 2**30
LIMIT = 10 * GIB
TRIED = [Tried(1, 2 * GIB, 1.0), Tried(2, 3 * GIB, 1.0), Tried(4, 5 * GIB, 1.0), Tried(8, 9 * GIB, 2.05)]


def told(recipes: dict[str, Path], **changes: object) -> tuple[dict[str, object], str]:
    config = load(batch_size.FinetuneFit, recipes["finetune"], changes)
    settings, said = batch_size.advice(TRIED, LIMIT, config)
    return settings, "\n".join(said)


def test_a_batch_that_fits_stays_as_it_is(recipes: dict[str, Path]) -> None:
    settings, said = told(recipes)
    assert settings == {"loop.batch_size": 8, "loop.accumulate": 1}
    assert "share of 8 fits as it is" in said and "4 at a time are as fast as more: 4 clips" in said


def test_a_larger_batch_is_computed_in_pieces_and_another_one_has_another_rate(recipes: dict[str, Path]) -> None:
    settings, said = told(recipes, **{"loop.batch_size": 30, "optim.scale_lr": True, "optim.lr": 0.0256})
    assert settings == {"loop.batch_size": 30, "loop.accumulate": 8, "largest without pieces": 8}
    assert "learning rate 0.003 at the peak" in said  # 30 clips: the rule's 0.0256 * 30 / 256
    assert "loop.batch_size=8, is another training: learning rate 0.0008" in said
    assert "loop.activation_checkpointing=true lets more" in said


def test_not_even_one_clip_is_said_with_what_would_help(recipes: dict[str, Path]) -> None:
    config = load(batch_size.FinetuneFit, recipes["finetune"], {})
    with pytest.raises(ConfigError, match=r"not even one clip .* 10\.0 GiB \(no memory left\); try loop\.activation"):
        batch_size.advice([Tried(1, failed="no memory left")], LIMIT, config)


def test_a_share_of_the_workers_counts_not_the_batch(recipes: dict[str, Path]) -> None:
    config = load(batch_size.PretrainFit, recipes["pretrain"], {"loop.batch_size": 32, "trainer.workers": 4})
    settings, _ = batch_size.advice(TRIED, LIMIT, config)
    assert settings["loop.accumulate"] == 1 and "largest without pieces" not in settings


def test_a_runs_steps_are_tried_in_processes_of_their_own(
    recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--config", str(recipes["pretrain"]), "--output", str(tmp_path), "fit.most=1"]
    batch_size.main([*words, "fit.memory_gib=6"])
    found = json.loads((tmp_path / "batch_size.json").read_text())
    assert [one["clips"] for one in found["tried"]] == [1]
    assert all(one["clips_a_second"] > 0 and 50e6 < one["bytes"] < 6e9 for one in found["tried"])
    assert "limit 5.4 GiB: 0.9 of 6.0 GiB asked for" in capsys.readouterr().out


def test_a_model_that_is_too_large_ends_in_a_message_and_not_in_a_kill(
    recipes: dict[str, Path], tmp_path: Path
) -> None:
    words = ["finetune", "--config", str(recipes["finetune"]), "--output", str(tmp_path), "fit.memory_gib=0.5"]
    with pytest.raises(ConfigError, match=r"not even one clip at a time fits into 460\.8 MiB"):
        batch_size.main([*words, "task.backbone.encoder.width=1024", "task.backbone.encoder.depth=4"])
    assert list(tmp_path.iterdir()) == []


def test_the_first_word_names_the_program() -> None:
    with pytest.raises(ConfigError, match="finetune or pretrain"):
        batch_size.main(["evaluate"])
