"""evaluate.py opens the test clips once, counts every further time, and refuses clips a run was not made for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mien.data_pipelines.manifest import SCHEMA, Manifest, build
from mien.experiments import evaluate, finetune, report
from mien.platform import checkpoint
from mien.platform.config import ConfigError
from mien.platform.folder_lock import FolderLock
from mien.platform.run import records
from mien.platform.storage import write_whole


@pytest.fixture
def folder(finetuned: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run."""
    return Path(shutil.copytree(finetuned, tmp_path / "run"))


def test_the_test_clips_are_opened_once_and_again_only_if_asked(
    folder: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(folder)])
    first = capsys.readouterr().out
    assert "test, 1 fold(s), protocol honest: 14 clips, 2 subjects" in first
    assert "why your number may differ:\n  - nothing that is known to matter differs" in first
    found = json.loads((folder / "test" / "scores.json").read_text())
    assert found["folds"].keys() == {"1"} and found["protocol"] == "honest"
    assert found["inputs"]["1"]["clips"] == 14 and found["why"]["trained on"]["recorded"]
    predictions = pq.read_table(folder / "test" / "predictions" / "test.parquet")
    folds = Manifest.read(world / "manifest.parquet").column("fold")
    assert [folds[row] for row in predictions["row"].to_pylist()] == [1] * 14

    with monkeypatch.context() as context:
        context.setattr(evaluate, "evaluate", None)  # would fail if it were called
        evaluate.main([str(folder)])
    second = capsys.readouterr().out
    assert second.startswith("the test clips were opened at 20")
    assert second.splitlines()[1:] == first.splitlines()[-len(second.splitlines()) + 1 :]
    assert len(records(folder / "test" / "opened.jsonl")) == 1

    evaluate.main([str(folder), "--again"])
    assert len(records(folder / "test" / "opened.jsonl")) == 2
    assert json.loads((folder / "test" / "scores.json").read_text()) == found


def test_two_programs_at_once_open_the_test_clips_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def while_waiting(place: Path) -> FolderLock:
        monkeypatch.undo()
        evaluate.main([str(place)])  # the other one
        return FolderLock(place)

    monkeypatch.setattr(evaluate, "FolderLock", while_waiting)
    evaluate.main([str(folder)])
    assert len(records(folder / "test" / "opened.jsonl")) == 1
    assert capsys.readouterr().out.count("the test clips were opened at 20") == 1


def test_a_root_without_the_manifest_that_it_is_of_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="root=elsewhere was given: add manifest="):
        evaluate.main([str(folder), "root=elsewhere"])
    assert not (folder / "test").exists()


def test_the_datasets_of_a_study_are_scored_apart(
    finetuned: Path, world: Path, recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same clip names, but one class less.
    manifest = Manifest.read(world / "manifest.parquet")
    place, labels = manifest.table.column_names.index("label"), manifest.table["label"]
    table = manifest.table.set_column(place, SCHEMA.field("label"), pc.min_element_wise(labels, 5))
    replace(manifest, name="other", table=table, classes=manifest.classes[:6]).write(tmp_path / "other.parquet")
    folds = tmp_path / "study" / "trials" / "abc"
    shutil.copytree(finetuned, folds / f"fold_{manifest.name}_1")
    settings = [f"data.manifest={tmp_path / 'other.parquet'}", "--output", str(folds / "fold_other_1")]
    finetune.main(["--config", str(recipes["finetune"]), *settings])
    write_whole(tmp_path / "study" / "winner.json", json.dumps({"trial": "abc", "value": 0.5, "objective": "uar"}))
    capsys.readouterr()

    evaluate.main([str(tmp_path / "study")])
    shown = capsys.readouterr().out
    assert f"test of {manifest.name}, 1 fold(s)" in shown and "test of other, 1 fold(s)" in shown
    found = json.loads((tmp_path / "study" / "test" / "scores.json").read_text())["datasets"]
    assert [len(found[name]["classes"]) for name in (manifest.name, "other")] == [7, 6]
    evaluate.main([str(alone := Path(shutil.copytree(finetuned, tmp_path / "alone")))])
    assert json.loads((alone / "test" / "scores.json").read_text())["pooled"] == found[manifest.name]["pooled"]
    tables = [tmp_path / "study" / "test" / "predictions" / f"test_{name}.parquet" for name in found]
    assert [len(pq.read_table(table)) for table in tables] == [14, 14]

    report.main([str(tmp_path / "study")])
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    for title in ("Test", "Folds", "Confusions"):
        assert f"{title}: {manifest.name}" in page and f"{title}: other" in page


def test_spoilt_motion_is_scored_beside_whole_clips_and_opens_the_test_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(folder), "--motion"])
    shown = capsys.readouterr().out
    whole = json.loads((folder / "test" / "scores.json").read_text())
    found = json.loads((folder / "test" / "motion.json").read_text())
    assert list(found) == ["none", "shuffled", "reversed", "still"]
    assert found["none"][""] == whole["pooled"]
    gaze = [found[kind][""]["angular_error_deg"] for kind in found]
    assert len(set(gaze)) == 4  # what the model sees does change
    assert all(kind in shown for kind in found)
    assert [line["file"] for line in records(folder / "test" / "opened.jsonl")] == ["scores.json", "motion.json"]
    again = evaluate.evaluate_motion(evaluate.EvaluateConfig(folder=str(folder)), folder, whole)
    assert again == found

    before = (folder / "test" / "motion.json").stat().st_mtime_ns
    evaluate.main([str(folder), "--motion"])
    assert (folder / "test" / "motion.json").stat().st_mtime_ns == before
    report.main([str(folder)])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "in any order" in page and "were looked at" not in page


def test_the_most_confident_mistakes_are_drawn_and_reported(folder: Path) -> None:
    evaluate.main([str(folder), "mistakes=2"])
    kept = json.loads((folder / "test" / "mistakes" / "mistakes.json").read_text())
    assert len(kept) == 2 and kept[0]["confidence"] >= kept[1]["confidence"]
    assert all((folder / "test" / "mistakes" / mistake["file"]).is_file() for mistake in kept)
    report.main([str(folder)])
    assert (folder / "report.html").read_text(encoding="utf-8").count("<img") == 2


def test_no_mistakes_are_listed_as_none(folder: Path) -> None:
    evaluate.main([str(folder), "mistakes=0"])
    assert json.loads((folder / "test" / "mistakes" / "mistakes.json").read_text()) == []


def test_a_dry_run_names_the_runs_and_opens_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(folder), "--dry-run"])
    shown = capsys.readouterr().out
    assert "mistakes: 12" in shown and str(folder) in shown and "14" in shown and "33,993" in shown
    assert not (folder / "test").exists()


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    for program, words in ((evaluate, ("folder (str)", "mistakes (int)", "--again")), (report, ("folder (str)",))):
        with pytest.raises(SystemExit) as ended:
            program.main(["--help"])
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"winner\.json.*scores\.json.*holds neither"):
        evaluate.main([str(tmp_path)])


def test_a_run_whose_manifest_has_changed_is_not_evaluated_on_other_clips(folder: Path, world: Path) -> None:
    manifest = Manifest.read(world / "manifest.parquet")
    manifest.take(range(1, len(manifest))).write(folder / "less.parquet")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(world / "manifest.parquet"), str(folder / "less.parquet")))
    with pytest.raises(ConfigError, match=r"trained on a manifest with fingerprint .* prepare it as it was"):
        evaluate.main([str(folder)])
    assert not (folder / "test").exists()


@pytest.fixture
def other(world: Path, tmp_path: Path) -> Path:
    """Return a manifest of other people under other names of classes, one of them unknown, at 30 frames a second."""
    manifest = Manifest.read(world / "manifest.parquet")
    names = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "contempt")
    rows = [row for row in manifest.rows() if row["fold"] in (1, 2)]
    for row in rows:
        row |= {"dataset": "stage", "video": f"s{row['video']}", "subject": f"s{row['subject']}", "fps": 30.0}
        row["label"] = {"Happy": 0, "Sad": 1, "Neutral": 2, "Angry": 3, "Surprise": 4, "Disgust": 5, "Fear": 6}[
            manifest.classes[row["label"]]
        ]
        row["fold"] = None
    build(rows, names, manifest.root, "stage").write(tmp_path / "stage.parquet")
    return tmp_path / "stage.parquet"


def test_a_run_is_judged_on_another_manifest_beside_its_own(
    folder: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(folder), f"manifest={other}"])
    shown = capsys.readouterr().out
    # Four persons, seven clips each, less those of the class that the model does not know.
    assert "1 fold(s), protocol honest: 24 clips, 4 subjects" in shown
    assert "dataset: trained on dfew, here stage" in shown and "left out" in shown and "4 contempt" in shown
    assert not (folder / "test").exists()
    (place,) = folder.glob("test_on_stage_*")
    found = json.loads((place / "scores.json").read_text())
    own = Manifest.read(other)
    predictions = pq.read_table(place / "predictions" / "test.parquet")
    for row, video, label in zip(*(predictions[name].to_pylist() for name in ("row", "video", "label")), strict=True):
        assert own.row(row)["video"] == video  # rows are those of the manifest that was given
        assert found["classes"][label].lower()[:3] == own.classes[own.row(row)["label"]][:3]
    assert found["pooled"]["constant"]["from"] == "train" and found["notes"] == [
        "left out, since the model knows no such class: 4 contempt"
    ]
    assert len(records(place / "opened.jsonl")) == 1

    evaluate.main([str(folder)])
    evaluate.main([str(folder), f"manifest={other}"])
    assert "were opened at" in capsys.readouterr().out and (folder / "test" / "scores.json").is_file()
    report.main([str(folder)])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Why your number may differ" in page and "On other clips" in page and "4 contempt" in page


def test_clips_of_the_training_set_in_another_form_are_those_of_the_runs_own_fold(folder: Path, world: Path) -> None:
    manifest = Manifest.read(world / "manifest.parquet")
    thin = pa.array([2] * len(manifest), pa.int64())
    table = manifest.table.set_column(SCHEMA.get_field_index("frames"), SCHEMA.field("frames"), thin)
    replace(manifest, table=table, name="<thin>").write(folder / "thin.parquet")
    evaluate.main([str(folder), f"manifest={folder / 'thin.parquet'}"])
    (place,) = folder.glob("test_on__thin__*")
    rows = pq.read_table(place / "predictions" / "test.parquet")["row"].to_pylist()
    assert {manifest.row(row)["fold"] for row in rows} == {1} and len(rows) == 14
    why = json.loads((place / "scores.json").read_text())["why"]["trained on"]
    assert why["differences"][0]["what"] == "frames a clip"


def test_a_study_is_not_judged_on_another_manifest_as_a_whole(finetuned: Path, other: Path, tmp_path: Path) -> None:
    for fold in (1, 2):
        shutil.copytree(finetuned, tmp_path / "study" / "trials" / "abc" / f"fold_{fold}")
    write_whole(tmp_path / "study" / "winner.json", json.dumps({"trial": "abc"}))
    with pytest.raises(ConfigError, match=r"by one model, but .*holds 2: give one of its runs, such as .*fold_1"):
        evaluate.main([str(tmp_path / "study"), f"manifest={other}"])


def test_a_checkpoint_of_before_says_that_its_inputs_are_not_recorded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (folder / "checkpoints").glob("step_*"):
        about = json.loads((step / "config.json").read_text())
        del about["inputs"]
        (step / "config.json").write_text(json.dumps(about))
        written = json.loads((step / "complete").read_text())
        written["config.json"] = {
            "bytes": (step / "config.json").stat().st_size,
            "crc32": checkpoint.crc32(step / "config.json"),
        }
        (step / "complete").write_text(json.dumps(written))
    evaluate.main([str(folder)])
    assert "not recorded: the checkpoint was made before" in capsys.readouterr().out
    report.main([str(folder)])
    assert "not recorded in the checkpoint" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_whose_own_clips_are_gone_is_judged_elsewhere_all_the_same(
    folder: Path, other: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(world / "manifest.parquet"), str(folder / "gone.parquet")))
    evaluate.main([str(folder), f"manifest={other}"])
    shown = capsys.readouterr().out
    assert "24 clips, 4 subjects" in shown and "its own manifest is not there as it was" in shown
    (place,) = folder.glob("test_on_stage_*")
    assert json.loads((place / "scores.json").read_text())["pooled"]["constant"]["from"] == "this table"


def test_the_clips_of_another_manifest_are_counted_before_they_are_opened(
    folder: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(folder), f"manifest={other}", "--dry-run"])
    assert "24" in capsys.readouterr().out and not list(folder.glob("test*"))
