"""Every known cause of another score is told with both values, and nothing is told of clips that are alike."""

from typing import Any

import numpy as np
import pytest

from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.fingerprint import PUBLISHED, Fingerprint, fingerprint
from mien.data_pipelines.input_differences import NOT_RECORDED, differences, merged, report, told
from mien.data_pipelines.manifest import Manifest, build
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig

CLASSES = ("calm", "glad", "sad")
FACES = {"clips": 100, "without": 0.0, "shares": [0.6] * 7}


def clips(seed: int = 0, count: int = 300, classes: tuple[str, ...] = CLASSES, **changes: Any) -> Manifest:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "video": f"{number}",
            "path": f"{number}",
            "dataset": "toy",
            "subject": f"p{number % 9}",
            "label": int(rng.integers(3)),
            "frames": 40 + (7 * number + seed) % 50,
            "fps": 25.0,
            "height": 224,
            "width": 224,
        }
        | changes
        for number in range(count)
    ]
    return build(rows, classes, "/clips", "toy")


def read(**sampling: Any) -> ReadConfig:
    return ReadConfig(sampling=SamplingConfig(**sampling))


def of(manifest: Manifest, config: ReadConfig | None = None, **changes: Any) -> Fingerprint:
    return fingerprint(manifest, read=config or read(), protocol="honest") | {"faces": FACES} | changes


def test_the_same_clips_and_other_draws_of_the_same_differ_in_nothing() -> None:
    assert differences(of(clips()), of(clips())) == []
    assert differences(of(clips(0)), of(clips(1))) == []  # another sample of one distribution
    assert differences(of(clips(0)), of(clips(1, count=30))) == []
    assert told(report(of(clips(0)), of(clips(1)))) == [
        "nothing that is known to matter differs from what it was trained on"
    ]


PLANTED: list[tuple[str, Fingerprint, tuple[str, str]]] = [
    ("frames a clip", of(clips(frames=16)), ("64 (median)", "exactly 16 in 100% of the clips")),
    ("frames a clip", of(clips(frames=150)), ("64 (median)", "150 (median)")),
    ("clips shorter than what a clip covers", of(clips(frames=70), read(stride=4)), ("48%", "0%")),
    (
        "face's share of the frame",
        of(clips(), faces=FACES | {"shares": [0.35] * 7}),
        ("0.60 (median)", "0.35 (median)"),
    ),
    ("clips without a face", of(clips(), faces=FACES | {"without": 0.3}), ("0%", "30%")),
    ("size of the frames", of(clips(height=256, width=256)), ("224x224", "256x256")),
    ("size of the frames", of(clips(height=224, width=398)), ("224x224", "398x224")),
    ("frames a second", of(clips(fps=30.0)), ("25", "30")),
    ("margin of the crops", of(clips(), crop_margin=0.4), ("0.15", "0.4")),
    ("order of classes", of(clips(classes=("glad", "calm", "sad"))), ("calm, glad, sad", "glad, calm, sad")),
    ("classes", of(clips(classes=("calm", "glad", "angry"))), ("calm, glad, sad", "calm, glad, angry")),
    ("stride", of(clips(), read(stride=1)), ("4", "1")),
    ("frames that the model sees", of(clips(), read(frames=8)), ("16", "8")),
    ("pixels that the model sees", of(clips(), ReadConfig(size=112)), ("160", "112")),
    ("pre-crop", of(clips(), ReadConfig(augment=AugmentConfig(precrop="voxceleb2"))), ("none", "voxceleb2")),
    ("motion", of(clips(), read(ablate="still")), ("none", "still")),
    ("dataset", of(clips(dataset="other")), ("toy", "other")),
    ("balance of classes", of(clips(label=2)), ("sad 38%", "sad 100%")),
    ("classes that occur", of(clips(label=2)), ("3", "1")),
    ("clips stand in", of(clips(path="a.mp4")), ("frame folders", "videos")),
    ("protocol", of(clips(), protocol="paper"), ("honest", "paper")),
]


@pytest.mark.parametrize(("what", "here", "values"), PLANTED, ids=lambda item: item if isinstance(item, str) else "")
def test_each_known_cause_is_told_with_both_values(what: str, here: Fingerprint, values: tuple[str, str]) -> None:
    there = of(clips(), crop_margin=0.15)
    (found,) = [one for one in differences(there, here) if one.what == what]
    assert (found.there, found.here) == values and found.effect
    (line,) = [line for line in told(report(there, here)) if line.startswith(f"{what}: ")]
    assert f"trained on {values[0]}, here {values[1]}; " in line
    # The other way round it is told too, with the values changed over.
    if what != "classes that occur":  # one that the model has not learned is no fault of the clips
        assert values[::-1] in [(one.there, one.here) for one in differences(here, there) if one.what == what]


def test_thinned_clips_are_one_reason_and_not_three() -> None:
    found = differences(of(clips()), of(clips(frames=16)))
    assert [one.what for one in found] == ["frames a clip"] and "46/50 instead of 63/75" in found[0].effect
    (back,) = differences(of(clips(frames=16)), of(clips()))
    assert back.effect.startswith("the model learned clips as long as its own frames")


def test_small_differences_are_none() -> None:
    near = of(clips(height=230, width=228, fps=25.2, frames=70), faces=FACES | {"shares": [0.55] * 7})
    assert [one.what for one in differences(of(clips(frames=66)), near)] == []
    assert differences(of(clips()), of(clips(classes=("Calm", "Glad", "Sad")))) == []


def test_of_pretraining_classes_lengths_and_datasets_are_not_compared() -> None:
    here = of(clips(dataset="other", frames=16, label=2, fps=30.0))
    assert [one.what for one in differences(of(clips()), here, labels=False)] == ["frames a second"]


def test_what_one_side_does_not_say_is_told_apart() -> None:
    here = of(clips(fps=None, subject=None)) | {"faces": None}
    assert told(report(of(clips()), here)) == [
        "nothing that is known to matter differs from what it was trained on",
        "not compared, since not known of both: frame rate, face share of the frame, persons",
    ]
    assert report(here, here)["unknown"] == []  # two parts of one manifest
    old = report(None, here)
    assert told(old) == [NOT_RECORDED] and old["differences"] == []


def test_published_recipes_are_compared_as_far_as_they_are_known() -> None:
    here = of(clips(height=64, width=64), ReadConfig(size=64, sampling=SamplingConfig(frames=8, stride=1)))
    found = {one.what: (one.there, one.here) for one in differences(PUBLISHED["pretraining"], here, labels=False)}
    assert found == {
        "size of the frames": ("224x224", "64x64"),
        "frames that the model sees": ("16", "8"),
        "stride": ("4", "1"),
        "pixels that the model sees": ("160", "64"),
        "pre-crop": ("voxceleb2", "none"),
    }
    thin = of(clips(frames=16), protocol="paper")
    (only,) = differences(PUBLISHED["fine-tuning"], thin)
    assert only.there == "whole clips"


def test_the_reports_of_folds_become_one() -> None:
    there = of(clips())
    reports = [report(there, of(clips(fps=30.0))), report(there, of(clips(fps=30.0, height=300, width=300)))]
    both = merged(reports)
    assert [one["what"] for one in both["differences"]] == ["frames a second", "size of the frames"]
    assert both["recorded"] and not merged([*reports, report(None, there)])["recorded"]
