"""Charts are well-formed, escaped drawings that say what a record lacks and show what it holds."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from mien.platform import charts, curves, search_charts
from mien.platform.charts import Interval
from mien.platform.curves import Series
from mien.platform.search_charts import Line, Trade

HOSTILE = '<script>alert("1")</script>&'


def parsed(drawing: str) -> ElementTree.Element:
    """Parse a drawing, which must be well-formed and hold no coordinate that is not a number."""
    assert not re.search(r'[ "](nan|-?inf)[ ,"]', drawing)
    return ElementTree.fromstring(drawing)


def words(drawing: str) -> list[str]:
    return [text for text in parsed(drawing).itertext() if text]


def test_numbers_are_written_briefly() -> None:
    given = [0.5123, 0.0, 12000.0, 1e-5, 2.5e-4, 7.53e-4, None, math.nan, 3.0, -0.002]
    assert [charts.tidy(v) for v in given] == [
        "0.512",
        "0",
        "12,000",
        "1e-5",
        "2.5e-4",
        "7.53e-4",
        "–",
        "–",
        "3",
        "-2e-3",
    ]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.52), (1e-5, 3e-4), (0, 12_000), (-3, 7)])
def test_ticks_are_round_and_lie_within_the_range(low: float, high: float) -> None:
    ticks = charts.ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert all(len(f"{tick:.12g}".strip("-").replace(".", "").strip("0").split("e")[0]) <= 3 for tick in ticks)


def test_ticks_that_lie_close_are_told_apart() -> None:
    assert charts.named([1.9454, 1.9456, 1.9458]) == [(1.9454, "1.9454"), (1.9456, "1.9456"), (1.9458, "1.9458")]
    assert charts.named([0.0, 0.5]) == [(0.0, "0"), (0.5, "0.5")]
    assert [name for _, name in charts.named([2.0, 2.025, 2.05])] == ["2", "2.025", "2.05"]
    assert charts.named([]) == []


def test_a_missing_value_keeps_its_row_and_says_so() -> None:
    drawn = words(charts.intervals([Interval("UAR", 0.5, 0.4, 0.6), Interval("WAR", None)], "scores"))
    assert {"UAR", "0.500", "0.400 – 0.600", "WAR", "not measured"} <= set(drawn)


def test_a_confusion_matrix_shows_every_count_and_shades_by_share_of_the_row() -> None:
    drawing = charts.confusion([[454, 7], [1, 3]], ["happy", "sad"])
    assert {"454", "7", "1", "3", "461", "4"} <= set(words(drawing))
    assert 'fill-opacity="0.985"' in drawing
    assert 'fill-opacity="0.750"' in drawing


def test_the_last_name_above_a_confusion_matrix_ends_inside_the_drawing() -> None:
    classes = ["anger"] * 10 + ["disappointment"]
    drawing = parsed(charts.confusion(np.eye(11).tolist(), classes))
    width = float(drawing.get("viewBox", "").split()[2])
    name = next(text for text in drawing if text.text == "disappointment" and text.get("transform"))
    assert float(name.get("x", 0)) + charts.LETTER * 14 * math.cos(math.radians(42)) < width


def test_a_row_without_clips_is_drawn_without_dividing_by_zero() -> None:
    parsed(charts.confusion([[0, 0], [1, 3]], ["happy", "sad"]))


def test_a_confusion_matrix_of_another_size_than_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        charts.confusion([[1, 2]], ["happy", "sad"])


def test_bars_give_each_class_its_length_and_absent_ones_words() -> None:
    drawing = charts.bars([("happy", 1.0, "1.00"), ("sad", 0.5, "0.50"), ("fear", None, "absent")], "recall")
    widths = [float(rect.get("width", 0)) for rect in parsed(drawing) if rect.get("class") == "accent"]
    assert len(widths) == 2
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.01)
    assert "absent" in words(drawing)


def test_a_long_line_is_thinned_and_keeps_its_course() -> None:
    steps = np.arange(10_000.0)
    drawing = curves.lines([Series("loss", steps, np.exp(-steps / 2000))], "loss")
    line = next(path for path in parsed(drawing) if path.get("class") == "line series s0")
    heights = [float(pair.split()[1]) for pair in re.split("[ML]", line.get("d", ""))[1:]]
    assert 100 <= len(heights) <= curves.MAX_POINTS
    assert heights == sorted(heights)


def test_a_value_that_is_no_number_leaves_a_gap() -> None:
    drawing = curves.lines([Series("loss", [1, 2, 3, 4, 5], [2.0, 1.5, math.nan, 1.0, 0.8])], "loss")
    line = next(path for path in parsed(drawing) if path.get("class") == "line series s0")
    assert line.get("d", "").count("M") == 2


@pytest.mark.parametrize("y", [[], [math.nan, math.nan]])
def test_a_line_without_any_number_is_said(y: list[float]) -> None:
    assert words(curves.lines([Series("loss", list(range(len(y))), y)], "loss")) == ["no finite value was recorded"]


def test_a_single_point_is_drawn() -> None:
    parsed(curves.lines([Series("fold 1", [3], [0.4])], "loss"))


def test_names_of_lines_that_end_together_do_not_lie_on_one_another() -> None:
    drawing = curves.lines([Series(f"fold {k}", [1, 2], [1.0, 0.5]) for k in range(5)], "loss")
    heights = sorted(
        float(text.get("y", 0)) for text in parsed(drawing) if "series" in text.get("class", "") and text.text
    )
    assert len(heights) == 5
    assert min(np.diff(heights)) >= curves.LETTERING - 0.2


def test_settings_of_every_kind_find_a_place() -> None:
    trials = [
        Line("trial 0", {"lr": 1e-4, "pool": "patch", "flag": True, "alpha": None}, 0.4, winner=True),
        Line("trial 1", {"lr": 3e-3, "pool": "region", "flag": False, "alpha": 2}, 0.3, "pruned"),
        Line("trial 2", {"lr": 1e-3, "pool": "all", "flag": False}, None, "failed"),
    ]
    drawing = search_charts.parallel(trials, [(key, key) for key in ("lr", "pool", "flag", "alpha")], "UAR")
    assert {"patch", "region", "all", "True", "None"} <= set(words(drawing))
    kinds = [path.get("class") for path in parsed(drawing) if path.tag == "path"]
    assert kinds == ["trial failed", "trial pruned", "trial winner"]


def test_a_trial_without_an_objective_ends_at_its_last_setting() -> None:
    trials = [Line("0", {"a": 1, "b": 2}, 0.5), Line("1", {"a": 2, "b": 3}, None)]
    paths = [
        path.get("d", "")
        for path in parsed(search_charts.parallel(trials, [("a", "a"), ("b", "b")], "UAR"))
        if path.tag == "path"
    ]
    assert sorted(data.count("C") for data in paths) == [1, 2]


def test_a_wide_range_is_logarithmic_and_zero_stands_below_it() -> None:
    values = [0.0, *np.geomspace(1e-5, 1e-1, 9)]
    place, marks = search_charts.axis(values, 100, 0)
    assert place(0.0) == 100
    assert place(1e-4) - place(1e-3) == pytest.approx(place(1e-3) - place(1e-2))
    assert (100, "0") in marks


def test_few_values_stand_at_even_steps() -> None:
    place, marks = search_charts.axis([0, 0.25, 16, 0.25], 100, 0)
    assert [place(v) for v in (0, 0.25, 16)] == [100, 50, 0]
    assert [name for _, name in marks] == ["0", "0.25", "16"]


def test_the_front_holds_what_nothing_beats_in_both_ways() -> None:
    a, b, c = Trade("a", 10, 0.3), Trade("b", 12, 0.5), Trade("c", 12, 0.4)
    pruned, twin = Trade("p", 1, 0.9, state="pruned"), Trade("d", 12, 0.5)
    assert search_charts.pareto([c, twin, b, a, pruned]) == [a, twin, b]


def test_the_front_names_points_and_rings_the_winner() -> None:
    trials = [Trade(f"α {k}", 10 + k, 0.3 + 0.02 * k, 0.5, 0.01, winner=k == 3) for k in range(4)]
    drawing = search_charts.front(trials, "front", "degrees", "UAR")
    assert {"α 0", "α 1", "α 2", "α 3"} <= set(words(drawing))
    assert drawing.count('class="ring"') == 1


def test_trials_at_one_point_are_drawn_and_one_name_is_enough() -> None:
    parsed(search_charts.front([Trade(f"α {k}", 10, 0.3) for k in range(9)], "front", "degrees", "UAR"))


def test_names_from_records_are_escaped_everywhere() -> None:
    drawings = [
        charts.intervals([Interval(HOSTILE, 0.5)], HOSTILE, reference=(0.1, HOSTILE)),
        charts.bars([(HOSTILE, 0.5, HOSTILE)], HOSTILE, references=[(0.2, HOSTILE)]),
        charts.confusion([[1]], [HOSTILE]),
        curves.lines([Series(HOSTILE, [1, 2], [1, 2]), Series("b", [1, 2], [1, 2])], HOSTILE, reference=(1, HOSTILE)),
        search_charts.parallel([Line(HOSTILE, {HOSTILE: HOSTILE}, 1.0, HOSTILE)], [(HOSTILE, HOSTILE)], HOSTILE),
        search_charts.front([Trade(HOSTILE, 1, 1, state=HOSTILE)], HOSTILE, HOSTILE, HOSTILE),
    ]
    for drawing in drawings:
        assert "<script" not in drawing
        parsed(drawing)
