"""The layout of a table in a text file: encoding, preamble, names, units, delimiter and decimal mark.

It is recognised from the first lines, without a question to the person who measured: the table is the longest run of
lines with numbers and equally many fields, and the line of words above it names the columns.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.fit.fields import GROUPED, grouping_of, is_summary
from memsim.fit.quantities import is_unit
from memsim.units import counted

SAMPLE_BYTES = 1 << 18
"""The size of the beginning of a file in which its table must begin."""
COMMENT = re.compile(r'[ \t"]*(?:#(?!N/?A\b|VALUE!|DIV/0!|NUM!|REF!)|%|//|!|[-=+|: ]{3,}\r?$)')
"""The beginning of a line that is no part of a table, or a line that is a rule; #N/A and the like are no values."""
OVERFLOW_MARKS = ("OVERFLOW", "OVFLW", "OVERLOAD", "OVLD", "OVER", "OFL", "OL", "+OL", "-OL", "O.L")
"""Words that instruments write for a value beyond their range, in any case."""
MISSING = [
    *("", "nan", "NaN", "NAN", "-nan", "-NaN", "na", "NA", "n/a", "N/A", "<NA>", "#N/A", "#NA", "-", "--", "---"),
    *("null", "NULL", "none", "None", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    *("n.a.", "N.A.", "n.d.", "N.D.", "n/d", "N/D", "nd", "ND", "?", "#VALUE!", "#DIV/0!", "#NUM!", "#REF!"),
]
"""Words for a value that was not measured."""
_DELIMITERS = "\t;|, "
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d*(?:[eE][-+]?\d+)?")
_ENCODINGS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class TextLayout:
    """How a table is written in a text file.

    Attributes:
        encoding: the name of the encoding for `bytes.decode`.
        delimiter: the mark between fields; a space stands for any number of spaces and tabs.
        decimal_point: `.` or `,`.
        has_returns: whether a carriage return alone ends lines.
        lines_above: number of lines of the file before the first row of numbers.
        names: names of the columns, None where the file has none.
        units: units by column from a row below the names, empty where there is none.
        fields: number of columns.
        preamble: number of lines above the names that belong to no table.
        words_above: number of fields in the line above the rows, where they are words but not as many as the columns.
        group_mark: the mark between groups of three digits, empty where there is none.
        heading: the line of names, which may come again between rows; empty where there is none.
        has_summaries: whether rows may give means and the like of those above them.
    """

    encoding: str
    delimiter: str
    decimal_point: str
    has_returns: bool
    lines_above: int
    names: tuple[str, ...] | None
    units: tuple[str, ...]
    fields: int
    preamble: int
    words_above: int = 0
    group_mark: str = ""
    heading: str = ""
    has_summaries: bool = False

    @property
    def notes(self) -> list[str]:
        """Remarks, for people, about anything that differs from a plain CSV file."""
        notes = []
        if self.encoding not in ("utf-8", "utf-8-sig"):
            notes.append(f"read as {self.encoding.upper()} text")
        if self.decimal_point == ",":
            notes.append("read with decimal commas")
        if self.group_mark:
            notes.append(f"read with {self.group_mark!r} between thousands")
        if self.preamble:
            notes.append(f"{self.preamble} line{'s' * (self.preamble > 1)} above the table left out")
        return notes


@dataclass(frozen=True)
class _Run:
    """Successive lines with numbers and equally many fields."""

    first: int
    rows: list[list[str]]
    numbers: int

    @property
    def fields(self) -> int:
        return len(self.rows[0])


def text_layout(sample: bytes, path: Path) -> TextLayout:
    """Recognise the layout of a table from the first `SAMPLE_BYTES` of its file, unpacked.

    Raises:
        InputError: for a file that is not text, or that holds no table.
    """
    encoding = _encoding_of(sample, path)
    text = sample.decode(encoding, errors="replace").replace("\r\n", "\n")
    is_old = "\r" in text
    lines = text.replace("\r", "\n").split("\n")
    if len(sample) >= SAMPLE_BYTES:
        lines = lines[:-1]  # the last one may be cut
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: is empty; expected a table with the names of its columns in the first line")
    delimiter, run = _best_run(lines)
    if run is None:
        return _without_rows(lines, delimiter, encoding, is_old, path)
    names, units, at = _heading(lines, run, delimiter)
    if (before := _rows_above(lines[:at], run, delimiter)) is not None:
        raise InputError(
            f"{path}: line {before + 1} begins a table of {counted(run.fields, 'column')}, and line {at + 1} a longer "
            "one of as many; give each table a file of its own"
        )
    try:
        group_mark, mark = grouping_of([field for row in run.rows for field in row], delimiter)
    except ValueError as error:
        raise InputError(
            f"{path}: {error} may have a decimal comma or a comma between thousands; write it with a decimal point, or "
            "without the comma"
        ) from None
    return TextLayout(
        encoding,
        delimiter,
        mark,
        is_old,
        run.first,
        names,
        units,
        run.fields,
        preamble=sum(1 for line in lines[:at] if line.strip()),
        words_above=0 if names else _words_above(lines[: run.first], delimiter),
        group_mark=group_mark,
        heading=lines[at].strip() if names else "",
        has_summaries=not is_summary(run.rows[0]),
    )


def is_number(word: str) -> bool:
    """Return whether a field holds a number, with a decimal point or comma."""
    word = word.strip()
    if _DECIMAL_COMMA.fullmatch(word) or GROUPED.fullmatch(word):
        return True
    try:
        float(word)
    except ValueError:
        return False
    return word.lower().lstrip("+-") not in ("nan", "inf", "infinity") and "_" not in word


def is_comment(line: str) -> bool:
    """Return whether a line is a comment: a mark of one at its beginning."""
    return COMMENT.match(line) is not None


def split(line: str, delimiter: str) -> list[str]:
    """Split a line of a table into its fields, without the space around them."""
    if delimiter == " ":
        return line.split()
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # such as a field of more than 128 KiB
        return [field.strip() for field in line.split(delimiter)]


def _encoding_of(sample: bytes, path: Path) -> str:
    for mark, encoding in _ENCODINGS:
        if sample.startswith(mark):
            return encoding
    if 0 in sample[:1000]:
        even, odd = (sample[start:1000:2] for start in (0, 1))
        for zeros, letters, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
            if zeros.count(0) > 0.7 * len(zeros) and 0 not in letters:
                return encoding
        raise InputError(f"{path}: holds zero bytes and is no text; save it as CSV in UTF-8")
    try:
        # the last character of a sample may be cut
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return "cp1252" if _is_western(sample) else "latin-1"
    return "utf-8"


def _is_western(sample: bytes) -> bool:
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return True


def _best_run(lines: Sequence[str]) -> tuple[str, _Run | None]:
    """Return the delimiter with which the lines hold the most numbers in one run, and that run."""
    best: tuple[str, _Run | None] = (",", None)
    for delimiter in _DELIMITERS:
        run = _longest_run(lines, delimiter)
        if run is not None and (best[1] is None or run.numbers > best[1].numbers):
            best = delimiter, run
    if best[1] is None:
        return next((mark for mark in ",\t;|" if any(mark in line for line in lines)), ","), None
    return best


def _longest_run(lines: Sequence[str], delimiter: str) -> _Run | None:
    """Return the run with the most numbers; lines that are empty, comments or names once more are passed over."""
    best: _Run | None = None
    names = set[str]()
    first, rows, numbers = 0, list[list[str]](), 0
    for place, line in enumerate([*lines, "end"]):
        if not line.strip() or is_comment(line):
            continue
        fields = split(line, delimiter)
        count = sum(map(is_number, fields)) if len(fields) > 1 else 0
        if not count and len(fields) > 1:
            if line.strip() in names:
                continue
            names.add(line.strip())
        if rows and (not count or len(fields) != len(rows[0])):
            if best is None or numbers > best.numbers:
                best = _Run(first, rows, numbers)
            rows, numbers = [], 0
        if count:
            first = first if rows else place
            rows.append(fields)
            numbers += count
    return best


def _heading(lines: Sequence[str], run: _Run, delimiter: str) -> tuple[tuple[str, ...] | None, tuple[str, ...], int]:
    """Return the names and units above a run, and the place of the first line of the table."""
    above = [place for place in range(run.first) if lines[place].strip()]
    plain = [place for place in above if not is_comment(lines[place])]
    names: tuple[str, ...] | None = None
    units: tuple[str, ...] = ()
    at = run.first
    if plain and (found := _words(lines[plain[-1]], delimiter, run.fields)):
        names, at = found, plain[-1]
        higher = _words(lines[plain[-2]], delimiter, run.fields) if len(plain) > 1 else None
        if higher and _are_units(found):
            names, units, at = higher, found, plain[-2]
        elif higher and len(set(found)) < len(found):
            names, at = _under_headings(higher, found), plain[-2]
        elif plain[-1] < above[-1] and (below := _words(lines[above[-1]], delimiter, run.fields)):
            units = below if _are_units(below) else ()  # a row such as `#,#,kOhm`, which looks like a comment
    elif not plain and above:
        # numpy.savetxt and gnuplot write the names as a comment
        bare = lines[above[-1]].lstrip(' \t"').lstrip("#%!/ \t")
        if found := _words(bare, delimiter, run.fields):
            names, at = found, above[-1]
    return names, units, at


def _rows_above(lines: Sequence[str], run: _Run, delimiter: str) -> int | None:
    """Return the place of a line of names above a run, with two rows below it that are like those of the run."""
    kinds = list(map(is_number, run.rows[0]))
    above = [place for place, line in enumerate(lines) if line.strip() and not is_comment(line)]
    found = [list(map(is_number, split(lines[place], delimiter))) for place in above]
    tables = zip(above, found, found[1:], found[2:], strict=False)
    return next((place for place, *rows in tables if rows == [[False] * len(kinds), kinds, kinds]), None)


def _under_headings(headings: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return names that are alike, each with the heading of its group before it: `1 s` and `5 uS` for `1 s 5 uS`."""
    filled: list[str] = []
    for heading in headings:
        filled.append(heading or (filled[-1] if filled else ""))
    return tuple(f"{heading} {name}".strip() for heading, name in zip(filled, names, strict=True))


def _words_above(lines: Sequence[str], delimiter: str) -> int:
    """Return the number of fields in the last line that is neither empty nor a comment, 0 where one is no word."""
    plain = [line for line in lines if line.strip() and not is_comment(line)]
    words = split(plain[-1], delimiter) if plain else []
    return len(words) if len(words) > 1 and not any(map(is_number, words)) else 0


def _words(line: str, delimiter: str, fields: int) -> tuple[str, ...] | None:
    """Return the fields of a line that names `fields` columns, or None where it does not."""
    words = split(line, delimiter)
    if len(words) == fields + 1 and not words[-1]:
        words = words[:-1]  # a delimiter at the end of the line
    if len(words) == fields - 1:
        words.append("")  # a delimiter at the end of the rows
    if len(words) != fields or any(map(is_number, words)) or not any(words):
        return None
    return tuple(words)


def _are_units(words: Sequence[str]) -> bool:
    return all(not word or is_unit(word) for word in words)


def _without_rows(lines: Sequence[str], delimiter: str, encoding: str, is_old: bool, path: Path) -> TextLayout:
    """Return the layout of a file without numbers: its first line names the columns."""
    at = next((n for n, line in enumerate(lines) if line.strip() and not is_comment(line)), None)
    if at is None:
        raise InputError(f"{path}: holds comments only; expected a table with the names of its columns")
    names = tuple(split(lines[at], delimiter))
    return TextLayout(encoding, delimiter, ".", is_old, at + 1, names, (), len(names), 0)
