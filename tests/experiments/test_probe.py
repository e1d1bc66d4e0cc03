"""probe.py: a pretrained encoder beside one that learned nothing, judged on other people, test clips closed."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mien.data_pipelines.manifest import Manifest
from mien.experiments import probe
from mien.platform.config import ConfigError


def test_a_probe_takes_few_clips_of_every_class_of_other_people_and_no_test_clips(world: Path) -> None:
    config = probe.ProbeConfig(manifest=str(world / "manifest.parquet"), fold=1, max_clips=14)
    opened = probe.open_probe(config, frames=4, size=32)
    manifest = Manifest.read(world / "manifest.parquet")
    table = {name: np.array(manifest.column(name)) for name in ("subject", "label", "fold")}
    assert not set(table["subject"][opened.train]) & set(table["subject"][opened.val])
    assert 1 not in table["fold"][np.concatenate([opened.train, opened.val])]
    assert set(table["label"][opened.train]) == set(range(7)) and len(opened.train) == 14


def test_labels_on_test_clips_alone_are_no_probe(world: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(world / "manifest.parquet")
    pairs = zip(manifest.column("label"), manifest.column("fold"), strict=True)
    labels = [label if fold == 1 else None for label, fold in pairs]
    place = manifest.table.schema.get_field_index("label")
    table = manifest.table.set_column(place, manifest.table.schema.field(place), pa.array(labels, pa.int64()))
    dataclasses.replace(manifest, table=table).write(tmp_path / "manifest.parquet")
    config = probe.ProbeConfig(manifest=str(tmp_path / "manifest.parquet"), root=str(manifest.root), fold=1)
    with pytest.raises(ConfigError, match="one of the two parts has none"):
        probe.open_probe(config, frames=4, size=32)


@pytest.mark.ray
def test_pretrained_and_random_features_are_told_beside_chance(
    pretrained: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = str(world / "manifest.parquet")
    probe.main([str(pretrained), f"manifest={manifest}", "fold=1", "precision=fp32", "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "pretrained" in shown and "random" in shown and "of other people" in shown
    told = json.loads((tmp_path / "probe.json").read_text())
    found = told["pretrained"]
    assert told["chance"] == 1 / 7 and 0 <= found["uar_linear_low"] <= found["uar_linear"] <= found["uar_linear_high"]
    assert f"{found['uar_knn']:.3f} [{found['uar_knn_low']:.3f}, {found['uar_knn_high']:.3f}]" in shown
