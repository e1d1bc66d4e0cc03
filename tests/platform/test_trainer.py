"""Training on Ray's workers: what one process computes, whoever dies on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import Tensor, nn

from mien.platform import checkpoint, trainer
from mien.platform.cluster import ClusterError
from mien.platform.loop import LoopConfig
from mien.platform.optim import OptimConfig
from mien.platform.run import Run
from mien.platform.storage import write_whole
from mien.platform.trainer import Tail, TrainerConfig, TrainerError, WorkerError, fit
from mien.platform.training import run_training

LOOP = LoopConfig(steps=10, batch_size=4, checkpoint_every=2, log_every=1, precision="fp32", ema_decay=0.9)
OPTIM = OptimConfig(lr=0.1, warmup_steps=2, scale_lr=False)
TRAINER = TrainerConfig(cpus_per_worker=0.5)


class Toy(nn.Module):
    """A task of one layer; with dropout, a wrong seed after a resume shows."""

    num_layers = 1

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 1))

    def parameter_layers(self) -> dict[str, int]:
        return {name: 1 for name, _ in self.named_parameters()}

    def undecayed(self) -> set[str]:
        return set()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.layers(batch["x"]) - 1).square().mean()}


def share(step: int, rank: int, world: int) -> dict[str, Tensor]:
    """Return a worker's part of the global batch of a step."""
    whole = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return {"x": whole[rank * 4 // world : (rank + 1) * 4 // world]}


def a_mount_that_went_away() -> None:
    time.sleep(120)


def train(
    folder: Path, config: dict[str, Any], rank: int = 0, world: int = 1, commit: Any = None, interrupt: Any = None
) -> None:
    """Train the toy in its folder, with the accidents that the config asks for."""

    def batches(step: int) -> Iterator[dict[str, Tensor]]:
        while True:
            once = folder / f"accident_{rank}"
            if step == config.get("told_at") and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1.5)  # the controller's next look lets the main thread hear it
            if step == config.get("die_at") and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if step == config.get("hang_at") and rank == 1:
                a_mount_that_went_away()
            if step == config.get("raise_at"):
                with (folder / "raised").open("a") as file:
                    file.write("once\n")
                raise ValueError("the clips must be there, but they are not")
            time.sleep(float(os.environ.get("STEP_SECONDS", 0)))
            yield share(step, rank, world)
            step += 1

    with Run(folder) as run:
        run_training(
            Toy(config["dropout"]),
            batches,
            OPTIM,
            LOOP,
            run,
            num_clips=40,
            about={},
            rank=rank,
            world=world,
            commit=commit,
            interrupt=interrupt,
        )


def worker(config: dict[str, Any]) -> None:
    """Run on each of Ray's workers."""
    at = trainer.here()
    train(Path(config["folder"]), config, at.rank, at.world, at.commit, at.interrupt)


def start(folder: Path, **config: Any) -> dict[str, Any]:
    settings = {"folder": str(folder), "dropout": 0.5, **config}
    Run.start(folder, settings, seed=0)
    return settings


def weights(folder: Path) -> dict[str, Tensor]:
    assert checkpoint.about(folder) == {}
    return checkpoint.weights(folder) | {f"ema.{k}": v for k, v in checkpoint.weights(folder, ema=True).items()}


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["train/loss"]) for record in map(json.loads, lines)]


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """Return the folder of a run that no Ray and no accident touched."""
    folder = tmp_path / "alone"
    train(folder, start(folder))
    return folder


def test_only_whole_new_lines_are_read_and_a_file_that_took_its_place_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.records() == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert tail.records() == [{"step": 1}, {"step": 2}]
    assert tail.records() == []
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert tail.records() == [{"step": 3}]
    # What a resumed run leaves is longer than what was read before.
    write_whole(path, '{"step": 1, "loss": 0.123456789}\n{"step": 2, "loss": 0.123456789}\n')
    assert [record["step"] for record in tail.records()] == [1, 2]


@pytest.mark.ray
def test_a_lost_worker_is_started_again_and_changes_nothing(
    ray_cluster: None, tmp_path: Path, alone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    fit(worker, start(folder, die_at=5), TRAINER, folder, total_steps=10, data_cpus=0.5)
    assert (folder / "accident_0").exists()
    assert losses(folder) == losses(alone)
    assert all(torch.equal(value, weights(folder)[name]) for name, value in weights(alone).items())
    # Ray knows the newest checkpoints, and holds pointers to them instead of copies.
    pointers = [json.loads(path.read_text()) for path in sorted(folder.glob("ray/*/step_*/pointer.json"))]
    assert pointers == [{"checkpoint": str(folder / "checkpoints" / f"step_{step:08d}")} for step in (8, 10)]
    printed = capfd.readouterr()
    assert "training 10/10 steps" in printed.out and printed.err == ""


@pytest.mark.ray
def test_a_worker_that_gets_sigterm_saves_before_it_ends_and_nothing_changes(
    ray_cluster: None, tmp_path: Path, alone: Path
) -> None:
    folder = tmp_path / "told"
    fit(worker, start(folder, told_at=4), TRAINER, folder, total_steps=10, data_cpus=0.5)
    assert losses(folder) == losses(alone)
    assert all(torch.equal(value, weights(folder)[name]) for name, value in weights(alone).items())
    assert [path.name for path in checkpoint.steps(folder / "checkpoints")] == ["step_00000008", "step_00000010"]
    # Ray's pointers beside the last are those it had heard of when the worker ended, which is a matter of moments.
    pointers = [json.loads(path.read_text())["checkpoint"] for path in folder.glob("ray/*/step_*/pointer.json")]
    assert max(Path(path).name for path in pointers) == "step_00000010"


@pytest.mark.ray
def test_two_workers_train_as_one(ray_cluster: None, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, start(one, dropout=0))
    fit(worker, start(two, dropout=0), TRAINER.model_copy(update={"workers": 2}), two, total_steps=10, data_cpus=0.5)
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(two)[name], atol=1e-5), name


@pytest.mark.ray
def test_a_users_error_ends_the_run_at_once_in_its_own_words(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"^the clips must be there, but they are not$"):
        fit(worker, start(tmp_path, raise_at=3), TRAINER, tmp_path, total_steps=10, data_cpus=0.5)
    assert (tmp_path / "raised").read_text() == "once\n"


@pytest.mark.ray
def test_a_worker_that_hangs_ends_the_run_with_its_name_and_line_and_the_others_are_not_blamed(
    ray_cluster: None, tmp_path: Path
) -> None:
    config = TRAINER.model_copy(update={"workers": 2, "silence_seconds": 15.0})
    with pytest.raises(TrainerError, match=r"worker 1 on .* in a_mount_that_went_away.*1 other\(s\) wait") as said:
        fit(worker, start(tmp_path, hang_at=3), config, tmp_path, total_steps=10, data_cpus=0.5)
    assert "worker 0" not in str(said.value) and "trainer.silence_seconds" in str(said.value)
    assert checkpoint.newest(tmp_path / "checkpoints") is not None


@pytest.mark.ray
def test_workers_that_leave_the_data_no_cpu_are_refused_before_anything_starts(
    ray_cluster: None, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=r"no clip could be decoded.*trainer\.cpus_per_worker"):
        fit(worker, {}, TrainerConfig(workers=4), tmp_path, total_steps=10)
    assert list(tmp_path.iterdir()) == []


DRIVER = """
import sys
from pathlib import Path
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.run import Run, interruptible
from mien.platform.trainer import fit
sys.path.insert(0, {tests!r})
import ray.cloudpickle, test_trainer
ray.cloudpickle.register_pickle_by_value(test_trainer)
folder = Path({folder!r})
with interruptible(Run(folder), "the same command"), connect(ClusterConfig(num_cpus=2, object_store_gib=0.1)):
    config = test_trainer.start(folder)
    fit(test_trainer.worker, config, test_trainer.TRAINER, folder, total_steps=10)
"""


@pytest.mark.ray
def test_a_driver_that_is_killed_and_one_that_gets_ctrl_c_lose_nothing(
    processes: Any, tmp_path: Path, alone: Path
) -> None:
    folder = tmp_path / "stopped"
    program = [sys.executable, "-c", DRIVER.format(tests=str(Path(__file__).parent), folder=str(folder))]

    def stop(number: signal.Signals, there: str) -> tuple[int, str]:
        """Start the program and send it a signal as soon as a file is there; return its exit code and words."""
        pipe, slow = subprocess.PIPE, os.environ | {"STEP_SECONDS": "0.7"}
        driver = subprocess.Popen(
            program, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=slow
        )
        until = time.monotonic() + 200
        while not list(folder.glob(there)) and time.monotonic() < until:
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.05)
        started = processes.living(driver.pid)
        # As a terminal does: Ctrl-C goes to the whole group. SIGKILL strikes the driver alone.
        (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
        said = driver.communicate(timeout=60)[0]
        if number == signal.SIGTERM:
            assert not processes.wait_until_gone(started, 20), "what it had started ends with it"
        processes.wait_until_gone(started, 2)
        processes.end(started)
        shutil.rmtree(folder / "ray")
        assert losses(folder)[-1][0] < 10
        return driver.returncode, said

    assert stop(signal.SIGKILL, "checkpoints/step_00000004")[0] == -signal.SIGKILL
    code, said = stop(signal.SIGINT, "ray/*/started_0")
    assert code == 130 and "state kept at" in said and "resume with: the same command" in said, said
    assert "Traceback" not in said

    before = checkpoint.newest(folder / "checkpoints")
    code, said = stop(signal.SIGTERM, "ray/*/started_0")
    assert code == 143 and "SIGTERM: the workers save their state" in said and "resume with" in said, said
    assert "Traceback" not in said
    after = checkpoint.newest(folder / "checkpoints")
    assert before is not None and after is not None and after.name > before.name, "nothing was saved when it was told"

    again = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    assert again.returncode == 0, again.stdout
    assert losses(folder) == losses(alone)
    assert all(torch.equal(value, weights(folder)[name]) for name, value in weights(alone).items())


class TrainController:
    """Called as Ray's own, which a fold of a study starts for its workers."""

    def pid(self) -> int:
        return os.getpid()


class Fold:
    """Another process of the same job, on the same node."""

    def __init__(self) -> None:
        self.controller = ray.remote(num_cpus=0)(TrainController).remote()

    def pid(self) -> int:
        pid: int = ray.get(self.controller.pid.remote())
        return pid


@pytest.mark.ray
def test_who_ends_a_controller_leaves_those_of_other_trials(ray_cluster: None) -> None:
    fold, own = ray.remote(num_cpus=0)(Fold).remote(), ray.remote(num_cpus=0)(TrainController).remote()
    others = ray.get(fold.pid.remote(), timeout=60)
    ray.get(own.pid.remote(), timeout=60)
    trainer._end_controller()
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(own.pid.remote(), timeout=60)
    assert ray.get(fold.pid.remote(), timeout=60) == others
    ray.kill(fold)
