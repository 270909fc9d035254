"""SETs and RESETs that fail are told apart from the tails of those that succeed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.device.cycles.model import FAILED_RESET, FAILED_SET, HRS, LRS
from memsim.fit.failures import QUANTILES, split_failures


def features(devices: int = 20, cycles: int = 50, seed: int = 0) -> np.ndarray:
    """[4, devices, cycles] of cells like the published ones, none of which fails."""
    rng = np.random.default_rng(seed)
    hrs = 4.88 + 0.19 * rng.standard_normal((devices, cycles))
    lrs = 4550 + 200 * rng.standard_normal((devices, 1)) + 180 * rng.standard_normal((devices, cycles))
    rest = np.broadcast_to(np.nan, hrs.shape)
    return np.stack([hrs, rest, lrs, rest]).astype(np.float32)


def test_none_fails_where_none_does() -> None:
    y = features()
    kept, failures = split_failures(y)
    assert failures is None
    np.testing.assert_array_equal(kept, y)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), set_share=st.floats(0, 0.2), reset_share=st.just(0.0) | st.floats(0.02, 0.2))
def test_what_failed_is_found(seed: int, set_share: float, reset_share: float) -> None:
    y, rng = features(seed=seed), np.random.default_rng(seed)
    failed = np.stack([rng.random(y.shape[1:]) < share for share in (set_share, reset_share)])
    broken = y.copy()
    broken[LRS][failed[FAILED_SET]] = 10 ** np.maximum(y[HRS][failed[FAILED_SET]], 4.2)
    broken[HRS][failed[FAILED_RESET]] = np.log10(y[LRS][failed[FAILED_RESET]])
    kept, failures = split_failures(broken)
    if not failed.any():
        assert failures is None
        return
    found = np.isfinite(failures.log10_ohms)
    np.testing.assert_array_equal(found, failed)
    for feature, row in ((LRS, FAILED_SET), (HRS, FAILED_RESET)):
        np.testing.assert_array_equal(kept[feature], np.where(failed[row], np.nan, y[feature]))
    np.testing.assert_allclose(failures.shares(), failed.mean(axis=(1, 2)), rtol=1e-6)
    table = failures.table()
    assert table.shape == (2, 1 + len(QUANTILES))
    np.testing.assert_allclose(table[:, 0], failed.mean(axis=(1, 2)), rtol=1e-6)
    for row, feature in ((FAILED_SET, LRS), (FAILED_RESET, HRS)):
        if failed[row].any():
            values = broken[feature][failed[row]]
            ends = np.log10([values.min(), values.max()]) if feature == LRS else [values.min(), values.max()]
            np.testing.assert_allclose(table[row, [1, -1]], ends, rtol=1e-5)


def test_states_that_overlap_are_left_as_they_are() -> None:
    y = features()
    y[LRS] = 10 ** (y[HRS] - 0.2)
    assert split_failures(y)[1] is None


@pytest.mark.parametrize("first", [0, 30])
@pytest.mark.parametrize("row", [FAILED_SET, FAILED_RESET])
def test_a_cell_that_does_not_switch_any_more_is_stuck(first: int, row: int) -> None:
    """Its cycles are neither failures of single pulses nor states of cells that work."""
    y = features(devices=200)
    broken = y.copy()
    if row == FAILED_SET:
        broken[LRS][3, first:] = 10 ** y[HRS][3, first:]
    else:
        broken[HRS][3, first:] = np.log10(y[LRS][3, first:])
    kept, failures = split_failures(broken)
    assert failures.stuck.tolist() == [device == 3 for device in range(200)]
    assert np.isnan(kept[:, 3, first:]).all()
    np.testing.assert_array_equal(kept[:, 3, :first], y[:, 3, :first])
    np.testing.assert_array_equal(np.delete(kept, 3, axis=1), np.delete(y, 3, axis=1))
    assert failures.shares().tolist() == [0, 0]
    assert failures.table() is None
    assert failures.tries[row].tolist() == [first if device == 3 else 50 for device in range(200)]
    (note,) = failures.notes()
    assert note.startswith("1 of 200 devices stop switching, or never do")
    assert "of 0.005" in note


def test_one_cycle_of_each_cell_tells_failures_but_nothing_of_stuck_cells() -> None:
    y = features(devices=200, cycles=1)
    y[LRS][:3] = 10 ** y[HRS][:3]
    _, failures = split_failures(y)
    assert not failures.stuck.any()
    assert failures.shares().tolist() == [0.015, 0]


def test_failures_that_come_together_are_said() -> None:
    y = features()
    y[LRS][3, ::2] = 10 ** y[HRS][3, ::2]
    _, failures = split_failures(y)
    assert "25 of 1,000 SETs (2.50%) failed and left a median of" in failures.notes()[0]
    assert "failed SETs come together in some devices" in failures.notes()[1]


def test_what_sweeps_saw_fail_is_counted() -> None:
    y = features()
    y[LRS][0, 0], y[LRS][1, 1] = np.nan, np.nan
    candidates = np.full((2, *y.shape[1:]), np.nan, np.float32)
    candidates[FAILED_SET, 0, 0], candidates[FAILED_SET, 1, 1] = 4.9, 3.66  # the second was in LRS before
    _, failures = split_failures(y, candidates)
    assert failures.counts.sum() == 1
    assert failures.log10_ohms[FAILED_SET, 0, 0] == pytest.approx(4.9)
    assert failures.tries[FAILED_SET].sum() == 1000
