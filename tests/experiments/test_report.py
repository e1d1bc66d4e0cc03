"""A report shows what a folder holds, says what it lacks, and never fails on a record."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from mien.experiments import report
from mien.platform.records import RecordsError


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_study", Path(__file__).with_name("fake_study.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake_study = load()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    fake_study.study(root, steps=100)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of the demo whose config names paths that are not there: as after moving it to another machine."""
    shutil.copytree(made, tmp_path / "demo")
    config = tmp_path / "demo" / "study" / "config.yaml"
    config.write_text(config.read_text().replace(str(made), "/elsewhere/demo"))
    return tmp_path / "demo"


def text(html: str) -> str:
    """Return a page's words without its style, tags and pictures."""
    bare = re.sub(r"<style>.*?</style>|data:image[^\"]*", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare).replace("&nbsp;", " ").replace("&#x27;", "'"))


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None takes a key out."""
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def test_a_study_is_shown_whole_and_small(root: Path) -> None:
    html = report.report(root / "study")
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "Test", "Data", "Trials", "Settings", "Classes against gaze", "Folds", "Confusions", "Mistakes",
        "Learning curves", "Reconstructions", "Cost", "Environment",
    ]  # fmt: skip
    assert 'class="missing"' not in html
    assert len(html.encode()) < 5 * 2**20
    assert not re.search(r"https?://|<script|>nan<|>None<", html)
    assert html.count("<img") == 8 + 2


def test_the_verdict_gives_score_interval_chance_gaze_and_protocol_of_the_records(root: Path) -> None:
    scores = json.loads((root / "study" / "test" / "scores.json").read_text())["pooled"]
    words = text(report.report(root / "study"))
    low, high = scores["intervals"]["uar"]
    assert f"UAR of {scores['uar']:.3f} (95 % interval {low:.3f} to {high:.3f})" in words
    assert f"gaze is off by {scores['angular_error_deg']:.1f}°" in words
    assert (
        f"of the {scores['constant_error_deg']:.1f}° of always answering the mean direction of the training clips"
        in words
    )
    assert "Guessing gives a UAR of 0.143" in words
    assert "Judged on 1,050 clips of 150 subjects. Protocol: honest: validation from train" in words


def test_an_interval_that_holds_chance_is_called_no_skill(root: Path) -> None:
    path = root / "study" / "test" / "scores.json"
    record = json.loads(path.read_text())
    record["pooled"] |= {"uar": 0.16, "intervals": {"uar": [0.13, 0.19]}}
    path.write_text(json.dumps(record))
    assert "holds 0.143, what guessing gives: no skill has been shown" in text(report.report(root / "study"))


def test_a_gaze_no_better_than_a_constant_is_said(root: Path) -> None:
    path = root / "study" / "test" / "scores.json"
    record = json.loads(path.read_text())
    record["pooled"] |= {"angular_error_deg": 30.0, "constant_error_deg": 24.0}
    path.write_text(json.dumps(record))
    assert "no better than the 24.0° of always answering" in text(report.report(root / "study"))


def test_an_interval_over_few_people_is_warned_of(root: Path) -> None:
    path = root / "study" / "test" / "scores.json"
    record = json.loads(path.read_text())
    record["pooled"]["num_subjects"] = 2
    path.write_text(json.dumps(record))
    assert "With 2 subjects the interval is narrower than the doubt" in text(report.report(root / "study"))


def test_the_published_protocol_is_warned_of(root: Path) -> None:
    edit(root / "study" / "test" / "scores.json", protocol="paper")
    words = text(report.report(root / "study"))
    assert "paper: the last epoch; validation = test" in words
    assert "figures flatter" in words


def test_every_trial_is_listed_whatever_became_of_it(root: Path) -> None:
    html = report.report(root / "study")
    rows = re.findall(r'<tr class="(winner|complete|pruned|running|failed)"><td class="n">(\d+)</td>', html)
    assert sorted(int(number) for _, number in rows) == list(range(12))
    assert rows[0][0] == "winner"
    assert {"pruned", "running", "failed"} <= {state for state, _ in rows}
    assert "Trial 5 failed: NonFiniteError" in text(html)


def test_what_was_dropped_is_shown_with_its_reason(root: Path) -> None:
    words = text(report.report(root / "study"))
    assert "Left out: 2 (1 in synthetic, 1 in fold 2)" in words
    assert "frame 3 is truncated" in words
    assert "Said by the reader of synthetic: subjects from subjects.csv." in words
    assert "0 frames: the folder is empty" in words


def test_a_study_without_gaze_says_so(tmp_path: Path) -> None:
    words = text(report.report(fake_study.study(tmp_path, gaze=False, steps=50)))
    assert "No gaze was scored" in words
    assert words.count("No gaze labels in this study") == 2


def test_a_study_before_its_test_says_so(tmp_path: Path) -> None:
    words = text(report.report(fake_study.study(tmp_path, test=False, steps=50)))
    assert "The test has not been opened" in words
    assert "No confusion matrix was recorded" in words
    assert "No mistakes were kept" in words


def test_a_study_that_has_only_begun_says_so(root: Path) -> None:
    study = root / "study"
    shutil.rmtree(study / "test")
    (study / "winner.json").unlink()
    for path in list(study.glob("trials/*/trial.json")):
        if json.loads(path.read_text())["number"] != 11:
            shutil.rmtree(path.parent)
    words = text(report.report(study))
    assert "The search is not over: 0 of 1 trials begun have finished" in words
    assert "So far trial 11 (alpha 0.5) leads on validation" in words
    assert "Two trials with a result and settings that differ are needed" in words


def test_a_study_without_a_single_trial_says_so(root: Path) -> None:
    study = root / "study"
    shutil.rmtree(study / "trials")
    (study / "trials").mkdir()
    (study / "winner.json").unlink()
    assert "No trial has been recorded yet" in text(report.report(study))


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml", "environment.json", "winner.json", "test/scores.json", "test/mistakes/mistakes.json",
        "test/mistakes", "../pretrain", "../pretrain/reconstructions", "../prepare", "../pretrain/metrics.jsonl",
    ],
)  # fmt: skip
def test_no_part_of_a_study_is_needed_for_a_report(root: Path, name: str) -> None:
    path = root / "study" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert 'class="missing"' in report.report(root / "study") or name == "environment.json"


def test_sections_that_only_miss_something_are_drawn_together_at_the_end(root: Path) -> None:
    shutil.rmtree(root / "pretrain")
    html = report.report(root / "study")
    assert "Reconstructions" not in re.findall(r"<h2>(.*?)</h2>", html)
    last = html[html.index("<h2>Not in this report") :]
    assert "<dt>Reconstructions</dt>" in last


def test_a_test_that_was_looked_at_twice_is_warned_of(root: Path) -> None:
    with (root / "study" / "test" / "opened.jsonl").open("a") as file:
        file.write('{"time": "2026-03-02T09:30:00+00:00"}\n')
    assert "The test clips were looked at 2 times" in text(report.report(root / "study"))


def test_the_mean_over_folds_stands_beside_the_score_of_all_clips(root: Path) -> None:
    mean = json.loads((root / "study" / "test" / "scores.json").read_text())["total"]
    assert f"as published totals are made: UAR {mean['uar']:.3f}, WAR {mean['war']:.3f}" in text(
        report.report(root / "study")
    )


def test_a_class_absent_from_the_truth_is_named(root: Path) -> None:
    path = root / "study" / "test" / "scores.json"
    record = json.loads(path.read_text())
    record["pooled"]["per_class"]["sad"] = None
    record["pooled"]["confusion"][4] = [0] * 7
    path.write_text(json.dumps(record))
    words = text(report.report(root / "study"))
    assert "Absent from the truth, so not counted: sad." in words
    assert "Guessing gives a UAR of 0.167" in words


@pytest.mark.parametrize(
    "name", ["winner.json", "test/scores.json", "test/mistakes/mistakes.json", "test/mistakes/000.jpg"]
)
def test_a_damaged_record_is_named_in_the_report(root: Path, name: str) -> None:
    (root / "study" / name).write_text('{"a": [')
    words = text(report.report(root / "study"))
    assert "Not everything could be read" in words or name.endswith(".jpg")
    assert name != "test/mistakes/000.jpg" or "its picture cannot be read" in words


def test_a_pareto_search_has_two_objectives(root: Path) -> None:
    both = ["uar", "angular_error_deg"]
    edit(root / "study" / "winner.json", objective=both, value=[0.4, 11.0])
    assert "# UAR gaze error in ° WAR folds" in text(report.report(root / "study"))


def test_a_search_for_the_least_error_ranks_the_least_first(root: Path) -> None:
    edit(root / "study" / "winner.json", objective="angular_error_deg", trial="none")
    html = report.report(root / "study")
    errors = re.findall(r'<tr class="complete"><td class="n">\d+</td><td class="n">([\d.]+) ±', html)
    assert [float(error) for error in errors] == sorted(float(error) for error in errors)


def test_names_in_records_cannot_become_markup(root: Path) -> None:
    hostile = '<script>alert("1")</script>'
    record = root / "study" / "test" / "scores.json"
    edit(record, classes=[hostile, *fake_study.CLASSES[1:]], protocol=hostile)
    for path in (root / "study").glob("trials/*/trial.json"):
        edit(path, state=hostile, error=hostile, params={hostile: hostile, "task.alpha": 1.0})
    edit(root / "study" / "environment.json", command=hostile)
    mistakes = root / "study" / "test" / "mistakes" / "mistakes.json"
    mistakes.write_text(
        json.dumps([one | {"truth": hostile, "video": hostile} for one in json.loads(mistakes.read_text())])
    )
    assert "<script" not in report.report(root / "study")


def test_a_pretraining_run_has_a_report_of_its_own(root: Path) -> None:
    html = report.report(root / "pretrain")
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["Data", "Learning curves", "Reconstructions", "Cost", "Environment"]
    assert "After 100 steps the loss is" in text(html)
    assert html.count("<img") == 2


def test_a_fine_tuning_run_has_a_report_of_its_own(root: Path) -> None:
    fold = next((root / "study").glob("trials/*/fold_1"))
    html = report.report(fold)
    assert "It reaches a validation UAR of" in text(html)
    assert "Confusions" in re.findall(r"<h2>(.*?)</h2>", html)


def test_a_run_that_was_tested_shows_its_test(root: Path) -> None:
    fold = next((root / "study").glob("trials/*/fold_1"))
    shutil.copytree(root / "study" / "test", fold / "test")
    html = report.report(fold)
    assert "It reaches a test UAR of" in text(html)
    assert re.findall(r"<h2>(.*?)</h2>", html)[:3] == ["Test", "Confusions", "Mistakes"]


def test_a_run_whose_loss_was_never_a_number_is_reported(tmp_path: Path) -> None:
    fake_study.write(tmp_path / "metrics.jsonl", [{"step": 1, "train/loss": None, "train/lr": 1e-3}])
    assert "no finite value" in text(report.report(tmp_path))


def test_the_program_writes_beside_the_study_or_where_it_is_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([str(root)])
    report.main([f"folder={root / 'study'}", "--output", str(root / "new" / "page.html")])
    assert (root / "report.html").read_text() == (root / "new" / "page.html").read_text()
    assert "report.html" in capsys.readouterr().out


def test_the_program_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="no such folder"):
        report.main([str(tmp_path / "nothing")])


def test_a_dry_run_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(root / "study"), "--dry-run"])
    assert "would write" in capsys.readouterr().out
    assert not (root / "study" / "report.html").exists()


def test_the_same_records_give_the_same_page(root: Path) -> None:
    assert report.report(root / "study") == report.report(root / "study")


def test_a_manifest_is_counted_by_part_and_class(root: Path) -> None:
    config = yaml.safe_load((root / "study" / "config.yaml").read_text())
    (clips,) = report.clips(root / "study", [config])
    assert (clips.clips, clips.subjects, clips.labelled, clips.gaze) == (1050, 150, 1050, 1050)
    assert clips.parts == {f"fold {k}": 210 for k in range(1, 6)}
    assert np.sum([sum(part.values()) for part in clips.per_class.values()]) == 1050
