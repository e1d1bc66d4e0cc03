"""What is wrong with a cluster for a run: judged from what its nodes offer and say, without Ray.

Each says what is so, why that hurts, and what to set. Those that stop a run are of what was seen to hang, to
starve or to lose work without an error; the others cost speed or safety.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mien.platform.cluster import SHARED_MEMORY, Node, worker_shortage
from mien.platform.storage import readable

CLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Needs:
    """What a run asks of a cluster; zeros where it asks nothing."""

    folder: Path  # which all nodes must see
    workers: int = 0  # training processes, or trials at once
    cpus_per_worker: float = 0.0
    gpus_per_worker: float = 0.0
    data_cpus: float = 0.0  # of one data task
    stream_bytes: int = 0  # of all blocks on their way at a time
    checkpoint_bytes: int = 0  # of all checkpoints that lie in the folder at a time


@dataclass(frozen=True)
class Shortcoming:
    """What is wrong, why that hurts, and what to set."""

    what: str
    why: str
    advice: str
    stops: bool = True

    def __str__(self) -> str:
        return f"{self.what}. {self.why}. {self.advice}."


@dataclass(frozen=True)
class Report:
    """What one node says of itself; `began` and `ended` are the driver's clock around its answer."""

    identity: str  # Ray's
    node: str  # its address, as people know it
    code: str
    versions: dict[str, str]
    clock: float
    shared_memory: int
    sees_folder: bool
    began: float = 0.0
    ended: float = 0.0
    seen_by_driver: bool = True


def after_a_loss(nodes: Sequence[Node], needs: Needs) -> list[Shortcoming]:
    """Return what would happen to the workers and the data tasks if one node went away."""
    if len(nodes) < 2 or not needs.workers:
        return []
    for lost in set(nodes):
        rest = list(nodes)
        rest.remove(lost)
        starved, homeless = (
            worker_shortage(
                rest,
                workers=needs.workers,
                cpus_per_worker=needs.cpus_per_worker,
                gpus_per_worker=needs.gpus_per_worker,
                data_cpus=data_cpus,
            )
            for data_cpus in (needs.data_cpus, 0.0)
        )
        of = f"a node of {lost.cpus:g} CPUs and {lost.gpus:g} GPUs"
        if homeless:
            return [
                Shortcoming(
                    f"without {of} the {needs.workers} workers do not fit on the others",
                    "After such a loss the run waits for another node, which only an autoscaler brings",
                    "Let the cluster grow by a node, or lower trainer.workers if waiting is no answer",
                    stops=False,
                )
            ]
        if starved:
            return [
                Shortcoming(
                    f"after the loss of {of} the workers would hold every CPU of the others",
                    "They would be started there and wait for clips that no data task can decode, without an error "
                    "until stream.stall_seconds are over",
                    "Lower trainer.cpus_per_worker or stream.task_cpus, or add CPUs, so that one more stays free",
                )
            ]
    return []


def nodes_without_data_cpus(nodes: Sequence[Node], needs: Needs) -> list[Shortcoming]:
    """Return the nodes that workers can fill so that clips for them are decoded elsewhere."""
    if len(nodes) < 2 or needs.data_cpus == 0 or needs.cpus_per_worker == 0:
        return []
    full = 0
    for node in nodes:
        places = node.gpus / needs.gpus_per_worker if needs.gpus_per_worker else float("inf")
        most = int(min(node.cpus / needs.cpus_per_worker, places, needs.workers))
        full += most > 0 and node.cpus < most * needs.cpus_per_worker + needs.data_cpus
    if not full:
        return []
    return [
        Shortcoming(
            f"on {full} of {len(nodes)} nodes the workers can take every CPU",
            "Clips for them are then decoded on other nodes and cross the network",
            "Give the workers fewer CPUs (trainer.cpus_per_worker) or the nodes more",
            stops=False,
        )
    ]


def store_too_small(store: int, needs: Needs) -> list[Shortcoming]:
    """Return whether the blocks on their way would spill to disk."""
    if needs.stream_bytes <= store:
        return []
    return [
        Shortcoming(
            f"clips on their way take {readable(needs.stream_bytes)}, and the object stores hold {readable(store)}",
            "Ray would write them to disk and read them back, at the disk's speed",
            "Lower stream.ahead_blocks or stream.block_mib, or enlarge the store (cluster.object_store_gib)",
        )
    ]


def disk_too_small(free: int, needs: Needs) -> list[Shortcoming]:
    """Return whether the run's checkpoints fit on the disk of its folder."""
    if needs.checkpoint_bytes <= free:
        return []
    return [
        Shortcoming(
            f"checkpoints need {readable(needs.checkpoint_bytes)} in {needs.folder}, where {readable(free)} are free",
            "The run would stop at the checkpoint that no longer fits",
            "Free the disk, or give another --output",
        )
    ]


def disagreements(reports: Sequence[Report]) -> list[Shortcoming]:
    """Return in which code or versions the nodes differ."""
    found = []
    for name in ("mien", *sorted({name for report in reports for name in report.versions})):
        groups: dict[str, list[str]] = {}
        for one in reports:
            has = one.code if name == "mien" else one.versions.get(name, "none")
            groups.setdefault(has, []).append(one.node)
        if len(groups) > 1:
            told = "; ".join(f"{has} on {', '.join(sorted(nodes))}" for has, nodes in sorted(groups.items()))
            found.append(
                Shortcoming(
                    f"all nodes must have the same {name}, but it is {told}",
                    "Workers that differ compute other numbers, or fail when objects cross between them",
                    "Bring the nodes up anew (`ray up cluster.yaml`), which installs the pinned versions",
                )
            )
    return found


def unshared(reports: Sequence[Report], folder: Path) -> list[Shortcoming]:
    """Return which nodes do not see the run folder as the driver does."""
    blind = sorted(one.node for one in reports if not (one.sees_folder and one.seen_by_driver))
    if not blind:
        return []
    return [
        Shortcoming(
            f"every node must read and write {folder}, but {', '.join(blind)} do(es) not see what the driver wrote",
            "Checkpoints and scores written there would be missing here, and a worker that moves would begin anew",
            "Mount one shared file system at the same path on all nodes and give a folder on it as --output",
        )
    ]


def skewed(reports: Sequence[Report]) -> list[Shortcoming]:
    """Return which clocks are certainly off: by more than what asking took."""
    off = {one.node: max(one.began - one.clock, one.clock - one.ended) for one in reports}
    told = ", ".join(f"{node} by {seconds:.1f} s" for node, seconds in sorted(off.items()) if seconds > CLOCK_SECONDS)
    if not told:
        return []
    return [
        Shortcoming(
            f"clocks differ from the driver's: {told}",
            "Records of different nodes do not line up in time, and silence is judged wrongly",
            "Run a time service (chrony) on all nodes",
            stops=False,
        )
    ]


def shared_memory_too_small(reports: Sequence[Report], stores: dict[str, int]) -> list[Shortcoming]:
    """Return which object stores (bytes by node) are larger than the shared memory they should lie in."""
    small = {one.node: one.shared_memory for one in reports if 0 < one.shared_memory < stores[one.identity]}
    if not small:
        return []
    told = ", ".join(f"{node} has {readable(size)}" for node, size in sorted(small.items()))
    return [
        Shortcoming(
            f"{SHARED_MEMORY} must hold the object store, but {told}",
            "Ray then keeps clips on disk, at the disk's speed",
            f"Enlarge {SHARED_MEMORY} (docker: --shm-size) or start Ray there with a smaller --object-store-memory",
        )
    ]
