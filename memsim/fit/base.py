"""The device of which a fit takes what was not measured."""

from __future__ import annotations

from pathlib import Path

from memsim.device import DeviceModel, load_device
from memsim.errors import InputError


def load_base(name_or_path: str | Path) -> DeviceModel:
    """Load the device that a fit of switching cycles starts from.

    Raises InputError where it is missing, damaged or of a kind without switching cycles.
    """
    base = load_device(name_or_path)
    if not isinstance(base, DeviceModel):
        raise InputError(f"--base {name_or_path}: has no switching cycles; choose a device of kind cycles: synaptogen")
    return base
