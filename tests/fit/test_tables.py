"""Files of columns: every format gives the same numbers, batch by batch."""

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
        (
            "t.csv",
            b"device;cycle;hrs_ohms\n1;1;96300,55\n",
            "hrs_ohms is '96300,55', .*points, such as 96300.55",
        ),
        ("t.csv", b"device;cycle;hrs_ohms\n1;1;-1,5e-3\n", "decimal points, such as -1.5e-3"),
        ("t.csv", b"# of 2024, 25 C\ndevice,cycle,hrs_ohms\n", "begins with a comment, '# of 2024, 25 C'; remove"),
        ("t.tsv", b"1\t0.0\t5000\t0.0\n2\t0.1\t5000\t0.0\n", "begins with numbers, .*write a line with the names"),
        ("t.csv", b"1,2,3\n", "begins with numbers"),
        ("t.csv", "device,cycle,hrs_ohms\n".encode("utf-16"), "not UTF-8 text; save it as UTF-8"),
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
