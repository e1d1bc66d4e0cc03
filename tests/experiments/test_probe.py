"""probe.py: a pretrained encoder beside one that learned nothing, judged on other people, test clips closed."""

import json
from pathlib import Path

import numpy as np
import pytest

from mien.data_pipelines.manifest import Manifest
from mien.experiments import probe


def test_a_probe_takes_few_clips_of_every_class_of_other_people_and_no_test_clips(world: Path) -> None:
    config = probe.ProbeConfig(manifest=str(world / "manifest.parquet"), fold=1, max_clips=14)
    opened = probe.open_probe(config, frames=4, size=32)
    manifest = Manifest.read(world / "manifest.parquet")
    table = {name: np.array(manifest.column(name)) for name in ("subject", "label", "fold")}
    assert not set(table["subject"][opened.train]) & set(table["subject"][opened.val])
    assert 1 not in table["fold"][np.concatenate([opened.train, opened.val])]
    assert set(table["label"][opened.train]) == set(range(7)) and len(opened.train) == 14


@pytest.mark.ray
def test_pretrained_and_random_features_are_told_beside_chance(
    pretrained: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = str(world / "manifest.parquet")
    probe.main([str(pretrained), f"manifest={manifest}", "fold=1", "precision=fp32", "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "pretrained" in shown and "random" in shown and "of other people" in shown
    told = json.loads((tmp_path / "probe.json").read_text())
    assert told["chance"] == 1 / 7 and 0 <= told["pretrained"]["uar_linear"] <= 1
