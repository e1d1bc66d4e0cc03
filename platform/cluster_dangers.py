"""What a cluster's file would let hang, cost or leak, told before anything is started.

Most were seen: a study that stands still without a dashboard, a worker that never joins, decoding that waits for a CPU
that trainers hold. The others are how strangers came to run code on clusters that were open. Each says what is so, why
it hurts, and what to set; those that stop are errors, the rest are remarks.
"""

import math
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mien.platform.cluster_file import Blueprint, NodeType
from mien.platform.shortcomings import Shortcoming

TOKEN = "auth_token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WORLD = ("0.0.0.0/0", "::/0")
SSH = 22
DATA_CPUS = 2  # whole ones that a node with trainers keeps for decoding (a task reads while another one waits)
PINNED = re.compile(r"==|\.txt\b|\.whl\b")


@dataclass(frozen=True)
class Asked:
    """What the recipes that are to run ask of the cluster; zeros where nothing is known."""

    workers: int = 0
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0


def dangers(file: Blueprint, asked: Asked, home: Path) -> list[Shortcoming]:
    """Return all that is wrong with a file, errors first; `home` is where `ray up` will be called from."""
    found = [*unset(file), *starting(file), *token(file, home), *exposure(file), *room(file, asked), *keeping(file)]
    return sorted(found, key=lambda one: not one.stops)


def unset(file: Blueprint) -> Iterator[Shortcoming]:
    """Lines that a user must edit."""
    unset = file.unset()
    for number, line in unset:
        yield Shortcoming(
            f"line {number} still holds this repository's value, {line}",
            "It is nobody's machine, image or network, so `ray up` fails or waits for it",
            "Set yours and take the word EDIT away",
        )
    left = [str(number) for number, _ in file.marked() if number not in {one for one, _ in unset}]
    if left:
        yield Shortcoming(
            f"{len(left)} line(s) are marked EDIT: {', '.join(left)}",
            "Each holds something of your account, machines or people",
            "Look at them, set yours, and take the word EDIT away",
            stops=False,
        )
    for key in file.dropped:
        yield Shortcoming(
            f"Ray passes over {key} at the top level in silence",
            "What it asks for will not happen",
            "Set it in available_node_types, for each type",
        )


def starting(file: Blueprint) -> Iterator[Shortcoming]:
    """Whether Ray starts so that all machines join and nothing waits for ever."""
    if not file.head_start or not file.worker_start:
        yield Shortcoming(
            "head_start_ray_commands and worker_start_ray_commands must each call `ray start`",
            "No cluster comes up without it",
            "Take them from mien's cluster.yaml",
        )
        return
    if "--autoscaling-config" not in file.head_start and file.workers:
        yield Shortcoming(
            "the head's `ray start` has no --autoscaling-config",
            "Nothing starts the workers; every run that needs one waits",
            "Add --autoscaling-config=~/ray_bootstrap_config.yaml",
        )
    if "RAY_HEAD_IP" not in file.worker_start:
        yield Shortcoming(
            "the workers' `ray start` does not go to $RAY_HEAD_IP",
            "They start clusters of their own, or none",
            "Add --address=$RAY_HEAD_IP:6379",
        )
    if re.search(r"--include-dashboard[= ](false|0|no)\b", file.head_start, re.IGNORECASE):
        yield Shortcoming(
            "the dashboard is turned off",
            "Trials that train on several devices ask it to free what stopped trials held; without it the study stands "
            "still after the first ones, without an error, and jobs cannot be submitted",
            "Take --include-dashboard=false away; on the loopback, behind the token, it is seen by nobody",
        )
    if file.local and file.workers and "RAY_enable_autoscaler_v2=0" not in file.head_start:
        yield Shortcoming(
            "version 2 of the autoscaler starts one worker too few on machines of one's own: it counts the head as one",
            f"Of {len(file.provider.get('worker_ips', []))} workers one never joins, and what needs all of them waits",
            "Set RAY_enable_autoscaler_v2=0 before the head's `ray start`",
        )
    for role, command in (("head", file.head_start), ("workers", file.worker_start)):
        if "--disable-usage-stats" not in command:
            yield Shortcoming(
                f"the {role}' `ray start` sends usage statistics to Ray's makers".replace("head'", "head's"),
                "They tell of versions, sizes and libraries in use",
                "Add --disable-usage-stats",
                stops=False,
            )


def token(file: Blueprint, home: Path) -> Iterator[Shortcoming]:
    """Whether only who holds the token gets in, and who holds it."""
    for role, command in (("the head", file.head_start), ("the workers", file.worker_start)):
        if "RAY_AUTH_MODE=token" not in command:
            yield Shortcoming(
                f"{role} would start without asking for a token",
                "Whoever reaches a port of Ray runs what he likes as your user (CVE-2023-48022)",
                "Set RAY_AUTH_MODE=token before `ray start`",
            )
    mounts = file.content.get("file_mounts") or {}
    if not any(target.endswith(f".ray/{TOKEN}") for target in mounts):
        yield Shortcoming(
            "the token is not brought to the nodes",
            "With RAY_AUTH_MODE=token and without the token Ray does not start",
            f'Add "~/.ray/{TOKEN}": "~/.ray/{TOKEN}" to file_mounts',
        )
    here = home / ".ray" / TOKEN
    if not here.is_file():
        yield Shortcoming(
            f"there is no token on this machine ({here})",
            "`ray up` brings it to the nodes, and every command here shows it",
            "Make one: ray get-auth-token --generate",
        )
    elif here.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Shortcoming(
            f"others on this machine can read the token ({here})",
            "Whoever holds it runs code on the cluster as you; Ray makes it readable by all",
            f"chmod 600 {here}",
        )
    if re.search(r"RAY_AUTH_TOKEN=|(AWS_SECRET_ACCESS_KEY|PASSWORD|_TOKEN)=[^$\s]", uncommented(file.text)):
        yield Shortcoming(
            "a secret stands in the file itself",
            "The file is in git, is copied to every node and is printed by `ray up`",
            "Keep the token in ~/.ray/auth_token, and give machines a role (IamInstanceProfile) instead of keys",
        )


def exposure(file: Blueprint) -> Iterator[Shortcoming]:
    """Who reaches the ports."""
    host = re.search(r"--dashboard-host[= ](\S+)", file.head_start)
    if host and host[1] not in LOOPBACK:
        yield Shortcoming(
            f"the dashboard listens on {host[1]}",
            "It runs jobs for whoever has the token, which then crosses the network unencrypted",
            "Set --dashboard-host=127.0.0.1, and go in by `ray dashboard`, through ssh",
        )
    for rule in file.provider.get("security_group", {}).get("IpPermissions", []):
        ranges = [
            one.get("CidrIp") or one.get("CidrIpv6") for one in rule.get("IpRanges", []) + rule.get("Ipv6Ranges", [])
        ]
        if set(ranges) & set(WORLD):
            ssh = rule.get("FromPort") == rule.get("ToPort") == SSH
            yield Shortcoming(
                f"ports {rule.get('FromPort', 'all')} to {rule.get('ToPort', 'all')} are open to the world",
                "Anyone may try keys there" if ssh else "Ray runs what it is told by whoever reaches it",
                "Give the addresses of your network or VPN instead of 0.0.0.0/0",
                stops=not ssh,
            )
    if file.provider["type"] != "aws":
        return
    kinds = file.content["available_node_types"]
    groupless = [name for name, kind in kinds.items() if "SecurityGroupIds" not in kind.get("node_config", {})]
    if groupless:
        yield Shortcoming(
            f"{', '.join(groupless)} have no SecurityGroupIds",
            "Ray then makes a group that lets ssh in from everywhere",
            "Make a group that lets in itself, on all ports, and your VPN, on port 22, and name it in node_config",
            stops=False,
        )
    if not file.provider.get("use_internal_ips"):
        yield Shortcoming(
            "nodes are reached by public addresses",
            "A mistake in a firewall's rule is then seen by the whole world",
            "Set provider.use_internal_ips: true, and go in by a VPN or a bastion host",
            stops=False,
        )


def room(file: Blueprint, asked: Asked) -> Iterator[Shortcoming]:
    """Whether what is to run fits, with CPUs left for decoding."""
    for kind in (file.head, *file.workers):
        if kind.cpus is None or kind.gpus is None or not kind.gpus:
            continue
        trainers = min(math.floor(kind.gpus / (asked.gpus_per_worker or 1)), asked.workers or math.inf)
        left = kind.cpus - trainers * asked.cpus_per_worker
        if left < DATA_CPUS:
            yield Shortcoming(
                f"a node of type {kind.name} keeps {left:g} CPUs for data beside {trainers:g} trainers",
                f"Data tasks need whole CPUs, {DATA_CPUS} at least: else decoding waits for the trainers, and they for "
                "it, without a word",
                "Take machines with more cores, or lower trainer.cpus_per_worker; Ray counts CPUs as `resources` says",
            )
    if file.head.cpus is not None and file.head.cpus > 0 and not file.local and file.workers:
        yield Shortcoming(
            f"the head takes tasks ({file.head.cpus:g} CPUs)",
            "One that needs too much memory ends the head, and with it the cluster and all that runs",
            "Set its resources to {CPU: 0}",
            stops=False,
        )
    fit = sum(kind.most * places(kind, asked) for kind in file.workers)
    if file.local or file.head.cpus is None or file.head.cpus > 0:
        fit += places(file.head, asked)
    limit = file.content.get("max_workers")
    if asked.workers and fit < asked.workers:
        yield Shortcoming(
            f"the cluster grows to room for {fit:g} workers, and {asked.workers} are asked for",
            "The others would wait for machines that may not come",
            "Raise max_workers, of the type and at the top, or ask for fewer",
        )
    if limit is not None and sum(kind.most for kind in file.workers) > limit:
        yield Shortcoming(
            f"types may have {sum(kind.most for kind in file.workers)} workers and the cluster {limit}",
            "The smaller number counts, whatever the types say",
            "Set max_workers at the top to their sum, if that is meant",
            stops=False,
        )
    if file.workers and all(kind.spot for kind in file.workers):
        yield Shortcoming(
            "all workers are spot machines",
            "They can be taken all at once, and the run then waits until there are some again",
            "Keep a type of on-demand machines with min_workers: 1",
            stops=False,
        )


def keeping(file: Blueprint) -> Iterator[Shortcoming]:
    """Whether what is installed is said exactly, and what is written is seen by all."""
    commands = [command for _, command in file.commands()]
    for command in commands:
        for words in re.findall(r"pip3? install ([^;&|]*)", command):
            loose = [one for one in words.split() if re.match(r"[\"']?(ray|torch)\b", one) and not PINNED.search(one)]
            if loose:
                yield Shortcoming(
                    f"{', '.join(loose)} is installed in whatever version is newest",
                    "Nodes of different days then have different versions, and do not join or do not agree",
                    "Install -r requirements.txt, whose versions are exact",
                )
    shared = [one for one in commands if re.search(r"\b(mount -|mountpoint|findmnt)", one)]
    if not shared and file.workers:
        yield Shortcoming(
            "no command mounts or looks for storage that all nodes share",
            "Checkpoints and trials would lie on single nodes: they are lost with them, and cannot be gone on with",
            "Mount NFS on all nodes at one path (`mountpoint -q PATH` stops a node without), and give it to --output",
        )
    gpus = any(kind.gpus is None or kind.gpus > 0 for kind in file.workers)
    if gpus and not any("requirements-gpu.txt" in one for one in commands):
        yield Shortcoming(
            "mamba-ssm is not installed on GPU nodes",
            "Mamba encoders then scan in plain PyTorch, many times slower, and the log says so",
            "Add requirements-gpu.txt to the workers' setup commands",
            stops=False,
        )
    options: Any = (file.content.get("docker") or {}).get("run_options", [])
    if file.content.get("docker") and not any("--shm-size" in one for one in options):
        yield Shortcoming(
            "docker.run_options has no --shm-size",
            "Containers have 64 MiB of shared memory, and Ray's store of clips falls back to the disk",
            "Add --shm-size=30% of the machine's memory",
        )


def places(kind: NodeType, asked: Asked) -> float:
    """Return how many of the workers asked for fit on a node; without limit where it is not known."""
    by_cpu = math.inf if kind.cpus is None else kind.cpus // (asked.cpus_per_worker or 1)
    known = kind.gpus is not None and asked.gpus_per_worker > 0
    by_gpu = kind.gpus // asked.gpus_per_worker if known and kind.gpus is not None else math.inf
    return min(by_cpu, by_gpu)


def uncommented(text: str) -> str:
    """Return a file's lines without their comments."""
    return "\n".join(line.partition("#")[0] for line in text.splitlines())
