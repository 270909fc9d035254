"""Whether cells can be drawn from a fitted model and used: limits where draws would be impossible, and refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from memsim.device import DeviceModel, fraction_below, state_means
from memsim.device.cycles.cells import draw_cycles
from memsim.device.cycles.file import require_possible
from memsim.device.cycles.model import HRS, LRS, UR, US
from memsim.errors import InputError
from memsim.fit.measurements import NAMES, Measurements
from memsim.rng import derive_seed

DRAWN_CELLS = 1 << 18
"""Number of cells that are drawn from a fitted model to see what is possible."""
MOST_BEYOND = 0.02
"""Share of the cells drawn that may be held at a limit before a note says so."""
MOST_IMPOSSIBLE = 1e-3
"""Share of the cells drawn that may have a resistance at or below 0 ohm; a model with more is none of such cells."""
_SHIPPED_SET_VOLTS, _SHIPPED_RESET_VOLTS = -2.0, 2.0  # the pulses of hardware specs, unless they say otherwise
_RARE = 1e-4
_MOST_OHMS, _MOST_VOLTS = 1e15, 100.0  # of limits that are none, as files hold finite numbers only


def with_limits(model: DeviceModel, measurements: Measurements, notes: list[str]) -> DeviceModel:
    """Return `model` with limits of its features where cells drawn from it are beyond what is possible.

    A resistance is above that of the lowest-resistance envelope (and below that of the other, if that conducts). A SET
    voltage is negative and a RESET voltage positive, by half of the smallest one measured.

    Raises:
        InputError: for a model of which so many cells are impossible that it does not describe any.
    """
    drawn = draw_cycles(model, torch.arange(DRAWN_CELLS), derive_seed(0, "fit check"), 1)[:, :, 0]
    for feature in (LRS, HRS):
        share = float((drawn[feature] <= 0).float().mean())
        if share > MOST_IMPOSSIBLE:
            raise InputError(
                f"{measurements.path}: {share:.1%} of the cells drawn from the fitted model have an {NAMES[feature]} "
                "at or below 0 ohm, so nothing can be computed with it: its spread is too wide for the model; leave "
                f"cycles that failed empty, or take {NAMES[feature]} from the base model (--from-base "
                f"{NAMES[feature].lower()})"
            )
    limits = _limits(model, measurements)
    y = drawn.double()
    for feature in (HRS, LRS):
        if model.is_log10(feature):
            y[feature] = y[feature].log10()
    beyond = (y < limits[:, :1]) | (y > limits[:, 1:])
    if not beyond.any():
        return model
    for feature, share in enumerate(beyond.double().mean(dim=1).tolist()):
        if share > MOST_BEYOND:
            envelope = 1 / model.reference_conductances_siemens[0]
            limit = f"that of the lowest-resistance envelope, {envelope:.0f} ohm" if feature in (HRS, LRS) else "0 V"
            notes.append(f"{share:.1%} of the cells drawn have an {NAMES[feature]} beyond {limit}, and are held there")
    return dataclasses.replace(model, limits=limits)


def _limits(model: DeviceModel, measurements: Measurements) -> torch.Tensor:
    """Return the limits [4, 2] of the features of a model."""
    llrs, hhrs = model.reference_conductances_siemens
    limits = torch.tensor([[-_MOST_VOLTS, _MOST_VOLTS]] * 4, dtype=torch.float64)
    for feature in (HRS, LRS):
        ends = torch.tensor([1 / llrs, 1 / hhrs if hhrs > 0 else _MOST_OHMS], dtype=torch.float64)
        limits[feature] = ends.log10() if model.is_log10(feature) else ends
    for feature, end in ((US, 1), (UR, 0)):
        values = np.abs(measurements.y[feature][np.isfinite(measurements.y[feature])])
        least = float(values.min()) / 2 if feature in measurements.measured and len(values) else 1e-3
        limits[feature, end] = least if feature == UR else -least
    return limits


def require_usable(model: DeviceModel, measurements: Measurements, notes: list[str]) -> None:
    """Check that a chip can be made of a fitted model, and note which pulses it needs.

    Raises:
        InputError: for a model that could not be loaded, or whose LRS does not conduct more than its HRS.
    """
    require_possible(model, f"{measurements.path}: the fitted model cannot be used: its")
    lrs, hrs = state_means(model)
    if not lrs < hrs:
        raise InputError(
            f"{measurements.path}: the fitted model cannot be used: its mean LRS conducts no more than its mean HRS"
        )
    share = fraction_below(model, US, _SHIPPED_SET_VOLTS)
    if share > _RARE:
        notes.append(
            f"{share:.2%} of the cells need more than {_SHIPPED_SET_VOLTS:g} V to SET: give a hardware spec a "
            "programming.set_volts below that"
        )
    if model.reset_full_volts > _SHIPPED_RESET_VOLTS:
        notes.append(
            f"a RESET is full at {model.reset_full_volts:.3g} V: give a hardware spec a programming.reset_volts of at "
            "least that"
        )
