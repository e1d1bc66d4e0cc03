"""The file that `ray up` is given: judged by Ray's own schema, and told as what it will start.

Ray has no dry run of `ray up`. Its schema and its defaults are private, so they are used here alone, and a test holds
them; nothing of a cloud is asked. Everything else looks at a `Blueprint`.
"""

import contextlib
import copy
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import jsonschema
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

UNSET = re.compile(r"\b(ami|sg|fs|subnet)-0{8,}\b|\b192\.0\.2\.\d+\b")  # what the files of this repository hold
MARK = re.compile(r"#.*\bEDIT(:|$)")
START = re.compile(r"\bray\s+start\b")
SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")


class ClusterFileError(ValueError):
    """A file that `ray up` would not take."""


@dataclass(frozen=True)
class NodeType:
    """Machines of one kind; CPUs and GPUs are None where Ray counts what the machine has."""

    name: str
    least: int
    most: int
    cpus: float | None
    gpus: float | None
    spot: bool = False
    machine: str = ""


@dataclass(frozen=True)
class Blueprint:
    """What a cluster's file will start."""

    path: Path
    text: str
    content: dict[str, Any] = field(repr=False)
    head: NodeType
    workers: tuple[NodeType, ...]
    head_start: str
    worker_start: str
    dropped: tuple[str, ...] = ()  # keys that Ray passes over in silence

    @property
    def provider(self) -> dict[str, Any]:
        """Where the machines come from."""
        found: dict[str, Any] = self.content["provider"]
        return found

    @property
    def local(self) -> bool:
        """Whether the machines are one's own."""
        return bool(self.provider["type"] == "local")

    def commands(self) -> list[tuple[str, str]]:
        """Return what is run on nodes before Ray starts: which list a command stands in, and the command."""
        lists = [(name, self.content.get(name) or []) for name in SETUP]
        for name, kind in (self.content.get("available_node_types") or {}).items():
            lists += [(f"{name}: {key}", kind.get(key) or []) for key in (SETUP[0], SETUP[-1])]
        return [(name, command) for name, commands in lists for command in commands]

    def marked(self) -> list[tuple[int, str]]:
        """Return the lines that are still marked EDIT or hold a value that is nobody's, with their numbers."""
        lines = enumerate(self.text.splitlines(), 1)
        return [(number, line.strip()) for number, line in lines if MARK.search(line)]

    def unset(self) -> list[tuple[int, str]]:
        """Return the lines whose value is still this repository's."""
        lines = enumerate(self.text.splitlines(), 1)
        return [
            (number, line.partition("#")[0].strip()) for number, line in lines if UNSET.search(line.partition("#")[0])
        ]


def read(path: Path) -> Blueprint:
    """Return what a file will start. Raises ClusterFileError where `ray up` would refuse it, in Ray's words."""
    if not path.is_file():
        raise ClusterFileError(f"a cluster's file must be YAML for `ray up`, but there is no {path.absolute()}")
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ClusterFileError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("provider"), dict):
        raise ClusterFileError(f"{path} must be a mapping with a section `provider`, as the cluster.yaml of mien is")
    prepared = by_rays_schema(path, content)
    types = {name: node_type(name, kind) for name, kind in prepared["available_node_types"].items()}
    head = types[prepared["head_node_type"]]
    started = [" ".join(filter(START.search, prepared[f"{role}_start_ray_commands"])) for role in ("head", "worker")]
    taken = set(prepared)
    if content["provider"]["type"] == "local":  # one type for all: whatever the machines have, or the commands say
        most = min(len(content["provider"].get("worker_ips", [])), prepared["max_workers"])
        least = min(head.least, most)
        head = local_type("head", 1, 1, started[0])
        workers = [local_type("worker", least, most, started[1])] if most else []
        taken.add("min_workers")
    else:
        workers = [kind for kind in types.values() if kind is not head or kind.most]
    dropped = tuple(key for key in content if key not in taken)
    return Blueprint(path, text, content, head, tuple(workers), started[0], started[1], dropped)


def by_rays_schema(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return a file's content with Ray's defaults. Raises ClusterFileError, in Ray's words, for what it refuses."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            prepared: dict[str, Any] = prepare_config(copy.deepcopy(content))
            validate_config(prepared)
        except jsonschema.ValidationError as error:
            where = ".".join(map(str, error.absolute_path)) or "the top level"
            raise ClusterFileError(f"`ray up` does not take {path}: at {where}, {error.message}") from error
        except KeyError as error:
            raise ClusterFileError(f"`ray up` does not take {path}: it needs the key {error}") from error
        except (ValueError, TypeError, NotImplementedError, click.ClickException) as error:
            raise ClusterFileError(f"`ray up` does not take {path}: {error}") from error
    return prepared


def node_type(name: str, kind: dict[str, Any]) -> NodeType:
    """Return one of the file's types of machines."""
    resources, machine = kind.get("resources", {}), kind.get("node_config", {})
    return NodeType(
        name,
        kind.get("min_workers", 0),
        kind.get("max_workers", 0),
        resources.get("CPU"),
        resources.get("GPU", 0 if resources else None),
        machine.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
        machine.get("InstanceType", ""),
    )


def local_type(name: str, least: int, most: int, start: str) -> NodeType:
    """Return machines of one's own, with what their `ray start` says that they have."""
    said = {what: re.search(rf"--num-{what}[= ](\d+)", start) for what in ("cpus", "gpus")}
    cpus, gpus = (float(found[1]) if found else None for found in said.values())
    return NodeType(name, least, most, cpus, gpus)
