"""Hosts for a cluster on one machine: each has its own network address, processes, name, home and sshd.

A host is a set of Linux namespaces, so `ray up` reaches it as it reaches a computer: over the network, through ssh, as
a user who has never been here. The laptop from which a cluster is started is one more set. All of them lie inside one
process, and end with it, whatever happens to this program. Nothing of this machine's own network, home folders or Ray
is touched; the file system below them, and so a folder given as shared storage, is the machine's own.

Needs root, and the programs of PROGRAMS. `missing` says what is not there.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "pgrep": "procps",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "rsync": "rsync",
}
USER, UID = "stranger", 54242
HOME = f"/home/{USER}"
SHARED = "/srv/shared"
NETWORK = "10.77.0"
START_SECONDS = 120
KINDS = ("--mount", "--net", "--pid", "--uts")
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child")
SEARCHED = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
NOT_COPIED = (".git", ".venv", ".types", "output", "__pycache__", ".*_cache", "*.egg-info")
SSHD = "PasswordAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\nHostKey {folder}/hostkey\n"
# A new environment takes the image's pip and setuptools: its own would be older, and no registry is reached from here.
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then shift 2; set -- -m venv --without-pip "$@"; fi
exec {python} "$@"
"""

# What every host does first. The Python installation is kept when home folders become empty ones, and holds the
# packages of this environment as an image would that has them built in; mien itself is not among them.
COMMON = """
set -eu
mount --make-rprivate /
mkdir -p $DIR/python $DIR/packages
mount --bind $BASE $DIR/python
mount --bind $PACKAGES $DIR/packages
mount -t tmpfs -o mode=755 srv /srv
mount -t tmpfs -o mode=755 home /home
mount -t tmpfs -o mode=755 home /root
mkdir -p $BASE
mount --bind $DIR/python $BASE
mkdir /srv/packages
mount --bind $DIR/packages /srv/packages
mount --bind $DIR/site $SITE
mount --bind $DIR/bin /usr/local/bin
mount --bind $DIR/passwd /etc/passwd
mount --bind $DIR/shadow /etc/shadow
mount -t tmpfs -o mode=1777 memory /dev/shm
mkdir -p /tmp/ray
mount -t tmpfs -o mode=1777 ray /tmp/ray
mkdir /srv/shared
mount --bind $DIR/shared /srv/shared
mkdir -p $HOME/.ssh
cp /etc/skel/.bashrc /etc/skel/.profile $HOME
ip link set lo up
"""
NODE = """
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/sshd
hostname $NAME
cp $DIR/key.pub $HOME/.ssh/authorized_keys
chown -R $USER_ID:$USER_ID $HOME
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip address add $ADDRESS/24 dev eth0
ip link set eth0 up
ip route add default dev eth0
$SSHD -D -e -f $DIR/sshd_config > $DIR/$NAME.sshd.log 2>&1 &
touch $DIR/$NAME.up
wait
"""
# The laptop's namespaces hold those of the nodes, and the bridge between all.
LAPTOP = """
hostname laptop
ip link add bridge0 type bridge
ip address add $NETWORK.1/24 dev bridge0
ip link set bridge0 up
number=0
for name in $NODES; do
    number=$((number + 1))
    NAME=$name ADDRESS=$NETWORK.$((number + 10)) unshare --net --mount --pid --uts --fork --mount-proc --kill-child \
        bash $DIR/node.sh > $DIR/$name.log 2>&1 &
    outer=$!
    until inner=$(pgrep -P $outer); do sleep 0.05; done
    echo $inner > $DIR/$name.pid
    ip link add port$number type veth peer name eth0 netns $inner
    ip link set port$number master bridge0 up
done
cp $DIR/key $HOME/.ssh/id_ed25519
mkdir $HOME/mien
mount --bind $DIR/checkout $HOME/mien
echo 'export PYTHONPATH=~/mien' >> $HOME/.profile
chown -R $USER_ID:$USER_ID $HOME
touch $DIR/laptop.up
wait
"""


class HostsError(ValueError):
    """The hosts could not be made on this machine."""


@dataclass
class Hosts:
    """The laptop and the nodes: by name their addresses, and each node's first process as the laptop sees it."""

    folder: Path
    laptop: int
    addresses: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)

    @property
    def checkout(self) -> Path:
        """The laptop's ~/mien."""
        return self.folder / "checkout"

    def command(self, host: str, command: str) -> list[str]:
        """Return the words that run a shell's command line on a host, as its user, at home."""
        inside = ["nsenter", f"--target={self.laptop}", *KINDS, "--"]
        if host in self.nodes:
            inside += ["nsenter", f"--target={self.nodes[host]}", *KINDS, "--"]
        user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        clean = ["env", "-i", f"HOME={HOME}", f"USER={USER}", "TERM=dumb", "LANG=C.UTF-8", "OMP_NUM_THREADS=1"]
        return [*inside, *user, *clean, "bash", "-lc", f"cd {HOME}; {command}"]

    def run(self, host: str, command: str, seconds: float = 120, check: bool = True) -> str:
        """Run a command line on a host; return what it printed. Raises HostsError if it fails or takes too long."""
        try:
            done = subprocess.run(
                self.command(host, command),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout
            raise HostsError(f"on {host}, {command!r} took more than {seconds:g} s; it printed:\n{said}") from error
        if check and done.returncode != 0:
            raise HostsError(f"on {host}, {command!r} ended with {done.returncode}; it printed:\n{done.stdout}")
        return done.stdout

    def processes(self, host: str) -> dict[int, str]:
        """Return the command lines of a host's processes, by their ids there, without those that all hosts have."""
        listing = self.run(host, "ps -eo pid=,args=")
        found = {int(line.split(None, 1)[0]): line.split(None, 1)[1] for line in listing.splitlines()}
        ours = ("bash ", "sshd", "/usr/sbin/sshd", "ps -eo", "unshare ", "ssh -t", "sleep ")
        return {pid: words for pid, words in found.items() if not words.startswith(ours)}

    def kill(self, host: str, pids: list[int]) -> None:
        """End processes of a host at once, by their ids there."""
        if pids:
            self.run(host, "kill -9 " + " ".join(map(str, pids)), check=False)


def missing() -> str | None:
    """Return what this machine lacks to make hosts and how to get it, or None."""
    if os.geteuid() != 0:
        return "only root may make them"
    absent = {package for program, package in PROGRAMS.items() if shutil.which(program, path=SEARCHED) is None}
    if absent:
        return f"programs are missing; apt-get install {' '.join(sorted(absent))}"
    tried = "mount -t tmpfs x /tmp && ip link add bridge0 type bridge && ip link add port0 type veth peer name port1"
    done = subprocess.run([*UNSHARE, "sh", "-c", tried], capture_output=True, text=True, check=False, timeout=30)
    return f"this system does not permit them: {done.stderr.strip()}" if done.returncode else None


@contextmanager
def hosts(folder: Path, checkout: Path, count: int = 3) -> Iterator[Hosts]:
    """Make a laptop with a copy of `checkout` in ~/mien, and `count` nodes that it reaches by ssh.

    All end with the block. `folder` is an empty one for keys, logs and images; its folder `shared` is SHARED of all
    hosts. Raises HostsError where they cannot be made.
    """
    if lack := missing():
        raise HostsError(f"hosts need namespaces, but {lack}")
    folder = folder.absolute()
    names = [f"node{number + 1}" for number in range(count)]
    environment = image(folder, checkout.absolute()) | {"NODES": " ".join(names)}
    with (folder / "laptop.log").open("w") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *UNSHARE, "bash", str(folder / "laptop.sh")],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        until = time.monotonic() + START_SECONDS
        while not all((folder / f"{name}.up").exists() for name in ("laptop", *names)):
            if process.poll() is not None or time.monotonic() > until:
                logs = "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(folder.glob("*.log")))
                raise HostsError(f"the hosts must start within {START_SECONDS} s, but did not:\n{logs}")
            time.sleep(0.1)
        made = Hosts(folder, first_of(process.pid) or 0, {"laptop": f"{NETWORK}.1"})
        for number, name in enumerate(names):
            made.addresses[name] = f"{NETWORK}.{number + 11}"
            made.nodes[name] = int((folder / f"{name}.pid").read_text())
        yield made
    finally:
        # With the laptop's first process end all processes of its namespaces, and those of the nodes in them; unshare
        # waits for that. Were this program killed, unshare would be, and take the laptop along.
        laptop = first_of(process.pid)
        os.kill(laptop, signal.SIGKILL) if laptop else process.kill()
        process.wait()


def first_of(unshare: int) -> int | None:
    """Return the first process of the namespaces that an unshare made."""
    children = ["pgrep", "-P", str(unshare)]
    said = subprocess.run(children, capture_output=True, text=True, check=False, timeout=30).stdout
    return int(said) if said.strip() else None


def image(folder: Path, checkout: Path) -> dict[str, str]:
    """Write what hosts are made of to `folder`; return the environment of their scripts."""
    folder.mkdir(parents=True, exist_ok=True)
    base = Path(sys.base_prefix)
    python = base / "bin" / f"python3.{sys.version_info.minor}"
    for name in ("site", "bin", "shared"):
        (folder / name).mkdir()
    os.chown(folder / "shared", UID, UID)
    packages = Path(sysconfig.get_path("purelib"))
    for entry in packages.iterdir():
        if "mien" not in entry.name:
            (folder / "site" / entry.name).symlink_to(f"/srv/packages/{entry.name}")
    written = {
        "bin/python3": PYTHON.format(python=python),
        "bin/python": PYTHON.format(python=python),
        "bin/ray": f"#!{python}\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n",
        "passwd": Path("/etc/passwd").read_text() + f"{USER}:x:{UID}:{UID}::{HOME}:/bin/bash\n",
        "shadow": Path("/etc/shadow").read_text() + f"{USER}:*:20000:0:99999:7:::\n",
        "sshd_config": SSHD.format(folder=folder),
        "laptop.sh": COMMON + LAPTOP,
        "node.sh": COMMON + NODE,
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("bin/python", "bin/python3", "bin/ray"):
        (folder / name).chmod(0o755)
    for name in ("key", "hostkey"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=30)
    shutil.copytree(checkout, folder / "checkout", ignore=shutil.ignore_patterns(*NOT_COPIED))
    folder.chmod(0o755)
    for path in (folder / "checkout", *(folder / "checkout").rglob("*")):
        os.chown(path, UID, UID)
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "DIR": str(folder),
        "BASE": str(base),
        "PACKAGES": str(packages),
        "SITE": sysconfig.get_path("purelib", vars={"base": str(base)}),
        "HOME": HOME,
        "USER_ID": str(UID),
        "NETWORK": NETWORK,
        "SSHD": shutil.which("sshd", path=SEARCHED) or "",
    }
