"""An audit's look at faces: how much of the frame they fill, and clips that show none.

Crops that are wider or closer than those a model learned from are the first cause of scores that cannot be reproduced:
MAE-DFER reaches UAR/WAR 15.6/21.2 on MAFW's own full frames, 41.6/54.3 on its face crops (its issue 22).

A few hundred clips are looked at, in the middle of each, by CenterFace. On 40 frames of a real talking face, cropped to
64 to 256 pixels with margins from -0.1 to 0.4, it found the face in all, and the share was right to within a sixth.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mien.data_pipelines import decode
from mien.data_pipelines.contents import Contents
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.face_detector import DETECTORS, INSTALL, Detector, DetectorMissingError
from mien.data_pipelines.findings import Finding, some
from mien.data_pipelines.fingerprint import MEDIAN, quantiles
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import locate
from mien.data_pipelines.threads import in_order

MIN_SCORE = 0.5
SIDE = 320  # pixels; larger pictures are shrunk to it
MANY = 0.1  # share of the clips without a face above which something is wrong
SMALL = 0.15  # share of the frame below which a face was hardly cropped: a margin of 0.4 gives 0.23


@dataclass(frozen=True)
class FaceShares:
    """The largest face of some clips, as a share of the frame: `shares` is 0 where there is none."""

    rows: np.ndarray  # int64 (n,): lines of the manifest
    shares: np.ndarray  # float64 (n,)

    def summary(self, manifest: Manifest) -> dict[str, Any]:
        """Return clips looked at, the share of them without a face and quantiles of the others; so of each dataset."""
        names = np.array(manifest.table["dataset"].take(self.rows).to_pylist())
        each = {name: _numbers(self.shares[names == name]) for name in sorted(set(names.tolist()))}
        return _numbers(self.shares) | {"datasets": each}


def _numbers(shares: np.ndarray) -> dict[str, Any]:
    without = round(float((shares == 0).mean()), 4)
    return {"clips": len(shares), "without": without, "shares": quantiles(shares[shares > 0])}


def measure(manifest: Manifest, rows: np.ndarray, threads: int, detector: Detector) -> FaceShares:
    """Look for faces in the middle frame of the clips `rows`; a clip that cannot be read is left out."""

    def middle(index: int) -> np.ndarray | None:
        row = manifest.row(index)
        place = np.array([row["start"] + row["frames"] // 2])
        try:
            return decode.read(locate(row, manifest.root), place, (row["height"], row["width"]))[0]
        except DecodeError:
            return None  # the audit has read it a moment ago, or says why it could not

    found, shares = [], []
    # The network is not made for several threads; decoding is what they are for.
    for index, picture in zip(rows.tolist(), in_order(middle, rows.tolist(), threads, ahead=2 * threads), strict=True):
        if picture is not None:
            found.append(index)
            shares.append(share(picture, detector))
    return FaceShares(np.array(found, np.int64), np.array(shares))


def share(picture: np.ndarray, detector: Detector) -> float:
    """Return the share of a picture, uint8 `(h, w, c)`, that the box of its largest face covers; 0 without a face."""
    scale = SIDE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = picture.shape[:2]
    boxes = np.clip(detector(picture)[:, :4], 0, [width, height, width, height])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return float(areas.max(initial=0) / (height * width))


def audit_faces(
    manifest: Manifest, held: Contents | None, most: int, threads: int
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Return how much of the frame faces fill, in at most `most` readable clips, and what is wrong with it."""
    if held is None or not most or not len(held.readable):
        return None, [_unmeasured("no frame was to be looked at", "set faces and read to look at some")]
    try:
        detector = DETECTORS["centerface"](MIN_SCORE)
    except DetectorMissingError:
        return None, [_unmeasured("the detector is not installed", INSTALL)]
    readable = held.readable
    places = np.linspace(0, len(readable) - 1, min(most, len(readable))).round().astype(int)
    found = measure(manifest, readable[places], threads, detector)
    return found.summary(manifest), _findings(manifest, found)


def _unmeasured(why: str, remedy: str) -> Finding:
    return Finding("faces", "note", f"the face's share of the frame was not measured: {why}", remedy=remedy)


def _findings(manifest: Manifest, found: FaceShares) -> list[Finding]:
    numbers = _numbers(found.shares)
    labelled = manifest.table["label"].null_count < len(manifest) or manifest.table["pitch"].null_count < len(manifest)
    findings = []
    missing = found.rows[found.shares == 0]
    if len(missing):
        videos = some(manifest.table["video"].take(missing).to_pylist())
        what = f"of {len(found.rows):,} clips show no face in the middle that the detector finds"
        remedy = "look at some: what shows no face teaches nothing; crop_faces.py leaves it out"
        many = labelled and numbers["without"] > MANY
        findings.append(Finding("faces", "warning" if many else "note", what, len(missing), videos, remedy))
    if numbers["shares"] is None:
        return findings
    low, median, high = (f"{numbers['shares'][place]:.2f}" for place in (1, MEDIAN, -2))
    what = f"of the frame is filled by the face, at the median; {low} to {high} for nine tenths of the clips"
    small = labelled and numbers["shares"][MEDIAN] < SMALL
    remedy = "cut the faces out first, as published sets are: crop_faces.py manifest=…" if small else ""
    findings.append(Finding("faces", "warning" if small else "note", f"{median} {what}", remedy=remedy))
    return findings
