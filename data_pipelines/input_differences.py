"""Why your number may differ: two fingerprints compared, and what is known of the effect of what differs.

The list is what the authors of MAE-DFER answer to people who cannot reproduce their figures: clips thinned out to 16
frames beforehand (issues 14 and 21: 46/50 UAR/WAR on DFEW instead of 63/75), own crops in place of the official ones
(issue 22: 15.6/21.2 on MAFW instead of 41.6/54.3), another size of the source frames and other preparation (issues 1
and 23). Frame rate and stride change what time a clip covers. The rest is arithmetic: what another order of classes,
other classes or other shares of them do to a score.

Small differences are no reasons: each rule has a threshold, and what one side does not say is told apart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mien.data_pipelines.fingerprint import MEDIAN, Fingerprint

NOT_RECORDED = "not recorded: the checkpoint was made before runs kept what they were trained on"
LENGTH_RATIO = 1.5  # of the median clip; a clip is cut or filled up to the model's frames in any case
SIZE_RATIO = 1.08  # 224 against 256 is 1.14
RATE_RATIO = 1.1  # 25 against 30 frames a second is 1.2
FACE_RATIO = 1.25  # of the share of the frame; 1.12 of its side
ASPECT_RATIO = 1.1
SHARE = 0.2  # of the clips
BALANCE = 0.15  # share of the clips that would have to change class


class Difference(NamedTuple):
    """One reason: the two values in words, and what the effect is known to be."""

    what: str
    there: str
    here: str
    effect: str


Rule = Callable[[Fingerprint, Fingerprint], "Difference | None"]


def differences(there: Fingerprint, here: Fingerprint, labels: bool = True) -> list[Difference]:
    """Return what differs between the clips that a model knows and those it is used on, the gravest first.

    Without `labels`, as for what a model was pretrained on, classes and lengths of clips are not compared.
    """
    rules = [*(LABEL_RULES if labels else ()), *RULES, *(LAST_RULES if labels else ())]
    return [found for rule in rules if (found := rule(there, here)) is not None]


def unknown(there: Fingerprint, here: Fingerprint) -> list[str]:
    """Return what cannot be compared, since one of the two does not say it; parts of one manifest are of one kind."""
    if there.get("manifest") and there["manifest"] == here.get("manifest"):
        return []
    kinds = {"frame rate": "fps", "face share of the frame": "faces", "persons": "subjects"}
    return [name for name, key in kinds.items() if there.get(key) is None or here.get(key) is None]


def report(there: Fingerprint | None, here: Fingerprint, labels: bool = True) -> dict[str, Any]:
    """Return the comparison as plain data, for a run's records; `there` is None where a checkpoint does not say."""
    if there is None:
        return {"recorded": False, "differences": [], "unknown": []}
    found = [one._asdict() for one in differences(there, here, labels)]
    return {"recorded": True, "differences": found, "unknown": unknown(there, here)}


def merged(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the reports of several folds as one: each reason once, with the values of the first fold that has it."""
    found: dict[str, dict[str, Any]] = {}
    for one in reports:
        for difference in one["differences"]:
            found.setdefault(difference["what"], difference)
    blank = dict.fromkeys(name for one in reports for name in one["unknown"])
    recorded = all(one["recorded"] for one in reports)
    return {"recorded": recorded, "differences": list(found.values()), "unknown": list(blank)}


def told(report: Mapping[str, Any], known: str = "trained on") -> list[str]:
    """Return a report as text, a line a reason; `known` says how the model knows the other clips."""
    if not report["recorded"]:
        return [NOT_RECORDED]
    found = report["differences"]
    words = [f"{one['what']}: {known} {one['there']}, here {one['here']}; {one['effect']}" for one in found]
    if not found:
        words = [f"nothing that is known to matter differs from what it was {known}"]
    if blank := report["unknown"]:
        words.append(f"not compared, since not known of both: {', '.join(blank)}")
    return words


def _median(side: Fingerprint, key: str) -> float | None:
    values = side.get(key)
    return None if not values else float(values[MEDIAN])


def _apart(one: float | None, other: float | None, ratio: float) -> bool:
    """Say whether two positive numbers differ by more than a factor; what is not known differs from nothing."""
    return one is not None and other is not None and max(one, other) > ratio * min(one, other)


def _classes(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (side.get("classes") or [] for side in (there, here))
    folded, folded_other = ([name.lower() for name in names] for names in (one, other))
    if not one or not other or folded == folded_other:
        return None
    same = sorted(folded) == sorted(folded_other)
    effect = (
        "a label's number means another class, so scores by number are wrong unless classes are matched by name"
        if same
        else "classes that only one side has are left out, and UAR is a mean over other classes"
    )
    return Difference("order of classes" if same else "classes", ", ".join(one), ", ".join(other), effect)


def _thinned(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (side.get("as_long_as_clip") for side in (there, here))
    if one is None or other is None or abs(one - other) < 1 - SHARE:
        return None
    effect = (
        "clips thinned out to a model's frames beforehand run faster than it learned, and at a stride their last frame "
        "is repeated: released checkpoints reach UAR/WAR 46/50 instead of 63/75 on such copies of DFEW"
    )
    if one > other:
        effect = "the model learned clips as long as its own frames; of others it sees other times and speeds"
    return Difference("frames a clip", _length(there), _length(here), effect)


def _length(side: Fingerprint) -> str:
    if side["as_long_as_clip"] > 1 - SHARE:
        frames = (side.get("read") or {}).get("frames")
        return f"exactly {frames} in {side['as_long_as_clip']:.0%} of the clips"
    median = _median(side, "frames")
    return "whole clips" if median is None else f"{median:.0f} (median)"


def _lengths(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (_median(side, "frames") for side in (there, here))
    if _thinned(there, here) or not _apart(one, other, LENGTH_RATIO):
        return None
    effect = "of longer clips a smaller part is seen, and shorter ones repeat their last frame"
    return Difference("frames a clip", f"{one:.0f} (median)", f"{other:.0f} (median)", effect)


def _short(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (side.get("shorter_than_span") for side in (there, here))
    if one is None or other is None or abs(one - other) < SHARE or _thinned(there, here):
        return None
    effect = "these repeat their last frame, so the end of a clip stands still"
    return Difference("clips shorter than what a clip covers", f"{one:.0%}", f"{other:.0%}", effect)


def _faces(there: Fingerprint, here: Fingerprint) -> Difference | None:
    sides = [side.get("faces") or {} for side in (there, here)]
    one, other = (_median(side, "shares") for side in sides)
    if not _apart(one, other, FACE_RATIO):
        return None
    effect = (
        "wider or closer crops than those learned from cost most of a score: MAFW's own full frames give UAR/WAR "
        "15.6/21.2 instead of 41.6/54.3; cut the faces out alike (crop_faces.py, faces.margin)"
    )
    return Difference("face's share of the frame", f"{one:.2f} (median)", f"{other:.2f} (median)", effect)


def _faceless(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = ((side.get("faces") or {}).get("without") for side in (there, here))
    if one is None or other is None or abs(one - other) < SHARE / 2:
        return None
    return Difference("clips without a face", f"{one:.0%}", f"{other:.0%}", "nothing can be told of them but a guess")


def _sizes(there: Fingerprint, here: Fingerprint) -> Difference | None:
    if not all(side.get(name) for side in (there, here) for name in ("width", "height")):
        return None
    (w, h), (width, height) = ((side["width"][MEDIAN], side["height"][MEDIAN]) for side in (there, here))
    if _apart(w / h, width / height, ASPECT_RATIO):
        effect = "frames are made square, so faces are squeezed otherwise"
    elif _apart(min(w, h), min(width, height), SIZE_RATIO):
        effect = "another size of the source is usually another crop, and always sharper or softer at the model's size"
    else:
        return None
    return Difference("size of the frames", f"{w:.0f}x{h:.0f}", f"{width:.0f}x{height:.0f}", effect)


def _margins(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (side.get("crop_margin") for side in (there, here))
    if one is None or other is None or abs(one - other) < 0.02 or _faces(there, here):
        return None
    return Difference("margin of the crops", f"{one:g}", f"{other:g}", "faces are larger or smaller than learned")


def _rates(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (_median(side, "fps") for side in (there, here))
    if not _apart(one, other, RATE_RATIO):
        return None
    effect = "a stride counts frames, so a clip covers another time and faces move faster or slower"
    return Difference("frames a second", f"{one:g}", f"{other:g}", effect)


READ = {
    "frames": ("frames that the model sees", "a clip covers another time"),
    "stride": ("stride", "a clip covers another time, and its frames are further apart or closer"),
    "rule": ("rule for frames", "other moments of a clip are seen"),
    "size": ("pixels that the model sees", "faces are as many pixels wide as a model was not trained for"),
    "precrop": ("pre-crop", "faces fill more or less of the frame"),
    "ablate": ("motion", "it is spoilt on one side"),
}


def _read(key: str) -> Rule:
    def rule(there: Fingerprint, here: Fingerprint) -> Difference | None:
        one, other = ((side.get("read") or {}).get(key) for side in (there, here))
        if one is None or other is None or one == other:
            return None
        what, effect = READ[key]
        return Difference(what, str(one), str(other), effect)

    return rule


def _datasets(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (side.get("datasets") or {} for side in (there, here))
    if not one or not other or set(one) & set(other):
        return None
    effect = "other people, cameras and annotators: scores across datasets are lower than within one"
    return Difference("dataset", _listed(one), _listed(other), effect)


def _listed(names: Mapping[str, int]) -> str:
    shown = list(names)[:4]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _balance(there: Fingerprint, here: Fingerprint) -> Difference | None:
    if (there.get("classes") or []) != (here.get("classes") or []):
        return None
    one, other = (np.array(side.get("class_counts") or [], float) for side in (there, here))
    if not one.sum() or not other.sum():
        return None
    shares = [one / one.sum(), other / other.sum()]
    chance = np.sqrt(len(one) / (2 * np.pi) * (1 / one.sum() + 1 / other.sum()))  # of samples of one distribution
    if np.abs(shares[0] - shares[1]).sum() / 2 < BALANCE + chance:
        return None
    most = int(np.abs(shares[0] - shares[1]).argmax())
    name = there["classes"][most]
    effect = "WAR follows the frequent classes, and the model's leaning to them; UAR less"
    learned, judged = (f"{name} {share[most]:.0%}" for share in shares)
    return Difference("balance of classes", learned, judged, effect)


def _absent(there: Fingerprint, here: Fingerprint) -> Difference | None:
    if (there.get("classes") or []) != (here.get("classes") or []):
        return None
    one, other = (side.get("class_counts") or [] for side in (there, here))
    named = zip(there.get("classes") or [], one, other, strict=False)
    absent = [name for name, learned, judged in named if learned and not judged]
    if not absent or not any(other):
        return None
    effect = f"UAR is a mean over the others alone: none of {', '.join(absent)}"
    return Difference("classes that occur", str(sum(map(bool, one))), str(sum(map(bool, other))), effect)


def _sources(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (side.get("sources") or {} for side in (there, here))
    if not one or not other:
        return None
    one, other = (max(sorted(side), key=side.__getitem__) for side in (one, other))
    if one == other or {"shard"} & {one, other}:  # a shard holds the one or the other
        return None
    return Difference("clips stand in", f"{one}s", f"{other}s", "compressed otherwise; usually a small effect")


def _protocols(there: Fingerprint, here: Fingerprint) -> Difference | None:
    one, other = (side.get("protocol") for side in (there, here))
    if not one or not other or one == other:
        return None
    effect = "with paper all of train is learned from and the last epoch counts, else a part of it validates"
    return Difference("protocol", one, other, effect)


LABEL_RULES: Sequence[Rule] = (_classes, _thinned, _lengths, _short)
RULES: Sequence[Rule] = (
    _faces,
    _faceless,
    _sizes,
    _margins,
    _rates,
    *map(_read, ("frames", "stride", "size", "precrop", "ablate")),
)
LAST_RULES: Sequence[Rule] = (_read("rule"), _datasets, _absent, _balance, _sources, _protocols)
