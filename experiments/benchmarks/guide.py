"""The README's guide to a cluster, followed by a stranger: from `ray up` to a finished study, and back to nothing.

    python experiments/benchmarks/guide.py [--output DIR] [key=value ...]

Three machines and a laptop are made of namespaces (hosts.py), with nothing of mien on the machines. The laptop follows
the README with `configs/clusters/onpremise.yaml`, of which only the lines marked EDIT are changed: token, check, `ray
up`, the dashboard through a tunnel, a study as a job, `ray down`. Meanwhile every Ray process of one worker is killed.
Says how long each step took, on which machines trials ran, what the dashboard answers with and without the token, which
ports listened where, and what was left. `DIR/guide.json` holds it. Needs root, sshd and rsync on Linux.
"""

import json
import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import BaseModel, Field

from mien.experiments.benchmarks.hosts import SHARED, USER, Hosts, HostsError, hosts
from mien.platform.config import dump, parse, run_program
from mien.platform.storage import write_whole

ROOT = Path(__file__).resolve().parents[2]
FILE = "experiments/configs/clusters/onpremise.yaml"
DASHBOARD = "http://localhost:8265"
CLIENT_PORT = 10001
SUBMIT = f"ray job submit --address {DASHBOARD} --working-dir . --"
# Also the words of the README.
TOKEN = "ray get-auth-token --generate; chmod 600 ~/.ray/auth_token"
TOKENS = "export RAY_AUTH_MODE=token"
CHECK = "python experiments/cluster_check.py"
UP = "ray up -y"
TUNNEL = "ray dashboard"
DOWN = "python experiments/cluster_down.py"
STEP_SECONDS = 900
# The last one is the study, in SHARED/demo/study.
JOBS = {
    "demo": [f"python experiments/tune_dfew.py --demo --output {SHARED}/demo"],
    "debug": [
        f"python experiments/prepare.py synthetic --config experiments/configs/debug/world.yaml --output {SHARED}/data",
        "python experiments/tune_dfew.py --config experiments/configs/debug/study.yaml "
        f"--output {SHARED}/demo/study manifests=[{SHARED}/data/manifest.parquet] finetune.pretrained=null "
        "finetune.task.backbone.tubes.frames=8 finetune.task.backbone.tubes.size=64 "
        "finetune.task.backbone.encoder.width=64 finetune.task.backbone.encoder.depth=2 "
        "finetune.task.backbone.encoder.heads=2 finetune.task.backbone.encoder.region=[2,2,4] "
        "study.trials=5 study.cpus_per_trial=2",
    ],
}
ASK = (
    "import sys, urllib.request, urllib.error\n"
    "request = urllib.request.Request(sys.argv[1], headers=dict([sys.argv[2:4]] if sys.argv[2:] else []))\n"
    "try: print(urllib.request.urlopen(request, timeout=20).status)\n"
    "except urllib.error.HTTPError as error: print(error.code)\n"
)
# The first call of Ray's client, whose port is open to the cluster's network though nothing of ours uses it.
ASK_CLIENT = (
    "import sys, grpc\n"
    "from ray.core.generated.ray_client_pb2 import ClusterInfoRequest, ClusterInfoType\n"
    "from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub\n"
    "ping = ClusterInfoRequest(type=ClusterInfoType.PING)\n"
    "sent = [('client_id', 'guide'), *([(sys.argv[2].lower(), sys.argv[3])] if sys.argv[2:] else [])]\n"
    "ask = RayletDriverStub(grpc.insecure_channel(sys.argv[1])).ClusterInfo\n"
    "try: ask(ping, timeout=20, metadata=sent); print('OK')\n"
    "except grpc.RpcError as error: print(error.code().name)\n"
)


class GuideConfig(BaseModel, frozen=True, extra="forbid"):
    """What the stranger does."""

    study: Literal["debug", "demo"] = Field("demo", description="the demo, or a study of debug size")
    nodes: int = Field(3, ge=2, description="machines, the head among them")
    kill: bool = Field(True, description="kill every Ray process of one worker during the study")
    study_seconds: float = Field(3000, gt=0, description="longest wait for the jobs, in all")
    join_seconds: float = Field(600, gt=0, description="longest wait until all machines are in the cluster")


def waited(seconds: float, what: str, ready: Callable[[], Any], every: float = 1.0) -> Any:
    """Return what `ready` returns once it is true; raise HostsError after so many seconds."""
    until = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > until:
            raise HostsError(f"{what} must happen within {seconds:g} s, but did not")
        time.sleep(every)
    return found


def edited(text: str, there: Hosts) -> str:
    """Return the cluster's file with its EDIT lines set for these hosts."""
    head, *workers = [there.addresses[name] for name in there.nodes]
    for pattern, value in (
        (r"head_ip: \S+", f"head_ip: {head}"),
        (r"worker_ips: \[.*?\]", f"worker_ips: [{', '.join(workers)}]"),
        (r"ssh_user: \S+", f"ssh_user: {USER}"),
        (r"MIEN_STORAGE=/shared\b", f"MIEN_STORAGE={SHARED}"),
        (r"# EDIT", "# set"),
    ):
        text, count = re.subn(pattern, value, text)
        assert count, f"{FILE} has no line {pattern}"
    return text


def listening(there: Hosts) -> dict[str, list[str]]:
    """Return where each node listens, sshd aside."""
    found = {}
    for name in there.nodes:
        lines = there.run(name, "ss -H -ltn").splitlines()
        found[name] = sorted({line.split()[3] for line in lines} - {"0.0.0.0:22", "[::]:22"})
    return found


def answers(there: Hosts) -> dict[str, str]:
    """Return what the dashboard and Ray's client answer to a stranger, to a guesser and to who holds the token."""
    head = next(iter(there.nodes))
    asked = [(ASK, f"{DASHBOARD}{path}") for path in ("/api/version", "/api/jobs/", "/nodes?view=summary")]
    asked.append((ASK_CLIENT, f"{there.addresses[head]}:{CLIENT_PORT}"))
    found = {}
    for program, address in asked:
        for who, header in (
            ("without a token", ""),
            ("with another", f"Authorization 'Bearer {'0' * 64}'"),
            ("with the token", 'Authorization "Bearer $(cat ~/.ray/auth_token)"'),
        ):
            said = there.run("laptop", f"python -c {shlex.quote(program)} '{address}' {header}")
            found[f"{address} {who}"] = said.strip()
    return found


def kill_a_worker(there: Hosts, study: Path, running: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
    """Kill all of Ray on a worker that runs a trial, once a fold is done; return what and when."""
    workers = list(there.nodes)[1:]

    def busy() -> str | None:
        if running.poll() is not None:
            raise HostsError("the study ended before a worker could be killed")
        if not any(json.loads(path.read_text())["folds"] for path in study.glob("trials/*/trial.json")):
            return None
        return next((name for name in workers if any("fold" in one for one in there.processes(name).values())), None)

    name = waited(seconds, "a fold done and a trial on a worker", busy)
    doomed = there.processes(name)
    there.kill(name, list(doomed))
    states = {path.parent.name: json.loads(path.read_text()) for path in study.glob("trials/*/trial.json")}
    folds = sum(len(record["folds"]) for record in states.values())
    return {"machine": name, "processes": len(doomed), "trials then": len(states), "folds then": folds}


def outcome(study: Path) -> dict[str, Any]:
    """Return how a study ended, and how many folds ran on each machine."""
    records = [json.loads(path.read_text()) for path in study.glob("trials/*/trial.json")]
    runs = [json.loads(path.read_text()) for path in study.glob("trials/*/fold_*/environment.json")]
    starts = [start["host"] for run in runs for start in (run, *run.get("resumed", []))]
    return {
        "trials": dict(Counter(record["state"] for record in records)),
        "folds": sum(len(record["folds"]) for record in records),
        "folds started on": dict(sorted(Counter(starts).items())),
        "winner": (study / "winner.json").is_file(),
    }


Meanwhile = Callable[["subprocess.Popen[bytes]"], Any]


class Followed:
    """One stranger's way through the guide, with what was seen on it."""

    def __init__(self, there: Hosts, output: Path) -> None:
        self.there, self.output, self.began = there, output, time.monotonic()
        self.seen: dict[str, Any] = {"seconds": {}}

    def start(self, name: str, command: str) -> "subprocess.Popen[bytes]":
        """Start a command line of the guide on the laptop; what it prints goes to a file."""
        with (self.output / f"{name}.log").open("wb") as log:
            words = self.there.command("laptop", f"cd mien; {TOKENS}; {command}")
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def step(
        self,
        name: str,
        command: str,
        seconds: float,
        meanwhile: Callable[["subprocess.Popen[bytes]"], Any] | None = None,
    ) -> None:
        """Run a command line of the guide to its end. Raises HostsError if it fails or takes too long."""
        began = time.monotonic()
        running = self.start(name, command)
        try:
            if meanwhile:
                self.seen["killed"] = meanwhile(running)
            code: int | str = running.wait(max(seconds - (time.monotonic() - began), 1))
        except subprocess.TimeoutExpired:
            code = f"no end within {seconds:g} s"
        finally:
            running.kill()
            running.wait()
        if code:
            said = (self.output / f"{name}.log").read_text(errors="replace")[-4000:]
            raise HostsError(f"{command!r} must end well, but ended with {code}; the last it printed:\n{said}")
        self.note(name, began)

    def note(self, name: str, began: float) -> None:
        """Write down how long something took."""
        self.seen["seconds"][name] = round(time.monotonic() - began, 1)
        print(f"[{time.monotonic() - self.began:.0f} s] {name}: {self.seen['seconds'][name]} s", flush=True)


def follow(config: GuideConfig, output: Path) -> dict[str, Any]:
    """Follow the guide; return what was seen. Raises HostsError where a step fails or takes too long."""
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, hosts(Path(folder), ROOT, config.nodes) as there:
        way, file = Followed(there, output), there.checkout / FILE
        file.write_text(edited(file.read_text(encoding="utf-8"), there), encoding="utf-8")
        way.step("token", TOKEN, STEP_SECONDS)
        way.step("check", f"{CHECK} {FILE}", STEP_SECONDS)
        # Ray gives its own processes 30 s to start, which a busy machine that plays three hosts may not manage at once.
        way.step("up", f"{UP} {FILE} || {UP} {FILE} || {UP} {FILE}", STEP_SECONDS)
        began, tunnel = time.monotonic(), way.start("dashboard", f"exec {TUNNEL} {FILE}")
        try:
            listing = f"ray list nodes --address {DASHBOARD} --filter state=ALIVE --format json"
            waited(
                config.join_seconds,
                f"all {config.nodes} machines joining the cluster",
                lambda: there.run("laptop", f"{TOKENS}; {listing}", check=False).count('"node_ip"') >= config.nodes,
            )
            way.note("all joined, after up", began)
            way.seen["listening"] = listening(there)
            way.seen["answers"] = answers(there)
            *before, study = JOBS[config.study]
            folder_of_study = there.folder / "shared" / "demo" / "study"
            for number, command in enumerate(before):
                way.step(f"job {number + 1}", f"{SUBMIT} {command}", config.study_seconds)
            kill = partial(kill_a_worker, there, folder_of_study, seconds=config.study_seconds)
            way.step("study", f"{SUBMIT} {study}", config.study_seconds, kill if config.kill else None)
            way.seen |= outcome(folder_of_study)
        except HostsError:
            logs = there.run(next(iter(there.nodes)), "tail -n 60 /tmp/ray/session_latest/logs/monitor.*", check=False)
            (output / "head.log").write_text(logs, encoding="utf-8")
            raise
        finally:
            tunnel.kill()
            tunnel.wait()
        way.step("down", f"{DOWN} {FILE}", STEP_SECONDS)
        way.seen["left"] = {name: list(there.processes(name).values()) for name in there.nodes}
        way.note("all", way.began)
    return way.seen


def main(argv: Sequence[str]) -> None:
    """Read the command line, follow the guide, print and write what was seen."""
    call = parse(GuideConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output = call.output or Path("output/benchmarks/guide")
    seen = follow(call.config, output)
    text = json.dumps(seen, indent=1)
    write_whole(output / "guide.json", text + "\n")
    print(text)


if __name__ == "__main__":
    run_program(main)
