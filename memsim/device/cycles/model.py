"""The parameters of one memristor type and the equations of its current.

The model is Synaptogen: Hennen et al., Front. Neurosci. 16:941753 (2022), and Hennen et al., IEEE TED 2024
(arXiv 2404.06344). A scalar state r, which mixes two envelope curves, describes a cell. Four features describe each of
its switching cycles: the resistances of both states and the voltages at which it switches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from memsim.device.interface import Device, polynomial
from memsim.portable.elementwise import exp2, log2

HRS, US, LRS, UR = range(4)
"""Rows of a feature tensor: high resistance (log10 ohm; ohm once de-normalised), SET voltage (negative), low
resistance (ohm), RESET voltage."""

LOG2_OF_10 = math.log2(10.0)

FAILED_SET, FAILED_RESET = range(2)
"""Rows of the failures of a device model."""

TEXTS = ("name", "source", "licence")
SCALARS = ("reference_volts", "reset_full_volts", "reset_exponent")
TENSORS = ("llrs", "hhrs", "gamma", "mixture_weights", "mixture_means", "mixture_cholesky")  # and var_001, var_002, ...
OPTIONAL_TENSORS = ("limits", "failures")
LRS_SCALE = "lrs_scale"
"""Metadata of a model whose LRS is in `log10` ohm; others have none."""


@dataclass(frozen=True, eq=False)
class DeviceModel(Device):
    """The parameters of one type of memristor, whose cells are known by their switching cycles.

    Its tensors are float64. Polynomials have their highest power first.
    """

    name: str
    llrs: Tensor  # [degree + 1] lowest-resistance envelope LLRS(U), amperes
    hhrs: Tensor  # [degree + 1] highest-resistance envelope HHRS(U), amperes; an extrapolation, may be negative
    gamma: Tensor  # [4, 5] polynomials g_i from a normal variate to a feature's own distribution
    mixture_weights: Tensor  # [K] device-to-device mixture
    mixture_means: Tensor  # [8, K] of (mu, sigma): offsets and scales of the four features
    mixture_cholesky: Tensor  # [K, 8, 8] lower triangular
    var: dict[int, Tensor]  # order p -> [4, 4 (p + 1)] = [B | A_p ... A_1], cycle to cycle
    reference_volts: float  # U0: resistance means U0 / I(U0)
    reset_full_volts: float  # Umax: a RESET at or above it is full
    reset_exponent: float  # eta: curvature of the RESET transition
    lrs_is_log10: bool = False  # LRS is modelled as log10 ohm, as HRS is, and not in ohm
    limits: Tensor | None = None  # [4, 2] least and greatest y of each feature; a draw beyond is at the limit
    failures: Tensor | None = None  # [2, 1 + Q] of SETs and RESETs: the share that fails, and Q quantiles of log10 ohm
    source: str = ""
    licence: str = ""

    @property
    def order(self) -> int:
        """The highest order of the cycle-to-cycle process in the model."""
        return max(self.var)

    def to(self, device: torch.device | str) -> Self:
        """Return the same model with its tensors on `device`."""
        moved: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        moved["var"] = {order: matrix.to(device) for order, matrix in self.var.items()}
        return dataclasses.replace(self, **moved)

    def stored(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors, float64 on a CPU, and the texts and scalars by which a file keeps the model."""
        tensors = {key: getattr(self, key) for key in TENSORS}
        tensors |= {key: value for key in OPTIONAL_TENSORS if (value := getattr(self, key)) is not None}
        tensors |= {f"var_{order:03d}": matrix for order, matrix in self.var.items()}
        metadata = {key: getattr(self, key) for key in TEXTS} | {key: repr(getattr(self, key)) for key in SCALARS}
        metadata |= {LRS_SCALE: "log10"} if self.lrs_is_log10 else {}
        return {key: value.to("cpu", torch.float64) for key, value in tensors.items()}, metadata

    def var_matrix(self, order: int | None = None) -> Tensor:
        """Return the matrix [4, 4 (p + 1)] of `order` p (default: the highest).

        Raises ValueError for an order that the model does not have: a higher order cannot be truncated to a lower one.
        """
        order = self.order if order is None else order
        if order not in self.var:
            raise ValueError(f"device {self.name} has no cycle-to-cycle order {order} (available: {sorted(self.var)})")
        return self.var[order]

    def reset_distance(self, volts: Tensor) -> Tensor:
        """Return |Umax - U|^eta of the transition I_tr(U) = a |Umax - U|^eta + c, from LRS at UR to HRS at Umax.

        `volts` (any shape) are float32.
        """
        distance = (self.reset_full_volts - volts).abs()
        return exp2(log2(distance) * self.reset_exponent).masked_fill_(distance == 0, 0.0)

    def is_log10(self, feature: int) -> bool:
        """Return whether a feature is modelled as log10 of its ohms."""
        return feature == HRS or (feature == LRS and self.lrs_is_log10)

    def limits_of(self, feature: int) -> tuple[float, float]:
        """Return the least and the greatest y of a feature, infinite where it has no limits."""
        if self.limits is None:
            return -math.inf, math.inf
        low, high = self.limits[feature].tolist()
        return low, high

    def denormalise(self, x: Tensor, mu: Tensor, sigma: Tensor, features: Sequence[int] = (HRS, US, LRS, UR)) -> Tensor:
        """Turn normal variates `x` [F, n] into `features` [F, n] of cells with offsets `mu` and scales `sigma` [F, n].

        HRS (10 ** y) and LRS are in ohm, US and UR in V. These are the features of SETs and RESETs that succeed.
        """
        y = torch.stack([polynomial(self.gamma[feature], row) for feature, row in zip(features, x, strict=True)])
        y.mul_(sigma).add_(mu)
        for row, feature in enumerate(features):
            if self.limits is not None:
                y[row] = y[row].clamp(*self.limits_of(feature))
            if self.is_log10(feature):
                y[row] = power_of_10(y[row])
        return y


def power_of_10(x: Tensor) -> Tensor:
    """Return 10^x in the dtype of `x`."""
    return exp2(x * LOG2_OF_10) if x.dtype == torch.float32 else 10.0**x


def companion(var: Tensor) -> Tensor:
    """Return the matrix [4p, 4p] that advances a history (oldest to newest) by a cycle of `var` [4, 4 (p + 1)]."""
    shift = torch.diag(var.new_ones(var.shape[1] - 8), 4)
    shift[-4:] = var[:, 4:]
    return shift
