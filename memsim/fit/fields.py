"""Fields of text tables as people write them: digits in groups, rows of means, and values that are no numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

GROUPED = re.compile(
    r"[-+]?[1-9]\d{0,2}(?P<mark>[,.'’\u00a0\u202f ])\d{3}(?:(?P=mark)\d{3})*(?:(?!(?P=mark))(?P<point>[.,])\d*)?"
)
"""A number whose digits stand in groups of three, such as `12,345.6`, `12 345` or `12.345,6`."""
_SUMMARY = (
    r"(?:mean|average|avg|median|std|stdev|std[. ]*dev(?:iation|\.)?|sd|sigma"
    r"|min(?:imum)?|max(?:imum)?|sum|total|count)"
)
_SUMMARY_ROW = re.compile(rb'(?im)^[,;|\t "]*' + _SUMMARY.encode() + rb'"?[ :=\r]*(?:[,;|\t][^\n]*)?(?:\n|\Z)')
_REMEDIES = {
    r"[-+]?\d*[,.]\d+([eE][-+]?\d+)?": "write decimal points, or decimal commas, throughout",
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*|\d{1,2}:\d{2}.*": (
        "give times in seconds since the start; - in --columns leaves a column out"
    ),
    r"[-+]?\d[\d.,' ]*([eE][-+]?\d+)?\s*[A-Za-zµμΩ%][\w%]*": (
        "write 1.2e3 for 1.2k, and the unit in the name of the column, such as hrs_kohm"
    ),
    f"(?i:{_SUMMARY})": "leave out rows of means and the like",
}


def grouping_of(fields: Sequence[str], delimiter: str) -> tuple[str, str]:
    """Return (the mark between groups of three digits, empty without groups; the decimal mark) of a table's fields.

    Programs that part fields by commas write no decimal commas.

    Raises:
        ValueError: with a field such as `12,345`, where nothing tells whether its comma is a decimal one.
    """
    grouped = [match for field in fields if (match := GROUPED.fullmatch(field))]
    others = [field for field in fields if _DECIMAL.fullmatch(field) and not GROUPED.fullmatch(field)]
    points = {mark for mark in ",." if any(mark in field for field in others)}
    for match in grouped:
        mark, point = match["mark"], match["point"]
        if mark not in points and (point or mark not in ",." or match[0].count(mark) > 1):
            usual = "," if points == {","} or mark == "." else "."
            return mark, next((m["point"] for m in grouped if m["point"]), usual)
    with_comma = next((match[0] for match in grouped if match["mark"] == ","), None)
    if with_comma is None or points == {","}:
        return "", "," if points == {","} else "."
    if delimiter == "," or "." in points or any(match["mark"] == "." for match in grouped):
        return ",", "."
    raise ValueError(with_comma)


def ungrouped(lines: bytes, mark: str, delimiter: str) -> bytes:
    """Return lines without the mark between groups of digits in their fields."""
    edge, own = rb'"' if delimiter == mark else rb'[\n"' + delimiter.encode() + rb"]", re.escape(mark).encode()
    start = rb'(?<=")' if delimiter == mark else rb"(?m:^|(?<=" + edge + rb"))"
    number = rb" *[-+]?[1-9]\d{0,2}(?:" + own + rb"\d{3})+(?=[.,]?\d*\s*(?:" + edge + rb"|\r?\n|\Z))"
    return re.sub(start + number, lambda match: match[0].replace(mark.encode(), b""), lines)


def is_summary(row: Sequence[str]) -> bool:
    """Return whether a row of a table gives a mean or the like of those above it."""
    return next((re.fullmatch(_SUMMARY + "[ :=]*", field, re.IGNORECASE) is not None for field in row if field), False)


def without_summaries(lines: bytes) -> tuple[bytes, int]:
    """Return lines without the rows of means and the like, and the number of these."""
    return _SUMMARY_ROW.subn(b"", lines)


def remedy_for(value: str) -> str:
    """Return what to do about a value that is not a number."""
    for pattern, remedy in _REMEDIES.items():
        if re.fullmatch(pattern, value.strip()):
            return remedy
    return "leave cells empty where nothing was measured"


_DECIMAL = re.compile(r"[-+]?\d*[,.]\d*(?:[eE][-+]?\d+)?")
