"""Unreadable clips end a run when they are too many, and not before."""

import pytest

from mien.data_pipelines.unreadable import DropCount, DropLimit, Dropped, DroppedTooManyError


def lost(count: int) -> list[Dropped]:
    return [{"row": n, "video": f"v{n}", "path": f"{n}.mp4", "reason": "is empty", "position": n} for n in range(count)]


def test_a_share_below_the_limit_goes_on_and_one_above_it_ends_with_the_first_names() -> None:
    counter = DropCount(DropLimit(max_dropped_ratio=0.25, dropped_after=8), "data")
    for _ in range(4):
        counter.add(4, lost(1))
    with pytest.raises(DroppedTooManyError, match=r"data\.max_dropped_ratio=0\.25.*but 6 of 20 are.*\n  0\.mp4: is"):
        counter.add(4, lost(2))


def test_the_share_is_not_judged_by_the_first_few_clips() -> None:
    counter = DropCount(DropLimit(max_dropped_ratio=0, dropped_after=8), "data")
    counter.add(4, lost(3))
    with pytest.raises(DroppedTooManyError, match="but 4 of 8 are"):
        counter.add(4, lost(1))


def test_a_batch_without_any_clip_is_an_error_whatever_the_limit() -> None:
    with pytest.raises(DroppedTooManyError, match=r"this one has none.*prepare the manifest again"):
        DropCount(DropLimit(max_dropped_ratio=1), "data").add(2, lost(2))
