"""The search for a batch size foretells what fits, stops before what does not, and knows its limits."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch

from mien.platform import capacity
from mien.platform.capacity import EndedError, Growth, Tried, alone, fastest, growth, largest, search

MIB = 2**20


class Device:
    """Memory that grows as a line, up to a size where it is worse than it looked, and a rate that saturates."""

    def __init__(self, fixed: int, clip: int, limit: int, jump_at: int = 10**9) -> None:
        self.fixed, self.clip, self.limit, self.jump_at = fixed, clip, limit, jump_at
        self.asked: list[int] = []

    def __call__(self, clips: int) -> Tried:
        self.asked.append(clips)
        used = self.fixed + self.clip * clips + (self.limit if clips >= self.jump_at else 0)
        return Tried(clips, used, 0.5 + clips / 100, "" if used <= self.limit else "no memory left")


def test_sizes_double_to_the_last_that_fits_and_none_above_is_tried() -> None:
    device = Device(100, 10, 1000)
    tried = search(device, 1000, 10**6, math.inf)
    assert device.asked == [1, 2, 4, 8, 16, 32, 64, 90]
    assert largest(tried) == tried[-1] and tried[-1].bytes == 1000
    assert growth(tried) == Growth(100, 10)


def test_what_does_not_fit_though_foretold_is_narrowed_down_from_below() -> None:
    device = Device(100, 10, 1000, jump_at=50)
    top = largest(search(device, 1000, 10**6, math.inf))
    assert top is not None and 44 <= top.clips < 50
    assert device.asked[:7] == [1, 2, 4, 8, 16, 32, 64] and len(device.asked) <= 11


def test_nothing_fits_where_one_clip_does_not() -> None:
    tried = search(Device(2000, 10, 1000), 1000, 8, math.inf)
    assert [one.clips for one in tried] == [1] and largest(tried) is None


def test_a_search_ends_at_the_most_clips_and_where_patience_does() -> None:
    device = Device(0, 1, 10**9)
    search(device, 10**9, 6, math.inf)
    assert device.asked == [1, 2, 4, 6]
    device = Device(0, 1, 10**9)
    search(device, 10**9, 10**6, patience_seconds=2.1)
    assert device.asked == [1, 2, 4]  # eight would take 2 * 0.54 * 8 / 4 s, as far as four tell


def test_the_smallest_size_that_is_as_fast_as_any_is_the_fastest() -> None:
    tried = [Tried(1, 1, 1.0), Tried(2, 2, 1.0), Tried(4, 4, 1.0), Tried(8, 8, 1.99), Tried(16, 16, 4.2)]
    assert fastest(tried).clips == 4
    assert fastest([*tried, Tried(32, failed="no memory left")]).clips == 4


def fill(limit: int) -> tuple[bool, str]:
    """Limit this process, take what is less, and then what is more."""
    own = capacity.resident("VmRSS")
    capacity.limit_memory(own + limit)
    fitted = torch.ones(limit // 2, dtype=torch.uint8)
    try:
        torch.ones(limit, dtype=torch.uint8)
    except RuntimeError as error:
        return bool(fitted.all()), str(error)
    return True, ""


def test_a_limited_process_is_refused_memory_and_not_killed() -> None:
    fitted, message = alone(fill, 256 * MIB)
    assert fitted and "allocate memory" in message


def end(how: str) -> None:
    """End this process, or raise."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError(how)


@pytest.mark.parametrize(("how", "error"), [("killed", EndedError), ("raised", ValueError)])
def test_how_a_process_of_its_own_ends_is_told(how: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"exit code -9" if how == "killed" else "raised"):
        alone(end, how)


def test_the_free_memory_is_the_least_of_the_machines_and_of_every_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "PROC", tmp_path / "proc")
    monkeypatch.setattr(capacity, "CGROUPS", tmp_path / "cgroup")
    inner = tmp_path / "cgroup" / "outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    cpu = torch.device("cpu")
    (inner / "memory.max").write_text("max\n")
    assert capacity.free_bytes(cpu) == 8000 * 1024
    (inner.parent / "memory.max").write_text("5000000\n")
    (inner.parent / "memory.current").write_text("3000000\n")
    (inner.parent / "memory.stat").write_text("anon 1\ninactive_file 1000000\n")
    assert capacity.free_bytes(cpu) == 3_000_000
    (tmp_path / "proc" / "self" / "cgroup").write_text("7:cpu:/\n4:memory:/box\n")
    old = tmp_path / "cgroup" / "memory" / "box"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("4000\n")
    (old / "memory.usage_in_bytes").write_text("3000\n")
    (old / "memory.stat").write_text("total_inactive_file 500\n")
    assert capacity.free_bytes(cpu) == 1500


def test_the_memory_of_this_process_is_read() -> None:
    assert 10 * MIB < capacity.resident("RssAnon") <= capacity.resident("VmHWM", str(os.getpid()))
