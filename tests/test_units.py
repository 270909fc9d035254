"""Quantities as text for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.units import counted, si


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.00123, "1.23 mJ"),
        (1.0, "1.00 J"),
        (0.0, "0 J"),
        (999.94, "1.00 kJ"),
        (999.4, "999 J"),
        (-2.5e-7, "-250 nJ"),
        (1e-15, "1.00 fJ"),
        (3e-17, "0.0300 fJ"),
        (4.2e19, "4.20e+04 PJ"),
        (float("inf"), "inf J"),
    ],
)
def test_three_digits_and_a_prefix(value: float, said: str) -> None:
    assert si(value, "J") == said


def test_without_a_unit() -> None:
    assert [si(7), si(1_179_648)] == ["7.00", "1.18 M"]


@given(st.floats(1e-15, 9.99e17))
def test_what_is_said_is_the_value(value: float) -> None:
    number, _, prefix = si(value).partition(" ")
    scale = 10.0 ** (3 * "fpnµm kMGTP".index(prefix or " ") - 15)
    assert float(number) * scale == pytest.approx(value, rel=5.1e-3)
    assert 0.999 <= float(number) < 1000


@pytest.mark.parametrize(
    ("number", "things", "text"),
    [
        (0, ("layer",), "0 layers"),
        (1, ("layer",), "1 layer"),
        (2, ("layer",), "2 layers"),
        (1234567, ("cell",), "1,234,567 cells"),
        (1, ("layer is", "layers are"), "1 layer is"),
        (3, ("hypothesis", "hypotheses"), "3 hypotheses"),
    ],
)
def test_counted(number, things, text):
    assert counted(number, *things) == text
