"""Whatever a file does to the process that reads it, the program that asked gets an answer, and the next file too."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mien.data_pipelines import isolation
from mien.data_pipelines.decode import DecodeError, Probe, probe
from mien.data_pipelines.isolation import close, isolated
from mien.data_pipelines.probing import probe_all


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    close()


def test_a_file_that_ends_the_process_gets_its_reason_and_the_next_is_read(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    video = make_video(tmp_path / "a.mp4", frames=3)
    with pytest.raises(DecodeError, match=r"bad\.mp4: ended the process that read it: exit code -6"):
        isolated("bad.mp4", os.abort)
    assert isolated(video, probe, video) == Probe(3, 25.0, 48, 64)
    with pytest.raises(DecodeError, match=r"b\.mp4: cannot be read: No such file"):
        isolated(tmp_path / "b.mp4", probe, tmp_path / "b.mp4")


def test_a_file_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated("a", len, "a")  # started, so that the time is the file's alone
    monkeypatch.setattr(isolation, "time_limit", lambda size: 0.25)
    began = time.monotonic()
    with pytest.raises(DecodeError, match="did not answer for 0 s, and the process that read it was ended"):
        isolated("slow.mp4", time.sleep, 60)
    assert time.monotonic() - began < 10


def test_a_file_that_takes_much_memory_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"big\.mp4: takes more than 4 GiB of memory"):
        isolated("big.mp4", bytearray, isolation.MEMORY_BYTES + 1)
    assert isolated("a", len, "a") == 1


def test_a_program_with_a_thousand_open_files_is_answered_too() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    close()
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    try:
        assert isolated("a", len, "abc") == 3
    finally:
        for number in held:
            os.close(number)
        close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_a_library_prints_is_no_answer() -> None:
    assert isolated("a", os.write, 1, b"told on standard output\n") == 24
    assert isolated("a", len, "abc") == 3


def test_a_process_serves_many_files_and_ends_with_the_program() -> None:
    assert isolated("a", os.getpid) == isolated("b", os.getpid) != os.getpid()
    program = "import os; from mien.data_pipelines.isolation import isolated; print(isolated('a', os.getpid))"
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert not Path(f"/proc/{int(ended.stdout)}").exists()


def test_many_files_are_looked_at_in_their_order(tmp_path: Path, make_frames: Callable[..., Path]) -> None:
    names = [f"{number:03d}" for number in range(70)]
    for number, name in enumerate(names):
        make_frames(tmp_path / name, frames=1 + number % 3)
    (tmp_path / "007" / "00001.jpg").write_bytes(b"no picture")
    seen: list[int] = []
    found = probe_all(names, tmp_path, threads=4, progress=lambda done, total: seen.append(done))
    assert list(found) == names and seen == list(range(1, 71))
    assert isinstance(found["007"], DecodeError)
    assert all(found[name] == (1 + n % 3, None, 48, 64) for n, name in enumerate(names) if name != "007")
