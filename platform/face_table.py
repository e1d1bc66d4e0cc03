"""One row for each frame and face of a video, as Parquet and CSV, written as they come.

frame     from 0              time    seconds from the beginning of the annotated video
face      the person's number: one in one shot; after a cut it is another
left, top, width, height      the box, pixels of the upright frame
short     whether the face was in view for less than a clip      windows  answers that are averaged here
class, probability, p_NAME …  the likeliest class, its probability, and each class's (where classes were learned)
pitch, yaw, spread            radians (where gaze was learned): +pitch up, +yaw to the left in the image; how far the
                              answers lie apart, null where there is but one
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mien.platform.face_overlay import Shown

ROWS = 10_000  # that wait for the disk
PART = ".unfinished"


def schema(classes: Sequence[str], gaze: bool) -> pa.Schema:
    """Return the columns."""
    fields = [("frame", pa.int64()), ("time", pa.float64()), ("face", pa.int32())]
    fields += [(side, pa.float32()) for side in ("left", "top", "width", "height")]
    fields += [("short", pa.bool_()), ("windows", pa.int32())]
    if classes:
        fields += [("class", pa.string()), ("probability", pa.float32())]
        fields += [(f"p_{name}", pa.float32()) for name in classes]
    if gaze:
        fields += [(name, pa.float32()) for name in ("pitch", "yaw", "spread")]
    return pa.schema(fields)


class FaceTable:
    """The two files in the making, under names that say so until `close` gives them their own."""

    def __init__(self, parquet: Path, csv: Path, classes: Sequence[str], gaze: bool) -> None:
        self._classes, self._schema = list(classes), schema(classes, gaze)
        self._paths = [(path.with_name(path.name + PART), path) for path in (parquet, csv)]
        self._parquet = pq.ParquetWriter(self._paths[0][0], self._schema)
        self._csv = pyarrow.csv.CSVWriter(self._paths[1][0], self._schema)
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def add(self, frame: int, time: float, shown: Shown, windows: int, spread: float | None) -> None:
        """Take a face in a frame, its box in the frame's own pixels."""
        x, y, width, height = shown.box.tolist()
        row: dict[str, Any] = {"frame": frame, "time": time, "face": shown.number}
        row |= {"left": x - width / 2, "top": y - height / 2, "width": width, "height": height}
        row |= {"short": shown.short, "windows": windows}
        if shown.probabilities is not None:
            best = int(shown.probabilities.argmax())
            row |= {"class": self._classes[best], "probability": float(shown.probabilities[best])}
            row |= {f"p_{name}": float(value) for name, value in zip(self._classes, shown.probabilities, strict=True)}
        if shown.gaze is not None:
            known = spread is not None and np.isfinite(spread)
            row |= {"pitch": float(shown.gaze[0]), "yaw": float(shown.gaze[1]), "spread": spread if known else None}
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == ROWS:
            self._write()

    def close(self) -> None:
        """Write what waits, and give the files their names."""
        self._write()
        self._parquet.close()
        self._csv.close()
        for part, path in self._paths:
            part.replace(path)

    def _write(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, self._schema)
            self._parquet.write_table(table)
            self._csv.write_table(table)
            self._rows = []
