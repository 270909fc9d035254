"""The blocks of a page."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memsim.report.page import (
    LONG,
    Html,
    cards,
    document,
    facts,
    figures,
    group,
    heading,
    html,
    listing,
    note,
    row,
    table,
    verbatim,
    warning,
)
from tests.pages import Page

NASTY = "<b>&\"'</td></table>"


@given(st.text(st.characters(codec=None)))
@example("\r\0")
@example("a\r\nb\rc\n")
@example("\ud800.wav")
def test_text_is_shown_as_it_is(text: str) -> None:
    """Whatever HTML means by its characters; what is in no text is shown as such."""
    page = str(verbatim(text))
    assert "\r" not in page
    shown = "".join("\ufffd" if char == "\0" or "\ud800" <= char <= "\udfff" else char for char in text)
    assert Page.of(page.encode().decode()).text == shown


def test_nothing_that_is_given_becomes_markup() -> None:
    body = [
        heading(NASTY),
        note(NASTY),
        warning(NASTY),
        listing([NASTY]),
        cards([(NASTY, NASTY, NASTY)]),
        table([NASTY, NASTY], [[NASTY, NASTY], group(NASTY, 2), row([NASTY, NASTY], "warn")]),
        facts({NASTY: NASTY}),
        figures([(NASTY, b"<svg/>")]),
        verbatim(NASTY),
    ]
    page = Page.of(document(NASTY, body))
    assert page.text.count(NASTY) == 2 + 1 + 1 + 1 + 1 + 3 + 2 + 2 + 1 + 2 + 2 + 1
    assert [image["alt"] for image in page.images] == [NASTY]


def test_what_is_html_stays_it() -> None:
    assert html(Html("<i>x</i>")) == "<i>x</i>"
    assert html("<i>x</i>") == "&lt;i&gt;x&lt;/i&gt;"


@pytest.mark.parametrize(("rows", "is_long"), [(LONG, False), (LONG + 1, True)])
def test_long_tables_are_folded(rows: int, is_long: bool) -> None:
    made = table(["a", "b %"], [["1"]] * rows)
    assert (f"<details><summary>Table of {rows} rows: a, b</summary>" in made) == is_long
    assert made.count("<tr><td") == rows


def test_the_first_columns_are_text() -> None:
    assert table(["a", "b", "c"], [["1", "2", "3"]], text=2).count('class="text"') == 4


def test_an_empty_list_is_no_list() -> None:
    assert listing([]) == ""
