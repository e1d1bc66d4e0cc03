"""The import name of the platform: `mien.models.lgi_former` is `models/lgi_former.py`.

The rooms are plain folders beside this file. None of them holds an `__init__.py`, because a package called
`platform` at the root would hide the standard library's module of that name from everyone. This file makes them
importable under one name instead, by being a package whose folder is its own.
"""

from pathlib import Path

__version__ = "0.1.0"
__path__ = [str(Path(__file__).resolve().parent)]
