"""Where a run comes from, for its record: commit, versions, machine, devices, command. Never a secret.

Records are read, copied and published, so what a secret stands in is refused before anything is written: a token in an
address, or the value of a variable whose name says that it is one. Settings that need secrets take them from the
environment, where they are not recorded.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import mien

PACKAGES = ("ray", "torch", "numpy", "optuna")
SECRET = re.compile(r"token|secret|passw|credential|api_?key|access_key|private_key", re.IGNORECASE)
# user:password@ of an address, and the signatures of addresses that let in whoever has them
IN_ADDRESS = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|[?&](?:x-amz-signature|x-goog-signature|sig|token|api_?key)=\w", re.IGNORECASE
)
SHORTEST = 8  # letters of what counts as a secret; shorter ones stand in ordinary words


class SecretError(ValueError):
    """A secret stands where it would be recorded."""


def environment(seed: int, command: str) -> dict[str, Any]:
    """Say where a run was started and with what: the commit, versions, machine, devices, command and time."""
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "commit": commit(),
        "command": command,
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "mien": mien.__version__,  # type: ignore[attr-defined]  # mypy sees the folder instead of mien.py
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": devices,
    }


def commit() -> str | None:
    """Return mien's commit, with `-dirty` after local changes, or None where it is not a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def this_command() -> str:
    """Return the command line of this program, as a shell would take it again."""
    return shlex.join(["python", *sys.argv])


def refuse_secrets(record: Mapping[str, Any]) -> None:
    """Raise SecretError, without repeating it, where a value of a flat record holds a secret."""
    known = dict(secrets())
    for key, value in record.items():
        text = str(value)
        name = next((name for name, secret in known.items() if secret in text), None)
        if name or IN_ADDRESS.search(text):
            what = f"that of {name}" if name else "part of an address"
            raise SecretError(
                f"what is recorded must hold no secret, but {key} holds one ({what}). Take it out of settings and "
                "command line, and give it to the storage's library by its environment variable or credentials file"
            )


def secrets() -> Iterator[tuple[str, str]]:
    """Yield the secrets that this process knows: where each comes from, and its value."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST and not Path(value[:250]).exists():
            yield f"the environment variable {name}", value
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and os.access(token, os.R_OK):
        value = token.read_text(encoding="utf-8", errors="replace").strip()
        if len(value) >= SHORTEST:
            yield "Ray's token", value
