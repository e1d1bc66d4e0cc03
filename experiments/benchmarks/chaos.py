"""Whether anything is lost when processes, nodes and drivers are killed: the same jobs, disturbed and undisturbed.

    python experiments/benchmarks/chaos.py [--output DIR] [key=value ...]

A Ray cluster of several nodes runs on this machine (`raylets.py`). Pretraining on one worker, on two, and a study run
on it once in peace. Then they run again while a random worker, data task, node or the driver is killed, again and
again; a driver that is gone is started again with the same command, a node after a while. What both leave must be
equal: weights and losses, trials and their scores; the account of clips must have every clip of every epoch once; and
no placement group, actor, process or temporary file may be left. Prints a table; writes `chaos.json`.

The next kill comes once the job has gone on since the last one, so that it ends; some kills are followed by one more
within seconds, which meets the recovery.
"""

import json
import math
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from mien.experiments import prepare
from mien.experiments.benchmarks import chaos_verdict
from mien.experiments.benchmarks.chaos_jobs import WORLD, Job, pretraining, search
from mien.experiments.benchmarks.raylets import Raylets, RayletsError, end
from mien.platform.config import dump, parse, run_program
from mien.platform.interrupt import end_now, on_sigterm
from mien.platform.progress import progress, table
from mien.platform.storage import write_whole

ROOT = Path(__file__).resolve().parents[2]
Part = Literal["one worker", "two workers", "study"]
LOOK_SECONDS = 0.1
FUTILE = 20  # drivers that may end by themselves
SHOWN = 12  # lines of a driver that ended by itself


class ChaosError(ValueError):
    """A job did not go on, or what it left is not what the undisturbed one left."""


class ChaosConfig(BaseModel, frozen=True, extra="forbid"):
    """What is disturbed, and how."""

    parts: tuple[Part, ...] = Field(("one worker", "two workers", "study"), description="jobs that are disturbed")
    kills: int = Field(34, ge=1, description="kills in each of them")
    again_ratio: float = Field(0.25, ge=0, le=1, description="share of kills that meet the recovery from another")
    again_seconds: float = Field(15.0, gt=0, description="longest time from a kill to such a second one")
    weights: dict[Literal["worker", "task", "node", "driver"], float] = Field(
        {"worker": 3, "task": 4, "node": 2, "driver": 2}, description="how often each kind is killed, relative"
    )
    away_seconds: float = Field(5.0, ge=0, description="that a killed node is away")
    nodes: int = Field(2, ge=2, description="nodes beside the head")
    cpus_per_node: int = Field(2, ge=1, description="logical CPUs of each")
    steps_per_kill: float = Field(3.0, gt=0, description="steps of a job for each kill, all together")
    trials: int = Field(8, ge=1, description="trials of the study, over two folds each")
    checkpoint_every: int = Field(2, ge=1, description="steps from one checkpoint to the next")
    stall_seconds: float = Field(900.0, gt=0, description="longest time without a step; then the job counts as hung")
    seed: int = Field(0, ge=0, description="seed of what is killed, and when")


@dataclass
class Events:
    """What was done to a job."""

    kills: list[dict[str, Any]] = field(default_factory=list)
    drivers: int = 0
    ended: list[str] = field(default_factory=list)  # the last words of drivers that ended by themselves


def run(job: Job, cluster: Raylets, config: ChaosConfig, kills: int, label: str) -> Events:
    """Run a job to its end, killing on the way; raises ChaosError when it does not go on."""
    chance = random.Random(f"{config.seed} {label}")
    events = Events()
    words = [sys.executable, str(ROOT / "experiments" / job.words[0]), *job.words[1:]]
    log = job.output.parent / "driver.log"
    back: dict[str, float] = {}  # when a node is started again
    best, moved, again, bar_done = job.done(), time.monotonic(), math.inf, 0
    driver: subprocess.Popen[bytes] | None = None
    with log.open("ab") as said, progress(label, job.total, "steps") as bar:
        try:
            while True:
                if driver is None or driver.poll() is not None:
                    if driver is not None and driver.returncode == 0:
                        return events
                    if driver is not None and driver.returncode != -9:
                        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:]
                        events.ended.append(f"exit code {driver.returncode}:\n" + "\n".join(last))
                    driver = subprocess.Popen(
                        words, stdout=said, stderr=said, env=cluster.environment, start_new_session=True
                    )
                    events.drivers += 1
                time.sleep(LOOK_SECONDS)
                now, done = time.monotonic(), job.done()
                if done != best:
                    best, moved = done, now
                    bar.advance(max(done - bar_done, 0), kills=len(events.kills))
                    bar_done = max(done, bar_done)
                if now - moved > config.stall_seconds:
                    raise ChaosError(
                        f"{label}: no step for {config.stall_seconds:g} s after {events.kills[-3:]}; {log}"
                    )
                for name in [name for name, when in back.items() if when <= now]:
                    with suppress(RayletsError):  # it is still away then, and comes back below
                        cluster.start(name)
                    del back[name]
                for name in set(cluster.down()) - back.keys():
                    back[name] = now + config.away_seconds
                due = len(events.kills) < kills and done >= job.total * (len(events.kills) + 1) / (kills + 1)
                if not (due or now >= again):
                    continue
                kind = chance.choices(list(config.weights), list(config.weights.values()))[0]
                if struck := strike(kind, driver, cluster, chance):
                    recovering = now >= again and not due
                    events.kills.append({"kind": kind, "at": done, "process": struck, "recovering": recovering})
                    another = chance.random() < config.again_ratio and len(events.kills) < kills
                    again = time.monotonic() + chance.uniform(0, config.again_seconds) if another else math.inf
                    moved = time.monotonic()
        finally:
            if driver is not None and driver.poll() is None:
                end(driver.pid)
                driver.wait()


def strike(kind: str, driver: "subprocess.Popen[bytes]", cluster: Raylets, chance: random.Random) -> str:
    """Kill one process of a kind; return what it was, nothing where there is none."""
    if kind == "driver":
        end(driver.pid)
        driver.wait()
        return "driver"
    if kind == "node":
        up = cluster.up()
        if len(up) < 2:  # a node of a busy machine may also have ended by itself
            return ""
        name = chance.choice(up)
        return f"node {name}" if cluster.kill(name) else ""
    found = {pid: words for pid, words in cluster.processes().items() if chaos_verdict.kind_of(words) == kind}
    if not found:
        return ""
    pid = chance.choice(sorted(found))
    end(pid)
    return found[pid].split("(")[0].strip()


def disturb(part: Part, config: ChaosConfig, output: Path, world: Path, cluster: Raylets) -> dict[str, Any]:
    """Run one job in peace and one disturbed; return what was done, and what differs."""

    def job(name: str) -> Job:
        folder, steps = output / part.replace(" ", "_") / name, math.ceil(config.kills * config.steps_per_kill)
        if part == "study":
            steps = max(math.ceil(steps / config.trials / 2), 4)
            return search(folder, world, steps, config.trials, config.checkpoint_every, cluster.address)
        workers = 1 if part == "one worker" else 2
        return pretraining(folder, world, steps, workers, config.checkpoint_every, cluster.address)

    peace, war = job("peace"), job("war")
    run(peace, cluster, config, 0, f"{part}, in peace")
    began = time.monotonic()
    events = run(war, cluster, config, config.kills, f"{part}, disturbed")
    seconds = time.monotonic() - began
    left = chaos_verdict.left(cluster, war.output)
    compare = chaos_verdict.compare_studies if part == "study" else chaos_verdict.compare_runs
    return {
        "kills": len(events.kills),
        "by_kind": dict(Counter(kill["kind"] for kill in events.kills)),
        "while_recovering": sum(kill["recovering"] for kill in events.kills),
        "drivers": events.drivers,
        "drivers_that_ended_by_themselves": events.ended,
        "seconds": round(seconds),
        "seconds_a_kill": round(seconds / max(len(events.kills), 1), 1),
        **compare(peace.output, war.output),
        "left": left,
        "notes_that_wait": chaos_verdict.notes(cluster),
        "what_was_killed": events.kills,
    }


def main(argv: Sequence[str]) -> None:
    """Read the command line, disturb, print and write; raises ChaosError where something was lost."""
    call = parse(ChaosConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    config, output = call.config, (call.output or Path("output/benchmarks/chaos")).absolute()
    found: dict[str, Any] = {}
    prepare.prepare_world(WORLD, output / "world")
    with on_sigterm(end_now), Raylets(config.nodes, config.cpus_per_node, 200, output / "nodes") as cluster:
        for part in config.parts:
            found[part] = disturb(part, config, output, output / "world", cluster)
            write_whole(output / "chaos.json", json.dumps(found, indent=1) + "\n")
    shown = ("kills", "drivers", "seconds_a_kill", "differs", "left")
    table([{"job": part} | {name: told(result[name]) for name in shown} for part, result in found.items()])
    wrong = {part: [*result["differs"], *result["left"]] for part, result in found.items()}
    if any(wrong.values()):
        raise ChaosError(
            "nothing may be lost, but\n" + "\n".join(f"{part}: {words}" for part, words in wrong.items() if words)
        )


def told(value: Any) -> Any:
    """Return a cell of the table."""
    return value if not isinstance(value, list) else "; ".join(value) or "nothing"


if __name__ == "__main__":
    run_program(main)
