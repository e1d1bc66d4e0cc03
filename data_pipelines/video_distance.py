"""How far the faces of a video are from the clips that a model learned from, in words.

What a video decides is compared with the fingerprint that the run keeps (`fingerprint`), by the rules that compare two
sets of clips (`input_differences`). The clips' pace is not among the differences: windows are made as long as training
clips were, where those tell their rate.
"""

from collections.abc import Sequence

import numpy as np

from mien.data_pipelines.face_tracks import Track, squares
from mien.data_pipelines.faces import MARGIN
from mien.data_pipelines.fingerprint import MEDIAN, QUANTILES, Fingerprint, quantiles
from mien.data_pipelines.input_differences import report, told
from mien.data_pipelines.timed_windows import WindowPlan


def learned_rate(learned: Fingerprint | None) -> float | None:
    """Return the frames a second of a run's training clips, or None where it does not say."""
    return float(learned["fps"][MEDIAN]) if learned and learned.get("fps") else None


def margin_like(learned: Fingerprint | None, tracks: Sequence[Track]) -> float:
    """Return the margin with which faces are cropped as the training clips were, as far as their fingerprint tells.

    That is the margin they were cropped with; else the one with which faces fill as much of a crop as an audit measured
    there; else that of crop_faces.py.
    """
    learned = learned or {}
    if learned.get("crop_margin") is not None:
        return float(learned["crop_margin"])
    shares = (learned.get("faces") or {}).get("shares")
    if not shares or not tracks:
        return MARGIN
    boxes = np.concatenate([track.boxes[:, 2:] for track in tracks])
    sides = np.sqrt(boxes.prod(axis=1) / shares[MEDIAN])
    return round(max(0.0, float(np.median(sides / boxes.max(axis=1)) - 1) / 2), 3)


def distance(
    plan: WindowPlan,
    tracks: Sequence[Track],
    *,
    fps: float,
    learned_fps: float | None,
    stride: int,
    margin: float,
    size: int,
    learned: Fingerprint | None,
    confidence: tuple[float | None, float | None],
) -> list[str]:
    """Return the comparison, a line each: pace, size, sureness, and what else differs.

    Args:
        plan: how windows lie on the tracks of this video, of `fps`.
        tracks: its faces, boxes in pixels.
        fps: frames a second of the video.
        learned_fps: of the training clips; None where they do not say.
        stride: frames from one of a training clip's frames to the next.
        margin: of the crops, share of a face's longer side.
        size: side of the model's frames, pixels.
        learned: fingerprint of the training clips; None where the run kept none.
        confidence: mean probability of the likeliest class, in this video and on validation clips.
    """
    words = f"a clip is {plan.frames} frames in {plan.seconds(fps):.2f} s, every {plan.step:.3g} of {fps:.4g} frames/s"
    if learned_fps is None:
        lines = [f"{words}; the training clips do not say their rate, so time may run otherwise (set learned_fps)"]
    else:
        lines = [f"{words}, as long as in training (every {stride} of {learned_fps:.4g} frames/s)"]
    if not tracks:
        return lines
    sides = np.concatenate([squares(track.boxes, margin)[:, 2] for track in tracks])
    shares = np.concatenate([track.boxes[:, 2:].prod(axis=1) for track in tracks]) / sides**2
    middle = float(np.median(sides))
    soft = f"; {np.mean(sides < size):.0%} are enlarged, and softer for it" if np.mean(sides < size) >= 0.1 else ""
    lines.append(
        f"crops are {middle:.0f} pixels wide (median; {sides.min():.0f} to {sides.max():.0f}), the model sees "
        f"{size}{soft}"
    )
    if confidence[0] is not None and confidence[1] is not None:
        lines.append(f"the likeliest class has {confidence[0]:.0%} on average, on validation clips {confidence[1]:.0%}")
    here: Fingerprint = {
        "fps": None if learned_fps is None else [learned_fps] * len(QUANTILES),  # the pace is kept
        "height": quantiles(np.rint(sides)),
        "width": quantiles(np.rint(sides)),
        "crop_margin": margin,
        "faces": {"shares": quantiles(shares)},
        "shorter_than_span": float(np.mean([plan.is_short(len(track)) for track in tracks])),
    }
    found = report(learned, here)
    found["unknown"] = [name for name in found["unknown"] if name != "persons"]
    return lines + told(found)
