"""The cluster: what would hang is said, and what was started ends."""

import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import ray

from mien.platform import cluster
from mien.platform.cluster import (
    JOB,
    ClusterConfig,
    ClusterError,
    Node,
    check_answers,
    check_shared_memory,
    connect,
    worker_shortage,
)


def shortage(nodes: list[Node], workers: int, cpus: float, gpus: float = 0, data_cpus: float = 1) -> str | None:
    return worker_shortage(nodes, workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, data_cpus=data_cpus)


def start(program: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_worker_and_a_data_task_fit_on_two_cpus() -> None:
    assert shortage([Node(2, 0)], workers=1, cpus=1) is None


def test_workers_that_hold_every_cpu_are_refused_while_data_is_streamed() -> None:
    said = shortage([Node(2, 0)], workers=2, cpus=1)
    assert said is not None and "no clip could be decoded" in said and "trainer.cpus_per_worker" in said
    # Nothing is streamed: then the same workers may hold them.
    assert shortage([Node(2, 0)], workers=2, cpus=1, data_cpus=0) is None
    # CPUs are book-keeping: half a CPU each leaves one.
    assert shortage([Node(2, 0)], workers=2, cpus=0.5) is None


def test_a_whole_cpu_must_be_left_on_one_node_not_spread_over_two() -> None:
    assert shortage([Node(2, 0), Node(2, 0)], workers=2, cpus=1.5) is not None


def test_workers_that_fit_on_no_node_are_refused() -> None:
    said = shortage([Node(8, 1)], workers=2, cpus=1, gpus=1)
    assert said is not None and "1 of them fit on no node" in said
    assert shortage([Node(8, 1), Node(8, 1)], workers=2, cpus=1, gpus=1) is None


def test_tenths_of_a_cpu_are_counted_exactly() -> None:
    assert shortage([Node(1, 0)], workers=9, cpus=0.1, data_cpus=0.1) is None
    assert shortage([Node(1, 0)], workers=10, cpus=0.1, data_cpus=0.1) is not None


def test_a_store_larger_than_shared_memory_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"cluster\.object_store_gib=1e\+06"):
        check_shared_memory(ClusterConfig(object_store_gib=1e6))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_trials_at_once_follow_from_resources() -> None:
    assert cluster.trials_at_once(cpus_per_trial=1, gpus_per_trial=0) == 4
    assert cluster.trials_at_once(cpus_per_trial=0.5, gpus_per_trial=0) == 8
    with pytest.raises(ClusterError, match="fits on no node"):
        cluster.trials_at_once(cpus_per_trial=1, gpus_per_trial=1)
    with pytest.raises(ClusterError, match="4 CPUs"):
        cluster.check_workers(workers=4, cpus_per_worker=1, gpus_per_worker=0, data_cpus=1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_existing_connection_is_used_and_left_alone() -> None:
    with cluster.connect(ClusterConfig(num_cpus=1)):
        assert ray.cluster_resources()["CPU"] == 4
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_local_cluster_is_quiet_and_leaves_no_process_behind(tmp_path: Path, processes: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import sys
        import ray
        from mien.platform.cluster import ClusterConfig, connect
        with connect(ClusterConfig(num_cpus=1, object_store_gib=0.1)):
            print(ray.get(ray.remote(lambda: "worked").remote()), flush=True)
            sys.stdin.readline()
        print("ended", flush=True)
        sys.stdin.readline()
        """)
    )
    with start(program) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "worked\n"
        started = processes.living(process.pid)
        assert len(started) >= 3  # at least Ray's store of states, its node and a worker
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ended\n"
        assert not processes.wait_until_gone(started)
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.ray
def test_a_killed_driver_takes_its_cluster_along(tmp_path: Path, processes: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from mien.platform.cluster import ClusterConfig, connect\n"
        "with connect(ClusterConfig(num_cpus=1, object_store_gib=0.1)):\n"
        "    print('up', flush=True)\n"
        "    input()\n"
    )
    with start(program) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        started = processes.living(process.pid)
        # Ray's two agents hold nothing and end by themselves a minute later; everything else goes at once.
        agents = {pid for pid in started if "Agent" in Path(f"/proc/{pid}/cmdline").read_text()}
        assert len(agents) < len(started)
        process.kill()
        left = processes.wait_until_gone(started - agents)
        processes.end(agents)
        assert not left


def test_a_submitted_job_joins_the_cluster_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv(JOB, "{}")  # as Ray sets it, with the address, where it runs a job
    monkeypatch.setenv("RAY_ADDRESS", gone)
    with pytest.raises(ClusterError, match=gone), connect(ClusterConfig(address="local")):
        pass
    assert not ray.is_initialized()


def test_an_address_where_nobody_listens_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free as soon as the server is closed
    with pytest.raises(ClusterError, match=r"ray up cluster\.yaml"):
        check_answers(f"127.0.0.1:{port}")
