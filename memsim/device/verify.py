"""Verify reads: a programmer's measurements of single cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memsim.device.interface import CurrentScale
from memsim.device.noise import read_noise_std_amperes
from memsim.hardware import Noise, VerifyAdc
from memsim.portable import elementwise

NOISE_REACH = 6.0
"""Standard deviations beyond which noise is neglected; it reaches further once in 10^9 reads."""


class ReadConstants(NamedTuple):
    """The numbers of a verify read, whose currents are fractions of full scale."""

    slope: np.float32  # of the current over the state
    offset: np.float32
    is_noisy: bool
    variance_per_current: np.float32
    codes_per_current: np.float32  # 0 without an ADC
    step: np.float32
    max_code: np.float32


class VerifyRead:
    """Reads on a `CurrentScale` with the noise and the ADC of a programmer, each of which may be None."""

    def __init__(self, scale: CurrentScale, noise: Noise | None, adc: VerifyAdc | None) -> None:
        self._scale = scale
        self.is_noisy = noise is not None
        self._variance_per_current = 0.0
        if noise is not None:
            one = torch.ones((), dtype=torch.float64)
            std = read_noise_std_amperes(one, scale.volts * one, **noise.model_dump())
            self._variance_per_current = std.item() ** 2 / (scale.volts * scale.full_scale_amperes)
        self._max_code = 0 if adc is None else (1 << adc.bits) - 1
        self._step = 0.0 if adc is None else adc.full_scale / self._max_code

    def __call__(self, r: Tensor, normals: Tensor) -> Tensor:
        """Measure the currents of cells in the states `r` (any shape), as fractions of full scale.

        The noise is that of the standard `normals` (as `r`).
        """
        currents = self._scale.currents(r)
        if self.is_noisy:
            currents = currents + normals * elementwise.sqrt(currents.clamp(min=0) * self._variance_per_current)
        if self._step:
            currents = (currents * (1 / self._step)).round_().clamp_(0, self._max_code).mul_(self._step)
        return currents

    def constants(self) -> ReadConstants:
        """Return the numbers of the read for compiled code."""
        return ReadConstants(
            np.float32(self._scale.slope),
            np.float32(self._scale.offset),
            self.is_noisy,
            np.float32(self._variance_per_current),
            np.float32(1 / self._step if self._step else 0.0),
            np.float32(self._step),
            np.float32(self._max_code),
        )

    def highest_current(self, measured: Tensor) -> Tensor:
        """Return the largest current that reads, without noise, as at most `measured`."""
        return measured if not self._step else ((measured / self._step).floor() + 0.5) * self._step

    def within_reach(self, current: Tensor) -> Tensor:
        """Return the largest current that noise can make read as one below `current`."""
        half = NOISE_REACH**2 * self._variance_per_current / 2
        # I - current = NOISE_REACH sqrt(variance_per_current I), solved for I
        return current + half + math.sqrt(2 * half) * (current + half / 2).clamp(min=0).sqrt()
