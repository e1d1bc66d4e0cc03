"""Frame indices are the published ones, and every draw is a function of seed, epoch and row."""

from typing import Any

import numpy as np
import pytest

from mien.data_pipelines.sampling import (
    SamplingConfig,
    ablated,
    clip_draw,
    ending_indices,
    epoch_order,
    finetune_indices,
    pretrain_indices,
    stream,
    train_indices,
    view_indices,
)

LENGTHS = [1, 2, 3, 5, 15, 16, 17, 62, 63, 64, 65, 66, 67, 100, 300]
CONFIG = SamplingConfig()


def slow_pretrain(num_frames: int, length: int, stride: int, start: int) -> list[int]:
    """The published walk, one frame after the other."""
    frame, taken = start, []
    for _ in range(length):
        taken.append(frame)
        if frame + 1 + stride < num_frames:
            frame += stride
    return taken


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("stride", [1, 4])
def test_pretraining_walks_as_published(num_frames: int, stride: int) -> None:
    config = SamplingConfig(stride=stride)
    starts = set()
    for seed in range(200):
        found = pretrain_indices(num_frames, config, np.random.default_rng(seed))
        assert found.tolist() == slow_pretrain(num_frames, 16, stride, int(found[0]))
        starts.add(int(found[0]))
    # Starts fill the video; the last one leaves a whole span.
    spare = max(num_frames - 16 * stride, 0)
    assert starts <= set(range(spare + 1))
    assert len(starts) > 0.5 * min(spare + 1, 100)


@pytest.mark.parametrize(
    ("num_frames", "stride", "expected"),
    [
        (1, 4, [0] * 16),
        (3, 4, [2] * 16),
        (15, 4, [0, 7, 14] + [14] * 13),
        (16, 4, [0, 5, 10, 15] + [15] * 12),
        (64, 4, [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]),
        (10, 1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] + [9] * 6),
        (16, 1, list(range(16))),
    ],
)
def test_short_videos_in_training_are_spread_as_published(num_frames: int, stride: int, expected: list[int]) -> None:
    found = finetune_indices(num_frames, SamplingConfig(stride=stride), np.random.default_rng(0))
    assert found.tolist() == expected


@pytest.mark.parametrize("num_frames", [65, 66, 300])
def test_long_videos_in_training_take_a_random_stretch(num_frames: int) -> None:
    ends = set()
    for seed in range(300):
        found = finetune_indices(num_frames, CONFIG, np.random.default_rng(seed))
        # The end is exclusive of the video's length and the last point is the frame before it.
        end = int(found[-1]) + 1
        expected = [int(min(end - 64 + 64 * i / 15, end - 1)) for i in range(16)]
        assert found.tolist() == expected
        ends.add(end)
    assert ends <= set(range(64, num_frames))
    assert len(ends) > 0.5 * (num_frames - 64)


def slow_views(num_frames: int, length: int, stride: int, segments: int) -> list[list[int]]:
    kept = list(range(0, num_frames, stride))
    while len(kept) < length:
        kept.append(kept[-1])
    step = max((len(kept) - length) / (segments - 1), 0)
    return [kept[int(segment * step) :][:length] for segment in range(segments)]


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("segments", [2, 3, 5])
@pytest.mark.parametrize("crops", [1, 2])
def test_published_views_and_their_distinct_form(num_frames: int, segments: int, crops: int) -> None:
    slow = slow_views(num_frames, 16, 4, segments)
    published = SamplingConfig(segments=segments, crops=crops, published_views=True)
    found = [view.tolist() for view in view_indices(num_frames, published)]
    assert found == [view for view in slow for _ in range(crops)]
    plain = [view.tolist() for view in view_indices(num_frames, SamplingConfig(segments=segments))]
    # By default every view counts as often as it is published; only those of a video of one view are not repeated.
    assert plain == (slow if any(view != slow[0] for view in slow) else slow[:1])
    assert len(plain) == 1 or num_frames > 64


def test_equal_views_among_others_keep_their_weight() -> None:
    # The published starts are 0, 0 and 4: a mean over two views would be another.
    views = [view.tolist() for view in view_indices(68, SamplingConfig(segments=3))]
    assert views == [list(range(0, 64, 4)), list(range(0, 64, 4)), list(range(4, 68, 4))]
    published = SamplingConfig(segments=3, crops=2, published_views=True)
    assert [view.tolist() for view in view_indices(68, published)] == [view for view in views for _ in range(2)]


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (1, [0] * 16),
        (3, [0] * 14 + [1, 2]),
        (15, [0, *range(15)]),
        (16, list(range(16))),
        (17, list(range(1, 17))),
        (100, list(range(84, 100))),
    ],
)
@pytest.mark.parametrize("stride", [1, 4])
def test_a_clip_for_gaze_ends_with_its_last_frame_and_repeats_the_earliest(
    num_frames: int, expected: list[int], stride: int
) -> None:
    config = SamplingConfig(rule="ending", stride=stride, segments=2)
    assert ending_indices(num_frames, config).tolist() == expected
    assert train_indices(num_frames, config, np.random.default_rng(0)).tolist() == expected
    # The label is the last frame's, in evaluation too, whatever the views of other rules.
    assert [view.tolist() for view in view_indices(num_frames, config)] == [expected]
    every = config.model_copy(update={"published_views": True, "crops": 2})
    assert [view.tolist() for view in view_indices(num_frames, every)] == [expected]


@pytest.mark.parametrize("rule", ["pretrain", "finetune", "ending"])
def test_training_frames_are_by_the_rule_and_its_description_names_it(rule: str) -> None:
    config = SamplingConfig.model_validate({"rule": rule})
    by_rule = {
        "pretrain": pretrain_indices(90, config, np.random.default_rng(1)),
        "finetune": finetune_indices(90, config, np.random.default_rng(1)),
        "ending": ending_indices(90, config),
    }
    assert train_indices(90, config, np.random.default_rng(1)).tolist() == by_rule[rule].tolist()
    assert f"{rule} = " in (SamplingConfig.model_fields["rule"].description or "")


def test_one_segment_is_the_middle() -> None:
    (view,) = view_indices(300, SamplingConfig(segments=1))
    assert view.tolist() == list(range(4 * 29, 4 * 45, 4))
    assert len(view_indices(10, SamplingConfig(segments=1))) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "2 over time, one of a video where all are the same"),
        ({"segments": 1}, "1, the middle"),
        ({"rule": "ending"}, "1, the frames that end with the label's"),
        (
            {"crops": 2, "published_views": True},  # the published 2 x 2
            "4: 2 over time, each 2 times: duplicates, as published, of square frames; of a short video all are the "
            "same, and none is left out",
        ),
    ],
)
def test_views_are_told_with_duplicates_named_as_such(settings: dict[str, Any], told: str) -> None:
    config = SamplingConfig.model_validate(settings)
    assert config.views_told == told
    views = [tuple(view) for view in view_indices(300, config)]
    assert len(views) == config.views and len(set(views)) == (1 if "1," in told else 2)


def test_crops_of_a_square_frame_are_refused_unless_published() -> None:
    with pytest.raises(ValueError, match=r"crops must be 1.*published_views"):
        SamplingConfig(crops=2)


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order() -> None:
    rows = np.array([3, 5, 8, 13, 21])
    found = stream(rows, seed=7, first=0, last=15)
    epochs = found.row.reshape(3, 5)
    for epoch in epochs:
        assert sorted(epoch) == rows.tolist()
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert np.array_equal(epochs[1], rows[epoch_order(5, 7, 1)])
    assert found.draw[5] == clip_draw(7, 1, int(epochs[1][0]))


def test_the_stream_is_the_same_however_it_is_cut() -> None:
    whole = stream(range(10), seed=1, first=0, last=40)
    parts = [stream(range(10), seed=1, first=first, last=first + 8) for first in range(0, 40, 8)]
    for name, column in whole._asdict().items():
        assert np.array_equal(column, np.concatenate([getattr(part, name) for part in parts])), name


def test_draws_differ_and_fit_an_int64() -> None:
    draws = {clip_draw(seed, epoch, row) for seed in range(5) for epoch in range(10) for row in range(100)}
    assert len(draws) == 5000
    assert min(draws) >= 0 and 2**62 < max(draws) < 2**63
    # Known answer: the stream of a run that is resumed years later.
    assert clip_draw(0, 0, 0) == 5898334001734180887


def test_an_ablated_clip_holds_the_same_frames_in_another_order_or_one_of_them() -> None:
    indices, rng = np.arange(10, 26, 2), np.random.default_rng(0)
    found = {
        kind: ablated(indices, SamplingConfig(ablate=kind), rng).tolist()
        for kind in ("none", "still", "reversed", "shuffled")
    }
    assert found["none"] == indices.tolist()
    assert found["still"] == [18] * 8
    assert found["reversed"] == indices.tolist()[::-1]
    assert found["shuffled"] != indices.tolist() and sorted(found["shuffled"]) == indices.tolist()


@pytest.mark.parametrize(("num_frames", "num_samples"), [(100, 3), (19, 4), (18, 3), (17, 2), (16, 3), (5, 2), (1, 2)])
def test_clips_of_one_video_start_in_stretches_as_published(num_frames: int, num_samples: int) -> None:
    config = SamplingConfig(rule="pretrain", frames=8, stride=2, num_samples=num_samples)
    stretch = (num_frames - config.span + 1) // num_samples
    seen = set()
    for seed in range(60):
        found = train_indices(num_frames, config, np.random.default_rng(seed)).reshape(num_samples, 8)
        starts = found[:, 0].tolist()
        seen.add(tuple(starts))
        if stretch > 0:
            assert [start // stretch for start in starts] == list(range(num_samples))
        elif num_frames > max(num_samples, config.span):
            assert starts == sorted(starts) and starts[0] >= 0 and starts[-1] <= num_frames - config.span
        else:
            assert starts == [0] * num_samples
        for clip in found:
            frame = clip[0]
            for index in clip:
                assert index == frame
                frame += config.stride if frame + 1 + config.stride < num_frames else 0
    assert len(seen) > 1 or num_frames <= config.span or stretch == 1


def test_several_clips_of_a_video_are_for_pretraining_alone() -> None:
    with pytest.raises(ValueError, match="num_samples above 1 needs rule 'pretrain'"):
        SamplingConfig(rule="finetune", num_samples=2)
    with pytest.raises(ValueError, match="num_samples above 1"):
        SamplingConfig(rule="pretrain", num_samples=2, ablate="still")
