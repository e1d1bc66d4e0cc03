"""Whose a folder is that a run would go on with.

A run goes on from what lies in its folder. Nothing of it is unpickled or run (settings are plain YAML, weights are
safetensors, optimiser state is read as tensors alone, a study's book is a database), but whoever wrote it decides what
comes out. So a folder that another user made, or that everyone may write to, is refused until that user is trusted.

It says nothing where all users are one: in containers as root, on storage that makes everyone nobody.
"""

import os
import pwd
import stat
import tempfile
from pathlib import Path

TRUST = "MIEN_TRUST"  # names of users whose folders are gone on with, separated by commas
STATE = ("config.yaml", "environment.json", "study.db", "trials", "checkpoints")


class OwnerError(ValueError):
    """A folder that somebody else made or could have changed."""


def refuse_strangers(folder: Path) -> None:
    """Raise OwnerError where what a run would go on from is not its user's own."""
    trusted = {name.strip() for name in os.environ.get(TRUST, "").split(",")}
    # A file made here says whom the storage takes us for, which on a network need not be who we are.
    with tempfile.TemporaryFile(dir=folder) as probe:
        mine = os.fstat(probe.fileno()).st_uid
    for path in (folder, *(folder / name for name in STATE if (folder / name).exists())):
        about = path.stat()
        owner = user_name(about.st_uid)
        if path != folder and about.st_uid not in (mine, 0) and owner not in trusted:
            raise OwnerError(
                f"a run goes on from its user's own folder, but {path} was made by {owner}, not {user_name(mine)}. "
                f"What lies there decides what comes out. If you trust {owner}, set {TRUST}={owner} for this command; "
                "else give another --output"
            )
        if about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX and owner not in trusted:
            raise OwnerError(
                f"a run goes on from a folder that strangers cannot change, but everyone may write to {path}: "
                f"chmod -R o-w {folder}, after a look at what is in it, or set {TRUST}={owner} for this command"
            )


def user_name(uid: int) -> str:
    """Return a user's name, or the number of one without."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
