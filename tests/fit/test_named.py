"""Named columns of files in any layout: the values that were written, or one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsim.errors import InputError
from memsim.fit.named import read_columns
from memsim.fit.quantities import CONDUCTANCE, NUMBER, TEMPERATURE, TIME

QUANTITIES = {
    "cell": NUMBER,
    "time": TIME,
    "conductance": CONDUCTANCE,
    "target": CONDUCTANCE,
    "temperature": TEMPERATURE,
}
REQUIRED = ("cell", "time", "conductance")
any_bytes = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(*paths: Path, **options):
    return read_columns(paths, QUANTITIES, REQUIRED, labels=("cell",), **options)


def test_columns_are_in_si_units(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "cell,time_ms,Conductance (uS),target_kohm,temperature_celsius,x\na,5,40,25,27,1\nb,,0,0,-3,1\n"
    )
    table = read(tmp_path / "t.csv")
    assert table.rows == 2
    np.testing.assert_allclose(table.numbers["time"], [5e-3, np.nan])
    np.testing.assert_allclose(table.numbers["conductance"], [4e-5, 0])
    np.testing.assert_allclose(table.numbers["target"], [4e-5, np.inf])
    np.testing.assert_allclose(table.numbers["temperature"], [300.15, 270.15])
    assert table.labels["cell"].names == ("a", "b")
    assert table.labels["cell"].index.tolist() == [0, 1]
    assert (table.unused, table.notes) == (("x",), ())


def test_many_files_are_one_table(tmp_path: Path) -> None:
    for n in (2, 10):
        (tmp_path / f"cell{n}.csv").write_text(f"time_s,conductance_uS\n1,{n}\n2,{n + 0.5}\n")
    (tmp_path / ".hidden.csv").write_text("no table")
    table = read(tmp_path, renamed={"cell": "file"})
    assert [path.name for path in table.files] == ["cell2.csv", "cell10.csv"]
    assert table.labels["cell"].names == ("cell2", "cell10")
    np.testing.assert_allclose(table.numbers["conductance"], [2e-6, 2.5e-6, 10e-6, 10.5e-6])
    by_row = read(tmp_path, renamed={"cell": "row"})
    assert by_row.labels["cell"].names == ("cell2 1", "cell2 2", "cell10 1", "cell10 2")
    assert read(tmp_path / "cell2.csv", renamed={"cell": "row"}).labels["cell"].names == ("1", "2")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.csv": "cell,time_s,conductance_S\n1,1,1\n", "b.csv": "cell,time_s\n1,1\n"},
            "b.csv: lacks conductance_siemens",
        ),
        (
            {"a.csv": "cell,time_s,conductance_S\n1,1,1\n", "b.csv": "cell,time_s,conductance_S,target_S\n1,1,1,1\n"},
            "b.csv: differs from .*a.csv in target; give files of one kind",
        ),
        ({"a.csv": "cell,time,conductance_S\n1,1,1\n"}, "column time: names no unit; call it time_seconds"),
        ({"a.csv": "cell,time_s,conductance_S\n"}, "a.csv: holds no rows"),
        ({"a.txt2": ""}, "a folder without tables"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("cell,time_s,conductance_S\n1,1,1\n")
    with pytest.raises(InputError, match="is given twice"):
        read(tmp_path / "a.csv", tmp_path / "a.csv")


@any_bytes
@given(content=st.binary(max_size=300))
def test_any_bytes_are_columns_or_one_line(tmp_path: Path, content: bytes) -> None:
    require_columns_or_one_line(tmp_path / "t.csv", content)


TEXT = st.text(st.sampled_from("cell,time_s;conductance_S\n\r\t\"' #%+-.0123456789eE|naif"), max_size=200)


@any_bytes
@given(text=TEXT, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be"]), header=st.booleans())
def test_any_text_is_columns_or_one_line(tmp_path: Path, text: str, encoding: str, header: bool) -> None:
    heading = "cell,time_s,conductance_S\n" if header else ""
    require_columns_or_one_line(tmp_path / "t.csv", (heading + text).encode(encoding))


def require_columns_or_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for names in ((), ("cell", "time_s", "conductance_S"), ("conductance_S", "time_s", "...")):
        table, line = None, ""
        try:
            table = read(path, names=names)
        except InputError as error:
            line = str(error)
        if table is None:
            assert line.startswith(str(path))
            assert "\n" not in line
        else:
            assert {len(values) for values in table.numbers.values()} == {table.rows}
            assert table.rows > 0


NUMBERS = st.floats(-1e30, 1e30) | st.integers(-(10**9), 10**9).map(float)


@any_bytes
@given(
    rows=st.lists(st.tuples(st.integers(0, 99), NUMBERS, NUMBERS | st.none()), min_size=1, max_size=20),
    delimiter=st.sampled_from(",;\t|"),
    comma=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    above=st.lists(st.sampled_from(["# a, b", "% c", "", "Title: of it", "Operator, N. N."]), max_size=4),
    has_units=st.booleans(),
    packed=st.booleans(),
)
def test_every_layout_gives_what_was_written(
    tmp_path: Path, rows, delimiter, comma, encoding, end, above, has_units, packed
) -> None:
    names = ["cell", "time", "conductance"] if has_units else ["cell", "time_s", "conductance_S"]
    lines = [delimiter.join(names), *([delimiter.join(["", "s", "S"])] if has_units else [])]
    for cell, *values in rows:
        fields = ["" if value is None else repr(value) for value in values]
        if comma and delimiter != ",":
            fields = [field.replace(".", ",") for field in fields]
        lines.append(delimiter.join([f"{cell}", *fields]))
    content = end.join([*above, *lines, ""]).encode(encoding)
    (tmp_path / "t.csv").write_bytes(gzip.compress(content) if packed else content)
    table = read(tmp_path / "t.csv")
    assert [table.labels["cell"].names[place] for place in table.labels["cell"].index] == [str(row[0]) for row in rows]
    for quantity, place in (("time", 1), ("conductance", 2)):
        expected = [np.nan if row[place] is None else row[place] for row in rows]
        np.testing.assert_allclose(table.numbers[quantity], expected, rtol=1e-12)
