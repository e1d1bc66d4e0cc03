"""Before a run starts on a cluster: what would hang, starve, fall apart after a loss, or be lost, said with its remedy.

Ray waits without a word for CPUs that never come free, and a folder that only one node sees fails hours later. So every
node is asked: a small task of its own looks at mien's code, the versions, the clock, shared memory and the run folder.
What would stop the run is an error (`--force` goes on all the same); what only costs speed or safety is a line.
"""

import hashlib
import shutil
import sys
import time
import uuid
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import mien
from mien.platform.cluster import SHARED_MEMORY, ClusterError, living, nodes
from mien.platform.shortcomings import (
    Needs,
    Report,
    Shortcoming,
    after_a_loss,
    disagreements,
    disk_too_small,
    nodes_without_data_cpus,
    shared_memory_too_small,
    skewed,
    store_too_small,
    unshared,
)
from mien.platform.storage import free_bytes, storing

FORCE = {"force": "go on in spite of what the check of the cluster before the start finds"}
ANSWER_SECONDS = 120.0  # for a node that has to start a process on a busy machine
SAME_EVERYWHERE = ("ray", "torch", "numpy", "pyarrow")
ROOMS = ("models", "data_pipelines", "platform", "experiments")


class PreflightError(ClusterError):
    """The run would hang or be lost as things stand."""


def preflight(needs: Needs, *, force: bool = False) -> list[Shortcoming]:
    """Look for what would go wrong on the connected cluster, print it, and return it.

    Raises PreflightError where a finding stops the run, unless `force` says to go on.
    """
    offered, offers = living(), nodes()
    stores = {name: int(node["Resources"].get("object_store_memory", 0)) for name, node in offered.items()}
    found = [
        *after_a_loss(offers, needs),
        *nodes_without_data_cpus(offers, needs),
        *store_too_small(sum(stores.values()), needs),
        *disk_too_small(free_bytes(needs.folder), needs),
    ]
    if len(offered) > 1:  # on one node all of this is the same by itself
        reports, silent = ask(
            {identity: node["NodeManagerAddress"] for identity, node in offered.items()}, needs.folder
        )
        # A node that was lost meanwhile is no node of this cluster; nothing will wait for it.
        there = living()
        found += [one for identity, one in silent.items() if identity in there]
        found += [*disagreements(reports), *unshared(reports, needs.folder), *skewed(reports)]
        found += shared_memory_too_small(reports, stores)
    stopping = [one for one in found if one.stops and not force]
    for one in found:
        if one not in stopping:
            print(f"note: {one}", flush=True)
    if stopping:
        raise PreflightError(
            f"{len(stopping)} thing(s) would stop or lose this run on this cluster; put them right, or add --force to "
            "go on all the same:\n" + "\n".join(f"- {one}" for one in stopping)
        )
    return found


def ask(asked: dict[str, str], folder: Path) -> tuple[list[Report], dict[str, Shortcoming]]:
    """Ask every node (Ray's name and address) to report; return what they said, and which said nothing."""
    meeting = folder.absolute() / f".preflight-{uuid.uuid4().hex}"
    reports: list[Report] = []
    silent: dict[str, Shortcoming] = {}
    with storing(folder):
        for left in folder.absolute().glob(".preflight-*"):  # by a driver that was killed while it asked
            shutil.rmtree(left, ignore_errors=True)
        meeting.mkdir(parents=True)
        (meeting / "driver").touch()
    try:
        began = time.time()
        waiting = {
            ray.remote(num_cpus=0, max_retries=2)(report)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(identity, soft=False))
            .remote(identity, address, meeting): (identity, address)
            for identity, address in asked.items()
        }
        until = time.monotonic() + ANSWER_SECONDS
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=max(until - time.monotonic(), 0))
            if not ready:
                late = f"nothing came within {ANSWER_SECONDS:g} seconds"
                silent |= {identity: _silent(address, late) for identity, address in waiting.values()}
                break
            identity, address = waiting.pop(ready[0])
            try:
                one: Report = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                silent[identity] = _silent(address, str(error).strip().splitlines()[-1])
                continue
            seen = (meeting / one.identity).is_file()
            reports.append(replace(one, began=began, ended=time.time(), seen_by_driver=seen))
        for unanswered in waiting:
            ray.cancel(unanswered, force=True)
    finally:
        shutil.rmtree(meeting, ignore_errors=True)
    return reports, silent


def _silent(address: str, reason: str) -> Shortcoming:
    return Shortcoming(
        f"node {address} does not answer as it should: {reason}",
        "Workers and data tasks that Ray places there would fail or wait in the same way",
        "Look at its logs (ray logs), install mien there as cluster.yaml does, or take it out of the cluster",
    )


def report(identity: str, address: str, meeting: Path) -> Report:
    """Say what a node is like; runs on that node."""
    sees = (meeting / "driver").is_file()
    if sees:
        (meeting / identity).touch()
    return Report(
        identity,
        address,
        code_digest(),
        {"python": sys.version.split()[0], **{name: metadata.version(name) for name in SAME_EVERYWHERE}},
        time.time(),
        shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0,
        sees,
    )


def code_digest() -> str:
    """Return a digest of mien's own source files, which a commit is not where the code was copied without git."""
    root, digest = Path(mien.__file__).resolve().parent, hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
