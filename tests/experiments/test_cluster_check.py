"""cluster_check.py says what a file will start and what is wrong with it, and its exit code says whether to go on."""

import json
from pathlib import Path

import pytest

from mien.experiments import cluster_check, cluster_down
from mien.platform.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]
ONPREMISE = ROOT / "experiments" / "configs" / "clusters" / "onpremise.yaml"


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file with nothing wrong, where the token is as it should be."""
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "mine.yaml"
    text = ONPREMISE.read_text(encoding="utf-8").replace("192.0.2.", "10.0.0.").replace("EDIT", "set")
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_told_and_passes(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster_check.main([str(good)])
    said = capsys.readouterr().out
    assert "Nothing was found that would hang or leak" in said
    assert "127.0.0.1" in said and "6379" in said and "10001" in said  # what listens where
    assert "one of yours" not in said  # every command of ours is explained


@pytest.mark.parametrize("name", ["cluster.yaml", "experiments/configs/clusters/one_machine.yaml"])
def test_every_command_of_the_repositorys_files_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cluster_check.main([str(ROOT / name)])
    assert ended.value.code == 1  # nobody's values are still in it
    said = capsys.readouterr().out
    assert "one of yours" not in said and "still holds this repository's value" in said


def test_as_json_everything_is_there_for_programs(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good.write_text(good.read_text().replace("RAY_AUTH_MODE=token ray start --head", "ray start --head"))
    with pytest.raises(SystemExit) as ended:
        cluster_check.main([str(good), "--json"])
    assert ended.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["node"] for one in found["machines"]] == ["head", "worker"]
    assert len(found["commands"]) == 7 and {"what", "why", "advice", "stops"} == found["findings"][0].keys()


def test_a_recipe_that_asks_for_more_than_the_cluster_has_is_found(
    good: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, text in {
        "pretrain": "trainer: {workers: 40, cpus_per_worker: 1, gpu: true}",
        "study": "study: {concurrency: 40, cpus_per_trial: 1, gpus_per_trial: 1}",
    }.items():
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(text)
        good.write_text(
            good.read_text()
            .replace("ray start --head", "ray start --head --num-cpus=8 --num-gpus=2")
            .replace("ray start --address", "ray start --num-cpus=8 --num-gpus=2 --address")
        )
        with pytest.raises(SystemExit):
            cluster_check.main([str(good), f"recipe={recipe}"])
        assert "grows to room for 6 workers, and 40 are asked for" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="recipe must be"):
        cluster_check.main([str(good), "recipe=nothing.yaml"])


def test_the_way_to_a_worker_goes_through_the_head(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster_down.main([str(good), "--dry-run"])
    said = capsys.readouterr().out
    assert [f"ray stop on 10.0.0.{number}" in said for number in (1, 2, 3)] == [True] * 3
    head, worker, _ = cluster_down.machines(cluster_check.read(good).content)
    assert "ProxyCommand" not in " ".join(head.command("true"))
    assert "-W %h:%p ubuntu@10.0.0.1" in " ".join(worker.command("true")).replace("'", "")
    with pytest.raises(ConfigError, match="file must be"):
        cluster_down.main(["nothing.yaml"])


def test_machines_of_a_cloud_are_given_back_by_ray_alone() -> None:
    assert cluster_down.machines({"provider": {"type": "aws"}}) == []
