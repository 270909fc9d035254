"""Feature tables as dense arrays, and errors for rows that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memsim.fit.tables as tables
from memsim.device import DeviceModel
from memsim.device.cycles.model import HRS, LRS, UR, US
from memsim.errors import InputError
from memsim.fit import Measurements, read_measurements
from memsim.fit.cycle_grid import CycleRows
from tests.tools.example_measurements import FEATURES, Table, feature_table, without_some, write

from .conftest import CYCLES, DEVICES, small_csv


def test_a_table_becomes_an_array_by_device_and_cycle(measured: Measurements, table: Table) -> None:
    assert measured.y.shape == (4, DEVICES, CYCLES)
    assert measured.devices == tuple(map(str, range(DEVICES)))
    assert measured.measured == (HRS, US, LRS, UR)
    for i, name in enumerate(FEATURES):
        expected = table[name].reshape(DEVICES, CYCLES)
        np.testing.assert_allclose(measured.y[i], np.log10(expected) if i == HRS else expected, rtol=1e-6)


def test_gaps_are_nan_at_their_place(table: Table, measured: Measurements, tmp_path: Path) -> None:
    some = without_some(table, 0.1, np.random.default_rng(0))
    write([some], tmp_path / "t.csv")
    read = read_measurements(tmp_path / "t.csv")
    assert read.rows == len(some["device"]) < DEVICES * CYCLES
    first = (read.first_cycles - 1)[:, None]
    row, column = np.nonzero(np.isfinite(read.y[LRS]))
    np.testing.assert_allclose(read.y[LRS][row, column], measured.y[LRS][row, column + first[row, 0]], rtol=1e-6)
    assert np.isnan(read.y).mean() == pytest.approx(1 - 0.9**2, abs=0.01)


def test_devices_may_take_turns(table: Table, measured: Measurements, tmp_path: Path) -> None:
    by_cycle = np.argsort(table["cycle"], kind="stable")
    write([{name: column[by_cycle] for name, column in table.items()}], tmp_path / "t.npz")
    np.testing.assert_array_equal(read_measurements(tmp_path / "t.npz").y, measured.y)


def test_batches_make_no_difference(measured: Measurements, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 777)
    np.testing.assert_array_equal(read_measurements(measured.path).y, measured.y)


@pytest.mark.parametrize(
    ("polarity", "us", "ur"), [("negative", "-0.7", "0.7"), ("positive", "0.7", "-0.7"), ("magnitude", "0.7", "0.7")]
)
def test_polarities(tmp_path: Path, polarity: str, us: str, ur: str) -> None:
    path = small_csv(tmp_path / "t.csv", [f"a,1,8e4,{us},5e3,{ur}"])
    read = read_measurements(path, polarity=polarity)
    assert read.y[:, 0, 0].tolist() == pytest.approx([np.log10(8e4), -0.7, 5e3, 0.7])
    assert not read.faults


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["a,1,8e4,0.7,5e3,0.7"], "row 1: us_volts is 0.7; --polarity negative expects US < 0 < UR"),
        (["a,1,8e4,-0.7,5e3,0.7", "a,2,-8e4,-0.7,5e3,0.7"], "row 2: hrs_ohms is -80000; a resistance is positive"),
        (["a,1,8e4,-0.7,0,0.7", "a,2,8e4,-0.7,0,0.7"], r"row 1: lrs_ohms is 0 (and 1 more); a resist"),
        (["a,1,8e4,-0.7,5e3,-0.7"], "row 1: ur_volts is -0.7; --polarity negative expects"),
    ],
)
def test_values_of_the_wrong_sign_are_kept_for_the_fit_to_refuse(tmp_path: Path, rows: list[str], fault: str) -> None:
    (found,) = read_measurements(small_csv(tmp_path / "t.csv", rows)).faults
    assert str(found).startswith(fault)


def test_an_open_circuit_is_no_measurement(tmp_path: Path) -> None:
    read = read_measurements(small_csv(tmp_path / "t.csv", ["a,1,inf,-0.7,5e3,0.7", "a,2,8e4,,5e3,0.7"]))
    assert np.isnan(read.y[:, 0]).tolist() == [[True, False], [False, True], [False, False], [False, False]]
    assert not read.faults


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,1,1,1,1,1", "b,1,1,1,1,1", "a,1,1,1,1,1"], "row 3: device a: cycle 1 is given twice"),
        (["a,2,1,1,1,1", "a,1,1,1,1,1"], "row 2: device a: cycle 1 comes after cycle 2"),
        (["a,1.5,1,1,1,1"], "row 1: cycle is 1.5; expected a whole number"),
        (["a,,1,1,1,1"], "row 1: cycle is nan; expected a whole number"),
        (["a,1,1,1,1,1", ",1,1,1,1,1"], "row 2: device is empty"),
        ([], "holds no rows"),
        (["a,1,1,1,1,1", "a,10000000,1,1,1,1"], "number the measured cycles one after the other"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_measurements(small_csv(tmp_path / "t.csv", rows))
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 4), st.sets(st.integers(-3, 30), min_size=1), min_size=1),
    st.randoms(use_true_random=False),
    st.integers(1, 7),
)
def test_any_order_of_devices_and_any_batches_give_the_same_grid(cycles, random, batch) -> None:
    """Rows of each device in order of cycles, devices shuffled among each other, cut anywhere."""
    waiting = {device: sorted(own) for device, own in cycles.items()}
    rows = []
    while waiting:
        device = random.choice(sorted(waiting))
        rows.append((device, waiting[device].pop(0)))
        if not waiting[device]:
            del waiting[device]
    gathered = CycleRows("x", 1)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        names = sorted({str(device) for device, _ in part})
        codes = gathered.device_indices(names, np.array([names.index(str(device)) for device, _ in part]))
        number = np.array([cycle for _, cycle in part])
        values = np.array([[100.0 * device + cycle for device, cycle in part]])
        gathered.add(codes, number, values, np.arange(len(part)))
    grid = gathered.grid()
    assert np.isfinite(grid.values).sum() == len(rows)
    for device, cycle in rows:
        index = grid.devices.index(str(device))
        assert grid.values[0, index, cycle - grid.first_cycles[index]] == 100.0 * device + cycle


def test_an_example_is_a_function_of_its_seed(device: DeviceModel) -> None:
    first, second = (feature_table(device, 3, 4, 2) for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)


def test_a_wafer_a_die_and_a_number_name_a_device_and_times_of_day_are_not_used(tmp_path: Path) -> None:
    """Two dies have devices of the same numbers; rows of features come with the date at which they were measured."""
    path = tmp_path / "wafer.csv"
    rows = [
        f"2024-03-01 12:{cycle:02}:00,{die},{device},{cycle},1e5,1e4"
        for die in (1, 2)
        for device in (1, 2, 3)
        for cycle in range(1, 5)
    ]
    path.write_text("\n".join(["time,die,device,cycle,hrs_ohms,lrs_ohms", *rows, "mean,,,,1e5,1e4", ""]))
    found = read_measurements(path, columns={"device": "die+device"}, from_base=["us", "ur"])
    assert found.devices == ("1 1", "1 2", "1 3", "2 1", "2 2", "2 3")
    assert found.y.shape == (4, 6, 4)
    assert found.layout.unused == ("time",)
    with pytest.raises(InputError, match=r"comes after cycle 4; .* \(--column device=DIE\+DEVICE joins columns"):
        read_measurements(path, from_base=["us", "ur"])
    with pytest.raises(InputError, match=r"device=die\+wafer: no such column"):
        read_measurements(path, columns={"device": "die+wafer"}, from_base=["us", "ur"])
