"""Tables of numbers in CSV, Parquet and NPZ files, read in batches, so that a file may be larger than the memory."""

from __future__ import annotations

import csv
import gzip
import io
import re
import tokenize
import zipfile
import zlib
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
from memsim.storage.files import is_file
from memsim.storage.packed import Unpacked, require_honest
from memsim.units import counted

BATCH_ROWS = 1 << 19
_BLOCK_BYTES = 1 << 24
_MISSING = [
    *("", "nan", "NaN", "NAN", "-nan", "-NaN", "na", "NA", "n/a", "N/A", "<NA>", "#N/A", "#NA"),
    *("null", "NULL", "none", "None", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
]
_SUFFIXES = {".csv": "CSV", ".tsv": "CSV", ".txt": "CSV", ".parquet": "Parquet", ".pq": "Parquet", ".npz": "NPZ"}


class Batch:
    """Some rows of a table.

    Attributes:
        first_row: number of the first row, counted from 1 without the header.
        done: fraction of the table that has been read.
    """

    def __init__(self, columns: dict[str, pa.Array], first_row: int, done: float, path: Path) -> None:
        self._columns = columns
        self._path = path
        self.first_row = first_row
        self.done = done

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def numbers(self, name: str) -> Floats:
        """Return a column as float64 [n], NaN for missing values.

        Raises:
            InputError: for a value that is not a number.
        """
        with _readable(self._path):
            return np.asarray(self._columns[name].cast(pa.float64()).to_numpy(zero_copy_only=False))

    def labels(self, name: str) -> tuple[list[str], Ints]:
        """Return the distinct values of a column as text, and the index of each row's value [n], -1 if missing."""
        with _readable(self._path):
            encoded = self._columns[name].dictionary_encode()
            return [str(value) for value in encoded.dictionary.to_pylist()], np.asarray(
                encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64
            )


class Table:
    """A file of columns of equal length.

    Raises:
        InputError: in one line, for a file that cannot be read; by its methods, too.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        name = self.path.name.removesuffix(".gz")
        self.format = _SUFFIXES.get(Path(name).suffix.lower(), "")
        if not is_file(self.path):
            raise InputError(f"{path}: {'a folder; name a file' if self.path.is_dir() else 'no such file'}")
        if not self.format:
            raise InputError(f"{path}: expected .csv (or .csv.gz, .tsv), .parquet or .npz")
        with _readable(self.path):
            self.columns = self._names()
        if len(set(self.columns)) < len(self.columns):
            twice = next(name for name in self.columns if self.columns.count(name) > 1)
            raise InputError(f"{path}: column {twice} is given twice")

    def batches(self, names: Sequence[str], text: Sequence[str] = ()) -> Iterator[Batch]:
        """Yield all rows of the columns `names` in order; the columns in `text` are labels, not numbers."""
        read = {"CSV": self._csv_batches, "Parquet": self._parquet_batches, "NPZ": self._npz_batches}[self.format]
        row = 1
        with _readable(self.path):
            for columns, done in read(names, text):
                batch = Batch(columns, row, done, self.path)
                row += len(batch)
                if len(batch):
                    yield batch

    def _names(self) -> tuple[str, ...]:
        if self.format == "Parquet":
            return tuple(pyarrow.parquet.read_schema(self.path).names)
        if self.format == "NPZ":
            with zipfile.ZipFile(self.path) as archive:
                return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
        header = self._header()
        if header.lstrip().startswith("#"):
            raise InputError(f"{self.path}: begins with a comment, {header[:40]!r}; remove what is above the names")
        names = header.replace(_delimiter(header), " ").split()
        if names and all(map(_is_number, names)):
            raise InputError(
                f"{self.path}: begins with numbers, {header[:40]!r}; write a line with the names of the columns above "
                "them, such as device,cycle,hrs_ohms,us_volts,lrs_ohms,ur_volts"
            )
        return tuple(name.strip() for name in next(csv.reader([header], delimiter=_delimiter(header)), []))

    def _header(self) -> str:
        with self.path.open("rb") as file:
            line = _unpacked(file, self.path).readline(1 << 16)
        try:
            return line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: not UTF-8 text; save it as UTF-8") from None

    def _csv_batches(self, names: Sequence[str], text: Sequence[str]) -> _Columns:
        """Read whole lines at a time: pyarrow's streaming reader leaves a thread that reads on after an error."""
        size, row = max(self.path.stat().st_size, 1), 1
        parse = pyarrow.csv.ParseOptions(delimiter=_delimiter(self._header()))
        convert = pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() if name in text else pa.float64() for name in names},
            include_columns=list(names),
            null_values=_MISSING,
            strings_can_be_null=True,
        )
        with self.path.open("rb") as file:
            for lines in _whole_lines(_unpacked(file, self.path), self.path):
                read = pyarrow.csv.ReadOptions(
                    use_threads=False, block_size=len(lines) + 1, column_names=list(self.columns)
                )
                try:
                    # memory of Arrow's own, which its threads free without Python's lock
                    memory = pa.array([lines], pa.large_binary()).buffers()[2]
                    table = pyarrow.csv.read_csv(pa.BufferReader(memory), read, parse, convert)
                except pa.ArrowInvalid as error:
                    raise self._explained(error, row) from None
                row += len(table)
                columns = [column.combine_chunks() for column in table.columns]
                yield dict(zip(table.column_names, columns, strict=True)), file.tell() / size

    def _explained(self, error: Exception, first_row: int) -> Exception:
        """Return an InputError that names the wrong value and the remedy; `error` itself if it is of another kind."""
        found = re.search(r"column #(\d+): Row #(\d+): .*invalid value '(.*)'$", str(error), re.DOTALL)
        if found is None:
            return error
        column, value = self.columns[int(found[1])], found[3]
        remedy = "leave cells empty where nothing was measured"
        if re.fullmatch(r"\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*", value):
            remedy = f"write decimal points, such as {value.replace(',', '.').strip()}"
        what = f"row {first_row + int(found[2]) - 1}: {column} is {value!r:.40}, not a number"
        return InputError(f"{self.path}: cannot be read as a table: {what}; {remedy}")

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


_Columns = Iterator[tuple[dict[str, pa.Array], float]]


def _unpacked(file: IO[bytes], path: Path) -> IO[bytes] | io.BufferedReader:
    if path.suffix != ".gz":
        return file
    return io.BufferedReader(Unpacked(gzip.GzipFile(fileobj=file), path))


def _whole_lines(stream: IO[bytes] | io.BufferedReader, path: Path) -> Iterator[bytes]:
    """Yield blocks of whole lines, without the first line."""
    stream.readline()
    rest = b""
    while block := stream.read(_BLOCK_BYTES):
        lines, end, rest = (rest + block).rpartition(b"\n")
        if len(rest) > 4 * _BLOCK_BYTES:
            raise InputError(f"{path}: has a line of more than {len(rest) >> 20} MiB; expected a row a line")
        if lines.strip():
            yield lines + end
    if rest.strip():
        yield rest


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _delimiter(header: str) -> str:
    return next((mark for mark in ",\t;" if mark in header), ",")


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
