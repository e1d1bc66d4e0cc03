"""Sets with different class lists: joined by name, trained on and tested as one, with what was left out told."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from mien.data_pipelines.manifest import SCHEMA, Manifest
from mien.experiments import evaluate, finetune, prepare

STAGE = ("SAD", "contempt", "HAP", "neutral")  # what the stage calls its four classes


@pytest.fixture
def stage(world: Path, tmp_path: Path) -> Path:
    """Return the manifest of a copy of the world whose classes have other names, another order, and one of its own."""
    film = Manifest.read(world / "manifest.parquet")
    assert film.classes[:3] == ("Happy", "Sad", "Neutral")
    labels = [{0: 2, 1: 0, 2: 3}.get(label, 1) for label in film.column("label")]
    table = film.table.set_column(SCHEMA.get_field_index("label"), SCHEMA.field("label"), pa.array(labels, pa.int64()))
    name = pa.array(["stage"] * len(film))
    table = table.set_column(SCHEMA.get_field_index("dataset"), SCHEMA.field("dataset"), name)
    root = shutil.copytree(film.root, tmp_path / "stage_clips")
    Manifest(table, STAGE, str(root), "stage").write(tmp_path / "stage.parquet")
    return tmp_path / "stage.parquet"


def test_joined_sets_are_trained_on_and_tested_as_one_and_each(
    world: Path, stage: Path, recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = f"[{world / 'manifest.parquet'}, {stage}]"
    prepare.main(["join", f"manifests={files}", "--output", str(tmp_path / "joined")])
    said = capsys.readouterr().out
    assert "10 Angry, 10 Surprise" in said.replace("\n", " ") and "left out: 40 contempt" in said
    joined = Manifest.read(tmp_path / "joined" / "manifest.parquet")
    assert joined.classes == ("Happy", "Sad", "Neutral") and len(joined) == 60
    assert sum("left out" in note for note in joined.notes) == 2

    run = tmp_path / "run"
    words = [f"data.manifest={tmp_path / 'joined' / 'manifest.parquet'}", "--output", str(run)]
    finetune.main(["--config", str(recipes["finetune"]), *words])
    evaluate.main([str(run), "mistakes=0"])
    pooled = json.loads((run / "test" / "scores.json").read_text())["pooled"]
    assert pooled["num_clips"] == 12 and pooled["classes"] == ["Happy", "Sad", "Neutral"]
    each = pooled["by_dataset"]
    assert {name: of["num_clips"] for name, of in each.items()} == {"dfew": 6, "stage": 6}
    assert sum(of["war"] * of["num_clips"] for of in each.values()) == pytest.approx(pooled["war"] * 12)
    assert "of stage: 6 clips" in capsys.readouterr().out
