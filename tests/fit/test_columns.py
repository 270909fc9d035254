"""The meaning of columns."""

from __future__ import annotations

import numpy as np
import pytest

from memsim.errors import InputError
from memsim.fit.columns import resolve

KEYS = ["device", "cycle"]
FEATURES = [*KEYS, "hrs_ohms", "us_volts", "lrs_ohms", "ur_volts"]
SWEEP = [*KEYS, "voltage_volts", "current_amperes"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("hrs_ohms", 7.5e4, 7.5e4),
        ("hrs_kohm", 75.0, 7.5e4),
        ("hrs_Mohm", 0.075, 7.5e4),
        ("hrs_log10_ohm", 4.0, 1e4),
        ("HRS_KOhm", 75.0, 7.5e4),
        ("HRS (kOhm)", 75.0, 7.5e4),
        ("hrs [kΩ]", 75.0, 7.5e4),
        ("hrs/kohm", 75.0, 7.5e4),
        ("hrs_uS", 12.5, 8e4),
        ("hrs_siemens", 0.0, np.inf),
    ],
)
def test_units_of_resistance_convert(name: str, value: float, expected: float) -> None:
    column = resolve([name, *FEATURES[:2], *FEATURES[3:]], "x").columns["hrs"]
    assert column.convert(np.array([value]))[0] == pytest.approx(expected)


def test_a_row_of_units_is_as_good_as_names() -> None:
    columns = resolve(
        ["device", "cycle", "hrs", "us", "lrs_ohms", "ur"], "x", units={"hrs": "kOhm", "us": "[mV]", "ur": "V"}
    )
    assert [columns.columns[key].convert(np.ones(1))[0] for key in ("hrs", "us", "ur")] == [1e3, 1e-3, 1.0]
    with pytest.raises(InputError, match="column hrs_ohm: its unit is ohm by its name and kohm below it"):
        resolve(["hrs_ohm"], "x", units={"hrs_ohm": "kohm"})


@pytest.mark.parametrize(
    ("quantity", "names"),
    [
        ("voltage", {"voltage_V": 0.5, "voltage_mV": 500.0, "voltage_mv": 500.0, "voltage_volts": 0.5}),
        ("current", {"current_A": 0.5, "current_mA": 500.0, "current_uA": 5e5, "current_µA": 5e5, "current_nA": 5e8}),
        ("time", {"time_s": 0.5, "time_ms": 500.0, "time_us": 5e5}),
    ],
)
def test_units_of_sweeps_convert(quantity: str, names: dict[str, float]) -> None:
    for name, value in names.items():
        columns = [c for c in SWEEP if not c.startswith(quantity)] + [name]
        assert resolve(columns, "x").columns[quantity].convert(np.array([value]))[0] == pytest.approx(0.5)


def test_the_kind_follows_from_the_columns() -> None:
    assert resolve(FEATURES, "x").kind == "features"
    layout = resolve([*SWEEP, "temperature"], "x")
    assert (layout.kind, layout.unused, list(layout.columns)) == (
        "sweeps",
        ("temperature",),
        ["device", "cycle", "voltage", "current"],
    )


def test_other_names_are_given_by_hand() -> None:
    found = ["device", "cycle", "RH", "VS", "lrs_ohms", "ur_volts"]
    layout = resolve(found, "x", {"hrs_kohm": "RH", "us_volts": "VS"})
    assert (layout.columns["hrs"].name, layout.columns["hrs"].unit.factor) == ("RH", 1e3)
    assert layout.unused == ()


def test_a_name_without_a_unit_takes_that_of_the_column() -> None:
    found = ["device", "R off (kOhm)", "V set [mV]", "lrs_ohms", "ur_volts"]
    columns = resolve(found, "x", {"hrs": "R off (kOhm)", "us": "V set [mV]"}).columns
    assert [columns[key].unit.factor for key in ("hrs", "us")] == [1e3, 1e-3]
    with pytest.raises(InputError, match=r"column V set \[mV\]: names no unit; call it hrs_ohms"):
        resolve(found, "x", {"hrs": "V set [mV]"})


def test_what_was_not_measured_need_not_be_there() -> None:
    assert "ur" not in resolve(FEATURES[:5], "x", without=["ur"]).columns


@pytest.mark.parametrize(
    ("columns", "renamed", "message"),
    [
        (FEATURES[:5], {}, "x: lacks ur_volts .*--column ur_volts=THEIRS.*--from-base ur takes"),
        (FEATURES[1:], {}, "x: lacks device "),
        (["Zelle", "Ziel"], {}, "x: no column has a name .*columns: Zelle, Ziel.*of levels cell, conductance_uS and"),
        (SWEEP[:3], {}, "x: lacks current_amperes "),
        ([*FEATURES[:2], "hrs", *FEATURES[3:]], {}, "x: column hrs: names no unit; call it hrs_ohms"),
        ([*FEATURES[:2], "hrs_parsec", *FEATURES[3:]], {}, r"x: column hrs_parsec: unknown unit parsec \(known: ohm,"),
        ([*FEATURES[:2], "hrs_mohm", *FEATURES[3:]], {}, "unknown unit mohm"),  # milli or mega?
        ([*FEATURES, "hrs_kohm"], {}, "x: columns hrs_ohms and hrs_kohm are both hrs"),
        (FEATURES, {"hrs_kohm": "rhs"}, "x: --column hrs_kohm=rhs: no such column"),
    ],
)
def test_what_is_wrong_is_said(columns: list[str], renamed: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve(columns, "x", renamed)
    assert "\n" not in str(caught.value)
