"""Where a manifest's clips may lie: below one root, a folder or the beginning of addresses.

A manifest may be somebody else's. Its paths shall not have us read whatever its maker liked, so they stay below the
root; who trusts the maker gives a root of his own, `/` at the widest. Names alone are looked at: a symbolic link below
the root is its owner's word.
"""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

SUSPICIOUS = r"^/|(^|/)\.\.(/|$)|://"  # all other paths start from the root and go down


def located(root: str, path: str) -> str | Path:
    """Return where a row's `path` stands; a URL is text, because a Path takes one of its two slashes away."""
    if "://" in path:
        return path
    return f"{root.rstrip('/')}/{path}" if "://" in root else Path(root) / path


def outside(root: str, paths: pa.Array) -> str | None:
    """Return the first path that leads out of the root, by `..`, from `/` or by an address, or None."""
    if not root:  # files of several places joined with addresses: they stand where they stand
        return None
    address = "://" in root
    inside = root.rstrip("/") + "/" if address else os.path.join(os.path.abspath(root), "")
    for path in paths.filter(pc.match_substring_regex(paths, SUSPICIOUS)).to_pylist():
        full = str(located(root, path))
        if "://" not in full:
            full = os.path.abspath(full)
        climbs = address and ".." in full.split("/")
        if climbs or not full.startswith(inside):
            return str(path)
    return None


def shared_root(roots: set[str]) -> str:
    """Return the one root, or the folder or beginning of an address that holds all; nothing of files and addresses."""
    if len(roots) == 1:
        return next(iter(roots))
    schemes = {root.partition("://")[0] if "://" in root else "" for root in roots}
    if len(schemes) > 1:
        return ""
    scheme = schemes.pop()
    return f"{scheme}://" if scheme else os.path.commonpath([os.path.abspath(root) for root in roots])
