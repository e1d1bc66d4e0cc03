"""A report's page: the skeleton, its one style sheet, tables, figures and pictures, all in one string of HTML.

The page opens from disk with no network, no script and no font of its own. It follows the reader's light or dark
setting, becomes one column on a phone, where wide tables scroll within their own box, and prints in black on white.
Everything that is not `Html` is escaped.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("pages.css")


class Html(str):
    """Markup that is safe to put into the page as it is."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """One section of the page: its heading and the parts below it."""

    title: str
    parts: tuple[Html, ...]


def gathered(sections: Sequence[Section]) -> list[Section]:
    """Return the sections with those that only say what is missing drawn together into one at the end."""
    empty = [section for section in sections if all(part.startswith('<p class="missing">') for part in section.parts)]
    if not empty:
        return list(sections)
    lines = Html("".join(f"<dt>{escape(section.title)}</dt><dd>{''.join(section.parts)}</dd>" for section in empty))
    last = Section("Not in this report", (join(Html("<dl>"), lines, Html("</dl>")),))
    return [section for section in sections if section not in empty] + [last]


def markup(value: object) -> Html:
    """Return the value as markup: `Html` as it is, everything else escaped."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(*parts: object) -> Html:
    """Join parts to one markup, escaping whatever is not `Html`."""
    return Html("".join(markup(part) for part in parts))


def strong(value: object) -> Html:
    """Return the value in bold."""
    return join(Html("<b>"), value, Html("</b>"))


def paragraph(*parts: object, css: str = "") -> Html:
    """Return a paragraph of the parts; `css` is `missing` for what a study does not have, `alert` for a warning."""
    return join(Html(f'<p class="{css}">' if css else "<p>"), *parts, Html("</p>"))


def missing(words: str) -> Html:
    """Return the plain sentence that stands where a record is absent."""
    return paragraph(words, css="missing")


def figure(drawing: str | Html, caption: object, title: str = "", least: int = 0) -> Html:
    """Return a figure of markup with a caption; on a phone one of `least` pixels scrolls in its own box."""
    head = join(Html("<h3>"), title, Html("</h3>")) if title else Html("")
    body = f'<div class="scroll" style="--least:{least}px">{drawing}</div>' if least else drawing
    return join(Html("<figure>"), head, Html(body), Html("<figcaption>"), caption, Html("</figcaption></figure>"))


def pair(*figures: Html) -> Html:
    """Lay figures beside one another, or below one another where there is no room."""
    return Html(f'<div class="pair">{"".join(figures)}</div>')


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    align: str = "",
    marks: Sequence[str] = (),
    caption: str = "",
) -> Html:
    """Return a table.

    Args:
        header: words of the columns.
        rows: cells, escaped unless `Html`; None is a dash.
        align: a letter a column, `l` left, `n` a number at the right, `w` long text that may wrap; left if absent.
        marks: a class a row: winner, pruned, failed, total or nothing.
        caption: what to see and how it was computed.
    """
    css = {"n": ' class="n"', "w": ' class="wrap"', "l": ""}
    look = [css[letter] for letter in align.ljust(len(header), "l")]
    head = "".join(f"<th{kind}>{escape(words)}</th>" for words, kind in zip(header, look, strict=True))
    body = []
    for index, row in enumerate(rows):
        mark = f' class="{escape(marks[index])}"' if index < len(marks) and marks[index] else ""
        cells = (
            f"<td{kind}>{markup('–' if cell is None else cell)}</td>" for cell, kind in zip(row, look, strict=True)
        )
        body.append(f"<tr{mark}>{''.join(cells)}</tr>")
    grid = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><div class="table">{grid}</div>{below}</figure>')


def image(data: bytes, alt: str) -> Html:
    """Return a picture embedded in the page; `data` is the content of a PNG, JPEG or WebP file.

    Raises:
        ValueError: the bytes are none of these.
    """
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((name for magic, name in kinds.items() if data.startswith(magic)), None)
    if kind is None:
        raise ValueError(
            f"a picture in a report must be PNG, JPEG or WebP, got bytes that begin with {data[:4]!r} ({alt})"
        )
    return Html(f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')


def anchor(title: str) -> str:
    """Return the id under which a section is linked."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def page(title: str, eyebrow: str, lead: Sequence[Html], sections: Sequence[Section]) -> str:
    """Return the whole page: table of contents, title, verdict, sections."""
    links = "".join(f'<a href="#{anchor(s.title)}">{escape(s.title)}</a>' for s in sections)
    body = "".join(
        f'<section id="{anchor(s.title)}"><h2>{escape(s.title)}</h2>{"".join(s.parts)}</section>' for s in sections
    )
    body = re.sub(r"(\d) %", r"\1&nbsp;%", body)
    style = re.sub(r"/\*.*?\*/\n?", "", STYLE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f'<body><div class="page"><nav><b>{escape(title)}</b>{links}</nav>\n'
        f'<main><header><h1>{escape(title)}</h1><p class="eyebrow">{escape(eyebrow)}</p>{"".join(lead)}</header>\n'
        f'<div class="rest">{body}</div></main></div></body></html>\n'
    )
