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


def train(folder: Path, rank: int = 0, world: int = 1, at: Any = None, drained: bool = False) -> None:
    """Train, alone or, with `at`, as a worker that waits at some steps for what the test does to it."""
    loop = LOOP.model_copy(update={"checkpoint_every": 100}) if drained else LOOP

    def batches(step: int) -> Iterator[dict[str, Tensor]]:
        if rank == 0:
            with (folder / "starts").open("a") as file:
                file.write(f"{world} workers from step {step}\n")
        while True:
            if at and drained and (step, world) == (LOST_AT, 2):
                (folder / f"waits_at_{step}").touch()
                until = time.monotonic() + WAIT_SECONDS
                while not at.interrupt.save and time.monotonic() < until:
                    time.sleep(0.1)
            elif at and (step, world) in ((CAME_AT, 2), (CAME_AT, 1), (LOST_AT, 2)) and not (drained and world == 1):
                (folder / f"waits_at_{step}").touch()
                time.sleep(0 if (step, world) == (CAME_AT, 2) and not drained else WAIT_SECONDS)
            yield share(step, rank, world)
            step += 1

    told = at.told() if at else {}
    with Run(folder) as run:
        run_training(Toy(), batches, OPTIM, loop, run, num_clips=60, about={}, **told)


def worker(config: dict[str, Any]) -> None:
    at = trainer.here()
    train(Path(config["folder"]), at.rank, at.world, at, config["drained"])


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
config = {{"folder": str(folder), "drained": {drained}}}
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


def started(cluster: Raylets, folder: Path, drained: bool) -> "subprocess.Popen[str]":
    """Start the driver of an elastic training."""
    here = str(Path(__file__).parent)
    program = DRIVER.format(tests=here, folder=str(folder), address=cluster.address, drained=drained)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "-c", program], env=cluster.environment, text=True, **pipe)


def same_as_alone(tmp_path: Path, folder: Path) -> None:
    """Assert that the clips of every step, the rates and, but for rounding, the weights are those of one worker."""
    alone = tmp_path / "alone"
    Run.start(alone, {}, seed=0)
    train(alone)
    assert used.steps(folder) == used.steps(alone)
    assert used.wrong(folder, range(STEPS * BATCH), STEPS, BATCH) == []
    for name, value in checkpoint.weights(alone).items():
        assert torch.allclose(value, checkpoint.weights(folder)[name], atol=1e-5), name
    rates = [[line["train/lr"] for line in records(path / "metrics.jsonl")] for path in (alone, folder)]
    assert rates[0] == rates[1] and len(rates[0]) == STEPS


def test_workers_shrink_with_a_lost_node_and_grow_with_a_new_one_and_every_batch_stays_what_it_was(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "elastic"
    with Raylets(nodes=2, cpus=1, store_mib=100, logs=tmp_path / "nodes") as cluster:
        driver = started(cluster, folder, drained=False)
        try:
            until(folder / f"waits_at_{LOST_AT}", driver)
            assert cluster.kill("1")
            until(folder / f"waits_at_{CAME_AT}", driver)
            cluster.start("1", tries=3)
            said = driver.communicate(timeout=WAIT_SECONDS)[0]
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, said
    starts = ["2 workers from step 0", f"1 workers from step {LOST_AT}", f"2 workers from step {CAME_AT}"]
    assert (folder / "starts").read_text().splitlines() == starts
    same_as_alone(tmp_path, folder)


def test_workers_of_a_node_that_will_be_taken_away_save_in_time_and_the_others_go_on_from_there(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "drained"
    with Raylets(nodes=2, cpus=1, store_mib=100, logs=tmp_path / "nodes") as cluster:
        driver = started(cluster, folder, drained=True)
        try:
            until(folder / f"waits_at_{LOST_AT}", driver)
            cluster.drain("1", seconds=15)
            said = driver.communicate(timeout=WAIT_SECONDS)[0]
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, said
    # No checkpoint was due: what the survivor goes on from is what the notice left.
    starts = ["2 workers from step 0", f"1 workers from step {LOST_AT + 1}"]
    assert (folder / "starts").read_text().splitlines() == starts
    same_as_alone(tmp_path, folder)
