"""The file of a device model: tensors by name, scalars and provenance in the metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from memsim.checkpoint import load_checkpoint, save_checkpoint
from memsim.device.model import DeviceModel, companion
from memsim.errors import InputError
from memsim.resources import find_config

KIND = "device"
TEXTS = ("name", "source", "licence")
SCALARS = ("reference_volts", "reset_full_volts", "reset_exponent")
TENSORS = ("llrs", "hhrs", "gamma", "mixture_weights", "mixture_means", "mixture_cholesky")  # and var_001, var_002, ...


def load_device(name_or_path: str | Path) -> DeviceModel:
    """The device model in a safetensors file, or the shipped one of that name (`synaptogen`); tensors are float64.

    Raises InputError, in one line, for a file that is missing, broken, of another kind or physically impossible.
    """
    path = find_config("devices", name_or_path, suffixes=(".safetensors",))
    checkpoint = load_checkpoint(path)
    if checkpoint.kind != KIND:
        raise InputError(f"{path}: a {checkpoint.kind} file, not a device model")
    try:
        model = _model(checkpoint.tensors(), dict(checkpoint.metadata), default_name=path.stem)
        _check(model)
    except _FaultError as fault:
        raise InputError(f"{path}: {fault}") from None
    return model


def save_device(model: DeviceModel, path: str | Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write `model` as a safetensors file, whole or not at all, with `provenance` in its metadata.

    Raises InputError if it cannot be written there.
    """
    tensors = {key: getattr(model, key) for key in TENSORS}
    tensors |= {f"var_{order:03d}": matrix for order, matrix in model.var.items()}
    metadata = {"kind": KIND} | {key: getattr(model, key) for key in TEXTS}
    metadata |= {key: repr(getattr(model, key)) for key in SCALARS}
    metadata |= dict(provenance or {})
    save_checkpoint(path, {key: value.to(torch.float64) for key, value in tensors.items()}, metadata)


def summarise(model: DeviceModel) -> dict[str, Any]:
    """The numbers of `model` that people read, as plain values: all but the large matrices, of which the shapes."""
    large = {"mixture_cholesky": model.mixture_cholesky} | {f"var_{p:03d}": v for p, v in sorted(model.var.items())}
    return {
        "name": model.name,
        "source": model.source,
        "reference_volts": model.reference_volts,
        "reset_full_volts": model.reset_full_volts,
        "reset_exponent": model.reset_exponent,
        "llrs": model.llrs.tolist(),
        "hhrs": model.hhrs.tolist(),
        "features": ["HRS (log10 ohm)", "US (V)", "LRS (ohm)", "UR (V)"],
        "gamma": model.gamma.tolist(),
        "mixture_weights": model.mixture_weights.tolist(),
        "mixture_means": model.mixture_means.tolist(),
        "shapes": {key: list(value.shape) for key, value in large.items()},
    }


def summary_yaml(summary: Mapping[str, Any]) -> str:
    """A summary as YAML, vectors in one line."""
    return yaml.safe_dump(dict(summary), sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)


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
    return value.double()


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
