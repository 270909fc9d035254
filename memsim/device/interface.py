"""The interface of a device: what arrays ask of one type of memristor, whatever is known about it.

A kind of device is a folder beside this file, and `memsim.device.file` names the kinds. Its cells have one number as
their state, r, and their current is affine in it: I(U) = (1 - r) LLRS(U) + r HHRS(U), so that the current of a column
is one matrix product. A kind may add further products of a function of the voltage and one of the state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from memsim.errors import InputError
from memsim.hardware import HardwareSpec, Scheme


class Tiles(Protocol):
    """The arrays that cells lie on."""

    @property
    def tiles(self) -> int:
        """The number of arrays."""

    def tile_of(self, cells: Tensor) -> Tensor:
        """Return the array [n] of each of `cells` [n] (int64)."""


@dataclass(frozen=True)
class Outcome:
    """The result of programming `n` cells. Tensors are [n]."""

    r: Tensor  # float32: states
    pulses: Tensor  # int32: SET and RESET pulses
    verify_reads: Tensor  # int32
    failed: Tensor  # bool: outside the tolerance after the last try
    joules: Tensor  # float32: energy of the pulses

    @classmethod
    def start(cls, n: int, device: torch.device) -> Outcome:
        """Return the outcome of `n` cells before programming."""
        return cls(
            torch.full((n,), math.nan, device=device),
            torch.zeros(n, dtype=torch.int32, device=device),
            torch.zeros(n, dtype=torch.int32, device=device),
            torch.zeros(n, dtype=torch.bool, device=device),
            torch.zeros(n, device=device),
        )

    @classmethod
    def in_states(cls, r: Tensor) -> Outcome:
        """Return the outcome of cells in the states `r` [n] that took no programming."""
        return dataclasses.replace(cls.start(r.numel(), r.device), r=r)

    def add(self, cells: Tensor, r: Tensor, pulses: Tensor, verify_reads: Tensor, joules: Tensor) -> None:
        """Add a try at `cells` (indices [m]): their new states, and its pulses, reads and energy."""
        self.r.index_copy_(0, cells, r)
        self.pulses.index_add_(0, cells, pulses)
        self.verify_reads.index_add_(0, cells, verify_reads)
        self.joules.index_add_(0, cells, joules)


class CurrentScale:
    """Currents of cells at `volts` as fractions of `full_scale_amperes`, which are affine in the state r."""

    def __init__(self, device: Device, volts: float, full_scale_state: float) -> None:
        """Take the current of a cell in `full_scale_state` as full scale."""
        at = torch.tensor(volts, dtype=torch.float64, device=device.device)
        llrs, window = device.llrs_current_amperes(at).item(), device.window_amperes(at).item()
        self.volts, self.full_scale_state = volts, full_scale_state
        self.full_scale_amperes = llrs + full_scale_state * window
        self.offset, self.slope = llrs / self.full_scale_amperes, window / self.full_scale_amperes

    def currents(self, r: Tensor) -> Tensor:
        """Return the currents of cells in the states `r` (any shape), as fractions of full scale."""
        return r * self.slope + self.offset

    def states(self, currents: Tensor) -> Tensor:
        """Return the states of cells with these `currents` (any shape), fractions of full scale."""
        return (currents - self.offset) / self.slope


Act = Callable[[Tensor, Tensor], Outcome]
"""A function of the digits [n] (int32) and the cells [n] (int64) that are programmed to them."""

Disturb = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of states [n], digits [n] and cells [n] that returns the states after disturbing reads."""


class Programmer:
    """A programming scheme, prepared for a device.

    Attributes:
        scale: the currents that a programmer measures.
        targets: [levels], the currents of the digits on that scale.
    """

    scale: CurrentScale
    targets: Tensor

    def __call__(self, digits: Tensor, cells: Tensor, key: int) -> Outcome:
        """Program fresh cells to `digits` [n] (int32, below the number of levels).

        A cell's draws depend on `key` and its counter, which `cells` [n] (int64) holds.
        """
        raise NotImplementedError

    def on_tiles(self, tiles: Tiles, key: int, read_volts: Sequence[float]) -> tuple[Act, Disturb]:
        """Return what programs the cells of `tiles`, drawn with `key`, and what reads at `read_volts` then do to them.

        The reads may be part of the programming. Raises InputError where the pulses do not program every cell, or where
        the device does not know what reads do to its cells.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Disturbed:
    """The fractions of the cells that a read at a voltage changes."""

    hrs_set: float  # cells of high resistance that its negative polarity SETs
    lrs_reset: float  # cells of low resistance that its positive polarity RESETs in part


Ageing = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of states [n] right after programming, digits [n] and cells [n] that returns the states at a time."""


Relaxation = Callable[[Tensor, Tensor], Tensor]
"""A function of conductances [n], as fractions of full scale, and cells [n] that returns the conductances at a time."""


class Device:
    """One type of memristor.

    Attributes:
        name, source, licence: texts of the file.
        llrs, hhrs: [degree + 1], float64, the current in amperes at r = 0 and at r = 1 as polynomials in the voltage,
            highest power first, both through the origin. HHRS may be an extrapolation, and negative.
        reference_volts: the voltage U0 at which conductances were measured.

    Results have the dtype of the voltages given (float32 in memsim). Results in float32 have the same bits on every CPU
    and GPU (see `memsim.portable`).
    """

    name: str
    source: str
    licence: str
    llrs: Tensor
    hhrs: Tensor
    reference_volts: float

    @property
    def device(self) -> torch.device:
        """The device of the tensors, on which cells are drawn."""
        return self.llrs.device

    def to(self, device: torch.device | str) -> Self:
        """Return the same model with its tensors on `device`."""
        raise NotImplementedError

    def stored(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors and the metadata by which a file keeps the model."""
        raise NotImplementedError

    # Currents: I(U) = (1 - r) LLRS(U) + r HHRS(U)

    def llrs_current_amperes(self, volts: Tensor) -> Tensor:
        """Return LLRS(U), the current at r = 0, for `volts` of any shape."""
        return polynomial(self.llrs, volts)

    def hhrs_current_amperes(self, volts: Tensor) -> Tensor:
        """Return HHRS(U), the current at r = 1, for `volts` of any shape."""
        return polynomial(self.hhrs, volts)

    def window_amperes(self, volts: Tensor) -> Tensor:
        """Return f(U) = HHRS(U) - LLRS(U), the change of the current for a unit of r (negative for positive U)."""
        return self.hhrs_current_amperes(volts) - self.llrs_current_amperes(volts)

    def llrs_conductance_siemens(self, volts: Tensor) -> Tensor:
        """Return LLRS(U) / U, finite at 0 V: the polynomial without its zero constant."""
        return polynomial(self.llrs[:-1], volts)

    def hhrs_conductance_siemens(self, volts: Tensor) -> Tensor:
        """Return HHRS(U) / U, finite at 0 V."""
        return polynomial(self.hhrs[:-1], volts)

    def current_amperes(self, volts: Tensor, r: Tensor) -> Tensor:
        """Return I(U) of cells in state `r`; shapes broadcast."""
        return self.llrs_current_amperes(volts) + r * self.window_amperes(volts)

    def conductance_siemens(self, volts: Tensor, r: Tensor) -> Tensor:
        """Return I(U) / U of cells in state `r`, finite at 0 V; shapes broadcast."""
        llrs = self.llrs_conductance_siemens(volts)
        return llrs + r * (self.hhrs_conductance_siemens(volts) - llrs)

    def state_of_resistance(self, ohms: Tensor) -> Tensor:
        """Return the state r whose resistance U0 / I(U0) is `ohms`: (G_LLRS - 1/R) / (G_LLRS - G_HHRS)."""
        llrs, hhrs = self.reference_conductances_siemens
        return (llrs - 1.0 / ohms) * (1.0 / (llrs - hhrs))

    @cached_property
    def reference_conductances_siemens(self) -> tuple[float, float]:
        """The conductances (G_LLRS, G_HHRS) at the reference voltage U0."""
        volts = torch.tensor(self.reference_volts, dtype=torch.float64, device=self.device)
        return self.llrs_conductance_siemens(volts).item(), self.hhrs_conductance_siemens(volts).item()

    def state_of_current(self, volts: Tensor, amperes: Tensor) -> Tensor:
        """Return the state r in which a cell conducts `amperes` at `volts` (not 0 V); shapes broadcast."""
        return (amperes - self.llrs_current_amperes(volts)) / self.window_amperes(volts)

    # Further terms: I(U) += sum_k N_k(r) U^k from k = 2 on, and noise of every read

    @property
    def higher_powers(self) -> int:
        """The number of further powers of U, from the square on, in the current of a cell."""
        return 0

    def higher_power_terms(self, r: Tensor) -> tuple[Tensor, ...]:
        """Return N_2(r), N_3(r), ... in amperes per volt^k for states `r` of any shape."""
        return ()

    @property
    def has_white_noise(self) -> bool:
        """Whether every read has noise beside Johnson and shot noise."""
        return False

    def white_variance(self, r: Tensor, bandwidth_hz: float | None) -> Tensor:
        """Return the variance (S^2) of the conductance of cells in states `r` (any shape) in a read of a bandwidth."""
        return torch.zeros_like(r)

    # Programming

    @property
    def has_ageing(self) -> bool:
        """Whether the device's own data say anything of the time after programming."""
        raise NotImplementedError

    def require_programmable(self, config: Scheme, cell_bits: int) -> None:
        """Raise InputError where the scheme does not program cells of `cell_bits` bits of this device."""
        raise NotImplementedError

    def programmer(self, config: Scheme, levels: int) -> Programmer:
        """Return the programmer of `config` for cells of `levels` levels."""
        raise NotImplementedError

    def mean_states(self, config: Scheme, levels: int) -> tuple[float, ...]:
        """Return the mean state of each digit right after programming."""
        raise NotImplementedError

    # What happens to cells afterwards

    def ageing(self, seconds: float, config: Scheme, levels: int, key: int) -> Ageing | None:
        """Return what the device's own data say of the time until a read `seconds` after programming; None for nothing.

        A cell's draws depend on `key` and its counter; those for other times are of the same cell.
        """
        raise NotImplementedError

    def relaxation(self, seconds: float, key: int) -> Relaxation:
        """Return what its law of relaxation makes of conductances until `seconds` after programming, for any cells.

        Full scale is the conductance of its last digit. A cell's draws depend on `key` and its counter. Raises
        InputError for a device without such a law, or with one that is not of the programmed conductance.
        """
        raise InputError(f"programming.relaxation: the file of device {self.name} has no law of relaxation")

    def disturbed(self, volts: float, config: Scheme) -> Disturbed | None:
        """Return the fractions of cells that reads at -`volts` and `volts` change; None where it is not known."""
        raise NotImplementedError

    def stuck_states(self, is_lrs: Tensor, cells: Tensor, key: int) -> Tensor:
        """Draw the states [n] of `cells` [n] that are stuck at low resistance where `is_lrs` [n], else at high."""
        raise NotImplementedError


def require_fits(device: Device, spec: HardwareSpec) -> None:
    """Raise InputError where a layer's `spec` asks of its cells what `device` cannot do, or does not know."""
    device.require_programmable(spec.programming, spec.weights.cell_bits)
    has_law = isinstance(spec.programming.relaxation, str)
    if has_law and not spec.seconds_until_read:
        raise InputError(
            f"programming.relaxation: {spec.programming.relaxation} is a law over time; give read_at_seconds"
        )
    if spec.read_at_seconds and spec.retention is None and not (device.has_ageing or has_law):
        raise InputError(
            f"read_at_seconds: device {device.name} does not say what time does to its cells; set it to none, or give "
            "a law: retention: {exponent: 0.005}, or programming.relaxation: NAME of a device that has one"
        )


def polynomial(coefficients: Tensor, x: Tensor) -> Tensor:
    """Evaluate the polynomial with `coefficients` [degree + 1], highest power first, at `x`, in the dtype of `x`."""
    y = torch.zeros_like(x)
    for coefficient in coefficients.to(x.dtype):
        # in place where no gradient is needed, ten times faster on large tensors
        y = y * x + coefficient if x.requires_grad else y.mul_(x).add_(coefficient)
    return y
