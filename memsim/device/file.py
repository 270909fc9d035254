"""Files of device models, with tensors by name, and scalars and provenance in the metadata.

A mapped checkpoint carries the device model of its cells, unless it is a shipped one, under a name that contains the
hash of its content. `embedded` packs the model, and `adopt` makes `load_device` find it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from memsim.config.json_input import parse_json_object
from memsim.config.resources import configs_root, find_config
from memsim.device.model import DeviceModel, companion
from memsim.errors import InputError
from memsim.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

KIND = "device"
TEXTS = ("name", "source", "licence")
SCALARS = ("reference_volts", "reset_full_volts", "reset_exponent")
EMBEDDED = "device/"
"""Prefix of the tensors of an embedded device model; its metadata is JSON under `embedded_device`."""
TENSORS = ("llrs", "hhrs", "gamma", "mixture_weights", "mixture_means", "mixture_cholesky")  # and var_001, var_002, ...
OPTIONAL_TENSORS = ("limits", "failures")
LRS_SCALE = "lrs_scale"
"""Metadata of a model whose LRS is in `log10` ohm; others have none."""


def load_device(name_or_path: str | Path) -> DeviceModel:
    """Load the device model in a safetensors file, or the shipped one of that name; tensors are float64.

    >>> load_device("synaptogen").reference_volts
    0.2

    Raises InputError, in one line, for a file that is missing, damaged, of another kind or physically impossible.
    """
    if (name := str(name_or_path)) in _adopted:
        return _adopted[name]
    path = find_device(name_or_path)
    checkpoint = load_checkpoint(path)
    if checkpoint.kind != KIND:
        raise InputError(f"{path}: a {checkpoint.kind} file, not a device model")
    return _checked(checkpoint.tensors(), dict(checkpoint.metadata), str(path), default_name=path.stem)


@lru_cache(maxsize=16)
def load_device_on(name: str, device: torch.device) -> DeviceModel:
    """Load the device model `name` as `load_device` does, with its tensors on `device`; loaded once."""
    return load_device(name).to(device)


def require_device(name_or_path: str | Path) -> None:
    """Raise InputError where there is no device model of that name and no such file."""
    if str(name_or_path) not in _adopted:
        find_device(name_or_path)


def find_device(name_or_path: str | Path) -> Path:
    """Return the file of a device model. Raises InputError, which names the shipped models, where there is none."""
    return find_config("devices", name_or_path, suffixes=(".safetensors",))


_adopted: dict[str, DeviceModel] = {}  # by a name that contains the hash of the content


def embedded(name_or_path: str | Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Return the name, tensors and metadata that embed a device model in a file; a shipped one needs its name only."""
    name = str(name_or_path)
    if name not in _adopted and find_device(name).parent == configs_root() / "devices":
        return name, {}, {}
    tensors, metadata = _stored(load_device(name))
    own_name = _content_name(tensors, metadata)
    packed = {f"{EMBEDDED}{key}": tensor for key, tensor in tensors.items()}
    return own_name, packed, {"embedded_device": json.dumps({"cell": own_name} | metadata)}


def adopt(checkpoint: Checkpoint) -> None:
    """Make the device model that `checkpoint` carries, if any, available to `load_device`.

    Raises InputError where it is damaged.
    """
    if "embedded_device" not in checkpoint.metadata:
        return
    tensors = checkpoint.tensors(name for name in checkpoint.names if name.startswith(EMBEDDED))
    tensors = {key.removeprefix(EMBEDDED): tensor for key, tensor in tensors.items()}
    where = f"{checkpoint.path}: its device model"
    damaged = InputError(f"{where} is damaged; map the checkpoint again")
    try:
        metadata = parse_json_object(checkpoint.metadata["embedded_device"], where)
    except InputError:
        raise damaged from None
    name = metadata.pop("cell", "")
    texts = [*metadata, *metadata.values()]
    is_text = "name" in metadata and all(isinstance(text, str) for text in texts)
    if not is_text or name != _content_name(tensors, metadata):
        raise damaged
    _adopted[name] = _checked(tensors, metadata, where, default_name=name)


def _content_name(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(sorted(metadata.items()))).encode())
    for key in sorted(tensors):
        digest.update(f"{key}{list(tensors[key].shape)}".encode())
        digest.update(tensors[key].contiguous().numpy().tobytes())
    return f"{metadata['name']}@{digest.hexdigest()[:16]}"


def save_device(model: DeviceModel, path: str | Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write `model` as a safetensors file, whole or not at all, with `provenance` in its metadata.

    Raises InputError where it cannot be written.
    """
    tensors, metadata = _stored(model)
    save_checkpoint(path, tensors, {"kind": KIND} | metadata | dict(provenance or {}))


def _stored(model: DeviceModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {key: getattr(model, key) for key in TENSORS}
    tensors |= {key: value for key in OPTIONAL_TENSORS if (value := getattr(model, key)) is not None}
    tensors |= {f"var_{order:03d}": matrix for order, matrix in model.var.items()}
    metadata = {key: getattr(model, key) for key in TEXTS} | {key: repr(getattr(model, key)) for key in SCALARS}
    metadata |= {LRS_SCALE: "log10"} if model.lrs_is_log10 else {}
    return {key: value.to("cpu", torch.float64) for key, value in tensors.items()}, metadata


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


def _checked(tensors: dict[str, Tensor], metadata: dict[str, str], where: str, default_name: str) -> DeviceModel:
    """Return the model. Raises InputError, which names `where`, for what is missing or physically impossible."""
    try:
        model = _model(tensors, metadata, default_name)
        _check(model)
    except _FaultError as fault:
        raise InputError(f"{where}: {fault}") from None
    return model


def _model(tensors: dict[str, Tensor], metadata: dict[str, str], default_name: str) -> DeviceModel:
    """Return the model after a check of shapes and scalars. Raises _FaultError."""
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
        for key, tensor in _stored(model)[0].items():
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
