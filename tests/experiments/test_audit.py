"""audit.py passes a clean world, ends with exit code 1 on a planted fault, and leaves a record and a page."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import Popen

import cv2
import numpy as np
import pyarrow as pa
import pytest

from mien.data_pipelines import audit_faces
from mien.data_pipelines.fingerprint import fingerprint
from mien.data_pipelines.manifest import SCHEMA, Manifest, build
from mien.experiments import audit
from mien.platform.config import ConfigError


@pytest.fixture(autouse=True)
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a face be found in the left half of every frame: the real detector is optional, and slow."""

    def left_half(picture: np.ndarray) -> np.ndarray:
        return np.array([[0, 0, picture.shape[1] / 2, picture.shape[0], 0.9]], np.float32)

    monkeypatch.setitem(audit_faces.DETECTORS, "centerface", lambda _: left_half)


@pytest.fixture(scope="module")
def faulty(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest with a copy of another label, a shared person, a broken frame and swapped classes."""
    folder = tmp_path_factory.mktemp("faulty")
    clean = Manifest.read(world / "manifest.parquet")
    rows = clean.rows()
    for row in rows:
        row["path"] = str(Path(clean.root) / row["path"])
    source = rows[4]  # surprise, which moves
    copy, broken = folder / "copy", folder / "broken"
    copy.mkdir()
    for file in Path(source["path"]).iterdir():
        assert cv2.imwrite(str(copy / file.name), cv2.imread(str(file)), [cv2.IMWRITE_JPEG_QUALITY, 80])
    other = rows[-1]
    assert other["fold"] != source["fold"]
    new = {"video": "new", "path": str(copy), "label": 0, "fold": other["fold"], "subject": other["subject"]}
    rows.append(source | new)
    shutil.copytree(rows[8]["path"], broken)
    sorted(broken.iterdir())[0].write_bytes(b"\xff\xd8 no more")
    rows[8]["path"] = str(broken)
    rows[20]["subject"] = next(row["subject"] for row in rows if row["fold"] != rows[20]["fold"])
    classes = (clean.classes[1], clean.classes[0], *clean.classes[2:])
    build(rows, classes, "", "dfew").write(folder / "manifest.parquet")
    return folder / "manifest.parquet"


def words(page: str) -> str:
    """Return a page's words without its style, tags and pictures."""
    bare = re.sub(r"<style>.*?</style>|data:image[^\"]*", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare).replace("&nbsp;", " ").replace("&#x27;", "'"))


@pytest.mark.parametrize("name", ["manifest", "unlabelled"])
def test_a_clean_world_has_no_errors(
    world: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    audit.main([str(world / f"{name}.parquet"), "--output", str(tmp_path)])
    assert "0 errors" in capsys.readouterr().out
    record = json.loads((tmp_path / "audit.json").read_text())
    # Classes that differ in nothing but the order of the same frames are no duplicates.
    assert record["errors"] == 0 and record["duplicates"] == [] and record["unreadable"] == []
    assert record["fingerprint"] == Manifest.read(world / f"{name}.parquet").fingerprint()
    page = (tmp_path / "audit.html").read_text()
    assert "No errors" in page and page.count("<img") == len(record["examples"]) > 0


def test_what_an_audit_measures_of_faces_is_on_its_page_and_in_the_fingerprints_of_later_runs(
    world: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(world / "manifest.parquet")
    manifest.write(tmp_path / "clips.parquet")
    assert fingerprint(manifest, path=tmp_path / "clips.parquet")["faces"] is None
    audit.main([str(tmp_path / "clips.parquet"), "faces=20"])
    page = words((tmp_path / "clips_audit" / "audit.html").read_text())
    assert "face's share" in page and "0.50 (0.50 to 0.50)" in page and "20 clips were looked at" in page
    known = fingerprint(manifest, path=tmp_path / "clips.parquet")["faces"]
    assert known == {"clips": 20, "without": 0, "shares": [0.5] * 7}
    record = json.loads((tmp_path / "clips_audit" / "audit.json").read_text())
    assert record["data"]["manifest"] == record["fingerprint"] and record["data"]["frames"] == [4] * 7


def test_planted_faults_are_found_shown_and_end_with_exit_code_1(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        audit.main([str(faulty), "--output", str(tmp_path)])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "audit.json").read_text())
    found = {finding["check"] for finding in record["findings"] if finding["severity"] == "error"}
    assert found == {"subjects", "class list", "unreadable", "duplicates", "labels"}
    (group,) = record["duplicates"]
    assert [clip["video"] for clip in group["clips"]] == ["00005", "new"] and group["where"] == "train and test"
    assert (tmp_path / group["picture"]).is_file()
    page = (tmp_path / "audit.html").read_text()
    text = words(page)
    assert "scores on this manifest are not to be trusted" in text and "different labels" in text
    assert "00009" in text and "is not an image that can be decoded" in text
    # The page needs nothing beside it.
    assert not re.search(r'(?:src|href)="(?!data:image|#)', page)
    for finding in record["findings"]:
        assert finding["what"] in printed and finding["what"] in text.replace("&lt;", "<")
        assert finding["severity"] == "note" or finding["remedy"] in printed


def test_the_program_ends_with_its_exit_code(
    world: Path, faulty: Path, tmp_path: Path, program: Callable[..., "Popen[str]"]
) -> None:
    call = program("audit", str(faulty), "read=none", "--output", str(tmp_path / "one"))
    shown, _ = call.communicate(timeout=100)
    assert call.returncode == 1 and "error" in shown and "Traceback" not in shown
    call = program("audit", str(tmp_path / "none.parquet"))
    shown, _ = call.communicate(timeout=100)
    assert call.returncode == 2 and "prepare it first" in shown


def test_without_reading_no_file_is_opened_and_without_output_the_audit_stands_beside_the_manifest(
    world: Path, tmp_path: Path
) -> None:
    manifest = replace(Manifest.read(world / "manifest.parquet"), root="/nowhere")
    manifest.write(tmp_path / "clips.parquet")
    audit.main([str(tmp_path / "clips.parquet"), "read=none"])
    page = (tmp_path / "clips_audit" / "audit.html").read_text()
    assert "No file was opened" in page and "<img" not in page
    with pytest.raises(SystemExit):
        audit.main([str(tmp_path / "clips.parquet")])
    page = words((tmp_path / "clips_audit" / "audit.html").read_text())
    assert "clips cannot be read (70)" in page


def test_the_root_can_be_given_and_the_protocol_is_used(world: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(world / "manifest.parquet")
    replace(manifest, root="/nowhere").write(tmp_path / "clips.parquet")
    audit.main([str(tmp_path / "clips.parquet"), f"root={manifest.root}", "split.protocol=paper", "read=all"])
    page = words((tmp_path / "clips_audit" / "audit.html").read_text())
    assert "validation is the test part" in page and "protocol paper" in page


def test_a_page_of_parts_instead_of_folds_with_names_that_must_be_escaped(world: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(world / "manifest.parquet")
    parts = pa.array(["test" if fold == 1 else "train" for fold in manifest.column("fold")])
    table = manifest.table.set_column(SCHEMA.get_field_index("split"), SCHEMA.field("split"), parts)
    empty = pa.nulls(len(manifest), pa.int64())
    table = table.set_column(SCHEMA.get_field_index("fold"), SCHEMA.field("fold"), empty)
    replace(manifest, table=table, name="<b>mine").write(tmp_path / "m.parquet")
    audit.main([str(tmp_path / "m.parquet"), "read=none"])
    page = (tmp_path / "m_audit" / "audit.html").read_text()
    assert "<b>mine" not in page and "Clips of each class in each part." in page


def test_help_names_the_exit_codes_and_a_dry_run_writes_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        audit.main(["--help"])
    shown = capsys.readouterr().out
    assert "exit code" in shown and "split.protocol" in shown and "clip_frames" in shown
    audit.main([str(world / "manifest.parquet"), "--dry-run", "--output", str(tmp_path / "out")])
    assert "70 clips" in capsys.readouterr().out and not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="unknown setting protocol; did you mean split"):
        audit.main([str(world / "manifest.parquet"), "protocol=paper"])
