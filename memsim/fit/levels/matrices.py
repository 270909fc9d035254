"""Matrices of conductances, one for each time, each of whose places is a cell.

They stand in blocks of a text file below lines such as `t = 3600 s`, in text files that are named for their times, or
in an array [times, rows, columns] of an NPZ file; and a row for each time has a column for each cell.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memsim.errors import InputError
from memsim.fit.arrays import Floats
from memsim.fit.columns import columns_by_quantity
from memsim.fit.files import SUFFIXES, files_of, npz_arrays, text_lines
from memsim.fit.levels.wide import TIME_IN_NAME
from memsim.fit.named import Labels, NamedColumns
from memsim.fit.quantities import CONDUCTANCE, RESISTANCE, TIME, Column, Dimension, parse_column, unit_of
from memsim.fit.tables import LABELS, OVERFLOW, REPEATED
from memsim.fit.text_layout import MISSING, OVERFLOW_MARKS, TextLayout, is_comment, split
from memsim.units import counted

VALUES: Mapping[str, Dimension] = {"conductance": CONDUCTANCE, "resistance": RESISTANCE}
_NUMBER = r"\d+(?:[.,]\d+)?(?:e[-+]?\d+)?"
_TIME_LINES = (  # t = 3600 s; time (s): 3600
    re.compile(
        rf"(?:[^\d,;|]*\b(?:t|time|after|at)\W*|[^\w,;|]*)(?P<time>{_NUMBER})\s*(?P<unit>[a-zµμ]+)\W*", re.IGNORECASE
    ),
    re.compile(rf"\W*(?:time|t)[\W_]*(?P<unit>[a-zµμ]+)\W+(?P<time>{_NUMBER})\W*", re.IGNORECASE),
)
_WITHOUT_UNIT = re.compile(rf"\W*(?:time|t)\b\W*{_NUMBER}\W*", re.IGNORECASE)
_EXAMPLE = "a line such as t = 3600 s"


@dataclass(frozen=True, eq=False)
class _Block:
    """The matrix of one time."""

    where: str  # file and line
    seconds: float
    rows: list[Floats]
    labels: list[str]  # of rows, where they have any


def holds_matrices(
    paths: str | Path | Sequence[str | Path], names: Sequence[str], known: Container[str], least: int
) -> bool:
    """Return whether files hold matrices: arrays of two or more axes, or text whose names repeat a conductance.

    Args:
        paths: the files.
        names: names of the columns in order, of which `...` repeats the last one.
        known: first words of the names of columns that are of other tables.
        least: the fewest columns beside one of times that are taken for one of each cell.

    Raises:
        InputError: for matrices in text without the name of their quantity.
    """
    files = files_of(paths)
    first = files[0]
    if first.suffix == ".npz":
        return not names and any(array.ndim > 1 for array in npz_arrays(first).values())
    if names:
        return len(names) > 1 and names[-1] == REPEATED and _named(names[-2], VALUES, str(first)) is not None
    if SUFFIXES.get(Path(first.name.removesuffix(".gz")).suffix.lower()) != "text":
        return False
    layout, lines = text_lines(first, is_sample=True)
    found = layout.names or ()
    words = [word[0].lower() if (word := re.match(r"[A-Za-z]+(?=$|[\W_])", name)) else "" for name in found]
    if any(word in known for word in words[1:] + [word for word in words[:1] if word != "time"]):
        return False
    times = [line.strip() for line in lines if _is_time(line, layout)]
    if not found and len(files) > 1 and not times:
        times = [file.name for file in files if _time_of_name(file) is not None]
    if len(times) > 1:
        raise InputError(
            f"{first}: holds a matrix for each time ({times[0]!r:.40}, {times[1]!r:.40} ...); --columns "
            "conductance_uS,... reads it, in the unit of its numbers"
        )
    if words[:1] == ["time"] and len(words) > least:
        raise InputError(
            f"{first}: holds a row for each time, {found[0]!r:.40}, and {len(words) - 1} columns; --columns "
            "time_s,conductance_uS,... takes each of them for a cell, in the unit of its numbers"
        )
    return False


def read_matrices(
    paths: str | Path | Sequence[str | Path],
    quantities: Mapping[str, Dimension],
    names: Sequence[str],
    renamed: Mapping[str, str] | None,
) -> NamedColumns:
    """Read matrices for several times as if they were a table with a row for each cell and time.

    Args:
        paths: the files.
        quantities: those of readings.
        names: `conductance_uS,...` for text; `time_s,conductance_uS,...` where each row is a time.
        renamed: names as memsim expects them -> names of arrays.

    Raises:
        InputError: in one line, for matrices of different shapes, without times or with something else between them.
    """
    files = files_of(paths)
    if files[0].suffix == ".npz":
        return _read_arrays(files, quantities, renamed)
    where = f"{files[0]}: --columns {','.join(names)}"
    *keys, value, _ = names
    quantity, column = parse_column(value, value, VALUES, where)
    time = next((found for key in keys if (found := _named(key, {"time": TIME}, where))), None)
    if not quantity or len(keys) > 1 or (keys and not time and keys[0] not in LABELS):
        raise InputError(
            f"{where}: expected conductance_uS,... or time_s,conductance_uS,... or cell,conductance_uS,..."
        )
    blocks = _row_blocks(files, time) if time else _blocks(files, has_labels=bool(keys))
    shape = (len(blocks[0].rows), len(blocks[0].rows[0]))
    for block in blocks:
        if any(len(row) != shape[1] for row in block.rows) or len(block.rows) != shape[0]:
            raise InputError(
                f"{block.where}: the matrix of {block.seconds:g} s is not one of {shape[0]} x {shape[1]}, as that of "
                f"{blocks[0].seconds:g} s is; a cell has one place in all of them"
            )
    seconds = [block.seconds for block in blocks]
    if twice := next((t for k, t in enumerate(seconds) if t in seconds[:k]), None):
        raise InputError(f"{where}: two matrices of {twice:g} s; give one for each time")
    rows = blocks[0].labels or [str(row + 1) for row in range(shape[0])]
    cells = [f"{row} {place + 1}" for row in rows for place in range(shape[1])]
    return _as_table(
        files,
        quantity,
        column.convert(np.array([np.concatenate(block.rows) for block in blocks])),
        np.array(seconds)[:, None],
        {quantity: column},
        cells,
        (f"a matrix of {shape[0]} x {shape[1]} cells for each of {counted(len(blocks), 'time')}",),
    )


def _as_table(
    files: Sequence[Path],
    quantity: str,
    values: Floats,
    seconds: Floats,
    columns: Mapping[str, Column],
    cells: Sequence[str],
    notes: tuple[str, ...],
    targets: Floats | None = None,
) -> NamedColumns:
    """Return readings `values` [times, cells], with times and targets that broadcast to them, a row each."""
    numbers = {quantity: values, "time": seconds} | ({} if targets is None else {"target": targets})
    index = np.broadcast_to(np.arange(values.shape[1]), values.shape).reshape(-1)
    return NamedColumns(
        tuple(files),
        values.size,
        {key: np.broadcast_to(own, values.shape).reshape(-1) for key, own in numbers.items()},
        {"cell": Labels(tuple(cells), index)},
        columns,
        (),
        notes,
        (),
    )


def _blocks(files: Sequence[Path], *, has_labels: bool) -> list[_Block]:
    """Return the matrices in text files: those below lines with times, or one for each file that is named for one."""
    blocks: list[_Block] = []
    for file in files:
        layout, lines = text_lines(file)
        seconds: float | None = None
        if len(files) > 1 and not any(_is_time(line, layout) for line in lines):
            if (seconds := _time_of_name(file)) is None:
                raise InputError(
                    f"{file}: its name gives no time; name it like G_3600s.csv, or write {_EXAMPLE} into it"
                )
            blocks.append(_Block(str(file), seconds, [], []))
        for place, line in enumerate(lines, 1):
            where = f"{file}: line {place}"
            if _is_time(line, layout):
                first = line if _seconds_of(line) is not None else split(line, layout.delimiter)[0]
                seconds = _seconds_of(first)
                assert seconds is not None
                blocks.append(_Block(where, seconds, [], []))
                continue
            if _WITHOUT_UNIT.fullmatch(line):
                raise InputError(f"{where}: {line.strip()!r:.40} names no unit of time; write t = 3600 s")
            words = [] if is_comment(line) else split(line, layout.delimiter)
            if not any(words) or all(_value(word, layout) is None for word in words):
                continue  # names of the columns
            if seconds is None:
                raise InputError(
                    f"{where}: a row of numbers without a time; write {_EXAMPLE} above each matrix, or name files of "
                    "one each for it (G_3600s.csv)"
                )
            is_labelled = has_labels or _value(words[0], layout) is None
            values = [_value(word, layout) for word in words[is_labelled:] if word or len(words) > 1]
            if None in values:
                wrong = words[is_labelled:][values.index(None)]
                raise InputError(f"{where}: {wrong!r:.40} is not a number; expected {_EXAMPLE} or a row of numbers")
            blocks[-1].rows.append(np.array(values, dtype=np.float64))
            blocks[-1].labels.extend(words[:is_labelled])
    if not all(block.rows for block in blocks):
        empty = next(block for block in blocks if not block.rows)
        raise InputError(f"{empty.where}: no matrix for {empty.seconds:g} s")
    if len(blocks) < 2:
        raise InputError(f"{files[0]}: holds no two matrices with times; write {_EXAMPLE} above each")
    return blocks


def _row_blocks(files: Sequence[Path], time: Column) -> list[_Block]:
    """Return a matrix of one row for each row of a text file, whose first field is its time."""
    blocks = []
    for file in files:
        layout, lines = text_lines(file)
        for place, line in enumerate(lines, 1):
            words = [] if is_comment(line) else split(line, layout.delimiter)
            values = [_value(word, layout) for word in words]
            if values.count(None) == len(values):
                continue
            if None in values or np.isnan(values[0] or 0.0):
                raise InputError(f"{file}: line {place}: expected a time and a number for each cell")
            seconds = float(time.convert(np.array(values[0], dtype=np.float64)))
            blocks.append(_Block(f"{file}: line {place}", seconds, [np.array(values[1:], dtype=np.float64)], []))
    if not blocks:
        raise InputError(f"{files[0]}: holds no rows")
    return blocks


def _read_arrays(
    files: Sequence[Path], quantities: Mapping[str, Dimension], renamed: Mapping[str, str] | None
) -> NamedColumns:
    """Read an NPZ file with an array [times, ...] or [..., times] of conductances, and one [times] of times."""
    if len(files) > 1:
        raise InputError(f"{files[1]}: arrays of several axes are read from one file; put all times into it")
    where, arrays = str(files[0]), npz_arrays(files[0])
    columns = columns_by_quantity(tuple(arrays), where, quantities, renamed)
    of = {quantity: arrays[column.name] for quantity, column in columns.items()}
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    quantity = next((key for key in VALUES if key in of), None)
    if quantity is None or "time" not in of:
        lacking = "time_s" if quantity else "conductance_uS"
        raise InputError(f"{where}: lacks {lacking} (arrays: {shapes}); --column {lacking}=THEIRS names another")
    values, times = of[quantity], of["time"]
    if times.ndim != 1 or not {values.shape[0], values.shape[-1]} & {len(times)} or values.ndim < 2:
        raise InputError(
            f"{where}: arrays {shapes}; expected conductances [times, ...] or [..., times] and times [times]"
        )
    if values.shape[0] != len(times):
        values = np.moveaxis(values, -1, 0)
    shape = values.shape[1:]
    targets = of.get("target")
    if targets is not None and targets.shape != shape:
        raise InputError(f"{where}: {columns['target'].name} is {list(targets.shape)}; expected {list(shape)}")
    for name in ("cell", "device", "temperature"):
        if name in of:
            raise InputError(f"{where}: {name} beside an array for each time is not read; leave it out")
    cells = [" ".join(str(i + 1) for i in place) for place in np.ndindex(shape)]
    numbers = {key: columns[key].convert(np.asarray(own, dtype=np.float64)) for key, own in of.items()}
    return _as_table(
        files,
        quantity,
        columns[quantity].convert(values.reshape(len(times), -1).astype(np.float64)),
        numbers["time"][:, None],
        columns,
        cells,
        (f"{' x '.join(map(str, shape))} cells at each of {counted(len(times), 'time')}",),
        None if targets is None else numbers["target"].reshape(1, -1),
    )


def _named(name: str, quantities: Mapping[str, Dimension], where: str) -> Column | None:
    """Return the column of a name that is one of the quantities, None for another."""
    quantity, column = parse_column(name, name, quantities, where)
    return None if quantity is None else column


def _seconds_of(text: str) -> float | None:
    """Return the time in seconds that a line or field gives; None where it gives none."""
    for form in _TIME_LINES:
        if (match := form.fullmatch(text.strip())) and (unit := unit_of(match["unit"], TIME)):
            return float(match["time"].replace(",", ".")) * unit.factor
    return None


def _is_time(line: str, layout: TextLayout) -> bool:
    """Return whether a line gives the time of the matrix below it, alone or before the names of its columns."""
    if not line.strip():
        return False
    if _seconds_of(line) is not None:
        return True
    words = split(line, layout.delimiter)
    others = [_value(word, layout) for word in words[1:] if word]
    return len(words) > 1 and all(value is None for value in others) and _seconds_of(words[0]) is not None


def _time_of_name(file: Path) -> float | None:
    """Return the time in seconds that the name of a file gives, None where it gives none or several."""
    stem = file.name.removesuffix(".gz").rpartition(".")[0]
    found = [
        float(match["time"]) * unit.factor
        for match in TIME_IN_NAME.finditer(stem)
        if (unit := unit_of(match["time_unit"], TIME))
    ]
    return found[0] if len(found) == 1 else None


def _value(word: str, layout: TextLayout) -> float | None:
    """Return the number in a field, NaN where it is missing, and None for another word."""
    word = word.strip()
    if word in MISSING or word.upper() in OVERFLOW_MARKS:
        return np.nan
    if layout.group_mark:
        word = word.replace(layout.group_mark, "")
    try:
        value = float(word.replace(",", ".") if layout.decimal_point == "," else word)
    except ValueError:
        return None
    return value if abs(value) < OVERFLOW else np.nan
