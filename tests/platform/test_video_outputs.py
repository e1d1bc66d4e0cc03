"""Outputs beside one another: names, and what may be replaced."""

import json
from pathlib import Path

import pytest

from mien.platform.config import ConfigError
from mien.platform.video_outputs import KINDS, earlier, named, places


def test_names_with_points_and_two_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    videos = [tmp_path / "a" / "1.5.mov", tmp_path / "b" / "1.5.mp4"]
    for video in videos:
        video.parent.mkdir()
        video.touch()
    found = [place for _, place in places([str(video) for video in videos], tmp_path / "out")]
    assert [named(place, "mp4").name for place in found] == ["1.5.mp4", "1.5_.mp4"]


def test_a_video_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ConfigError, match="over the video itself; give another --output"):
        places([str(tmp_path / "a.mp4")], tmp_path)
    with pytest.raises(ConfigError, match="there is none at"):
        places([str(tmp_path / "b.mp4")], tmp_path)


def test_what_is_done_is_not_done_again_and_nothing_else_is_replaced(tmp_path: Path) -> None:
    place, made_from = tmp_path / "a", {"run": "r"}
    assert earlier(place, made_from, again=False) is None
    named(place, "mp4").touch()
    with pytest.raises(ConfigError, match="give --again"):
        earlier(place, made_from, again=False)
    for kind in KINDS:
        named(place, kind).write_text(json.dumps({"made_from": made_from, "rows": 3}))
    assert earlier(place, made_from, again=False) == {"made_from": made_from, "rows": 3}
    with pytest.raises(ConfigError, match="other settings"):
        earlier(place, {"run": "another"}, again=False)
    assert earlier(place, {"run": "another"}, again=True) is None
