"""Look at a cluster's file before `ray up` does: what it will start, what listens where, what would hang, cost or leak.

    python experiments/cluster_check.py cluster.yaml [recipe=experiments/configs/pretrain_lgi_base.yaml] [--json]

The file goes through Ray's own schema first. Then come the machines with their CPUs and GPUs, the ports, every command
that is run on them, and what is wrong: each finding says what is so, why it hurts and what to set. `recipe` is one that
is to run on the cluster: whether its workers or trials fit. Nothing is started, and nobody is asked. Ends with 1 where
something would go wrong.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field

from mien.platform import config as settings
from mien.platform.cluster_dangers import Asked, dangers
from mien.platform.cluster_file import Blueprint, NodeType, read
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.progress import table

# What a command of a setup does, by what stands in it; the first that fits is said.
MEANINGS = (
    (r"requirements-gpu\.txt", "installs mamba-ssm's kernels, compiled for this machine, in exact versions"),
    (r"pip3? install .*requirements\.txt", "installs mien's packages in exact versions"),
    (r"apt-get install", "installs system packages where they are missing"),
    (r"> ~/\.mien_environment", "says where the storage is, and that Ray asks for a token"),
    (r"mien_environment ~/\.bashrc", "lets every shell know that"),
    (r"chmod 600 ~/\.ray/auth_token", "keeps the token from other users of the machine"),
    (r"\bmount -t", "mounts the shared storage"),
    (r"\bmountpoint -q|test -w", "ends the node's start where the storage is not there"),
    (r"-m venv", "makes an environment for the packages"),
)


class CheckConfig(BaseModel, frozen=True, extra="forbid"):
    """What is looked at."""

    file: str = Field("cluster.yaml", description="the file that `ray up` will be given")
    recipe: str | None = Field(None, description="a recipe of pretrain.py or tune_dfew.py that is to run there")


def asked_by(recipe: str | None) -> Asked:
    """Return what a recipe asks of a cluster. Raises ConfigError where it is none."""
    if recipe is None:
        return Asked()
    # Here, because PyTorch and Ray Tune take longer to load than everything else that is done.
    from mien.experiments.pretrain import PretrainConfig
    from mien.experiments.tune_dfew import TuneConfig

    path = Path(recipe)
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(content, dict):
        raise ConfigError(f"recipe must be a YAML file of settings, but {path} is not")
    if {"study", "space", "finetune", "manifests"} & content.keys():
        study = settings.load(TuneConfig, path, {}).study
        return Asked(study.concurrency or 1, study.cpus_per_trial, study.gpus_per_trial)
    trainer = settings.load(PretrainConfig, path, {}).trainer
    workers = trainer.workers if isinstance(trainer.workers, int) else max(trainer.workers)
    return Asked(workers, trainer.cpus_per_worker, 0.0 if trainer.gpu is False else 1.0)


def machines(file: Blueprint) -> list[dict[str, Any]]:
    """Return the machines as rows of a table."""

    def row(kind: NodeType, count: str) -> dict[str, Any]:
        counted = ["the machine's" if value is None else f"{value:g}" for value in (kind.cpus, kind.gpus)]
        what = f"{kind.machine}{' (spot)' if kind.spot else ''}" or "one's own"
        return {"node": kind.name, "how many": count, "CPUs for tasks": counted[0], "GPUs": counted[1], "machine": what}

    workers = [
        row(kind, str(kind.least) if kind.least == kind.most else f"{kind.least} to {kind.most}")
        for kind in file.workers
    ]
    return [row(file.head, "1"), *workers]


def ports(file: Blueprint) -> list[dict[str, Any]]:
    """Return what listens where, as was seen with Ray 2.60 (experiments/benchmarks/guide.py shows it)."""

    def given(option: str, default: str, command: str = file.head_start) -> str:
        found = re.search(rf"--{option}[= ](\S+)", command)
        return found[1] if found else default

    everywhere = "all addresses"
    host = given("dashboard-host", "127.0.0.1")
    rows = [
        ("head", "dashboard, jobs", given("dashboard-port", "8265"), host),
        ("head", "GCS, the cluster's state", given("port", "6379"), everywhere),
        ("head", "Ray client", given("ray-client-server-port", "10001"), "loopback and own address"),
        ("head", "metrics of dashboard and autoscaler", "44227, 44217", f"{everywhere}, without a token"),
        ("every node", "raylet and object manager", "any two", everywhere),
        ("every node", "agent", "52365 and any", f"own address; {everywhere}"),
        ("every node", "agent of environments", "any", "own address"),
        ("every node", "metrics", given("metrics-export-port", "any"), f"{everywhere}, without a token"),
        ("every node", "ssh", "22", "whatever sshd says"),
    ]
    return [dict(zip(("node", "what", "port", "listens on"), row, strict=True)) for row in rows]


def commands(file: Blueprint) -> list[dict[str, Any]]:
    """Return what is run on the nodes before Ray starts, and what each command is for."""
    rows = []
    for where, command in file.commands():
        meaning = next((text for pattern, text in MEANINGS if re.search(pattern, command)), "one of yours")
        rows.append({"list": where, "what it does": meaning, "command": command})
    return rows


def main(argv: Sequence[str]) -> None:
    """Read the command line, and print what there is to say."""
    call = parse(CheckConfig, argv, __doc__, first="file", flags={"json": "print one JSON object instead of text"})
    if call.dry_run:
        print(dump(call.config))
        return
    file = read(Path(call.config.file))
    found = dangers(file, asked_by(call.config.recipe), Path.home())
    if "json" in call.flags:
        tables = {"machines": machines(file), "ports": ports(file), "commands": commands(file)}
        print(json.dumps(tables | {"findings": [asdict(one) for one in found]}, indent=1))
    else:
        print(f"{file.path} is one that `ray up` takes. It starts, on {file.provider['type']}:")
        table(machines(file))
        print("\nWhat listens where; from outside the cluster's own network nothing but ssh is needed:")
        table(ports(file))
        print("\nWhat each node runs before Ray starts:")
        for row in commands(file):
            print(f"- {row['what it does']} ({row['list']})\n    {row['command']}")
        print("\n" + (f"{len(found)} finding(s):" if found else "Nothing was found that would hang or leak."))
        for one in found:
            print(f"{'error' if one.stops else 'note'}: {one}")
    if any(one.stops for one in found):
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
