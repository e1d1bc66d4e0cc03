"""Every node is asked before a run; what would stop it is an error, unless it is forced."""

import subprocess
import sys
from pathlib import Path

import pytest

from mien.platform.preflight import PreflightError, code_digest, preflight
from mien.platform.shortcomings import Needs

# Two raylets on this machine; `mien` is changed for the second by an environment of its own. One line an answer.
TWO_NODES = """
import sys
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
from mien.platform import preflight
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.shortcomings import Needs

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 10**8})
cluster.add_node(num_cpus=2, object_store_memory=10**8)
try:
    with connect(ClusterConfig(address=cluster.address)):
        cluster.wait_for_nodes()
        print(len(preflight.preflight(Needs(folder))), "findings when nothing is asked", flush=True)
        print("left behind:", sorted(path.name for path in folder.iterdir()), flush=True)
        hungry = Needs(folder, workers=2, cpus_per_worker=1, data_cpus=1, stream_bytes=10**12)
        try:
            preflight.preflight(hungry)
        except preflight.PreflightError as error:
            print(str(error).replace("\\n", " | "), flush=True)
        print(len(preflight.preflight(hungry, force=True)), "findings, forced", flush=True)
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        gone = sorted(addresses)[-1]
        (dead,) = (node for node in cluster.list_all_nodes() if node.node_id == gone)
        head = dead is cluster.head_node
        preflight.ANSWER_SECONDS = 20.0
        if head:
            gone = sorted(addresses)[0]
            (dead,) = (node for node in cluster.list_all_nodes() if node.node_id == gone)
        cluster.remove_node(dead, allow_graceful=False)
        reports, silent = preflight.ask(addresses, folder)
        print(len(reports), "reports,", len(silent), "silent:", silent[gone].what, flush=True)
finally:
    cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_run_needs_is_checked_on_one_node_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight(Needs(tmp_path)) == []
    greedy = Needs(tmp_path, stream_bytes=10**15, checkpoint_bytes=10**18)
    with pytest.raises(PreflightError, match=r"2 thing\(s\).*--force(?s:.)*object stores(?s:.)*checkpoints need"):
        preflight(greedy)
    assert capsys.readouterr().out == ""  # the error says it all
    assert len(preflight(greedy, force=True)) == 2
    assert capsys.readouterr().out.count("note: ") == 2


@pytest.mark.ray
def test_two_nodes_are_asked_and_a_lost_one_is_named(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TWO_NODES)
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, program, folder], capture_output=True, text=True, timeout=240, check=False)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("note: ")]
    assert done.returncode == 0, done.stderr
    assert lines[0] == "0 findings when nothing is asked"
    assert lines[1] == "left behind: []"
    assert "2 thing(s)" in lines[2] and "hold every CPU" in lines[2] and "object stores hold" in lines[2]
    assert lines[3].endswith("findings, forced") and int(lines[3].split()[0]) >= 2
    assert any(line.startswith("1 reports, 1 silent: node ") for line in lines[4:]), lines[4:]


def test_the_digest_is_of_the_source_and_the_same_again() -> None:
    assert code_digest() == code_digest() and len(code_digest()) == 12
