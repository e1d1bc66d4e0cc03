"""The whole job through the programs: a pretraining, a study from it, its test, its report; and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mien.experiments import evaluate, report, tune_dfew
from mien.experiments.pretrain import PretrainConfig
from mien.platform import checkpoint
from mien.platform import config as settings
from mien.platform.config import ConfigError
from mien.platform.run import RunError, records


@pytest.mark.ray
def test_a_study_from_a_pretraining_is_searched_tested_and_reported_and_nothing_is_run_twice(
    pretrained: Path, recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    words = ["--config", str(recipes["tune_dfew"]), "--output", str(folder), f"finetune.pretrained={pretrained}"]
    tune_dfew.main(words)
    assert "winner: trial" in capsys.readouterr().out
    trials = [json.loads(path.read_text()) for path in folder.glob("trials/*/trial.json")]
    assert [trial["state"] for trial in trials] == ["complete"] * 2
    assert all(trial["folds"].keys() == {"1", "2"} for trial in trials)
    best = max(trials, key=lambda trial: trial["mean"]["uar"])
    winner = json.loads((folder / "winner.json").read_text())
    assert winner["value"] == best["mean"]["uar"]

    def written() -> dict[Path, int]:
        names = ("metrics.jsonl", "scores.json", "trial.json")
        return {path: path.stat().st_mtime_ns for path in folder.rglob("trials/**/*") if path.name in names}

    before = written()
    assert len(before) == 2 + 2 * 2 * 2
    tune_dfew.main(words)
    assert written() == before
    assert json.loads((folder / "winner.json").read_text()) == winner
    # A folder belongs to one study.
    with pytest.raises(RunError, match=r"finetune\.drop_path: 0\.1 there, 0\.3 given"):
        tune_dfew.main([*words, "finetune.drop_path=0.3"])

    evaluate.main([str(folder)])
    found = json.loads((folder / "test" / "scores.json").read_text())
    assert found["folds"].keys() == {"1", "2"} and found["pooled"]["num_clips"] == 28
    assert len(records(folder / "test" / "opened.jsonl")) == 1
    report.main([str(folder), "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    number = next(trial["number"] for trial in trials if trial["id"] == winner["trial"])
    assert f"trial {number} (alpha" in page and "A study by mien, 2 trials" in page and "Reconstructions" in page


@pytest.mark.ray
def test_the_demo_does_the_whole_job_and_a_second_one_only_what_is_left(
    ray_cluster: None, recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_dfew, "RECIPES", recipes["tune_dfew"].parent)
    tune_dfew.main(["--demo", "--output", str(tmp_path)])
    (scores,) = tmp_path.glob("study/trials/*/fold_1/scores.json")
    kept = [tmp_path / "pretrain" / "metrics.jsonl", tmp_path / "study" / "test" / "scores.json", scores]
    before = [path.stat().st_mtime_ns for path in kept]
    tune_dfew.main(["--demo", "--output", str(tmp_path)])
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert len(records(tmp_path / "study" / "test" / "opened.jsonl")) == 1


@pytest.mark.ray
@pytest.mark.parametrize("encoder", ["lgi_former", "vit", "mamba"])
def test_the_encoder_is_all_that_changes_between_three_whole_jobs(
    ray_cluster: None, encoder: str, recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_dfew, "RECIPES", recipes["tune_dfew"].parent)
    monkeypatch.chdir(tmp_path)
    tune_dfew.main(["--demo", f"encoder={encoder}"])
    folder = tmp_path / "output" / ("demo" if encoder == "lgi_former" else f"demo-{encoder}")
    (scores,) = folder.glob("study/trials/*/fold_1/scores.json")
    assert checkpoint.about(scores.parent)["task"]["backbone"]["encoder"]["name"] == encoder
    assert json.loads((folder / "study" / "test" / "scores.json").read_text())["pooled"]["num_clips"] == 14
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "A study by mien, 1 trials" in page and "Reconstructions" in page


def test_the_demos_encoders_are_as_large_as_the_comparisons_and_its_recipe_stands_alone() -> None:
    sizes = {name: tune_dfew.encoder_of(tune_dfew.DemoConfig(encoder=name)) for name in ("lgi_former", "vit", "mamba")}
    for demo in ("demo", "demo_long"):
        recipe = tune_dfew.RECIPES / demo / "pretrain.yaml"
        own = settings.load(PretrainConfig, recipe, {})
        for name, encoder in sizes.items():
            config = settings.load(PretrainConfig, recipe, {"task.backbone.encoder": encoder})
            tree, other = settings.plain(own), settings.plain(config)
            assert other["task"]["backbone"].pop("encoder") == settings.plain(config.task.backbone.encoder)
            assert (config == own) == (name == "lgi_former")
            del tree["task"]["backbone"]["encoder"]
            assert tree == other


def test_the_demo_takes_an_encoder_alone_and_shows_its_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"--demo has its own recipes, in .*, and takes encoder= alone: unknown .*"):
        tune_dfew.main(["--demo", "study.trials=2", "--output", str(tmp_path / "demo")])
    with pytest.raises(ConfigError, match=r"encoder must be one of lgi_former, vit, mamba, .* got 'resnet'"):
        tune_dfew.main(["--demo", "encoder=resnet", "--output", str(tmp_path / "demo")])
    tune_dfew.main(["--demo", "--dry-run", "encoder=mamba", "--output", str(tmp_path / "demo")])
    shown = capsys.readouterr().out
    assert "identities: " in shown and "encoder: {'name': 'mamba', 'width': 192" in shown
    assert not (tmp_path / "demo").exists()


def test_without_dfew_the_program_says_where_it_looked_how_to_prepare_it_and_that_there_is_a_demo(
    program: Callable[..., Any], tmp_path: Path
) -> None:
    started = program("tune_dfew")
    said = started.communicate(timeout=100)[0]
    assert started.returncode == 2, said
    assert said.startswith(f"error: there is no manifest at {tmp_path / 'output' / 'dfew' / 'manifest.parquet'}")
    assert "prepare.py dfew root=FOLDER_OF_DFEW" in said and "tune_dfew.py --demo" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("space={task.alfa: {name: range, low: 1, high: 2}}", r"unknown setting task\.alfa; did you mean task\.alpha"),
        ("space={task.alpha: {name: range, low: -1, high: 2}}", r"task\.alpha: .*greater than or equal to 0; got -1"),
        ("space={drop_path: {name: range, low: 0, high: 1}}", r"drop_path: .*less than 1; got 1"),
        ("folds=[1,7]", r"folds must be among \[1, 2, 3, 4, 5\], which .*, but got \[7\]"),
        ("study.start_points=[{optim.lr: 1e-3}]", r"start_points name what is searched, but \['optim\.lr'\] are not"),
        ("study.start_points=[{task.alpha: -1}]", r"task\.alpha: .*greater than or equal to 0; got -1"),
        ("finetune.pretrained=nowhere", r"the folder of a run that has one, but nowhere does not exist"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_the_first_trial(
    recipes: dict[str, Path], tmp_path: Path, setting: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        tune_dfew.main(["--config", str(recipes["tune_dfew"]), "--output", str(tmp_path / "study"), setting])
    assert not (tmp_path / "study").exists()


def test_a_dry_run_counts_and_writes_nothing(
    recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune_dfew.main(["--config", str(recipes["tune_dfew"]), "--output", str(tmp_path / "study"), "--dry-run"])
    shown = capsys.readouterr().out
    for words in ("reduction_factor: 3", "up to 2 trials over 2 fold(s): 1, 2", "32 a clip", "GFLOP", "clips  42"):
        assert words in shown
    assert not (tmp_path / "study").exists()


def test_help_lists_every_setting_and_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tune_dfew.main(["--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "--demo " in shown and "--demo-long" in shown
    for setting in settings.settings(tune_dfew.TuneConfig):
        assert f"  {setting.key} (" in shown
