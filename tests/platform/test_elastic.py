"""Workers that become fewer when a node is lost, and more when one comes, learn what two that were never lost learn."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mien.experiments.benchmarks.raylets import Raylets
from mien.platform import checkpoint, trainer, used
from mien.platform.loop import LoopConfig
from mien.platform.optim import OptimConfig
from mien.platform.run import Run, records
from mien.platform.trainer import TrainerConfig
from mien.platform.training import run_training

pytestmark = pytest.mark.ray
LOST_AT, CAME_AT, STEPS, BATCH = 4, 8, 12, 5
LOOP = LoopConfig(steps=STEPS, batch_size=BATCH, checkpoint_every=1, log_every=1, precision="fp32", record_clips=True)
OPTIM = OptimConfig(lr=0.1, warmup_steps=2, scale_lr=False)
TRAINER = TrainerConfig(workers=(1, 2), cpus_per_worker=1, max_failures=9, resize_seconds=2)
WAIT_SECONDS = 150.0  # of a worker, for what the test does to it


class Toy(nn.Module):
    num_layers = 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def parameter_layers(self) -> dict[str, int]:
        return {name: 1 for name, _ in self.named_parameters()}

    def undecayed(self) -> set[str]:
        return set()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.layer(batch["x"]) - 1).square().mean()}


def share(step: int, rank: int, world: int) -> dict[str, Tensor]:
    """Return a worker's part of the global batch of a step, of five clips: two workers' parts are not equal."""
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    whole = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(step))
    return {"x": whole[part], "row": torch.arange(step * BATCH, (step + 1) * BATCH)[part]}


def train(folder: Path, rank: int, world: int, commit: Any = None, wait: bool = False) -> None:
    def batches(step: int) -> Iterator[dict[str, Tensor]]:
        while True:
            if wait and (step, world) in ((LOST_AT, 2), (CAME_AT, 1)):
                (folder / f"waits_at_{step}").touch()
                time.sleep(WAIT_SECONDS)
                raise RuntimeError("nobody came")
            yield share(step, rank, world)
            step += 1

    with Run(folder) as run:
        run_training(Toy(), batches, OPTIM, LOOP, run, num_clips=60, about={}, rank=rank, world=world, commit=commit)


def worker(config: dict[str, Any]) -> None:
    at, folder = trainer.here(), Path(config["folder"])
    if at.rank == 0:
        with (folder / "worlds").open("a") as file:
            file.write(f"{at.world}\n")
    train(folder, at.rank, at.world, at.commit, wait=True)


DRIVER = """
import sys
from pathlib import Path
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.run import Run, records
from mien.platform.trainer import fit
sys.path.insert(0, {tests!r})
import ray.cloudpickle, test_elastic
ray.cloudpickle.register_pickle_by_value(test_elastic)
folder = Path({folder!r})
config = {{"folder": str(folder)}}
Run.start(folder, config, seed=0)
with connect(ClusterConfig(address={address!r})):
    fit(test_elastic.worker, config, test_elastic.TRAINER, folder, total_steps=test_elastic.STEPS, data_cpus=0)
"""


def until(there: Path, driver: "subprocess.Popen[str]") -> None:
    """Wait for a file."""
    end = time.monotonic() + WAIT_SECONDS
    while not there.exists():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end, f"{there} did not come"
        time.sleep(0.1)


def test_workers_shrink_with_a_lost_node_and_grow_with_a_new_one_and_every_batch_stays_what_it_was(
    tmp_path: Path,
) -> None:
    alone, folder = tmp_path / "alone", tmp_path / "elastic"
    Run.start(alone, {}, seed=0)
    train(alone, 0, 1)
    with Raylets(nodes=2, cpus=1, store_mib=100, logs=tmp_path / "nodes") as cluster:
        program = DRIVER.format(tests=str(Path(__file__).parent), folder=str(folder), address=cluster.address)
        driver = subprocess.Popen(
            [sys.executable, "-c", program],
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            until(folder / f"waits_at_{LOST_AT}", driver)
            assert cluster.kill("1")
            until(folder / f"waits_at_{CAME_AT}", driver)
            cluster.start("1")
            said = driver.communicate(timeout=WAIT_SECONDS)[0]
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, said
    assert (folder / "worlds").read_text().split() == ["2", "1", "2"]
    # The clips of every step are those of one worker, in their order: also the parts of two, which are not equal.
    assert used.steps(folder) == used.steps(alone)
    assert used.wrong(folder, range(STEPS * BATCH), STEPS, BATCH) == []
    for name, value in checkpoint.weights(alone).items():
        assert torch.allclose(value, checkpoint.weights(folder)[name], atol=1e-5), name
    rates = [[line["train/lr"] for line in records(path / "metrics.jsonl")] for path in (alone, folder)]
    assert rates[0] == rates[1] and len(rates[0]) == STEPS
