"""The parameters of one memristor type and the equations of its current, and the file that holds it.

The model is Synaptogen: Hennen et al., Front. Neurosci. 16:941753 (2022), and Hennen et al., IEEE TED 2024
(arXiv 2404.06344). A cell is described by a scalar state r that mixes two envelope curves, and every switching cycle by
four features: the resistances of its two states and the voltages at which it switches.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import memsim
from memsim.errors import InputError
from memsim.resources import find_config

HRS, US, LRS, UR = range(4)
"""Rows of a feature tensor: high resistance (log10 ohm; ohm once de-normalised), SET voltage (negative), low
resistance (ohm), RESET voltage."""

FORMAT, KIND = "memsim/1", "device"
TEXTS = ("name", "source", "licence")
SCALARS = ("reference_volts", "reset_full_volts", "reset_exponent")
TENSORS = ("llrs", "hhrs", "gamma", "mixture_weights", "mixture_means", "mixture_cholesky")  # and var_001, var_002, ...


@dataclass(frozen=True, eq=False)
class DeviceModel:
    """One memristor type. Tensors are float64; computing follows the dtype of the voltages given (float32 in memsim).

    Polynomials have their highest power first, and both envelopes go through the origin.
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
    source: str = ""
    licence: str = ""

    @property
    def order(self) -> int:
        """The highest order of the cycle-to-cycle process that is stored."""
        return max(self.var)

    @property
    def device(self) -> torch.device:
        """Where the tensors live, and so where cells are drawn."""
        return self.gamma.device

    def to(self, device: torch.device | str) -> DeviceModel:
        """The same model with its tensors on `device`."""
        return dataclasses.replace(
            self,
            llrs=self.llrs.to(device),
            hhrs=self.hhrs.to(device),
            gamma=self.gamma.to(device),
            mixture_weights=self.mixture_weights.to(device),
            mixture_means=self.mixture_means.to(device),
            mixture_cholesky=self.mixture_cholesky.to(device),
            var={order: matrix.to(device) for order, matrix in self.var.items()},
        )

    def var_matrix(self, order: int | None = None) -> Tensor:
        """[4, 4 (p + 1)] for `order` p (default: the highest). A higher order cannot be truncated to a lower one."""
        order = self.order if order is None else order
        if order not in self.var:
            raise ValueError(f"device {self.name} has no cycle-to-cycle order {order} (there are: {sorted(self.var)})")
        return self.var[order]

    # Currents: I(U) = (1 - r) LLRS(U) + r HHRS(U)

    def llrs_current_amperes(self, volts: Tensor) -> Tensor:
        """LLRS(U), the current at r = 0; any shape."""
        return polynomial(self.llrs, volts)

    def hhrs_current_amperes(self, volts: Tensor) -> Tensor:
        """HHRS(U), the current at r = 1; any shape."""
        return polynomial(self.hhrs, volts)

    def window_amperes(self, volts: Tensor) -> Tensor:
        """f(U) = HHRS(U) - LLRS(U): what the current gains per unit of r (negative for positive U)."""
        return self.hhrs_current_amperes(volts) - self.llrs_current_amperes(volts)

    def llrs_conductance_siemens(self, volts: Tensor) -> Tensor:
        """LLRS(U) / U, finite at 0 V: the polynomial without its zero constant."""
        return polynomial(self.llrs[:-1], volts)

    def hhrs_conductance_siemens(self, volts: Tensor) -> Tensor:
        """HHRS(U) / U, finite at 0 V."""
        return polynomial(self.hhrs[:-1], volts)

    def current_amperes(self, volts: Tensor, r: Tensor) -> Tensor:
        """I(U) of cells in state `r`; shapes broadcast."""
        return self.llrs_current_amperes(volts) + r * self.window_amperes(volts)

    def conductance_siemens(self, volts: Tensor, r: Tensor) -> Tensor:
        """I(U) / U of cells in state `r`, finite at 0 V; shapes broadcast."""
        llrs = self.llrs_conductance_siemens(volts)
        return llrs + r * (self.hhrs_conductance_siemens(volts) - llrs)

    def state_of_resistance(self, ohms: Tensor) -> Tensor:
        """The state r whose resistance U0 / I(U0) is `ohms`: (G_LLRS - 1/R) / (G_LLRS - G_HHRS)."""
        llrs, hhrs = self.reference_conductances_siemens
        return (llrs - 1.0 / ohms) / (llrs - hhrs)

    def resistance_of_state(self, r: Tensor) -> Tensor:
        """The resistance U0 / I(U0), in ohms, of state `r`: the inverse of `state_of_resistance`."""
        llrs, hhrs = self.reference_conductances_siemens
        return 1.0 / (llrs + r * (hhrs - llrs))

    @cached_property
    def reference_conductances_siemens(self) -> tuple[float, float]:
        """(G_LLRS, G_HHRS) at the reference voltage U0."""
        volts = torch.tensor(self.reference_volts, dtype=torch.float64, device=self.device)
        return self.llrs_conductance_siemens(volts).item(), self.hhrs_conductance_siemens(volts).item()

    def denormalise(self, x: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        """Features [4, n] of normal variates `x` [4, n] in cells with offsets `mu` and scales `sigma` [4, n].

        Rows are HRS (ohm, as 10 ** y), US (V), LRS (ohm), UR (V).
        """
        y = torch.stack([polynomial(self.gamma[i], x[i]) for i in range(4)]).mul_(sigma).add_(mu)
        y[HRS] = 10.0 ** y[HRS]
        return y


def polynomial(coefficients: Tensor, x: Tensor) -> Tensor:
    """The polynomial with `coefficients` [degree + 1], highest power first, at `x`, in the dtype of `x` (Horner)."""
    y = torch.zeros_like(x)
    for coefficient in coefficients.to(x.dtype):
        # in place where no gradient is asked for: ten times faster on large tensors
        y = torch.addcmul(coefficient, y, x, out=None if x.requires_grad else y)
    return y


def companion(var: Tensor) -> Tensor:
    """[4p, 4p] that advances a history, oldest to newest, by one cycle of the process `var` [4, 4 (p + 1)]."""
    shift = torch.diag(var.new_ones(var.shape[1] - 8), 4)
    shift[-4:] = var[:, 4:]
    return shift


# The file: tensors by name; scalars and provenance in the metadata


def load_device(name_or_path: str | Path) -> DeviceModel:
    """The device model in a safetensors file, or the shipped one of that name (`synaptogen`); tensors are float64.

    Raises InputError, in one line, for a file that is missing, broken, of another kind or physically impossible.
    """
    path = find_config("devices", name_or_path, suffixes=(".safetensors",))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle, not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); it must be a device model") from None
    for key, wanted in (("format", FORMAT), ("kind", KIND)):
        if (have := metadata.get(key)) != wanted:
            raise InputError(f"{path}: {key} is {have!r}; in a device model it must be {wanted!r}")
    try:
        model = _model(tensors, metadata, default_name=path.stem)
        _check(model)
    except _FaultError as fault:
        raise InputError(f"{path}: {fault}") from None
    return model


def save_device(model: DeviceModel, path: str | Path) -> None:
    """Write `model` as a safetensors file, whole or not at all. Raises InputError if the folder does not exist."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    tensors = {key: getattr(model, key) for key in TENSORS}
    tensors |= {f"var_{order:03d}": matrix for order, matrix in model.var.items()}
    tensors = {key: value.to("cpu", torch.float64).contiguous() for key, value in tensors.items()}
    metadata = {"format": FORMAT, "kind": KIND, "memsim_version": memsim.__version__}
    metadata |= {key: getattr(model, key) for key in TEXTS} | {key: repr(getattr(model, key)) for key in SCALARS}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _FaultError(Exception):
    """What is wrong with a device file: the key, the fault and what would be right."""


def _model(tensors: dict[str, Tensor], metadata: dict[str, str], default_name: str) -> DeviceModel:
    """The model, its numbers finite and its shapes right. Raises _FaultError."""
    weights = _tensor(tensors, "mixture_weights", None)
    components = len(weights)
    stored = [int(key[4:]) for key in tensors if key.startswith("var_") and key[4:].isdecimal()]
    orders = range(1, max([1, *stored]) + 1)
    return DeviceModel(
        name=metadata.get("name") or default_name,
        llrs=_tensor(tensors, "llrs", None),
        hhrs=_tensor(tensors, "hhrs", None),
        gamma=_tensor(tensors, "gamma", 4, 5),
        mixture_weights=weights,
        mixture_means=_tensor(tensors, "mixture_means", 8, components),
        mixture_cholesky=_tensor(tensors, "mixture_cholesky", components, 8, 8),
        var={order: _tensor(tensors, f"var_{order:03d}", 4, 4 * (order + 1)) for order in orders},
        reference_volts=_scalar(metadata, "reference_volts"),
        reset_full_volts=_scalar(metadata, "reset_full_volts"),
        reset_exponent=_scalar(metadata, "reset_exponent"),
        source=metadata.get("source", ""),
        licence=metadata.get("licence", ""),
    )


def _scalar(metadata: dict[str, str], key: str) -> float:
    text = metadata.get(key, "missing")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise _FaultError(f"{key} (metadata) is {text}; it must be a positive number")
    return value


def _tensor(tensors: dict[str, Tensor], key: str, *shape: int | None) -> Tensor:
    """The tensor `key` as float64, of `shape` (None: any length but 0)."""
    wanted = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
    if key not in tensors:
        raise _FaultError(f"{key} is missing; it must be a tensor of shape {wanted}")
    value = tensors[key]
    if value.dim() != len(shape) or any(n == 0 or m not in (None, n) for n, m in zip(value.shape, shape, strict=True)):
        raise _FaultError(f"{key} has shape {list(value.shape)}; it must be {wanted}")
    if not value.is_floating_point():
        raise _FaultError(f"{key} holds {value.dtype}; it must hold floating-point numbers")
    value = value.double()
    if not value.isfinite().all():
        raise _FaultError(f"{key} holds numbers that are not finite; all must be")
    return value


def _check(model: DeviceModel) -> None:
    """What shapes alone cannot say. Raises _FaultError."""
    for key in ("llrs", "hhrs"):
        if (constant := getattr(model, key)[-1].item()) != 0:
            raise _FaultError(f"{key} ends in {constant}; its last coefficient must be 0 (no current at 0 V)")
    llrs, hhrs = model.reference_conductances_siemens
    if not llrs > hhrs:
        raise _FaultError(f"llrs conducts {llrs:.3g} S at {model.reference_volts} V; hhrs, {hhrs:.3g} S, must be less")
    weights, cholesky = model.mixture_weights, model.mixture_cholesky
    if (weights < 0).any() or abs(weights.sum().item() - 1) > 1e-6:
        raise _FaultError(f"mixture_weights are {weights.tolist()}; they must be at least 0, with sum 1")
    if cholesky.triu(1).any() or (cholesky.diagonal(dim1=-2, dim2=-1) <= 0).any():
        raise _FaultError("mixture_cholesky is not lower triangular with a positive diagonal, as it must be")
    for order, matrix in model.var.items():
        radius = torch.linalg.eigvals(companion(matrix)).abs().max().item()
        if radius >= 1:
            raise _FaultError(f"var_{order:03d} has spectral radius {radius:.4f}; it must be below 1 (stationary)")
        if torch.linalg.matrix_rank(matrix[:, :4]) < 4:
            raise _FaultError(f"var_{order:03d} has a singular B (its first four columns); it must have full rank")
