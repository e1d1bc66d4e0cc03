"""Data tasks run by Ray Data in a fixed order, as batches: in blocks of bounded size, and never waiting for ever.

A task returns one block, a whole number of batches or an even part of one, so that blocks and batches meet. Blocks are
counted: `ahead_blocks` of them are in the object store or in work at most. A long stream is cut in segments, each a Ray
Data execution, because an execution keeps a record of every task; the next one starts while the last blocks of this one
are read. A segment is read by a thread, so whoever takes a batch can stop waiting and say what is wrong.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from pydantic import Field
from ray.data import DataContext, Datasource, ExecutionResources, ReadTask
from ray.data._internal.execution.execution_callback import ExecutionCallback  # Ray offers it nowhere else
from ray.data.block import Block, BlockAccessor, BlockMetadata

from mien.data_pipelines.unreadable import DropLimit

MIB = 2**20
PACE_SECONDS = 0.02  # small beside the second or more that a block takes to decode
CLOSE_SECONDS = 5  # that leaving waits for a task that does not end; its thread then ends with the process

Batch = dict[str, np.ndarray]


class StreamConfig(DropLimit, frozen=True, extra="forbid"):
    """How clips travel from Ray's data tasks to a training worker."""

    task_cpus: float = Field(1.0, gt=0, description="CPUs that Ray counts for a data task; training workers leave some")
    block_mib: float = Field(48.0, gt=0, description="largest block, MiB; 20 to 75 measured best")
    block_clips: int = Field(64, ge=1, description="most clips in a block: what a task decodes in some 2 seconds")
    ahead_blocks: int | None = Field(
        None, ge=2, description="blocks of one worker ready or in work; null: 4 + 2 for each CPU it may count on"
    )
    segment_blocks: int = Field(256, ge=2, description="blocks of one Ray Data execution; the next one overlaps")
    stall_seconds: float = Field(300.0, gt=0, description="longest wait for a batch, seconds; then an error")


class StalledError(ValueError):
    """No batch came for `stall_seconds`."""


def clips_per_block(batch_size: int, clip_bytes: int, config: StreamConfig) -> int:
    """Return the clips of a block: a multiple of a worker's batch, or a divisor of a batch larger than a block."""
    most = max(1, min(config.block_clips, int(config.block_mib * MIB) // clip_bytes))
    if most >= batch_size:
        return most // batch_size * batch_size
    return max(size for size in range(1, most + 1) if batch_size % size == 0)


def blocks_ahead(config: StreamConfig, workers: int) -> int:
    """Return how many blocks of one of `workers` training workers may be ready or in work at a time."""
    return config.ahead_blocks or 4 + int(2 * ray.cluster_resources().get("CPU", 0) / workers)


def bytes_on_their_way(config: StreamConfig, workers: int, batch_size: int, clip_bytes: int) -> int:
    """Return the bytes of all workers' blocks at a time, `batch_size` clips a worker; two segments may overlap."""
    block_bytes = clips_per_block(batch_size, clip_bytes, config) * clip_bytes
    return 2 * workers * blocks_ahead(config, workers) * block_bytes


def as_block(columns: Mapping[str, np.ndarray]) -> Block:
    """Return columns of one length as a block, arrays of more than one dimension included."""
    return BlockAccessor.batch_to_block(dict(columns))


@dataclass(frozen=True)
class Task:
    """One data task: what it runs, and how many rows the block it returns has."""

    read: Callable[[], list[Block]]
    rows: int


class Blocks(Datasource):
    """Tasks as a Ray Data source: one operator, so that reading has all of the execution's CPUs to itself."""

    def __init__(self, tasks: Sequence[Task], block_bytes: int) -> None:
        super().__init__()
        self._bytes = block_bytes * len(tasks)
        self._tasks = [
            ReadTask(task.read, BlockMetadata(task.rows, block_bytes, input_files=None, exec_stats=None))
            for task in tasks
        ]

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all blocks."""
        return self._bytes

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        """Return every task; how many there are is not Ray's to choose."""
        return self._tasks


class Pace(ExecutionCallback):
    """Ray Data's execution callback that rests between two steps of the scheduling loop.

    The loop does not wait while all blocks are ready and none may be taken yet, which is how it should be most of the
    time. Its thread lives in the training worker and would take the interpreter from it: measured, 0.13 s for a small
    step become 0.31 s.
    """

    def on_execution_step(self, executor: object) -> None:
        """Rest."""
        time.sleep(PACE_SECONDS)


@dataclass(frozen=True)
class Execution:
    """Tasks run by Ray Data in their order, segment after segment, each overlapping the one before."""

    task: Callable[[int], Task]
    tasks: int
    block_bytes: int
    config: StreamConfig
    workers: int

    def batches(self, batch_size: int, batches_per_block: float) -> Iterator[Batch]:
        """Yield the blocks' rows as batches that own their memory; only the last may be smaller."""
        blocks_per_batch = max(round(1 / batches_per_block), 1)
        length = math.ceil(self.config.segment_blocks / blocks_per_batch) * blocks_per_batch  # whole batches
        starts = iter(range(0, self.tasks, length))
        running: list[Segment] = []
        try:
            while True:
                if not running or (len(running) == 1 and running[0].left <= self.ahead * batches_per_block):
                    start = next(starts, None)
                    if start is not None:
                        running.append(self._segment(start, start + length, batch_size, batches_per_block))
                    elif not running:
                        return
                batch = self._take(running[0])
                if batch is None:
                    running.pop(0).close()
                else:
                    yield batch
        finally:
            for segment in running:
                segment.close()

    @property
    def ahead(self) -> int:
        """Return how many blocks may be ready or in work at a time."""
        return blocks_ahead(self.config, self.workers)

    def _segment(self, start: int, stop: int, batch_size: int, batches_per_block: float) -> "Segment":
        tasks = [self.task(number) for number in range(start, min(stop, self.tasks))]
        with DataContext.current(self._context()):
            dataset = ray.data.read_datasource(
                Blocks(tasks, self.block_bytes), override_num_blocks=len(tasks), num_cpus=self.config.task_cpus
            )
        return Segment(dataset, batch_size, math.ceil(len(tasks) * batches_per_block))

    def _context(self) -> DataContext:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.custom_execution_callback_classes = [Pace]
        context.target_max_block_size = 2 * self.block_bytes  # so that a task's rows stay one block
        options = context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(object_store_memory=self.ahead * self.block_bytes)
        return context

    def _take(self, segment: "Segment") -> Batch | None:
        try:
            return segment.take(self.config.stall_seconds)
        except queue.Empty:
            raise stalled(self.config.stall_seconds, self.config.task_cpus) from None


def stalled(seconds: float, task_cpus: float) -> StalledError:
    """Return the error that says what may hold data tasks up."""
    total, free = ray.cluster_resources().get("CPU", 0.0), ray.available_resources().get("CPU", 0.0)
    return StalledError(
        f"clips must come within stream.stall_seconds={seconds:g}, but none did. A data task takes {task_cpus:g} CPUs; "
        f"{free:g} of the cluster's {total:g} are free now. If training workers or trials hold the rest, lower their "
        "CPUs (trainer.cpus_per_worker, study.cpus_per_trial) or stream.task_cpus; if not, decoding or the storage is "
        "that slow: lower stream.block_clips"
    )


class Segment:
    """One Ray Data execution, read by a thread of its own so that nobody waits for it without a limit."""

    def __init__(self, dataset: ray.data.Dataset, batch_size: int, batches: int) -> None:
        self.left = batches  # how many are still to be taken
        self._ready: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(dataset, batch_size), daemon=True)
        self._thread.start()

    def take(self, seconds: float) -> Batch | None:
        """Return the next batch, or None after the last; raises queue.Empty after `seconds`, or what a task raised."""
        ready = self._ready.get(timeout=seconds)
        if isinstance(ready, Exception):
            raise ready
        self.left -= 1
        return ready

    def close(self) -> None:
        """Stop the execution and free its blocks."""
        self._closed.set()
        self._thread.join(timeout=CLOSE_SECONDS)

    def _run(self, dataset: ray.data.Dataset, batch_size: int) -> None:
        reader: Any = dataset.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=1)
        batches = iter(reader)  # a generator, though annotated as something to iterate over
        try:
            for batch in batches:
                # Copied: Ray's arrays lie in shared memory, which is read-only here and would stay taken.
                if not self._give({name: np.array(values) for name, values in batch.items()}):
                    return
            self._give(None)
        except Exception as error:  # noqa: BLE001  (raised again by `take`, in the thread that waits)
            self._give(error)
        finally:
            batches.close()

    def _give(self, item: Batch | Exception | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
