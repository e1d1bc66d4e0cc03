"""The first paragraph of a report, in plain words: who won, how good that is against chance, and who judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mien.platform.charts import tidy
from mien.platform.pages import Html, join, paragraph, strong
from mien.platform.records import Record, Run, Study, find
from mien.platform.report_search import alpha_of, mean_of, ordered, words_of

UNOPENED = "The test has not been opened, so the figures below are from validation. "

FEW_SUBJECTS = 10  # a bootstrap over fewer is known to be too narrow
PROTOCOLS = {
    "honest": "honest: validation from train",
    "paper": "paper: the last epoch; validation = test, unless there is an official validation part",
    "leaky": "leaky: validation shares persons with train",
}


@dataclass(frozen=True)
class Outcome:
    """The scores of a model on one split: of all clips together, of each fold, and their mean over folds."""

    split: str
    scores: Record
    folds: dict[str, Record]
    mean: Record
    classes: list[str]
    protocol: str
    openings: int
    dataset: str = ""  # its name, where there are several

    @property
    def chance(self) -> float | None:
        """The UAR of guessing: one over the classes that occur in the truth."""
        present = sum(1 for row in self.scores.get("confusion") or [] if sum(row))
        number = present or len(self.classes)
        return 1 / number if number else None

    @property
    def constant(self) -> str:
        """The constant answer that gaze is compared with, in words."""
        train = (self.scores.get("constant") or {}).get("from") == "train"
        return "the mean direction of the training clips" if train else "the mean direction"

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a score, or None."""
        both = (self.scores.get("intervals") or {}).get(name)
        return (float(both[0]), float(both[1])) if both and None not in both else None


def outcomes(run: Run | None, split: str, config: Mapping[str, Any]) -> list[Outcome]:
    """Return what a run's scores.json says of each dataset, be it one set of scores or those of several folds."""
    record = run.scores if run else None
    if not run or not record:
        return []
    return [
        _outcome(of, split, str(find(config, "protocol") or "not recorded"), run.openings, name)
        for name, of in (record.get("datasets") or {"": record}).items()
    ]


def _outcome(record: Record, split: str, protocol: str, openings: int, dataset: str) -> Outcome:
    folds = {str(key): value for key, value in (record.get("folds") or {}).items() if isinstance(value, dict)}
    mean = record.get("total") or {}
    scores = record.get("pooled") or mean or record
    classes = [str(name) for name in record.get("classes") or scores.get("classes") or scores.get("per_class") or {}]
    return Outcome(split, scores, folds, mean, classes, str(record.get("protocol") or protocol), openings, dataset)


def _ranged(value: float, both: tuple[float, float] | None, digits: int, unit: str = "", name: str = "") -> Html:
    """Write a value in bold with its interval in brackets, where there is one."""
    low_high = f" ({name}{both[0]:.{digits}f} to {both[1]:.{digits}f}{unit})" if both else ""
    return join(strong(f"{value:.{digits}f}{unit}"), low_high)


def _classes_verdict(found: Outcome) -> list[Html]:
    """Say how well classes are told apart, against chance, without praising what the interval does not carry."""
    uar, war = found.scores.get("uar"), found.scores.get("war")
    if uar is None:
        return [join("No classes were scored. ")]
    both, chance = found.interval("uar"), found.chance
    opening = f"On {found.dataset} it reaches a " if found.dataset else "It reaches a "
    words = [join(opening, found.split, " UAR of ", _ranged(uar, both, 3, name="95 % interval "))]
    if war is not None:
        words.append(join(" and a WAR of ", _ranged(war, found.interval("war"), 3)))
    words.append(join(f" on {len(found.classes)} classes. "))
    if chance and both:
        if both[0] > chance:
            times = both[0] / chance
            words.append(join(f"Guessing gives a UAR of {chance:.3f}; "))
            words.append(join(f"even the lower end of the interval is {times:.1f} times that. "))
        else:
            words.append(join(f"The interval holds {chance:.3f}, what guessing gives: no skill has been shown. "))
    elif chance:
        words.append(join(f"Guessing gives a UAR of {chance:.3f}. "))
    return words


def _gaze_verdict(found: Outcome) -> list[Html]:
    """Say how far gaze is off, against the best constant answer."""
    error, constant = found.scores.get("angular_error_deg"), found.scores.get("constant_error_deg")
    if error is None:
        return [join("No gaze was scored. ")]
    words = [join("Its gaze is off by ", _ranged(error, found.interval("angular_error_deg"), 1, "°"))]
    if constant:
        share = error / constant
        better = f"{share:.2f} of" if share < 1 else "no better than"
        words.append(join(f", {better} the {constant:.1f}° of always answering {found.constant}"))
    return [*words, join(". ")]


def verdict(found: Outcome | None, subject: str, missing_words: str) -> list[Html]:
    """Return the opening paragraphs: who won, how good it is, on what it was judged.

    Args:
        found: the scores on the split that counts; None where there are none yet.
        subject: the sentence that names what was judged, ending in a full stop and a space.
        missing_words: what to say where `found` is None.
    """
    if found is None:
        return [paragraph(subject, missing_words, css="verdict")]
    clips, subjects = found.scores.get("num_clips"), found.scores.get("num_subjects")
    judged = f"Judged on {clips:,} clips" if clips else "Judged on a number of clips that was not recorded"
    judged += f" of {subjects:,} subjects. " if subjects else "; subjects are not known. "
    parts = [paragraph(subject, *_classes_verdict(found), *_gaze_verdict(found), css="verdict")]
    parts.append(paragraph(judged, "Protocol: ", strong(PROTOCOLS.get(found.protocol, found.protocol)), "."))
    if subjects and subjects < FEW_SUBJECTS:
        warning = f"With {subjects} subjects the interval is narrower than the doubt: a bootstrap needs more people."
        parts.append(paragraph(warning, css="alert"))
    if found.protocol.startswith("paper"):
        warning = (
            "Without an official validation part, this protocol chooses settings on the very clips they are judged by: "
            "figures flatter."
        )
        parts.append(paragraph(warning, css="alert"))
    if found.protocol.startswith("leaky"):
        warning = (
            "Validation shows persons of train, who are recognised too: its figures, and choices by them, flatter."
        )
        parts.append(paragraph(warning, css="alert"))
    if found.openings > 1:
        words = (
            f"The test clips were looked at {found.openings} times. Whatever was changed in between was chosen on them."
        )
        parts.append(paragraph(words, css="alert"))
    return parts


def study_subject(study: Study, tested: bool) -> str:
    """Return the sentence that opens a study's verdict: which trial leads among how many, and how far the search is."""
    metric = study.objectives()[0]
    states = [str(trial.get("state")) for trial in study.trials]
    finished = sum(state in ("complete", "pruned") for state in states)
    trial: Record = study.winning_trial() or next(iter(ordered(study, metric)), {})
    alpha, value = alpha_of(trial), mean_of(trial, metric)
    named = f"trial {trial.get('number', trial.get('id'))}" + (f" (alpha {tidy(alpha)})" if alpha is not None else "")
    reached = f" with {'an' if metric == 'angular_error_deg' else 'a'} {words_of(metric)} of {tidy(value)}"
    reached += f", the mean of {len(trial.get('folds') or {})} folds"
    if not study.winner:
        begun = f"The search is not over: {finished} of {len(states)} trials begun have finished. "
        return begun + (f"So far {named} leads on validation{reached}. " if value is not None else "")
    return (
        f"Of {finished} finished trials, {named} did best on validation{'' if tested or value is None else reached}. "
    )


def run_verdict(run: Run, found: Outcome | None) -> list[Html]:
    """Return the opening paragraph on a single run: its scores, or how far its loss has come down."""
    if found:
        return verdict(found, "One run, not a search. ", "")
    steps, losses = run.values("loss")
    if not steps:
        return [paragraph("This run has recorded no step yet.", css="verdict")]
    tail = [value for value in losses[-max(len(losses) // 20, 1) :] if value == value]
    last = f"{sum(tail) / len(tail):.4g}" if tail else "no finite value"
    sentence = (
        f"After {steps[-1]:,.0f} steps the loss is {last}, the mean of its last twentieth; it began at {losses[0]:.4g}."
    )
    return [paragraph(sentence, css="verdict")]
