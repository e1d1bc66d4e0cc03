"""A long table made in parts, each there whole or not at all, so that a stopped program goes on with the next one.

Part k of a manifest holds what was found for its lines k * size up to (k + 1) * size, and beside the rows plain data:
what it was made from, and the clips that could not be read. Parts made from something else are refused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mien.platform import predict
from mien.platform.storage import storing

_KEY = b"mien"


class PartsError(ValueError):
    """Parts in a folder that were made from other data or another model."""


class Parts:
    """The parts of one table in a folder; `made_from` is plain data that must be the same for all of them."""

    def __init__(self, folder: Path, lines: int, size: int, made_from: Mapping[str, Any]) -> None:
        self.folder, self.made_from = folder, dict(made_from)
        self.lines = [range(first, min(first + size, lines)) for first in range(0, lines, size)]

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are still to be made; raises PartsError for one of another origin."""
        present = self.present()
        for number in present:
            there = self._about(number)["made_from"]
            differ = [f"{key}: {there.get(key)} there, {value} now" for key, value in self.made_from.items()]
            if there != self.made_from:
                raise PartsError(
                    f"all parts in a folder must be made from the same, but {self._path(number)} was not: "
                    f"{'; '.join(differ)}; give another --output, or remove {self.folder} to begin anew"
                )
        return sorted(set(range(len(self.lines))) - set(present))

    def present(self) -> list[int]:
        """Return the numbers of the parts that are there."""
        return [number for number in range(len(self.lines)) if self._path(number).is_file()]

    def write(self, number: int, table: pa.Table, dropped: Sequence[Mapping[str, Any]]) -> None:
        """Write a part, with the clips that could not be read."""
        about = {"made_from": self.made_from, "dropped": list(dropped)}
        predict.write(table.replace_schema_metadata({_KEY: json.dumps(about)}), self._path(number))

    def read(self, number: int) -> pa.Table:
        """Return the rows of a part."""
        return pq.read_table(self._path(number)).replace_schema_metadata(None)

    def join(self, path: Path) -> None:
        """Write the rows of all parts as one Parquet file, whole or not at all."""
        temporary = path.with_name(f".{path.name}.new")
        with storing(path.parent):
            tables = (self.read(number) for number in self.present())
            first = next(tables)
            with pq.ParquetWriter(temporary, first.schema) as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)
            temporary.rename(path)

    def dropped(self) -> list[dict[str, Any]]:
        """Return the clips of all parts that could not be read."""
        return [clip for number in self.present() for clip in self._about(number)["dropped"]]

    def _path(self, number: int) -> Path:
        return self.folder / f"part_{number:05d}.parquet"

    def _about(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(pq.read_schema(self._path(number)).metadata[_KEY])
        return found
