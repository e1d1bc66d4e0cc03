"""A page is whole in itself, links its sections, and escapes whatever is not markup."""

import re
from html.parser import HTMLParser

import pytest

from mien.platform import pages
from mien.platform.pages import Html, Section

HOSTILE = '<script>alert("1")</script>'
PIXEL = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br", "rect", "circle", "line"}


class Balance(HTMLParser):
    """Fails on a tag that is closed in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_everything_that_is_not_markup_is_escaped() -> None:
    parts = (
        pages.paragraph(HOSTILE, pages.strong(HOSTILE)),
        pages.missing(HOSTILE),
        pages.figure(Html("<svg></svg>"), HOSTILE, HOSTILE, least=300),
        pages.table([HOSTILE], [[HOSTILE]], marks=['" onclick="'], caption=HOSTILE),
        pages.image(PIXEL, HOSTILE),
    )
    page = pages.page(HOSTILE, HOSTILE, parts, [Section(HOSTILE, parts)])
    assert "<script" not in page
    assert 'onclick="' not in page


def test_tags_are_closed_in_order() -> None:
    parts = (pages.pair(pages.figure("<svg></svg>", "a"), pages.table(["a"], [[1]])), pages.paragraph("b"))
    parser = Balance()
    parser.feed(pages.page("t", "e", parts, [Section("One", parts), Section("Two", ())]))
    assert parser.open == []


def test_a_page_needs_no_network_and_no_script() -> None:
    page = pages.page("t", "e", [pages.image(PIXEL, "a")], [])
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|url\(", page)
    assert 'src="data:image/png;base64,' in page


def test_a_page_follows_dark_and_print_and_narrow_screens() -> None:
    page = pages.page("t", "e", [], [])
    assert all(f"@media {kind}" in page for kind in ("(prefers-color-scheme: dark)", "print", "(max-width"))
    assert "width=device-width" in page


def test_every_section_is_reached_from_the_list() -> None:
    page = pages.page("t", "e", [], [Section("Classes against gaze", ()), Section("Folds", ())])
    assert (
        re.findall(r'href="#([^"]+)"', page)
        == re.findall(r'<section id="([^"]+)"', page)
        == ["classes-against-gaze", "folds"]
    )


def test_a_table_aligns_numbers_marks_rows_and_shows_absent_cells_as_dashes() -> None:
    table = pages.table(["name", "value"], [["a", 1], ["b", None]], "ln", ["winner", ""])
    assert '<tr class="winner"><td>a</td><td class="n">1</td></tr><tr><td>b</td><td class="n">–</td></tr>' in table


def test_a_picture_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="PNG"):
        pages.image(b"GIF89a", "a picture")
