"""Scale: what the benchmarks compute from what they measure."""

import pytest

from mien.experiments.benchmarks import cores, scale

FIGURES = {
    "frames": "16x160²",
    "clips": 4,
    "layouts": {
        name: {"clips_a_cpu_second": {"pretraining": speed}, "mib_a_clip": size}
        for name, speed, size in (("mp4", 25, 1.0), ("mp4, re-keyed", 50, 2.0), ("JPEG shards", 100, 8.0))
    },
}


def test_cores_are_the_pace_of_the_gpus_over_the_speed_of_a_core() -> None:
    config = cores.CoresConfig(peak_tflops=1000, share=(0.5,), workers=(1, 8), clips=1_000_000)
    one, eight = cores.rows(config, FIGURES, gflop=1000)
    assert one["clips a second"] == 500 and eight["clips a second"] == 4000
    assert [one[f"cores, {name}"] for name in ("mp4", "re-keyed", "packed")] == [20, 10, 5]
    assert [eight[f"cores, {name}"] for name in ("mp4", "re-keyed", "packed")] == [160, 80, 40]
    assert cores.disk(config, FIGURES) == {"mp4": 1.05, "re-keyed": 2.1, "packed": 8.39}


def test_tenths_are_marked_as_trials_end(capsys: pytest.CaptureFixture[str]) -> None:
    marks = scale.Marks(20)
    for ended in range(21):
        marks.heard([{"state": "complete"}] * ended + [{"state": "running"}] * (20 - ended))
    assert [mark["ended"] for mark in marks.found] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert len(capsys.readouterr().out.splitlines()) == 10
