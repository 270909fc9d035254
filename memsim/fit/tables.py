"""Tables of numbers in text, Parquet and NPZ files, read in batches, so that a file may be larger than the memory."""

from __future__ import annotations

import csv
import gzip
import io
import re
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from memsim.errors import InputError
from memsim.fit.arrays import Floats, Ints
from memsim.fit.text_layout import COMMENT, MISSING, OVERFLOW_MARKS, SAMPLE_BYTES, TextLayout, text_layout
from memsim.storage.files import is_file
from memsim.storage.packed import Unpacked, require_honest
from memsim.units import counted

BATCH_ROWS = 1 << 19
OVERFLOW = 9.9e37
"""Instruments write this number for infinity, and 9.91e37 for "not a number" (SCPI-99)."""
REPEATED = "..."
"""The end of a list of column names of which those after the keys repeat along a row."""
SKIPPED = "-"
"""The name of a column that is left out."""
FILE, ROW = "file", "row"
"""Columns that every table has: the name of the file without its suffix, and the number of the row."""
KEYS = ("device", "cell")
_BLOCK_BYTES = 1 << 24
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".asc", ".prn")
_SUFFIXES = dict.fromkeys(_TEXT_SUFFIXES, "text") | {".parquet": "Parquet", ".pq": "Parquet", ".npz": "NPZ"}
_COMMENTS = re.compile(rb"(?m)^" + COMMENT.pattern.encode() + rb"[^\n]*\n?")
_EMPTY_ROWS = re.compile(rb"(?m)^[,;|\t \r]+\n")
_PLUS = re.compile(rb"(?m)(^|[,;|\t\" ])\+(?=[\d.,])")
_MARKS = tuple(dict.fromkeys(form for mark in OVERFLOW_MARKS for form in (mark, mark.lower(), mark.capitalize())))
_MARK = re.compile(rb"(?i)[,;|\t\"\s](?:" + b"|".join(re.escape(mark.encode()) for mark in OVERFLOW_MARKS) + rb")\b")


class Batch:
    """Some rows of a table.

    Attributes:
        first_row: number of the first row, counted from 1 without the header.
        done: fraction of the table that has been read.
    """

    def __init__(self, columns: dict[str, pa.Array], first_row: int, done: float, table: Table) -> None:
        self._columns = columns
        self._table = table
        self.first_row = first_row
        self.done = done

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def numbers(self, name: str) -> Floats:
        """Return a column as float64 [n], NaN for missing values and for an instrument's mark of an overflow.

        Raises:
            InputError: for a value that is not a number.
        """
        if name == ROW and name not in self._columns:
            return self.first_row + np.arange(len(self), dtype=np.float64)
        with _readable(self._table.path):
            values = np.asarray(self._columns[name].cast(pa.float64()).to_numpy(zero_copy_only=False))
        is_beyond = np.isfinite(values) & (np.abs(values) >= OVERFLOW)
        if is_beyond.any():
            self._table.overflows[name] += int(is_beyond.sum())
            values = np.where(is_beyond, np.nan, values)
        return values

    def labels(self, name: str) -> tuple[list[str], Ints]:
        """Return the distinct values of a column as text, and the index of each row's value [n], -1 if missing."""
        if name == FILE and name not in self._columns:
            return [self._table.stem], np.zeros(len(self), np.int64)
        if name == ROW and name not in self._columns:
            rows = range(self.first_row, self.first_row + len(self))
            return [self._table.row_label(row) for row in rows], np.arange(len(self))
        with _readable(self._table.path):
            encoded = self._columns[name].dictionary_encode()
            return [str(value).strip() for value in encoded.dictionary.to_pylist()], np.asarray(
                encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64
            )


class Table:
    """A file of columns of equal length.

    A text file may be compressed by gzip, in UTF-8 or UTF-16, with lines above the table, comments, a row of units and
    decimal commas, and its fields separated by tabs, semicolons, bars, commas or spaces.

    Attributes:
        path: the file.
        columns: names of its columns.
        units: name of a column -> the unit in a row below the names.
        is_one_of_many: whether it is read together with other files (see `open_tables`).
        overflows: name of a column -> number of values read so far that were an instrument's mark of an overflow.

    Raises:
        InputError: in one line, for a file that cannot be read; by its methods, too.
    """

    def __init__(self, path: str | Path, names: Sequence[str] = ()) -> None:
        """Open the table in the file `path`.

        Args:
            path: the file.
            names: names of all columns in order, in place of those in a text file; `-` leaves a column out, and `...`
                at the end repeats the names, without `device` or `cell`, along a row, which is a device's.
        """
        self.path = Path(path)
        self.is_one_of_many = False
        self.overflows: Counter[str] = Counter()
        self.units: dict[str, str] = {}
        self._layout: TextLayout | None = None
        self._repeats = 0  # of the names along a row; 0 where a row is a row
        name = self.path.name.removesuffix(".gz")
        self.format = _SUFFIXES.get(Path(name).suffix.lower(), "")
        if not is_file(self.path):
            raise InputError(f"{path}: {'a folder; name a file' if self.path.is_dir() else 'no such file'}")
        if not self.format:
            raise InputError(
                f"{path}: expected .csv (or .csv.gz, .tsv, .txt), .parquet or .npz; save the sheet of a workbook as CSV"
            )
        if names and self.format != "text":
            raise InputError(f"{path}: --columns is for text files; the columns of this one have names")
        with _readable(self.path):
            self.columns = self._names(names)
        if len(set(self.columns)) < len(self.columns):
            twice = next(name for name in self.columns if self.columns.count(name) > 1)
            raise InputError(f"{path}: column {twice} is given twice")

    @property
    def stem(self) -> str:
        """The name of the file without its suffixes."""
        name = self.path.name.removesuffix(".gz")
        return name.removesuffix(Path(name).suffix)

    def row_label(self, row: int) -> str:
        """Return the name of a row: its number, after the name of the file where the table is one of several."""
        return f"{self.stem} {row}" if self.is_one_of_many else str(row)

    @property
    def how_read(self) -> list[str]:
        """Remarks about the layout of the file, where it is not a plain table."""
        return self._layout.notes if self._layout else []

    @property
    def notes(self) -> list[str]:
        """Remarks about overflows among the values read so far."""
        return [
            f"{counted(count, 'value')} of {name} {'is' if count == 1 else 'are'} an instrument's mark of an overflow, "
            "such as 9.91E37, and count as missing"
            for name, count in self.overflows.items()
        ]

    def batches(self, names: Sequence[str], text: Sequence[str] = ()) -> Iterator[Batch]:
        """Yield all rows of the columns `names` in order; the columns in `text` are labels, not numbers."""
        read = {"text": self._text_batches, "Parquet": self._parquet_batches, "NPZ": self._npz_batches}[self.format]
        row = 1
        self.overflows.clear()
        real = [name for name in names if name in self.columns]
        with _readable(self.path):
            for columns, done in read(real or self.columns[:1], text):
                batch = Batch(columns, row, done, self)
                row += len(batch)
                if len(batch):
                    yield batch

    def _names(self, given: Sequence[str]) -> tuple[str, ...]:
        if self.format == "Parquet":
            return tuple(pyarrow.parquet.read_schema(self.path).names)
        if self.format == "NPZ":
            with zipfile.ZipFile(self.path) as archive:
                return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
        with self.path.open("rb") as file:
            sample = _unpacked(file, self.path).read(SAMPLE_BYTES)
        layout = self._layout = text_layout(sample, self.path)
        if given:
            return self._given_names(given, layout.fields)
        if layout.names is None:
            if layout.words_above:
                raise InputError(
                    f"{self.path}: cannot be read as a table: its rows have {counted(layout.fields, 'column')}, but "
                    f"the line above them names {layout.words_above}; --columns names them in order"
                )
            examples = "device,cycle,hrs_ohms,us_volts,lrs_ohms,ur_volts or cell,time_s,-,conductance_S"
            raise InputError(
                f"{self.path}: its {counted(layout.fields, 'column')} have no names; --columns names them in order, "
                f"such as {examples} (- leaves one out), or write them in the first line"
            )
        names = tuple(name or f"column {place}" for place, name in enumerate(layout.names, 1))
        self.units = {name: unit for name, unit in zip(names, layout.units, strict=False) if unit}
        return names

    def _given_names(self, given: Sequence[str], fields: int) -> tuple[str, ...]:
        """Return the names of the columns, or of the columns that rows with repeated names stand for."""
        names = [name.strip() for name in given]
        where = f"{self.path}: --columns {','.join(names)}"
        if names[-1] != REPEATED:
            if len(names) != fields:
                raise InputError(f"{where}: names {counted(len(names), 'column')}, but the table has {fields}")
            return tuple(f"column {place}" if name == SKIPPED else name for place, name in enumerate(names, 1))
        keys = [name for name in names if name in KEYS]
        group = names[len(keys) : -1]
        if names[: len(keys)] != keys or not group:
            raise InputError(f"{where}: expected device first, if it is there, and then the names that repeat")
        if (fields - len(keys)) % len(group):
            raise InputError(
                f"{where}: the table has {fields} columns, of which {fields - len(keys)} are no whole number of "
                f"{counted(len(group), 'name')} that repeat"
            )
        self._repeats = (fields - len(keys)) // len(group)
        self._keys, self._group = keys, group
        named = [f"column {place}" if name == SKIPPED else name for place, name in enumerate(group, 1)]
        return (*(keys or KEYS[:1]), "cycle", *named)

    def _text_batches(self, names: Sequence[str], text: Sequence[str]) -> _Columns:
        """Read whole lines at a time: pyarrow's streaming reader leaves a thread that reads on after an error."""
        assert self._layout is not None
        layout, size, row = self._layout, max(self.path.stat().st_size, 1), 1
        labels, physical = set(text), list(self.columns)
        wanted = list(names)
        if self._repeats:
            physical = [
                *self._keys,
                *(f"{name} {n}" for n in range(self._repeats) for name in self.columns[-len(self._group) :]),
            ]
            wanted = [name for name in physical if name in names or name.rpartition(" ")[0] in names]
        tab = "\t" if layout.delimiter == " " else layout.delimiter
        parse = pyarrow.csv.ParseOptions(delimiter=tab)
        convert = pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() if name in labels else pa.float64() for name in wanted},
            include_columns=wanted,
            null_values=[*MISSING, *_MARKS],
            strings_can_be_null=True,
            decimal_point=layout.decimal_point,
        )
        with self.path.open("rb") as file:
            for lines in _whole_lines(_unpacked(file, self.path), layout, self.path):
                read = pyarrow.csv.ReadOptions(use_threads=False, block_size=len(lines) + 1, column_names=physical)
                # memory of Arrow's own, which its threads free without Python's lock
                memory = pa.array([lines], pa.large_binary()).buffers()[2]
                try:
                    table = pyarrow.csv.read_csv(pa.BufferReader(memory), read, parse, convert)
                    if _MARK.search(lines):
                        self._count_marks(pa.BufferReader(memory), read, parse, [n for n in wanted if n not in labels])
                except pa.ArrowInvalid as error:
                    raise self._explained(error, row, physical) from None
                columns = {name: column.combine_chunks() for name, column in zip(wanted, table.columns, strict=True)}
                yield self._unrolled(columns, names, row, len(table)), file.tell() / size
                row += len(table)

    def _count_marks(
        self, source: pa.BufferReader, read: pyarrow.csv.ReadOptions, parse: pyarrow.csv.ParseOptions, names: list[str]
    ) -> None:
        """Count the words for an overflow in the columns `names`."""
        as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=names)
        for name, column in zip(names, pyarrow.csv.read_csv(source, read, parse, as_text).columns, strict=True):
            count = sum(str(value).strip() in _MARKS for value in column.to_pylist())
            if count:
                self.overflows[name.rpartition(" ")[0] if self._repeats else name] += count

    def _unrolled(self, columns: dict[str, pa.Array], names: Sequence[str], row: int, rows: int) -> dict[str, pa.Array]:
        """Return a row for each repetition of the names along the rows of a file; the columns as they are without."""
        if not self._repeats:
            return columns
        count, result = self._repeats, dict[str, pa.Array]()
        for name in names:
            if name in columns:
                result[name] = columns[name].take(pa.array(np.repeat(np.arange(rows), count)))
            elif name == "cycle":
                result[name] = pa.array(np.tile(np.arange(1, count + 1), rows))
            elif name in KEYS:
                devices = [self.row_label(number) for number in range(row, row + rows)]
                result[name] = pa.array(devices).take(pa.array(np.repeat(np.arange(rows), count)))
            else:
                series = [columns[f"{name} {n}"].to_numpy(zero_copy_only=False) for n in range(count)]
                result[name] = pa.array(np.stack(series, axis=1).reshape(-1))
        return result

    def _explained(self, error: Exception, first_row: int, columns: Sequence[str]) -> Exception:
        """Return an InputError that names the wrong value and the remedy; `error` itself if it is of another kind."""
        where = f"{self.path}: cannot be read as a table"
        if found := re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", str(error)):
            row = f"row {first_row + int(found[1]) - 1}" if found[1] else "a row"
            return InputError(
                f"{where}: {row} has {counted(int(found[3]), 'field')}, but there are {found[2]} columns; give every "
                "row as many fields as there are names, and each table a file of its own"
            )
        found = re.search(r"column #(\d+): Row #(\d+): .*invalid value '(.*)'$", str(error), re.DOTALL)
        if found is None:
            return error
        column, value = columns[int(found[1])], found[3]
        remedy = "leave cells empty where nothing was measured"
        if re.fullmatch(r"[-+]?\d{1,3}([,.' ]\d{3})+([.,]\d+)?", value):
            remedy = "write numbers without separators of thousands"
        if re.fullmatch(r"\s*[-+]?\d*[,.]\d+([eE][-+]?\d+)?\s*", value):
            remedy = "write decimal points, or decimal commas, throughout"
        what = f"row {first_row + int(found[2]) - 1}: {column} is {value!r:.40}, not a number"
        return InputError(f"{where}: {what}; {remedy}")

    def _parquet_batches(self, names: Sequence[str], text: Sequence[str]) -> _Columns:
        with pyarrow.parquet.ParquetFile(self.path, pre_buffer=False) as file:
            rows, done = max(file.metadata.num_rows, 1), 0
            require_honest(self.path, 8 * rows * len(names))
            for batch in file.iter_batches(BATCH_ROWS, columns=list(names)):
                done += batch.num_rows
                yield dict(zip(batch.schema.names, batch.columns, strict=True)), done / rows

    def _npz_batches(self, names: Sequence[str], text: Sequence[str]) -> _Columns:
        """Read a piece of each column at a time; pickled objects are refused."""
        with zipfile.ZipFile(self.path) as archive:
            require_honest(self.path, sum(member.file_size for member in archive.infolist()))
            if any(member.flag_bits & 1 for member in archive.infolist()):
                raise InputError(f"{self.path}: is encrypted; expected arrays as numpy.savez writes them")
            members = [archive.open(f"{name}.npy") for name in names]
            headers = [_npy_header(member) for member in members]
            rows = headers[0][0][0] if headers[0][0] else 0
            for name, (shape, dtype) in zip(names, headers, strict=True):
                if len(shape) != 1 or dtype.kind not in "iufU":
                    raise InputError(f"{self.path}: {name} is {dtype} of shape {list(shape)}; expected numbers [rows]")
                if shape[0] != rows:
                    raise InputError(f"{self.path}: {name} has {counted(shape[0], 'row')}, {names[0]} has {rows}")
                size = archive.getinfo(f"{name}.npy").file_size
                if rows * dtype.itemsize > size:
                    wanted = f"{counted(rows, 'row')} of {dtype}"
                    raise InputError(f"{self.path}: {name} holds {counted(size, 'byte')}, too few for {wanted}")
            for start in range(0, rows, BATCH_ROWS):
                count = min(BATCH_ROWS, rows - start)
                arrays = [
                    np.frombuffer(member.read(count * dtype.itemsize), dtype)
                    for member, (_, dtype) in zip(members, headers, strict=True)
                ]
                yield {name: pa.array(array) for name, array in zip(names, arrays, strict=True)}, (start + count) / rows


def open_tables(paths: str | Path | Sequence[str | Path], names: Sequence[str] = ()) -> list[Table]:
    """Open the tables in files and in folders, those of a folder in order of their names, with numbers as such.

    Args:
        paths: a file, a folder, or several.
        names: names of the columns in order: see `Table`.

    Raises:
        InputError: for a folder without tables, and for a file that cannot be read.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if not Path(path).is_dir():
            files.append(Path(path))
            continue
        inside = [file for file in Path(path).iterdir() if file.is_file() and not file.name.startswith(".")]
        found = [file for file in inside if Path(file.name.removesuffix(".gz")).suffix.lower() in _SUFFIXES]
        if not found:
            raise InputError(
                f"{path}: a folder without tables; expected files that end in .csv, .tsv, .parquet or .npz"
            )
        files += sorted(
            found, key=lambda file: [int(part) if part.isdecimal() else part for part in _PARTS.split(file.name)]
        )
    if len({file.absolute() for file in files}) < len(files):
        raise InputError(f"{next(file for file in files if files.count(file) > 1)}: is given twice")
    tables = [Table(file, names) for file in files]
    for table in tables:
        table.is_one_of_many = len(tables) > 1
    return tables


_PARTS = re.compile(r"(\d+)")
_Columns = Iterator[tuple[dict[str, pa.Array], float]]


def _unpacked(file: IO[bytes], path: Path) -> IO[bytes] | io.BufferedReader:
    """Return the stream of a file, unpacked if it is compressed by gzip, whatever its name."""
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return io.BufferedReader(Unpacked(gzip.GzipFile(fileobj=file), path)) if is_packed else file


def _whole_lines(stream: IO[bytes] | io.BufferedReader, layout: TextLayout, path: Path) -> Iterator[bytes]:
    """Yield the rows of a table in blocks of whole lines of UTF-8, without comments and empty rows."""
    for block in _blocks(stream, layout, path):
        lines = block
        if _COMMENTS.search(lines):
            lines = _COMMENTS.sub(b"", lines)
        if layout.delimiter == " ":
            lines = re.sub(rb"(?m)^[ \t]+|[ \t]+(?=\r?$)", b"", lines)
            lines = re.sub(rb"[ \t]+", b"\t", lines)
        if _EMPTY_ROWS.search(lines):
            lines = _EMPTY_ROWS.sub(b"", lines)
        if _PLUS.search(lines):
            lines = _PLUS.sub(rb"\1", lines)  # Arrow reads no sign of plus
        if lines.strip():
            yield lines


def _blocks(stream: IO[bytes] | io.BufferedReader, layout: TextLayout, path: Path) -> Iterator[bytes]:
    """Yield blocks of whole lines of UTF-8, without the lines above the first row."""
    if layout.encoding.startswith("utf-8") and not layout.has_returns:
        read: Any = stream.read
        skip: Any = stream.readline
        stream.read(3 * (layout.encoding == "utf-8-sig"))
    else:
        text = io.TextIOWrapper(stream, layout.encoding)
        read, skip = (lambda size: text.read(size).encode()), text.readline
    for _ in range(layout.lines_above):
        skip()
    rest = b""
    while block := read(_BLOCK_BYTES):
        lines, end, rest = (rest + block).rpartition(b"\n")
        if len(rest) > 4 * _BLOCK_BYTES:
            raise InputError(f"{path}: has a line of more than {len(rest) >> 20} MiB; expected one row per line")
        if lines.strip():
            yield lines + end
    if rest.strip():
        yield rest


def _npy_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(member)
    except (SyntaxError, tokenize.TokenError, TypeError, MemoryError, RecursionError):  # the header is a Python literal
        raise ValueError("a header that is not that of an array") from None
    return shape, dtype


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the exceptions of the readers into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except (*_MALFORMED, ValueError, EOFError) as error:
        reason = str(error).split("\n", 1)[0].strip() or type(error).__name__
        raise InputError(f"{path}: cannot be read as a table: {reason}") from None
    except OSError as error:
        reason = error.strerror or str(error).split("\n", 1)[0].strip()
        raise InputError(f"{path}: cannot be read ({reason})") from None


_MALFORMED = (pa.ArrowException, csv.Error, zlib.error, zipfile.BadZipFile, NotImplementedError)
"""Exceptions of the readers for malformed files; zipfile raises the last for an unknown compression."""
