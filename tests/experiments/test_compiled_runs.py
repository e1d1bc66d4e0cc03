"""Runs with loop.compile=on, by the real compiler: the eager run's numbers and files, however they are stopped or cut.

Compiled, a step rounds otherwise, so that losses, weights and averages agree with the eager run's to a ten-thousandth;
stochastic depth is drawn otherwise, so that it is compared among compiled runs alone, to the bit.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mien.models.attention import DropPath
from mien.models.backbone import BackboneConfig, Task
from mien.models.expression import Expression, ExpressionConfig
from mien.platform import checkpoint
from mien.platform.compiling import CPP_COMPILERS, compile_blocks
from mien.platform.loop import LoopConfig, averaged, copy_weights, start, train, weights_of
from mien.platform.optim import OptimConfig
from mien.platform.run import Interrupt, Run, records
from mien.platform.training import run_training

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.skipif(not any(map(shutil.which, CPP_COMPILERS)), reason="no C++ compiler on this machine"),
    # The compiler's own: what it uses, and what it asks of each input (and hides, where warnings are no errors).
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
TUBES = {"frames": 4, "size": 16, "patch": 4, "tubelet": 2}
OPTIM = OptimConfig(lr=1e-2, warmup_steps=1, scale_lr=False)
LOOP = LoopConfig(steps=6, batch_size=8, precision="fp32", log_every=1, ema_decay=0.9)


@pytest.fixture(scope="module", autouse=True)
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile in this process, into a folder that all tests here and the processes they start share."""
    import torch._inductor.config as inductor
    from torch._inductor import cpu_vec_isa

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else processes stay that compile
        patch.setattr(inductor, "compile_threads", 1)
        patch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
        patch.setattr(inductor.cpp, "vec_isa_ok", True)
        patch.setattr(cpu_vec_isa, "valid_vec_isa_list", vector_instructions)
        yield
    torch._dynamo.reset()


def vector_instructions() -> list[Any]:
    """Return AVX2 where it is there; trying all that this CPU may have takes longer than compiling the graphs."""
    from torch._inductor.cpu_vec_isa import VecAVX2

    return [VecAVX2()] if torch.cpu._is_avx2_supported() else []


def small_task(drop_path: float = 0.0) -> Task:
    torch.manual_seed(0)
    encoder = {"name": "vit", "width": 16, "depth": 2, "heads": 2}
    backbone = BackboneConfig.model_validate({"tubes": TUBES, "encoder": encoder})
    task = Expression(ExpressionConfig(backbone=backbone, head_scale=1.0))
    for part in task.modules():
        if isinstance(part, DropPath):
            part.rate = drop_path  # each rate is a graph of its own: one does for all blocks
    return task


def batches(first: int, size: int = LOOP.batch_size) -> Iterator[dict[str, Tensor]]:
    step = first
    while True:
        drawn = torch.Generator().manual_seed(step)
        clip = torch.randint(256, (size, 4, 16, 16, 3), dtype=torch.uint8, generator=drawn)
        yield {"clip": clip, "label": torch.arange(size) % 7}
        step += 1


def ran(folder: Path, drop_path: float = 0.0, stop: int | None = None, **loop: Any) -> None:
    """Run, or go on, in a folder; `stop` ends the run after that step as Ctrl-C does."""
    folder.mkdir(exist_ok=True)
    task, config, interrupt = small_task(drop_path), LOOP.model_copy(update=loop), Interrupt()

    def clips(first: int) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(batches(first), start=first + 1):
            interrupt.asked = step == stop
            yield batch

    with Run(folder) as run:
        run_training(task, clips, OPTIM, config, run, num_clips=48, about={}, interrupt=interrupt)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **TOLERANCE)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def graphs() -> int:
    """Return how many graphs have been compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that is not compiled."""
    folder = tmp_path_factory.mktemp("eager")
    ran(folder)
    return folder


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same run, compiled."""
    folder, before = tmp_path_factory.mktemp("compiled"), graphs()
    ran(folder, compile="on")
    assert graphs() > before
    return folder


def losses(folder: Path) -> Tensor:
    return torch.tensor([line["train/loss"] for line in records(folder / "metrics.jsonl")])


def test_losses_weights_and_averages_are_those_of_the_eager_run(eager: Path, compiled: Path) -> None:
    assert len(losses(eager)) == LOOP.steps
    torch.testing.assert_close(losses(compiled), losses(eager), **TOLERANCE)
    for ema in (False, True):
        assert_close(checkpoint.weights(compiled, ema), checkpoint.weights(eager, ema))


def test_what_is_saved_bears_the_names_of_the_eager_run(eager: Path, compiled: Path) -> None:
    for file in ("weights.safetensors", "ema.safetensors"):
        names = []
        for folder in (eager, compiled):
            with safe_open(checkpoint.find(folder) / file, "pt") as content:
                names.append(sorted(content.keys()))
        assert names[0] == names[1] and not [name for name in names[1] if "_orig_mod" in name]


@pytest.mark.parametrize("first", ["on", "off"])
def test_a_run_that_stopped_goes_on_the_other_way(first: str, eager: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, compile=first, stop=3)
    ran(tmp_path, compile="off" if first == "on" else "on")
    torch.testing.assert_close(losses(tmp_path), losses(eager), **TOLERANCE)
    for ema in (False, True):
        assert_close(checkpoint.weights(tmp_path, ema), checkpoint.weights(eager, ema))


def test_compiled_again_a_run_that_stopped_and_one_that_keeps_less_end_the_same_to_the_bit(tmp_path: Path) -> None:
    ran(tmp_path / "whole", drop_path=0.5, compile="on")
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path / "stopped", drop_path=0.5, compile="on", stop=3)
    ran(tmp_path / "stopped", drop_path=0.5, compile="on")
    ran(tmp_path / "recomputed", drop_path=0.5, compile="on", activation_checkpointing=True)
    for name in ("stopped", "recomputed"):
        for ema in (False, True):
            assert_same(checkpoint.weights(tmp_path / name, ema), checkpoint.weights(tmp_path / "whole", ema))


def test_the_average_answers_through_compiled_blocks(compiled: Path) -> None:
    """Lent to the task, averaged weights are what compiled blocks read, and then its own are again."""
    task = small_task()
    config = LOOP.model_copy(update={"compile": "on"})
    state = start(task, config, OPTIM)
    checkpoint.restore(checkpoint.find(compiled), task, state)
    assert "blocks are compiled" in compile_blocks(task, "on")
    batch = next(batches(0))
    for ema in (True, False):
        plain = small_task()
        copy_weights(checkpoint.weights(compiled, ema), weights_of(plain))
        with averaged(task, state) if ema else nullcontext():
            found = task.predict(batch)["probabilities"]
        torch.testing.assert_close(found, plain.predict(batch)["probabilities"], **TOLERANCE)


def worker(rank: int, folder: Path) -> None:
    """Train on every second clip, beside another worker, in two pieces of as many clips as the runs above."""
    from torch._inductor import cpu_vec_isa

    torch.set_num_threads(1)
    cpu_vec_isa.valid_vec_isa_list = vector_instructions
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name in ("off", "on"):
        task, size = small_task(), 4 * LOOP.batch_size
        loop = LOOP.model_copy(update={"batch_size": size, "accumulate": 2, "steps": 3, "compile": name})
        state = start(task, loop, OPTIM)
        compile_blocks(task, loop.compile)
        part = ({key: value[rank::2] for key, value in batch.items()} for batch in batches(0, size))
        steps = list(train(DistributedDataParallel(task), state, part, loop, OPTIM, num_clips=size * 3, rank=rank))
        about = {"losses": torch.tensor([step["loss"] for step in steps]), "graphs": graphs()}
        found[name] = {**about, "weights": weights_of(task), "ema": state.ema}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # shutting down in turn, gloo's threads can abort a process whose work is done and written


def test_two_workers_take_the_steps_of_two_eager_ones(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for found in ranks:
        assert found["on"]["graphs"] > found["off"]["graphs"] == 0
        torch.testing.assert_close(found["on"]["losses"], found["off"]["losses"], **TOLERANCE)
        for part in ("weights", "ema"):
            assert_close(found["on"][part], found["off"][part])
            assert_same(found["on"][part], ranks[0]["on"][part])
