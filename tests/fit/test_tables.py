"""Tables in files: every format gives the same numbers, batch by batch."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import memsim.fit.tables as tables
from memsim.errors import InputError
from memsim.fit.tables import Table
from tests.tools.example_measurements import write

NAMES = ("device", "cycle", "hrs_ohms")
COLUMNS = {
    "device": np.repeat(np.arange(3), 5),
    "cycle": np.tile(np.arange(5), 3),
    "hrs_ohms": np.append(np.linspace(1e3, 2e5, 14), np.nan),
}


def read(path: Path) -> tuple[list[str], np.ndarray, list[int]]:
    """(device names, numbers [2, rows], first rows of the batches)."""
    labels, numbers, firsts = [], [], []
    for batch in Table(path).batches(NAMES, text=["device"]):
        names, codes = batch.labels("device")
        labels += [names[code] for code in codes]
        numbers.append([batch.numbers("cycle"), batch.numbers("hrs_ohms")])
        firsts.append(batch.first_row)
    return labels, np.concatenate(numbers, axis=1), firsts


def assert_read(path: Path) -> list[int]:
    labels, numbers, firsts = read(path)
    assert labels == [str(device) for device in COLUMNS["device"]]
    np.testing.assert_allclose(numbers, [COLUMNS["cycle"], COLUMNS["hrs_ohms"]], rtol=1e-12)
    return firsts


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_formats_agree(tmp_path: Path, suffix: str) -> None:
    write([COLUMNS], tmp_path / f"t{suffix}")
    assert Table(tmp_path / f"t{suffix}").columns == NAMES
    assert assert_read(tmp_path / f"t{suffix}") == [1]


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_rows_are_counted_over_batches(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 4)
    write([COLUMNS], tmp_path / f"t{suffix}")
    assert assert_read(tmp_path / f"t{suffix}") == [1, 5, 9, 13]


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_other_delimiters_byte_order_marks_and_compression(tmp_path: Path, mark: str) -> None:
    write([COLUMNS], tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_text().replace(",", mark)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    assert_read(tmp_path / "t.csv.gz")


LINES = "device,cycle,hrs_ohms\n1,1,96300.55\n1,2,44961.582\n"


def lines_as(mark: str, decimal: str = ".") -> str:
    return LINES.replace(",", mark).replace(".", decimal)


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode("utf-16"),
        LINES.encode("utf-16-le"),
        LINES.encode("utf-16-be"),
        LINES.replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + lines_as("; ", ",").encode(),
        lines_as("\t", ",").encode("utf-16"),
        lines_as("|").encode(),
        lines_as("   ").encode(),
        LINES.replace("96300.55", "+9.630055E+04").encode(),
        LINES.replace("1,96300.55", '1,"96300.55"').encode(),
        LINES.replace("\n", ",\n").encode(),
        (LINES + ",,\n,,\n").encode(),
        b"# chip 7, 25 C\n\n% more\n" + LINES.encode() + b"# end, of, it\n",
        b"# device cycle hrs_ohms\n1 1 96300.55\n1 2 44961.582\n",
        b"measured by,\xb5 and \xfc\ntemperature,25\n" + LINES.encode(),
        LINES.replace("\n", "\n,,kOhm\n", 1).replace("_ohms", "").encode(),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_layouts_of_text_are_recognised(tmp_path: Path, content: bytes, packed: bool) -> None:
    (tmp_path / "t.csv").write_bytes(gzip.compress(content) if packed else content)
    table = Table(tmp_path / "t.csv")
    assert table.columns[:2] == ("device", "cycle")
    (batch,) = table.batches(table.columns[:3], text=["device"])
    assert batch.labels("device")[0] == ["1"]
    assert batch.numbers("cycle").tolist() == [1, 2]
    assert batch.numbers(table.columns[2]).tolist() == [96300.55, 44961.582]


def test_an_instrument_s_preamble_is_no_table(tmp_path: Path) -> None:
    preamble = "SetupTitle, Sweep\nTestParameter, Unit, SMU, SMU\nDimension1, 3, 3\nDimension2, 1, 1\n"
    rows = "DataName, V1, I1\nDataValue, 0, 1e-12\nDataValue, 0.1, 1e-6\nDataValue, 0.2, 2e-6\n"
    (tmp_path / "t.csv").write_text(preamble + rows)
    table = Table(tmp_path / "t.csv")
    assert table.columns == ("DataName", "V1", "I1")
    assert table.how_read == ["4 lines above the table left out"]
    (batch,) = table.batches(["V1", "I1"])
    assert batch.numbers("V1").tolist() == [0, 0.1, 0.2]


def test_overflows_count_as_missing_and_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("device,cycle,hrs_ohms\na,1,9.91E37\na,2,OVERFLOW\na,3,-9.9e+37\na,4,5\na,5,\n")
    table = Table(tmp_path / "t.csv")
    (batch,) = table.batches(["hrs_ohms"])
    assert np.isnan(batch.numbers("hrs_ohms")).tolist() == [True, True, True, False, True]
    (note,) = table.notes
    assert note.startswith("3 values of hrs_ohms are an instrument's mark of an overflow")


def test_names_are_given_to_a_table_without_any(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a\t1\t0.5\tx\na\t2\t0.25\ty\n")
    table = Table(tmp_path / "t.tsv", ["device", "cycle", "hrs_kohm", "-"])
    assert table.columns == ("device", "cycle", "hrs_kohm", "column 4")
    (batch,) = table.batches(["hrs_kohm"])
    assert batch.numbers("hrs_kohm").tolist() == [0.5, 0.25]


@pytest.mark.parametrize("has_device", [False, True])
def test_a_matrix_has_a_device_in_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_device: bool) -> None:
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 20)
    start = ("7", "x") if has_device else ("", "")
    rows = [[1e5, 4e3, 9e4, 5e3, 8e4, 6e3], [2e5, 3e3, 7e4, 9.91e37, 6e4, 4e3]]
    words = [",".join([*filter(None, [name]), *map(str, row)]) for name, row in zip(start, rows, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(words) + "\n")
    names = ["device"] * has_device + ["hrs_ohms", "lrs_ohms", "..."]
    table = Table(tmp_path / "t.csv", names)
    assert table.columns == ("device", "cycle", "hrs_ohms", "lrs_ohms")
    batches = list(table.batches(table.columns, text=["device"]))
    assert [batch.first_row for batch in batches] == [1, 4]
    devices = [batch.labels("device")[0] for batch in batches]
    assert devices == ([["7"], ["x"]] if has_device else [["1"], ["2"]])
    for batch, row in zip(batches, rows, strict=True):
        assert batch.numbers("cycle").tolist() == [1, 2, 3]
        assert batch.numbers("hrs_ohms").tolist() == row[::2]
        np.testing.assert_array_equal(
            batch.numbers("lrs_ohms"), np.where(np.array(row[1::2]) > 1e30, np.nan, row[1::2])
        )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["device", "cycle"], "--columns device,cycle: names 2 columns, but the table has 3"),
        (["hrs_ohms", "lrs_ohms", "..."], "has 3 columns, of which 3 are no whole number of 2 names that repeat"),
        (["..."], "expected device first, if it is there, and then the names that repeat"),
        (["hrs_ohms", "device", "..."], "expected device first"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    (tmp_path / "t.csv").write_text("1,2,3\n4,5,6\n")
    with pytest.raises(InputError, match=message):
        Table(tmp_path / "t.csv", names)


def test_names_are_for_text_files(tmp_path: Path) -> None:
    write([COLUMNS], tmp_path / "t.npz")
    with pytest.raises(InputError, match="--columns is for text files"):
        Table(tmp_path / "t.npz", ["a", "b", "c"])


@pytest.mark.parametrize("missing", ["", "nan", "n/a", "N/A", "#N/A", "None", "1.#QNAN", "-nan", "<NA>"])
def test_what_stands_for_no_value(tmp_path: Path, missing: str) -> None:
    (tmp_path / "t.csv").write_text(f"device,cycle,hrs_ohms\na,1,5\na,2,{missing}\n")
    assert np.isnan(read(tmp_path / "t.csv")[1][1]).tolist() == [False, True]


def test_blocks_end_at_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"dev {row % 7},{row},{row / 3}\n" for row in range(500))
    for ending in ("", "9,500,1", "\n\n"):
        (tmp_path / "t.csv").write_text(f"device,cycle,hrs_ohms\n{rows}{ending}")
        whole = read(tmp_path / "t.csv")
        monkeypatch.setattr(tables, "_BLOCK_BYTES", 37)
        parts = read(tmp_path / "t.csv")
        monkeypatch.undo()
        assert (parts[0], parts[1].tolist()) == (whole[0], whole[1].tolist())


def test_no_thread_of_pyarrow_reads_python_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads on after an error may abort the process at its exit (`terminate called`)."""
    (tmp_path / "t.csv").write_text("device,cycle,hrs_ohms\n0,0,tbd\n")
    seen = []
    real = pyarrow.csv.read_csv

    def watched(source: pa.NativeFile, *options: Any) -> pa.Table:
        seen.append(type(source))
        return real(source, *options)

    monkeypatch.setattr(pyarrow.csv, "read_csv", watched)
    monkeypatch.delattr(pyarrow.csv, "open_csv")
    with pytest.raises(InputError, match="hrs_ohms is 'tbd'"):
        read(tmp_path / "t.csv")
    assert seen == [pa.BufferReader]


def test_devices_may_have_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("device,cycle,hrs_ohms\n007,1,5\nwafer 3 A,1,NaN\n")
    labels, numbers, _ = read(tmp_path / "t.csv")
    assert labels == ["007", "wafer 3 A"]
    assert np.isnan(numbers[1, 1])


def test_a_missing_value_of_parquet_is_nan(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pa.table({"device": ["a", None], "cycle": [1, 2], "hrs_ohms": [None, 3.0]}), tmp_path / "t.parquet"
    )
    (batch,) = Table(tmp_path / "t.parquet").batches(NAMES)
    assert np.isnan(batch.numbers("hrs_ohms")[0])
    assert batch.labels("device")[1].tolist() == [0, -1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", r"expected \.csv"),
        ("t.csv", b"device,cycle,hrs_ohms\n1,1,many\n", "cannot be read as a table: .*many"),
        (
            "t.csv",
            b"device,cycle,hrs_ohms\n1,1,5\n1,2,tbd\n",
            "row 2: hrs_ohms is 'tbd', not .*; leave cells empty",
        ),
        ("t.csv", b"device;cycle;hrs_ohms\n1;1;9,5\n1;2;9.5\n", "hrs_ohms is '9,5', .*decimal commas, throughout"),
        ("t.csv", b"device;cycle;hrs_ohms\n1;1;9,896.9\n", "hrs_ohms is '9,896.9', .*without separators of thousands"),
        ("t.tsv", b"1\t0.0\t5000\t0.0\n2\t0.1\t5000\t0.0\n", "its 4 columns have no names; --columns names them"),
        ("t.csv", b"1,2,3\n", "its 3 columns have no names"),
        ("t.csv", b"# nothing\n", "holds comments only"),
        ("t.csv", b"\n \n", "is empty"),
        ("t.csv", b"a\0b\0\0c", "holds zero bytes and is no text; save it as CSV"),
        ("t.csv", b"device,cycle,hrs_ohms\n1,1,5\n1,2,5\nend\n", "row 3 has 1 field, but there are 3 columns"),
        ("t.csv", b"device,cycle,hrs_ohms\n1,1\n", "cannot be read as a table: .*columns"),
        ("t.csv", b"device,cycle,cycle\n", "column cycle is given twice"),
        ("t.parquet", b"PAR1 and nothing else", "cannot be read as a table"),
        ("t.npz", b"not a zip file", "cannot be read as a table"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_columns_of_an_npz_file_must_be_plain_and_of_one_length(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", **COLUMNS | {"hrs_ohms": np.array([{}] * 15)})
    np.savez(tmp_path / "short.npz", **COLUMNS | {"hrs_ohms": np.ones(3)})
    for name, message in (("objects", "hrs_ohms is object"), ("short", "hrs_ohms has 3 rows, device has 15")):
        with pytest.raises(InputError, match=message):
            read(tmp_path / f"{name}.npz")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="a folder"):
        Table(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_columns_of_text_are_no_numbers(tmp_path: Path, suffix: str) -> None:
    columns = COLUMNS | {"hrs_ohms": np.array(["many"] * 15)}
    if suffix == ".npz":
        np.savez(tmp_path / "t.npz", **columns)
    else:
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=rf"t\{suffix}: cannot be read as a table: .*many"):
        read(tmp_path / f"t{suffix}")
