"""Which clips show the same pictures, also after another compression or at another size.

A clip is reduced to five grey frames of 16x16 pixels, evenly spaced in time and kept in order: clips that hold the same
frames in another order are different ones. Two stages find pairs among n clips without comparing all n²/2 of them:

1. candidates: 640 random planes through the mean clip cut the clips' space, and a clip's hash is the sides on which it
   lies (M. Charikar, Similarity Estimation Techniques from Rounding Algorithms, STOC 2002). Pairs that agree in one of
   64 random choices of 40 planes are looked at (A. Gionis, P. Indyk, R. Motwani, Similarity Search in High Dimensions
   via Hashing, VLDB 1999): of pairs that lie on different sides of 5 % of the planes 1 in 6,000 is missed. The usual
   pHash (signs of DCT coefficients about their median) was tried and flips 14 % of its bits on soft pictures at JPEG
   quality 50, since most of their coefficients are nearly nought. Up to 1,000 clips, every pair is looked at;
2. the judge: of a pair's 1,280 pixels at most 1 % may differ by more than a tolerance, in grey levels of 255. A small
   frame suffers more from its compression, so the tolerance is 640 over the smaller clip's shorter side, 4 to 20.

The level that 99 % of the pixels stay below was measured on 60 clips each, for frames of 32, 64, 160 (synthetic) and
224 pixels (FGnet Talking Face); tolerated are 20, 10, 4 and 4, and 20, 20, 8 and 5.7 for half the size:

    JPEG of quality 50         14, 3, 2, 1        the nearest two of 70, 700, 70 and 306 other clips of the
    JPEG of quality 30         20, 5, 2, 2        same set: 59, 28, 13 and 1 (one man, filmed while he sits
    half the size, quality 75  31, 7, 2, 1        still: such clips are as alike as copies of one another)

Two clips in which hardly anything moves may be copies or a face that keeps still, and pictures cannot tell. So a pair
whose mean difference is above what the clips themselves change from one of the five frames to the next is only called
alike. The still man's clips differ by 1.6 times that and more; copies of the demo's clips at quality 50 by 0.3 (99 %:
below 1). Of copies at quality 50 and 30, and at half the size of frames of 64 pixels and more, 99 % were found, and of
the demo's at quality 50 99 % were also called sure.

Not found are quality 10, crops, mirrored clips, other colours, and clips that begin at another frame.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence

import cv2
import numpy as np

FRAMES = 5  # of a clip, in order
SIDE = 16  # pixels
DIFFERING = 0.01  # share of the pixels that may differ by more
EXACT = 1000  # clips of which every pair is looked at
PLANES, BANDS, BAND_PLANES = 640, 64, 40
NEIGHBOURS = 16  # clips of one bucket that each is compared with: thousands of black clips stay cheap, and one group
CHUNK = 4096  # clips, or pairs, worked on at once


def moments(frames: int) -> np.ndarray:
    """Return the frames, from 0, that stand for a clip of so many, int64 (FRAMES,); they may repeat."""
    return np.linspace(0, frames - 1, FRAMES).round().astype(np.int64)


def thumbnails(frames: np.ndarray) -> np.ndarray:
    """Return frames (t, h, w, 3) uint8 as grey thumbnails (t, SIDE, SIDE) uint8; averaging forgets the compression."""
    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    return np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in grey])


def tolerance(sides: np.ndarray) -> np.ndarray:
    """Return by how many grey levels pixels of frames with these shorter sides, in pixels, may differ."""
    return np.clip(640 / np.maximum(sides, 1), 4, 20)


def near_pairs(clips: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (m, 2) int64 of thumbnails (n, FRAMES, SIDE, SIDE) that show the same, the lower one first.

    `sides` (n,) are the shorter sides of the clips' frames in pixels. The second array, bool (m,), is false where too
    little moves to tell a copy from a still face.
    Of a large group of equals not every pair is there, but enough to join it.
    """
    pairs = _candidates(clips)
    flat = clips.reshape(len(clips), FRAMES * SIDE * SIDE).astype(np.int16)
    motion = [np.abs(np.diff(part.astype(np.int16), axis=1)).mean(axis=(1, 2, 3)) for part in _chunks(clips)]
    moves = np.concatenate([np.empty(0), *motion])
    kept, sure = [np.empty((0, 2), np.int64)], [np.empty(0, bool)]
    for part in _chunks(pairs):
        apart = np.abs(flat[part[:, 0]] - flat[part[:, 1]])
        near = (apart > tolerance(sides[part].min(axis=1))[:, None]).mean(axis=1) <= DIFFERING
        kept.append(part[near])
        sure.append(apart[near].mean(axis=1) <= moves[part[near]].min(axis=1))
    return np.concatenate(kept), np.concatenate(sure)


def _chunks(lines: np.ndarray) -> Iterator[np.ndarray]:
    return (lines[begin : begin + CHUNK] for begin in range(0, len(lines), CHUNK))


def _candidates(clips: np.ndarray) -> np.ndarray:
    """Return pairs (m, 2) of clips that may be near, each once, the lower one first."""
    count = len(clips)
    if count <= EXACT:
        return np.stack(np.triu_indices(count, 1), axis=1)
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((clips[0].size, PLANES), dtype=np.float32)
    centre = clips.mean(axis=0, dtype=np.float64).astype(np.float32)  # faces have much in common, which tells nothing
    sides = np.concatenate([(part - centre).reshape(len(part), -1) @ planes > 0 for part in _chunks(clips)])
    found = np.empty(0, np.int64)
    for _ in range(BANDS):
        chosen = rng.choice(PLANES, BAND_PLANES, replace=False)
        keys = sides[:, chosen].astype(np.float64) @ 2.0 ** np.arange(BAND_PLANES)  # whole numbers below 2^53
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for lag in range(1, NEIGHBOURS + 1):
            same = np.flatnonzero(keys[lag:] == keys[:-lag])
            found = np.append(found, order[same] * count + order[same + lag])  # stable: the lower row comes first
        found = np.unique(found)
    return np.stack(np.divmod(found, count), axis=1)


def equal_pairs(keys: Iterable[Hashable | None]) -> np.ndarray:
    """Return the pairs (m, 2) int64 of places with equal keys, each with the first of its kind; None equals nothing."""
    first: dict[Hashable, int] = {}
    pairs = [
        (first[key], place)
        for place, key in enumerate(keys)
        if key is not None and first.setdefault(key, place) != place
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def joined(pairs: Sequence[np.ndarray]) -> list[list[int]]:
    """Return the groups that pairs join, each ascending, in the order of their first members."""
    leader: dict[int, int] = {}

    def lead(place: int) -> int:
        while (above := leader.setdefault(place, place)) != place:
            leader[place] = place = leader[above]
        return place

    for one, other in (map(int, pair) for part in pairs for pair in part):
        a, b = sorted((lead(one), lead(other)))
        leader[b] = a
    groups: dict[int, list[int]] = {}
    for place in sorted(leader):
        groups.setdefault(lead(place), []).append(place)
    return list(groups.values())
