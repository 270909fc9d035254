"""Files of devices of kind `cycles`: tensors by name, and scalars and provenance in the metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from memsim.device.cycles.device import CyclesDevice
from memsim.device.cycles.model import LRS_SCALE, OPTIONAL_TENSORS, SCALARS, DeviceModel, companion
from memsim.errors import InputError
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint

KIND = "device"


def read(path: Path) -> CyclesDevice:
    """Read the device model in a safetensors file; tensors are float64.

    Raises InputError, in one line, for a file that is damaged, of another kind or physically impossible.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.kind != KIND:
        raise InputError(f"{path}: a {checkpoint.kind} file, not a device model")
    return from_stored(checkpoint.tensors(), dict(checkpoint.metadata), str(path), default_name=path.stem)


def save_device(model: DeviceModel, path: str | Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write `model` as a safetensors file, whole or not at all, with `provenance` in its metadata.

    Raises InputError where it cannot be written.
    """
    tensors, metadata = model.stored()
    save_checkpoint(path, tensors, {"kind": KIND} | metadata | dict(provenance or {}))


def summarise(model: DeviceModel) -> dict[str, Any]:
    """Return the values of `model` for people to read, and the shapes of its large matrices."""
    large = {"mixture_cholesky": model.mixture_cholesky} | {f"var_{p:03d}": v for p, v in sorted(model.var.items())}
    return {
        **{key: getattr(model, key) for key in ("name", "source", *SCALARS)},
        "llrs": model.llrs.tolist(),
        "hhrs": model.hhrs.tolist(),
        "features": ["HRS (log10 ohm)", "US (V)", f"LRS ({'log10 ' if model.lrs_is_log10 else ''}ohm)", "UR (V)"],
        **{key: value.tolist() for key in OPTIONAL_TENSORS if (value := getattr(model, key)) is not None},
        "gamma": model.gamma.tolist(),
        "mixture_weights": model.mixture_weights.tolist(),
        "mixture_means": model.mixture_means.tolist(),
        "shapes": {key: list(value.shape) for key, value in large.items()},
    }


def summary_yaml(summary: Mapping[str, Any]) -> str:
    """Format a summary as YAML, each vector on one line."""
    return yaml.safe_dump(dict(summary), sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)


class _FaultError(Exception):
    """A fault of a device file, which names the key, what is wrong and what would be right."""


def from_stored(tensors: dict[str, Tensor], metadata: dict[str, str], where: str, default_name: str) -> CyclesDevice:
    """Return the model that `stored` gave.

    Raises InputError, which names `where`, for what is missing or physically impossible.
    """
    try:
        model = _model(tensors, metadata, default_name)
        _check(model)
    except _FaultError as fault:
        raise InputError(f"{where}: {fault}") from None
    return model


def _model(tensors: dict[str, Tensor], metadata: dict[str, str], default_name: str) -> CyclesDevice:
    """Return the model after a check of shapes and scalars. Raises _FaultError."""
    weights = _tensor(tensors, "mixture_weights", None)
    components = len(weights)
    stored = [int(key[4:]) for key in tensors if key.startswith("var_") and key[4:].isdecimal()]
    orders = range(1, max([1, *stored]) + 1)
    return CyclesDevice(
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
        lrs_is_log10=_is_log10(metadata),
        limits=_tensor(tensors, "limits", 4, 2) if "limits" in tensors else None,
        failures=_tensor(tensors, "failures", 2, None) if "failures" in tensors else None,
        source=metadata.get("source", ""),
        licence=metadata.get("licence", ""),
    )


def _is_log10(metadata: dict[str, str]) -> bool:
    scale = metadata.get(LRS_SCALE)
    if scale not in (None, "log10"):
        raise _FaultError(f"{LRS_SCALE} (metadata) is {scale}; it must be log10, or missing for ohm")
    return scale == "log10"


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
    """Return the tensor `key` of `shape` (None: any length but 0) as float64. Raises _FaultError."""
    wanted = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
    if key not in tensors:
        raise _FaultError(f"{key} is missing; it must be a tensor of shape {wanted}")
    value = tensors[key]
    if value.dim() != len(shape) or any(n == 0 or m not in (None, n) for n, m in zip(value.shape, shape, strict=True)):
        raise _FaultError(f"{key} has shape {list(value.shape)}; it must be {wanted}")
    if not value.is_floating_point():
        raise _FaultError(f"{key} holds {value.dtype}; it must hold floating-point numbers")
    return value.double()


def require_possible(model: DeviceModel, where: str) -> None:
    """Raise InputError, which names `where`, for a model whose file `load_device` would refuse."""
    try:
        for key, tensor in model.stored()[0].items():
            if not tensor.isfinite().all():
                raise _FaultError(f"{key} holds numbers that are not finite")
        _check(model)
    except _FaultError as fault:
        raise InputError(f"{where}: {fault}") from None


def _check(model: DeviceModel) -> None:
    """Check the physics of `model`, which shapes do not show. Raises _FaultError."""
    if model.limits is not None and not (model.limits[:, 0] < model.limits[:, 1]).all():
        raise _FaultError(f"limits are {model.limits.tolist()}; the first of each feature must be below the second")
    if model.failures is not None:
        share, quantiles = model.failures[:, 0], model.failures[:, 1:]
        if not ((share >= 0) & (share < 1)).all():
            raise _FaultError(f"failures have shares of {share.tolist()}; they must be at least 0 and below 1")
        if quantiles.shape[1] < 2 or not (quantiles.isfinite().all() and (quantiles.diff(dim=1) >= 0).all()):
            raise _FaultError("failures must have at least two quantiles of log10 ohm that do not fall")
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
