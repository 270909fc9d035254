"""SETs and RESETs that fail: a population of their own, told apart from the tails of those that succeed.

Where the populations of LRS and HRS are apart, a threshold above the LRS of a device divides them: an LRS above it is
of a SET that failed, and an HRS below it of a RESET that failed. Partial SETs are failures, too: a chip finds
them as such. A cell whose SETs or RESETs fail to the end of its record is stuck: no further pulse helps it, so these
cycles are no failures of single pulses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memsim.device.cycles.model import FAILED_RESET, FAILED_SET, HRS, LRS
from memsim.fit.arrays import Bools, Floats

QUANTILES = np.linspace(0, 1, 9)
"""Probabilities of the quantiles that a device model has of the resistances after failures."""
LEAST_RATIO = 2.0
"""Least ratio of a resistance after a failed SET to the median LRS."""
_WIDTHS = 6.0  # robust standard deviations of LRS from its median to the threshold
_APART = 3.0  # those of HRS from its median that must be above the threshold
_LEAST_RESETS = 1e-3
"""Least share of failed RESETs: fewer cannot be told from the tail of HRS, which is wide."""
_STUCK = 10
"""Number of successive failures at the end of a device's record that make it stuck."""
_NEARLY_ALL = 0.9  # share of failures that makes a device stuck, too
_CLUSTERED = 3.0  # variance of the number of failures over devices, in relation to that of independent failures


@dataclass(frozen=True, eq=False)
class Failures:
    """The cycles whose SET or RESET failed, while the cell was not stuck.

    Attributes:
        log10_ohms: [2, devices, cycles] resistances after failed SETs and after failed RESETs, NaN elsewhere.
        tries: [2, devices] numbers of SETs and of RESETs whose outcome was measured.
        stuck: [devices] whether the cell is stuck at the end of its record.
    """

    log10_ohms: Floats
    tries: Floats
    stuck: Bools

    @property
    def counts(self) -> Floats:
        """[2, devices] numbers of failures."""
        return np.asarray(np.isfinite(self.log10_ohms).sum(axis=2))

    def shares(self) -> Floats:
        """Return the shares [2] of SETs and RESETs that fail."""
        return np.asarray(self.counts.sum(axis=1) / np.maximum(self.tries.sum(axis=1), 1))

    def table(self) -> Floats | None:
        """Return `DeviceModel.failures` [2, 1 + quantiles]; None where nothing failed."""
        shares = self.shares()
        if not shares.any():
            return None
        rows = np.zeros((2, 1 + len(QUANTILES)))
        for row, (share, values) in enumerate(zip(shares, self.log10_ohms, strict=True)):
            present = values[np.isfinite(values)].astype(np.float64)
            rows[row] = [share, *(np.quantile(present, QUANTILES) if len(present) else 0 * QUANTILES)]
        return rows

    def notes(self) -> list[str]:
        """Return remarks for people: shares of failures, stuck cells, and failures that come together."""
        notes = []
        shares = self.shares()
        for row, pulse, aim in ((FAILED_SET, "SETs", "SET"), (FAILED_RESET, "RESETs", "RESET")):
            counts, tries = self.counts[row], self.tries[row]
            if not counts.sum():
                continue
            median = 10 ** float(np.nanmedian(self.log10_ohms[row]))
            notes.append(
                f"{int(counts.sum()):,} of {int(tries.sum()):,} {pulse} ({shares[row]:.2%}) failed and left a median "
                f"of {median:.3g} ohm: in the model they are a population of their own"
            )
            expected = tries * shares[row] * (1 - shares[row])
            spread = float((np.square(counts - tries * shares[row]) / np.maximum(expected, 1e-300)).mean())
            if spread > _CLUSTERED and counts.sum() >= 10:
                notes.append(
                    f"failed {pulse} come together in some devices (their number varies {spread:.1f} times as much as "
                    f"by chance), but the model lets every {aim} fail alike"
                )
        if stuck := int(self.stuck.sum()):
            share = stuck / len(self.stuck)
            notes.append(
                f"{stuck} of {len(self.stuck)} devices stop switching, or never do: these cycles are no part of the "
                f"model; for a chip with such cells, give a hardware spec faults.stuck_hrs or faults.stuck_lrs of "
                f"{share:.3g}"
            )
        return notes


def split_failures(y: Floats, candidates: Floats | None = None) -> tuple[Floats, Failures | None]:
    """Return (the features of the pulses that succeeded, the failures or None where there are none).

    Args:
        y: [4, devices, cycles] features, HRS in log10 ohm and LRS in ohm, NaN in gaps.
        candidates: [2, devices, cycles] log10 ohm after SETs and RESETs that were seen to fail and are not in `y`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        lrs, hrs = np.log10(np.where(y[LRS] > 0, y[LRS], np.nan)), y[HRS]
    threshold = _threshold(lrs, hrs)
    if threshold is None:
        return y, None
    after_set, after_reset = lrs, hrs
    if candidates is not None:
        after_set = np.where(np.isfinite(lrs), lrs, candidates[FAILED_SET])
        after_reset = np.where(np.isfinite(hrs), hrs, candidates[FAILED_RESET])
    with np.errstate(invalid="ignore"):
        failed = np.stack([after_set > threshold[:, None], after_reset < threshold[:, None]])
    tried = np.isfinite(np.stack([after_set, after_reset]))
    is_stuck = _stuck(failed, tried)
    failed, tried = failed & ~is_stuck, tried & ~is_stuck
    if failed[FAILED_RESET].sum() <= _LEAST_RESETS * tried[FAILED_RESET].sum():
        failed[FAILED_RESET] = False
    if not (failed.any() or is_stuck.any()):
        return y, None
    values = np.where(failed, np.stack([after_set, after_reset]), np.nan).astype(np.float32)
    kept = y.copy()
    kept[LRS][failed[FAILED_SET]] = np.nan
    kept[HRS][failed[FAILED_RESET]] = np.nan
    kept[:, is_stuck] = np.nan
    return kept, Failures(values, tried.sum(axis=2), np.asarray(is_stuck.any(axis=1)))


def _stuck(failed: Bools, tried: Bools) -> Bools:
    """Return the cycles [devices, cycles] of stuck cells, from SETs and RESETs [2, devices, cycles]."""
    place = np.arange(1, failed.shape[2] + 1)
    last_success = np.where(tried & ~failed, place, 0).max(axis=2, keepdims=True)
    is_after = place > last_success
    tries = tried.sum(axis=2, keepdims=True)
    ends = is_after & ((tried & is_after).sum(axis=2, keepdims=True) >= _STUCK)
    mostly = (tries >= _STUCK) & (failed.sum(axis=2, keepdims=True) > _NEARLY_ALL * tries)
    return np.asarray((ends | mostly).any(axis=0))


def _threshold(lrs: Floats, hrs: Floats) -> Floats | None:
    """Return the threshold [devices] in log10 ohm between LRS and HRS; None where they overlap or are not measured."""
    if not (np.isfinite(lrs).any() and np.isfinite(hrs).any()):
        return None
    middle, high = float(np.nanmedian(lrs)), float(np.nanmedian(hrs))
    own = _row_medians(lrs)
    own = np.where(np.abs(own - middle) < np.log10(LEAST_RATIO), own, middle)  # a stuck device has no LRS of its own
    width = 1.4826 * float(np.nanmedian(np.abs(lrs - own[:, None])))
    threshold = own + max(_WIDTHS * width, np.log10(LEAST_RATIO))
    is_apart = high - _APART * 1.4826 * float(np.nanmedian(np.abs(hrs - high))) > np.median(threshold)
    return threshold if is_apart else None


def _row_medians(values: Floats) -> Floats:
    """Return the median [devices] of each row, NaN for an empty one."""
    result = np.full(len(values), np.nan)
    filled = np.isfinite(values).any(axis=1)
    result[filled] = np.nanmedian(values[filled], axis=1)
    return result
