"""End a cluster and see that nothing of it runs any more.

    python experiments/cluster_down.py cluster.yaml

On a cloud this is `ray down`, which gives the machines back. On machines of one's own `ray down` stops the head alone:
the workers' Ray processes go on, with their memory and their ports. So each worker is told `ray stop` after it, through
the head where the worker is not reached directly, and then every machine is asked what of Ray still runs. Ends with 1
if something does, or a machine does not answer.
"""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field

from mien.platform.config import ConfigError, dump, parse, run_program

STOP_SECONDS = 120
OPTIONS = (
    *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"),
    # As `ray up` does: it has asked nobody whether it knows these machines.
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
)
# The brackets keep the pattern from finding the shell that looks for it.
LIST = "pgrep -a -u $(id -u) -f '[r]aylet|[g]cs_server|[r]ay::' || true"


class DownConfig(BaseModel, frozen=True, extra="forbid"):
    """Which cluster ends."""

    file: str = Field("cluster.yaml", description="the file that `ray up` was given")


@dataclass(frozen=True)
class Machine:
    """How one machine of the cluster is reached."""

    address: str
    user: str
    key: str | None
    through: str | None  # the head's address

    def command(self, line: str) -> list[str]:
        """Return the words that run a shell's command line there."""
        key = ["-i", str(Path(self.key).expanduser())] if self.key else []
        ssh = ["ssh", *OPTIONS, *key]
        if self.through:
            by = shlex.join([*ssh, "-W", "%h:%p", f"{self.user}@{self.through}"])
            ssh += ["-o", f"ProxyCommand={by}"]
        return [*ssh, f"{self.user}@{self.address}", f"bash --login -i -c {shlex.quote(line)} 2>/dev/null"]


def machines(cluster: dict[str, Any]) -> list[Machine]:
    """Return the machines of a cluster of one's own, the head first; none of a cloud's, which takes them back."""
    provider, auth = cluster["provider"], cluster.get("auth", {})
    if provider["type"] != "local":
        return []
    head = provider.get("external_head_ip") or provider["head_ip"]
    user, key = auth["ssh_user"], auth.get("ssh_private_key")
    return [Machine(head, user, key, None), *(Machine(one, user, key, head) for one in provider["worker_ips"])]


def still_running(machine: Machine, seconds: float = STOP_SECONDS) -> list[str]:
    """Tell a machine's Ray to stop, and return what of it still runs, or why that cannot be known."""
    try:
        done = subprocess.run(
            machine.command(f"ray stop --force > /dev/null; {LIST}"),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return [f"it did not answer within {seconds:g} s"]
    if done.returncode:
        return [f"ssh ended with {done.returncode}: {(done.stderr or done.stdout).strip()}"]
    return [line for line in done.stdout.splitlines() if line.strip()]


def main(argv: Sequence[str]) -> None:
    """Read the command line and end the cluster."""
    call = parse(DownConfig, argv, __doc__, first="file")
    file = Path(call.config.file)
    if not file.is_file():
        raise ConfigError(f"file must be the one that `ray up` was given, but there is no {file.absolute()}")
    there = machines(yaml.safe_load(file.read_text(encoding="utf-8")))
    if call.dry_run:
        print(dump(call.config))
        print("\n".join(["ray down", *(f"ray stop on {machine.address}" for machine in there)]))
        return
    ended = subprocess.run(["ray", "down", "--yes", str(file)], check=False).returncode
    left = 0
    for machine in there:
        found = still_running(machine)
        left += bool(found)
        print(f"{machine.address}: " + ("nothing of Ray runs" if not found else "\n  ".join(["still there:", *found])))
    if ended or left:
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
