"""Tables of levels: which kind they are, how they are read, and what is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from memsim import inspect_measurements
from memsim.errors import InputError
from memsim.fit.levels.tables import group_times, levels_kind, read_readings, read_summary

CELLS = range(24)


def csv(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def readings(path: Path, header: str = "cell,time_s,conductance_uS") -> Path:
    return csv(path, header, [f"c{c},{t},{10 + c - 0.1 * t}" for c in CELLS for t in (0, 1, 10)])


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("cell,time_s,conductance_uS", "readings"),
        ("device,time_s,resistance_kohm,target_uS", "readings"),
        ("target_uS,conductance_uS", "readings"),
        ("target_uS,mean_uS,std_uS", "summary"),
        ("target_uS,mean_uS,standard_deviation_uS,time_s", "summary"),
        ("cell,pulse,conductance_uS", "pulses"),
        ("target_uS,conductance_uS at 0 s,conductance_uS at 1 h", "readings"),
        ("cell,pulse,time_s,conductance_uS", "readings"),
        ("device,cycle,hrs_ohms,lrs_ohms", ""),
        ("device,cycle,voltage_V,current_A,conductance_uS,time_s", ""),
    ],
)
def test_the_kind_of_a_table_is_seen_by_its_columns(header: str, kind: str, tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", header, [",".join("1" * (header.count(",") + 1))])
    assert levels_kind(path, (), {}) == kind


def test_names_are_given_for_a_file_without_them(tmp_path: Path) -> None:
    path = readings(tmp_path / "a.csv")
    path.write_text(path.read_text().partition("\n")[2])
    assert levels_kind(path, ("cell", "time_s", "conductance_uS"), {}) == "readings"
    assert len(read_readings(path, ("cell", "time_s", "conductance_uS")).start) == len(CELLS)


def test_each_cell_starts_with_its_first_reading(tmp_path: Path) -> None:
    found = read_readings(readings(tmp_path / "a.csv"))
    assert found.start_seconds == 0
    np.testing.assert_allclose(found.start, [10 + c for c in CELLS])
    np.testing.assert_allclose(found.group_seconds, [1, 10])
    np.testing.assert_allclose(found.changes.now, found.changes.start - 0.1 * found.changes.seconds)
    assert found.changes.first_seconds == 1


@pytest.mark.parametrize(
    ("names", "factor"),
    [
        (("conductance_uS at 0 s", "conductance_uS at 1 min", "conductance_uS at 1e1 h"), 1.0),
        (("Conductance (nS) @ 0 s", "Conductance (nS) @ 60s", "Conductance (nS) @ 10 hours"), 1000.0),
        (("conductance_uS_0s", "conductance_uS_1min", "conductance_uS_10h"), 1.0),
    ],
)
def test_a_column_for_each_time_is_a_row_for_each_cell_and_time(
    names: tuple[str, ...], factor: float, tmp_path: Path
) -> None:
    values = {c: [10 + c, 9.5 + c, ""] if c == 3 else [10 + c, 9.5 + c, 9 + c] for c in CELLS}
    rows = [f"{t}," + ",".join(str(v and factor * v) for v in row) for t, row in values.items()]
    wide = csv(tmp_path / "wide.csv", ",".join(["target_uS", *names]), rows)
    rows = [f"{c},{c},{s},{v}" for c, row in values.items() for s, v in zip((0, 60, 36000), row, strict=True)]
    long = csv(tmp_path / "long.csv", "cell,target_uS,time_s,conductance_uS", rows)
    found, same = read_readings(wide), read_readings(long)
    assert found.start.tolist() == pytest.approx(same.start.tolist())
    assert found.target is not None
    np.testing.assert_allclose(found.target, CELLS)
    for key in ("cells", "seconds", "now", "group"):
        np.testing.assert_allclose(getattr(found.changes, key), getattr(same.changes, key))
    assert f"{len(CELLS)} rows with a column for each of 3 times" in found.source.notes


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("cell,1 s,10 s", "columns 1 s, 10 s ...: do not say what they hold; call them conductance_uS at 1 s"),
        ("cell,G_1s (uS),G_10s (uS)", "columns G_1s"),
        ("cell,conductance at 1 s,conductance at 10 s", "names no unit; call it conductance_uS at 1 s, in the file or"),
        ("target_uS,mean_uS at 1 s,std_uS at 1 s", "a summary has a row for each target and time"),
        (
            "cell,conductance_uS,Zeit",
            "no time or target of them (columns: cell, conductance_uS, Zeit); --column",
        ),
    ],
)
def test_columns_of_times_that_say_too_little_are_refused(header: str, message: str, tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", header, ["1,2,3"])
    with pytest.raises(InputError, match=re.escape(message)):
        inspect_measurements(path)


def test_without_a_reading_at_zero_the_clock_starts_at_the_first(tmp_path: Path) -> None:
    rows = [f"{c},{t},{10 + c}" for c in CELLS for t in (20, 200)]
    found = read_readings(csv(tmp_path / "a.csv", "cell,time_s,conductance_uS", rows))
    assert (found.start_seconds, found.changes.first_seconds) == (20, 20)


def test_near_times_are_one_group_and_long_series_are_cut() -> None:
    group, at = group_times(np.array([0.0, 0.9, 1.0, 1.1, 100.0, 110.0]))
    assert group.tolist() == [0, 1, 1, 1, 2, 2]
    np.testing.assert_allclose(at, [0, 1, 105])
    group, _ = group_times(np.geomspace(1, 1000, 400))
    assert 5 <= group.max() <= 7


def test_resistances_units_gaps_and_late_cells(tmp_path: Path) -> None:
    rows = [f"{c},{t},{100 / (10 + c)}" for c in CELLS for t in (0, 60)]
    rows += ["late,60,5", "gap,0,", "gap,60,3"]
    found = read_readings(csv(tmp_path / "a.csv", "cell,time_min,resistance_kohm", rows))
    np.testing.assert_allclose(found.start, [10 * (10 + c) for c in CELLS])
    assert found.group_seconds.tolist() == [3600]
    assert "2 cells without a reading at the first time" in " ".join(found.source.notes)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("cell,time_s,conductance_uS", [f"{c},0,5" for c in range(5)], "5 cells with a reading .* needs 20"),
        ("cell,time_s,conductance_uS", [f"{c},-1,5" for c in CELLS], "row 1: the time is below 0"),
        ("time_s,conductance_uS", [f"{c},5" for c in CELLS], "lacks cell .*--column cell=THEIRS"),
        ("cell,time_s,conductance", [f"{c},0,5" for c in CELLS], "conductance: names no unit"),
        (
            "cell,time_s,conductance_uS,temperature_K",
            [f"{c},0,5,{300 + 50 * (c % 2)}" for c in CELLS],
            "temperatures 300, 350 K; --temperature-kelvin 300",
        ),
    ],
)
def test_what_makes_no_law_is_refused(header: str, rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_readings(csv(tmp_path / "a.csv", header, rows))
    assert "\n" not in str(error.value)


def test_one_temperature_is_taken(tmp_path: Path) -> None:
    rows = [f"{c},{t},{k / 100},{k}" for c in CELLS for t in (0, 1) for k in (300, 350)]
    path = csv(tmp_path / "a.csv", "cell,time_s,conductance_uS,temperature_K", rows)
    np.testing.assert_allclose(read_readings(path, temperature_kelvin=350).start, 3.5)
    with pytest.raises(InputError, match="no row"):
        read_readings(path, temperature_kelvin=400)


def test_a_summary_is_a_grid(tmp_path: Path) -> None:
    rows = [f"{g},{t},{g - t},{1 + t}" for t in (1, 0) for g in (30, 10, 20)]
    found = read_summary(csv(tmp_path / "a.csv", "target_uS,time_d,mean_uS,sd_uS", rows))
    assert found.targets.tolist() == pytest.approx([10, 20, 30])
    assert found.seconds.tolist() == [0, 86400]
    np.testing.assert_allclose(found.mean, [[10, 20, 30], [9, 19, 29]])
    np.testing.assert_allclose(found.deviation, [[1, 1, 1], [2, 2, 2]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["10,0,10,1", "20,0,20,1", "10,1,10,1"], "no row for the target 20 uS at 1 s"),
        (["10,0,10,1", "20,0,20,1", "20,0,21,1"], "2 rows for the target 20 uS"),
        (["10,0,10,-1", "20,0,20,1"], "a standard deviation is below 0"),
        (["10,0,10,1"], "1 target; a device of levels needs two"),
    ],
)
def test_a_summary_with_holes_is_refused(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_summary(csv(tmp_path / "a.csv", "target_uS,time_s,mean_uS,sd_uS", rows))
