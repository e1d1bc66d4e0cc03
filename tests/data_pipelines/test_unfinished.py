"""What is written is there whole or not at all, and takes the place of what was there before."""

from pathlib import Path

import pytest

from mien.data_pipelines.unfinished import unfinished


def test_a_file_has_its_name_when_it_is_whole_and_an_old_one_stays_until_then(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    for text in ("old", "new"):
        with unfinished(file) as part:
            part.write_text(text)
            assert part.parent == file.parent and (text == "old" or file.read_text() == "old")
    assert file.read_text() == "new" and list(file.parent.iterdir()) == [file]
    with pytest.raises(OSError, match="disk full"), unfinished(file) as part:
        part.write_text("hal")
        raise OSError("disk full")
    assert file.read_text() == "new"
    with unfinished(file) as part:
        part.write_text("again")
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_takes_the_place_of_an_old_one_with_nothing_of_it_or_of_a_stopped_writer(tmp_path: Path) -> None:
    folder = tmp_path / "csv"
    for name in ("old", "stopped", "new"):
        try:
            with unfinished(folder) as part:
                part.mkdir()
                (part / name).touch()
                if name == "stopped":
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in folder.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [folder]
