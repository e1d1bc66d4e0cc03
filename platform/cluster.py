"""The Ray cluster: start one here or join one, and say beforehand what would hang.

Ray waits without a word for resources that can never come free. Three waits were seen (workers that hold every CPU
while data tasks need one, trials larger than any node, an object store larger than shared memory), so `check` looks for
them before a run starts. `connect` also sets what our other Ray files rely on: a controller that polls twice a second,
so that a checkpoint counts as registered at once, and a terminal that shows our lines instead of Ray's.
"""

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, Field
from ray._private.state import actors  # the public list of actors needs a dashboard
from ray._private.worker import get_dashboard_url
from ray.util.placement_group import placement_group_table

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
ANSWER_SECONDS = 10
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in what `ray job submit` starts

# Read by Ray in the driver and, for RAY_TRAIN_*, handed by it to the controller and the workers.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Workers and trials keep the driver's folder, so that relative paths in settings mean the same there.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ctrl-C is to reach our own code as KeyboardInterrupt; Tune would swallow it and return.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


class ClusterConfig(BaseModel, frozen=True, extra="forbid"):
    """Which cluster, and what a cluster started here may use."""

    address: str = Field(
        "local",
        description='"local": the cluster of the `ray job` that this is, else one started on this machine; "auto" or '
        "HOST:PORT joins a cluster",
    )
    num_cpus: int | None = Field(None, ge=1, description="CPUs a local cluster offers; all of the machine's when unset")
    num_gpus: int | None = Field(None, ge=0, description="GPUs a local cluster offers; all visible ones when unset")
    object_store_gib: float | None = Field(
        None, gt=0, description="shared memory for clips on their way, GiB; Ray takes 30 % of memory when unset"
    )
    dashboard: bool = Field(
        False, description="serve Ray's dashboard on 127.0.0.1 (about 1 GiB of memory); a local cluster only"
    )
    worker_output: bool = Field(False, description="repeat what workers print in this terminal; Ray logs it either way")


class ClusterError(ValueError):
    """The cluster cannot be had, or cannot hold what is asked of it."""


@dataclass(frozen=True)
class Node:
    """What one living node offers in all, used or not."""

    cpus: float
    gpus: float


@contextmanager
def connect(config: ClusterConfig, about: Mapping[str, str] | None = None) -> Iterator[None]:
    """Be connected to the cluster inside the block; a cluster that was started here ends with it.

    `about` says what this job is, as the cluster's list of jobs shows it beside what a submission says.
    Where this process is connected already, that connection is used and left alone.
    Raises ClusterError when the store does not fit in shared memory or no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Announces on every start that the (default) token authentication is on.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    job = ray.job_config.JobConfig(metadata=dict(about or {}))
    if config.dashboard or config.address != "local" or in_a_job():  # who asks for it is the dashboard
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    if config.address == "local" and not in_a_job():
        check_shared_memory(config)
        here = ray.init(
            address="local",
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            object_store_memory=None if config.object_store_gib is None else int(config.object_store_gib * GIB),
            include_dashboard=config.dashboard,
            logging_level=logging.ERROR,
            log_to_driver=config.worker_output,
            job_config=job,
        )
        keep_token_private()
        if here.dashboard_url:
            print(
                f"dashboard: http://{here.dashboard_url}, for whoever holds the token (`ray get-auth-token`)",
                flush=True,
            )
    else:
        address = "auto" if config.address == "local" else config.address
        check_answers(address)
        try:
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=config.worker_output,
                job_config=job,
            )
        except ConnectionError as error:
            raise _nobody(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def keep_token_private() -> None:
    """Take Ray's token away from the machine's other users, whom Ray lets read it: whoever has it runs code as us."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_uid == os.geteuid():
        token.chmod(0o600)


def in_a_job() -> bool:
    """Return whether this program was started by `ray job submit`: then its cluster is there already."""
    return JOB in os.environ


def check_answers(address: str) -> None:
    """Raise ClusterError when nothing listens at HOST:PORT within a few seconds; Ray itself would try for minutes."""
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto", or a form that Ray itself judges at once
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise _nobody(address, error) from error


def _nobody(address: str, error: OSError) -> ClusterError:
    """Return the error that says that no cluster answers."""
    return ClusterError(
        f"a Ray cluster must answer at cluster.address={address!r}, but none does ({error}); "
        "start one with `ray up cluster.yaml` (and give it the token: RAY_AUTH_MODE=token), or set "
        "cluster.address=local to use this machine"
    )


def check_shared_memory(config: ClusterConfig) -> None:
    """Raise ClusterError when a local object store would not fit in shared memory, where Ray falls back to disk."""
    if config.object_store_gib is None or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free / GIB
    if config.object_store_gib > free:
        raise ClusterError(
            f"the object store must fit in {SHARED_MEMORY}, but cluster.object_store_gib={config.object_store_gib:g} "
            f"and {free:.1f} GiB are free there; lower it, or enlarge {SHARED_MEMORY} (docker: --shm-size)"
        )


def living() -> dict[str, dict[str, Any]]:
    """Return what Ray says of each living node of the connected cluster, by its name for it."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def nodes() -> list[Node]:
    """Return the living nodes of the connected cluster."""
    return [
        Node(cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
        for node in living().values()
    ]


def describe() -> str:
    """Return one line on what the connected cluster offers."""
    offered = ray.cluster_resources()
    store = offered.get("object_store_memory", 0.0) / GIB
    return (
        f"{len(nodes())} node(s), {offered.get('CPU', 0):g} CPUs, {offered.get('GPU', 0):g} GPUs, "
        f"object store {store:.1f} GiB"
    )


def check_workers(*, workers: int, cpus_per_worker: float, gpus_per_worker: float, data_cpus: float) -> None:
    """Raise ClusterError unless `workers` can start and a data task of `data_cpus` still finds a CPU beside them.

    Workers are packed as Ray packs them, one node after another. `data_cpus=0` means that nothing is streamed.
    """
    shortage = worker_shortage(
        nodes(),
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        data_cpus=data_cpus,
    )
    if shortage:
        raise ClusterError(f"{shortage} The cluster has {describe()}.")


def worker_shortage(
    offered: list[Node], *, workers: int, cpus_per_worker: float, gpus_per_worker: float, data_cpus: float
) -> str | None:
    """Return what would wait for ever on these nodes and what to set instead, or None when all can run."""
    left, free = workers, []
    for node in sorted(offered, key=lambda node: (node.gpus, node.cpus), reverse=True):
        fits = [_times(node.cpus, cpus_per_worker), _times(node.gpus, gpus_per_worker)]
        here = int(min(left, *fits))
        left -= here
        free.append(node.cpus - here * cpus_per_worker)
    if left:
        return (
            f"{workers} training worker(s) of {cpus_per_worker:g} CPUs and {gpus_per_worker:g} GPUs would wait for "
            f"ever: {left} of them fit on no node. Lower trainer.workers or trainer.cpus_per_worker, or join a larger "
            "cluster."
        )
    if data_cpus > 0 and not any(_times(cpus, data_cpus) >= 1 for cpus in free):
        return (
            f"the training workers would hold every CPU, and no clip could be decoded: a data task takes {data_cpus:g} "
            f"CPUs and the most that is left on a node is {max(free, default=0):g}. Lower trainer.cpus_per_worker "
            "or stream.task_cpus, or set cluster.num_cpus higher (CPUs are Ray's book-keeping, fractions are allowed)."
        )
    return None


def trials_at_once(*, cpus_per_trial: float, gpus_per_trial: float, workers: int = 1) -> int:
    """Return how many trials of so many workers the cluster holds at a time; raise ClusterError when not even one."""
    fits = sum(int(min(_times(node.cpus, cpus_per_trial), _times(node.gpus, gpus_per_trial))) for node in nodes())
    at_once = fits // workers
    if fits and not at_once:
        raise ClusterError(
            f"a trial of {workers} workers with {cpus_per_trial:g} CPUs and {gpus_per_trial:g} GPUs each would wait "
            f"for ever: {fits} fit. Lower study.workers_per_trial or join a larger cluster. It has {describe()}."
        )
    if at_once < 1:
        raise ClusterError(
            f"a trial of {cpus_per_trial:g} CPUs and {gpus_per_trial:g} GPUs fits on no node and would wait for ever. "
            f"Lower study.cpus_per_trial or study.gpus_per_trial. The cluster has {describe()}."
        )
    return at_once


def _times(offered: float, taken: float) -> float:
    """Return how often `taken` fits in `offered`, without limit when nothing is taken."""
    return float("inf") if taken == 0 else (offered + 1e-9) // taken


def check_dashboard() -> None:
    """Raise ClusterError on a cluster without a dashboard, of which Ray asks what a killed training had reserved."""
    if not get_dashboard_url():
        raise ClusterError(
            "trials of several workers need Ray's dashboard: without it, what one that was stopped had reserved is "
            "never free again, and all others wait for ever. Set cluster.dashboard=true or study.workers_per_trial=1, "
            "or join a cluster that has one"
        )


def remains() -> list[str]:
    """Return what still lives on the connected cluster: actors other than Ray's own detached ones, placement groups."""
    living = [
        f"actor {actor['ActorClassName']} {actor['Name']}".rstrip()
        for actor in actors().values()
        if actor["State"] not in ("DEAD",) and not actor["IsDetached"]
    ]
    groups = placement_group_table().values()
    return living + [f"placement group {group['name']}" for group in groups if group["state"] != "REMOVED"]
