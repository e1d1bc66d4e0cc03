"""A Ray cluster of several nodes on this machine, each a process that can be killed as a machine is lost.

The head has the driver, the controllers and no CPUs, so all work runs on the other nodes. What a killed node leaves
running, as a machine does that lost only its network, goes on until the node is started again. All processes are this
program's descendants and end with the cluster; Ray's temporary folder is of its own. Linux only: it reads /proc.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

START_SECONDS = 120.0
STARTED = "Ray runtime started"
HEAD = "head"
PORTS = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
PATIENCE = {"RAY_agent_register_timeout_ms": "300000", "RAY_worker_register_timeout_seconds": "300"}
MARK = "MIEN_NODE"  # the variable by which a node's processes are known


class RayletsError(ValueError):
    """A node did not start."""


@dataclass
class Node:
    """One node: the process that started it, and what it writes."""

    process: "subprocess.Popen[bytes]"
    log: Path


class Raylets:
    """A head and `nodes` nodes with `cpus` logical CPUs each, named 0, 1, ...; to be used in a `with` statement."""

    def __init__(self, nodes: int, cpus: int, store_mib: int, logs: Path) -> None:
        self._cpus, self._store, self._logs = cpus, store_mib * 2**20, logs
        # A socket's name may have 107 letters, so the folder is a short one.
        self._folder = Path(tempfile.mkdtemp(prefix="mien-"))
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.files = self._folder / "files"  # what processes of the cluster take for the machine's temporary folder
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(self.files),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            **PATIENCE,
        }
        self._nodes: dict[str, Node] = {}
        self._names = [HEAD, *map(str, range(nodes))]

    def __enter__(self) -> "Raylets":
        self.files.mkdir()
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            for name in self._names:
                self.start(name, tries=3)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._nodes):
            self.clear(name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, name: str, tries: int = 1) -> None:
        """Start a node, after ending what is left of it, and wait until it is there; raises RayletsError.

        On a busy machine Ray gives up after half a minute, so it may be tried again.
        """
        for left in range(tries - 1, -1, -1):
            try:
                self._start(name)
                return
            except RayletsError:
                self.clear(name)
                if not left:
                    raise

    def _start(self, name: str) -> None:
        self.clear(name)
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        common = ["--node-ip-address=127.0.0.1", f"--object-store-memory={self._store}"]
        common += [f"--temp-dir={self._folder / 'ray'}"]
        # Of a port that is not given a node waits only seconds to hear, and ends if the machine is busy.
        common += [f"--{part}-port={free_port()}" for part in PORTS]
        if name == HEAD:
            own = ["--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false"]
            own += [f"--ray-client-server-port={free_port()}"]
        else:
            own = [f"--address={self.address}", f"--num-cpus={self._cpus}"]
        log = self._logs / f"node_{name}_{time.time_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*ray, *own, *common],
                stdout=output,
                stderr=output,
                env=self.environment | {MARK: self._mark(name)},
                start_new_session=True,
            )
        self._nodes[name] = Node(process, log)
        until = time.monotonic() + START_SECONDS
        while STARTED not in log.read_text(encoding="utf-8", errors="replace"):
            if process.poll() is not None or time.monotonic() > until:
                raise RayletsError(f"node {name} must start in {START_SECONDS:g} s, but it did not; see {log}")
            time.sleep(0.1)

    def up(self) -> list[str]:
        """Return the nodes with CPUs that are there."""
        return [name for name, node in self._nodes.items() if name != HEAD and node.process.poll() is None]

    def down(self) -> list[str]:
        """Return the nodes that are not there."""
        return [name for name, node in self._nodes.items() if node.process.poll() is not None]

    def kill(self, name: str) -> bool:
        """Take a node's daemon away without a word; its workers are left to themselves. False if it has none."""
        daemons = [pid for pid, words in self.processes(name).items() if "raylet/raylet" in words.split(" ")[0]]
        for pid in daemons:
            end(pid)
        return bool(daemons)

    def drain(self, name: str, seconds: int) -> None:
        """Say that a node will be taken away, as a cloud says of a spot machine; what runs there may go on so long."""
        names = [words for words in self.processes(name).values() if "--node_id=" in words]
        identity = names[0].split("--node_id=")[1].split()[0]
        call = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={self.address}"]
        call += [f"--node-id={identity}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        call += [f"--deadline-remaining-seconds={seconds}"]
        subprocess.run(call, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def processes(self, name: str | None = None) -> dict[int, str]:
        """Return the command of every process of a node, or of all, also of those whose parent has ended."""
        found = {}
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it ended while we were looking, or is somebody else's
                variables = environment.read_bytes().split(b"\0")
                marks = [self._mark(name)] if name else [self._mark(each) for each in self._names]
                if any(f"{MARK}={mark}".encode() in variables for mark in marks):
                    found[int(environment.parent.name)] = command(int(environment.parent.name))
        return found

    def clear(self, name: str) -> None:
        """End whatever is left of a node, and wait for it."""
        while left := self.processes(name):
            for pid in left:
                end(pid)
        if name in self._nodes:
            self._nodes[name].process.wait()

    def _mark(self, name: str) -> str:
        return f"{self._folder.name}/{name}"


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def command(pid: int) -> str:
    """Return a process's command line; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def end(pid: int) -> None:
    """Kill a process, if it is there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
