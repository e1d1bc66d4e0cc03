"""The page on an audit: its record goes in, one self-contained page of HTML comes out.

The record is what `experiments/audit.py` writes as `audit.json`; its pictures stand beside it as files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mien.platform.charts import bars
from mien.platform.pages import Html, Section, figure, image, join, page, pair, paragraph, strong, table
from mien.platform.pictures import shrink
from mien.platform.records import Record

PICTURE_BYTES = 60_000
MOST_UNREADABLE = 200  # lines; the record holds all
MARKS = {"error": "failed", "warning": "", "note": "pruned"}
PARTS = ("test", "train", "val")


def audit_page(record: Record, folder: Path) -> str:
    """Return the page on an audit's record, whose pictures are in `folder`."""
    sections = [_findings(record)]
    sections += [_duplicates(record, folder)] if record["duplicates"] else []
    sections += [_unreadable(record)] if record["unreadable"] else []
    sections += [_classes(record)] if any(record["class_counts"].values()) else []
    sections += [_inputs(record, folder), _settings(record)]
    subjects = f", {record['subjects']:,} subjects" if record["subjects"] else ""
    eyebrow = f"An audit by mien of {record['clips']:,} clips{subjects}, {record['time'][:10]}"
    return page(f"Audit of {record['name']}", eyebrow, [_verdict(record)], sections)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _verdict(record: Record) -> Html:
    by = {name: [f for f in record["findings"] if f["severity"] == name] for name in ("error", "warning")}
    errors, warnings = (len(by[name]) for name in ("error", "warning"))
    if errors:
        first = by["error"][0]
        begin = strong(f"{_count(errors, 'kind')} of errors: scores on this manifest are not to be trusted.")
        number = "" if first["count"] is None else f" ({first['count']:,})"
        rest = f" The first: {first['what']}{number}."
    elif warnings:
        begin, rest = strong("No errors."), f" {_count(warnings, 'warning')} to be read before scores are compared."
    else:
        begin, rest = strong("No errors and no warnings."), ""
    unread = " No file was opened." if record["settings"]["read"] == "none" else ""
    return paragraph(begin, rest, unread, css="verdict")


def _findings(record: Record) -> Section:
    rows, marks = [], []
    for finding in record["findings"]:
        examples = finding["examples"]
        shown = "; ".join(examples[:3]) + (" …" if len(examples) > 3 else "")
        count = None if finding["count"] is None else f"{finding['count']:,}"
        rows.append([finding["severity"], count, finding["what"], shown or None, finding["remedy"] or None])
        marks.append(MARKS[finding["severity"]])
    header = ["severity", "count", "what was found", "for example", "what to do"]
    caption = "An error makes a score wrong, a warning may make it mislead, a note is to be known."
    return Section("Findings", (table(header, rows, "lnwww", marks, caption),))


def _duplicates(record: Record, folder: Path) -> Section:
    groups = record["duplicates"]
    crossing = sum(bool(group["folds"]) for group in groups)
    words = (
        f"{_count(len(groups), 'group')} of clips that hold the same; {crossing:,} of them are shared by two parts. "
    )
    how = "A row is a clip, its frames evenly spaced. Same bytes are copies; same pictures were encoded anew, perhaps "
    how += "at another size; same still pictures may also be a face that hardly moves, and are to be judged by eye."
    shown = [_group(group, folder) for group in groups if group["picture"]]
    more = len(groups) - len(shown)
    parts = [paragraph(words, how), Html(f'<div class="shots">{"".join(shown)}</div>')]
    parts += [paragraph(f"{more:,} more are in audit.json.")] if more else []
    return Section("Duplicates", tuple(parts))


def _group(group: Record, folder: Path) -> Html:
    """Return one group's strips with the names of its clips, top to bottom."""
    labels = len({clip["class"] for clip in group["clips"]} - {None}) > 1
    lines = [
        join(Html("<br>"), clip["video"], f" · {clip['place']}" if clip["place"] else "", _class(clip, labels))
        for clip in group["clips"]
    ]
    more = [join(Html("<br>"), f"and {group['more']:,} more")] if group["more"] else []
    kind = f"Same {group['same']}" + (f", {group['where']}" if group["folds"] else f", inside {group['where']}")
    kind += f" ({', '.join(group['folds'])})" if group["folds"] else ""
    caption = join(strong(kind), " · different labels" if labels else "", *lines, *more)
    return figure(_picture(folder / group["picture"], f"frames of {group['clips'][0]['video']}"), caption)


def _class(clip: Record, striking: bool) -> Html:
    if clip["class"] is None:
        return Html("")
    return join(" · ", strong(clip["class"]) if striking else clip["class"])


def _picture(file: Path, words: str) -> Html:
    return image(shrink(file.read_bytes(), PICTURE_BYTES, 900), words)


def _unreadable(record: Record) -> Section:
    clips = record["unreadable"]
    rows = [[clip["video"], clip["path"], clip["reason"]] for clip in clips[:MOST_UNREADABLE]]
    more = f"The first {MOST_UNREADABLE} of {len(clips):,}; audit.json lists all." if len(clips) > len(rows) else ""
    return Section("Unreadable clips", (table(["clip", "file", "reason"], rows, "lww", caption=more),))


def _classes(record: Record) -> Section:
    """Return how many clips each class has: in all, and in the parts of each fold."""
    classes, counts = record["classes"], record["class_counts"]
    first = next(iter(counts.values()))
    total = [sum(first[part][label] for part in first) for label in range(len(classes))]
    drawn = bars([(name, n, f"{n:,}") for name, n in zip(classes, total, strict=True)], "clips a class", None)
    return Section("Classes", (pair(figure(drawn, "Clips of each class in all parts."), *_tables(classes, counts)),))


def _tables(classes: Sequence[str], counts: Mapping[str, Mapping[str, Sequence[int]]]) -> list[Html]:
    """Return a table a part with a column a fold, or one table with a column a part where there is one fold."""
    if len(counts) == 1:
        ((_, of),) = counts.items()
        return [_table(classes, {part: of[part] for part in PARTS if part in of}, "Clips of each class in each part.")]
    made = []
    for part in PARTS:
        columns = {name.removeprefix("fold "): of[part] for name, of in counts.items() if part in of}
        if columns:
            made.append(_table(classes, columns, f"Clips of each class in the {part} part of each fold."))
    return made


def _table(classes: Sequence[str], columns: Mapping[str, Sequence[int]], caption: str) -> Html:
    def cell(value: int) -> Html | str:
        return f"{value:,}" if value else strong("0")

    rows = [[name, *(cell(column[label]) for column in columns.values())] for label, name in enumerate(classes)]
    rows.append(["all", *(f"{sum(column):,}" for column in columns.values())])
    marks = [""] * len(classes) + ["total"]
    head = "class" if "train" in columns else "fold"
    return table([head, *columns], rows, "l" + "n" * len(columns), marks, caption)


def _inputs(record: Record, folder: Path) -> Section:
    """Return lengths, sizes and rates of each dataset's clips, and what they look like."""
    rows = []
    for name, of in record["inputs"].items():
        frames = of["frames"]
        lengths = f"{frames['min']:,} · {frames['median']:,.0f} · {frames['max']:,}"
        sizes = _first([f"{size['width']}x{size['height']} ({size['clips']:,})" for size in of["sizes"]])
        rates = _first([f"{rate['fps'] or 'unknown'} ({rate['clips']:,})" for rate in of["fps"]])
        rows.append([name, f"{of['clips']:,}", lengths, sizes, rates, *_faces(record, name)])
    caption = "What scores depend on besides the model. Frames are the shortest, the median and the longest clip's; "
    caption += "numbers of clips are in brackets."
    header = ["dataset", "clips", "frames", "sizes in pixels", "frames a second"]
    if seen := record["faces"]:
        header += ["face's share", "no face"]
        caption += " The face's share of the frame is the median, and where nine tenths of the clips lie; "
        caption += f"{seen['clips']:,} clips were looked at, in the middle of each."
    parts = [table(header, rows, "lnlwwln"[: len(header)], caption=caption)]
    shown = [
        figure(_picture(folder / one["picture"], f"frames of {one['video']}"), join(one["video"], _class(one, False)))
        for one in record["examples"]
    ]
    if shown:
        parts += [paragraph("The first clip of each class:" if record["classes"] else "Some of the clips:")]
        parts += [Html(f'<div class="shots">{"".join(shown)}</div>')]
    return Section("What goes in", tuple(parts))


def _faces(record: Record, dataset: str) -> list[str | None]:
    """Return how much of the frame faces fill and how many clips have none, where that was measured."""
    if not record["faces"]:
        return []
    of = record["faces"]["datasets"].get(dataset)
    if of is None:  # none of the clips that were looked at is of this dataset
        return [None, None]
    _, low, _, median, _, high, _ = of["shares"] or [None] * 7
    return [median and f"{median:.2f} ({low:.2f} to {high:.2f})", f"{of['without']:.0%}"]


def _first(words: Sequence[str], most: int = 6) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def _settings(record: Record) -> Section:
    """Return what was asked, and which data were seen."""
    split = record["settings"]["split"]
    read = {"none": "none", "some": "five of each clip", "all": "all"}[record["settings"]["read"]]
    lines = {
        "manifest": record["manifest"],
        "fingerprint": record["fingerprint"],
        "classes": ", ".join(record["classes"]) or "none",
        "protocol": f"{split['protocol']}, validation_ratio {split['validation_ratio']}, seed {split['seed']}",
        "frames decoded": read,
        "reader's notes": "; ".join(record["notes"]) or "none",
    }
    body = "".join(join(Html("<dt>"), name, Html("</dt><dd>"), value, Html("</dd>")) for name, value in lines.items())
    return Section("Settings", (Html(f"<dl>{body}</dl>"),))
