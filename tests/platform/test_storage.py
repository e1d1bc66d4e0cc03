"""Errors of writing name the folder, the reason and the remedy."""

import errno
import os
from pathlib import Path

import pytest

from mien.platform.storage import StorageError, readable, storing, write_whole


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "the disk is full: .* free"), (errno.EROFS, "cannot be written to"), (errno.EIO, "writing failed")],
)
def test_an_error_names_the_folder_the_reason_and_the_remedy(number: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"{tmp_path}: .*{said}.*another --output") as caught, storing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number


def test_space_is_looked_for_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    with pytest.raises(StorageError, match=r"disk is full: 1024\.0 TiB needed"), storing(folder, 2**50):
        folder.mkdir(parents=True)
    assert not folder.exists()


def test_a_full_device_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="the disk is full"), storing(Path("/dev")), open("/dev/full", "w") as file:
        file.write("x")
        file.flush()


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_sizes_are_readable() -> None:
    assert [readable(count) for count in (0, 1023, 1024, 1.5 * 2**30, 2**60)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 GiB",
        "1048576.0 TiB",
    ]
