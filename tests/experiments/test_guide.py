"""The README's guide to a cluster, followed on hosts made of namespaces: a real `ray up`, and nothing left after it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mien.experiments.benchmarks import guide
from mien.experiments.benchmarks.hosts import hosts, missing

ROOT = Path(__file__).resolve().parents[2]
LACK = missing()
here = pytest.mark.skipif(LACK is not None, reason=f"hosts cannot be made of namespaces here: {LACK}")


def links() -> set[str]:
    """Return the network links of this machine."""
    return set(os.listdir("/sys/class/net"))


def mounts() -> str:
    """Return what is mounted."""
    return Path("/proc/self/mounts").read_text()


def test_the_guide_uses_the_words_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for words in (guide.TOKENS, guide.TOKEN, guide.CHECK, guide.UP, guide.TUNNEL, guide.SUBMIT, guide.DOWN):
        assert words in text, words


def test_only_the_lines_marked_edit_differ_from_the_file_of_the_repository() -> None:
    before = (ROOT / guide.FILE).read_text(encoding="utf-8").splitlines()
    there = guide.Hosts(ROOT, 0, {"laptop": "", "a": "10.0.0.1", "b": "10.0.0.2"}, {"a": 1, "b": 2})
    after = guide.edited("\n".join(before), there).splitlines()
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 5 and all(re.search(r"# EDIT(:|$)", line) for line in changed)


@pytest.mark.cluster
@here
def test_hosts_are_apart_from_this_machine_and_leave_nothing(tmp_path: Path) -> None:
    before = links(), mounts()
    with hosts(tmp_path / "hosts", ROOT, 2) as there:
        said = there.run("node2", "hostname; whoami; ls ~ | wc -l; ls /dev/shm | wc -l").split()
        assert said == ["node2", "stranger", "0", "0"]
        # By ssh from the laptop, as `ray up` goes; each sees its own processes alone.
        ssh = f"ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR {there.addresses['node1']} 'hostname; ps -e | wc -l'"
        name, count = there.run("laptop", ssh).split()
        assert name == "node1" and int(count) < 15
        assert "requirements.txt" in there.run("laptop", "ls mien")
        assert there.run("node1", "python3 -c 'import ray; print(ray.__version__)'").strip() == "2.60.0"
        assert "No module" in there.run("node1", "python3 -c 'import mien'", check=False)
        assert (links(), mounts()) == before
        laptop = there.laptop
    assert (links(), mounts()) == before
    assert not Path(f"/proc/{laptop}").exists()


@pytest.mark.cluster
@here
def test_hosts_end_with_the_program_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom mien.experiments.benchmarks.hosts import hosts\n"
        f"with hosts(Path({str(tmp_path / 'hosts')!r}), Path({str(ROOT / 'experiments')!r}), 1) as there:\n"
        "    print(there.laptop, flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as one:
        assert one.stdout is not None
        laptop = int(one.stdout.readline())
        one.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while Path(f"/proc/{laptop}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{laptop}").exists()


@pytest.mark.cluster
@here
def test_a_stranger_comes_from_ray_up_to_a_finished_study_and_back_to_nothing(tmp_path: Path) -> None:
    before = links(), mounts()
    seen: dict[str, Any] = guide.follow(guide.GuideConfig(study="debug"), tmp_path)
    assert seen["trials"].get("complete", 0) + seen["trials"].get("pruned", 0) == 5 and seen["winner"]
    # All hosts took part; the one on which all of Ray was killed may not have come to a fold's record, but was in one.
    assert {*seen["folds started on"], seen["killed"]["machine"]} == {"node1", "node2", "node3"}
    assert seen["killed"]["machine"] in {"node2", "node3"} and seen["killed"]["processes"] > 2
    # Who has no token gets nothing, through the tunnel as well.
    for words, said in seen["answers"].items():
        wanted = ("OK", "UNAUTHENTICATED", "UNAUTHENTICATED") if ":10001" in words else ("200", "403", "401")
        assert said == wanted[0 if words.endswith("with the token") else 1 if "another" in words else 2], words
    assert [one for one in seen["listening"]["node1"] if one.endswith(":8265")] == ["127.0.0.1:8265"]
    assert seen["left"] == {"node1": [], "node2": [], "node3": []}
    assert (links(), mounts()) == before
