"""Named columns of a table, from one file or many, as numbers in SI units.

table = read_columns(
    ["wafer1.csv", "wafer2.csv"],
    {"cell": NUMBER, "time": TIME, "conductance": CONDUCTANCE, "target": CONDUCTANCE},
    required=("cell", "time", "conductance"),
    labels=("cell",),
)
table.numbers["conductance"]  # [rows] siemens, NaN where nothing was measured
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memsim.errors import InputError
from memsim.fit.arrays import Floats, Ints
from memsim.fit.columns import columns_by_quantity, require_columns
from memsim.fit.quantities import Column, Dimension
from memsim.fit.tables import Table, open_tables


@dataclass(frozen=True, eq=False)
class Labels:
    """A column of names."""

    names: tuple[str, ...]  # the distinct ones, in order of appearance
    index: Ints  # [rows] index of each row's name, -1 where it is empty


@dataclass(frozen=True, eq=False)
class NamedColumns:
    """The columns of one or several files that have the quantities asked for.

    Attributes:
        files: the files, in the order of their rows.
        rows: number of rows.
        numbers: quantity -> its values [rows] in SI units, NaN where they are missing.
        labels: quantity -> its names.
        columns: quantity -> its column in the first file.
        unused: columns of the first file that were not asked for.
        notes: remarks for people, such as overflows that count as missing.
        how_read: remarks about the layout of the files, where it is not that of plain tables.
    """

    files: tuple[Path, ...]
    rows: int
    numbers: Mapping[str, Floats]
    labels: Mapping[str, Labels]
    columns: Mapping[str, Column]
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    how_read: tuple[str, ...]


def read_columns(
    paths: str | Path | Sequence[str | Path],
    quantities: Mapping[str, Dimension],
    required: Sequence[str],
    *,
    labels: Sequence[str] = (),
    names: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> NamedColumns:
    """Read the columns of `quantities` that are in the files `paths`.

    Args:
        paths: a text (CSV, TSV, gzip or not), Parquet or NPZ file, several, or folders of them.
        quantities: quantity -> units of its dimension (see `memsim.fit.quantities`), whose column is named for both, as
            in `time_seconds`, `conductance_uS` or `Conductance (uS)`.
        required: quantities that every file must have.
        labels: quantities whose values are names and not numbers.
        names: names of the columns in order, in place of those in a text file (see `Table`).
        renamed: names as memsim expects them -> names in the table; `file` and `row` stand for the name of the file and
            the number of the row.

    Raises:
        InputError: in one line, for files that cannot be read, or that lack a quantity or its unit.
    """
    tables = open_tables(paths, names)
    found = [columns_by_quantity(t.columns, str(t.path), quantities, renamed, t.units) for t in tables]
    for table, columns in zip(tables, found, strict=True):
        require_columns(columns, required, table.columns, str(table.path), quantities)
        if columns.keys() != found[0].keys():
            differing = ", ".join(sorted(columns.keys() ^ found[0].keys()))
            raise InputError(f"{table.path}: differs from {tables[0].path} in {differing}; give files of one kind")
    numbers = {quantity: list[Floats]() for quantity in found[0] if quantity not in labels}
    indices = {quantity: list[Ints]() for quantity in found[0] if quantity in labels}
    known = {quantity: dict[str, int]() for quantity in indices}
    for table, columns in zip(tables, found, strict=True):
        text = [columns[quantity].name for quantity in indices]
        for batch in table.batches([column.name for column in columns.values()], text):
            for quantity, parts in numbers.items():
                parts.append(columns[quantity].convert(batch.numbers(columns[quantity].name)))
            for quantity, places in indices.items():
                words, codes = batch.labels(columns[quantity].name)
                index = [known[quantity].setdefault(word, len(known[quantity])) for word in words]
                places.append(np.array([*index, -1], dtype=np.int64)[codes])
    joined = {quantity: np.concatenate(parts) if parts else np.empty(0) for quantity, parts in numbers.items()}
    labelled = {
        quantity: Labels(tuple(known[quantity]), np.concatenate(places) if places else np.empty(0, np.int64))
        for quantity, places in indices.items()
    }
    rows = len(next(iter([*joined.values(), *(column.index for column in labelled.values())]), ()))
    if not rows:
        raise InputError(f"{tables[0].path}: holds no rows")
    used = {part for column in found[0].values() for part in tables[0].parts_of(column.name)}
    return NamedColumns(
        tuple(table.path for table in tables),
        rows,
        joined,
        labelled,
        found[0],
        tuple(name for name in tables[0].columns if name not in used),
        joint_notes(tables),
        joint_layouts(tables),
    )


def joint_notes(tables: Sequence[Table]) -> tuple[str, ...]:
    """Return the remarks about the values of `tables`, each with the name of its file where there are several."""
    several = len(tables) > 1
    return tuple(f"{table.path.name}: {note}" if several else note for table in tables for note in table.notes)


def joint_layouts(tables: Sequence[Table]) -> tuple[str, ...]:
    """Return the remarks about the layouts of `tables`, each one once."""
    return tuple(dict.fromkeys(remark for table in tables for remark in table.how_read))
