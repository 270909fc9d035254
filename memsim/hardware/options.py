"""The hardware spec that the options of a command, or the arguments of a call, describe together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memsim.device.file import load_device, require_device
from memsim.device.interface import require_fits
from memsim.errors import InputError, naming
from memsim.hardware import HardwareSpec, apply_settings, load_hardware

Hardware = HardwareSpec | str | Path | Mapping[str, Any]
"""A spec, or what `load_hardware` takes: a name, a file or a mapping."""


def choose_hardware(
    hardware: Hardware | None,
    bits: int | None = None,
    cell: str | Path | None = None,
    settings: Sequence[str] | None = None,
) -> HardwareSpec:
    """Return the spec that the hardware options describe together.

    Args:
        hardware: the spec to start from; None is `physical`.
        bits: weight bits, in place of the spec's.
        cell: the device model of the cells, a name or a file, in place of the spec's.
        settings: changes of single keys, each a text like `adc.bits=6`.

    Raises:
        InputError: in one line that names the option, for a spec or a device that is missing or wrong.
    """
    if hardware == "":  # such as an unset variable of a script
        raise InputError("--hardware: the name is empty; leave it out, or name a spec")
    if hardware is None:
        hardware = "physical"
    return change_hardware(load_hardware(hardware), bits, cell, settings)


def change_hardware(
    spec: HardwareSpec, bits: int | None = None, cell: str | Path | None = None, settings: Sequence[str] | None = None
) -> HardwareSpec:
    """Return `spec` with `cell`, `settings` and `bits` applied, in this order. See `choose_hardware`."""
    for flag, value, key in (("--cell", cell, "cell"), ("--bits", bits, "weights.bits")):
        for setting in settings or () if value is not None else ():
            if setting.partition("=")[0].strip() == key:
                raise InputError(f"{flag} {value} --set {setting}: both name {key}; leave one out")
    if cell is not None:
        spec = spec.with_settings({"cell": json.dumps(str(cell))}, flag="--cell")
    spec = apply_settings(spec, settings or ())
    if spec.cell != "ideal":
        with naming("cell" if cell is None else "--cell"):
            require_device(spec.cell)  # a missing device is reported now, not after an hour
    if bits is not None:
        spec = spec.with_settings({"weights.bits": int(bits)}, flag="--bits {value}")
    if spec.cell != "ideal":
        for layer in (spec, *(spec.for_layer(override.match) for override in spec.overrides)):
            require_fits(load_device(spec.cell), layer)
            if isinstance(law := layer.programming.relaxation, str):
                with naming("programming.relaxation"):
                    require_device(law)
    return spec
