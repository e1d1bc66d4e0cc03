"""Files and folders that are there whole or not at all: written under a name that says so, and renamed at the end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".unfinished"


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield the name under which a file or folder is to be written, and give it its own, `path`, at the end.

    What an error leaves stays under that name, and the next writer begins anew. Takes the place of an old file or
    folder.
    """
    part = path.with_name(path.name + SUFFIX)
    shutil.rmtree(part, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    yield part
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(part, path)
