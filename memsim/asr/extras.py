"""Import of the packages that only the extras `lm` and `hf` install."""

from __future__ import annotations

import importlib
from typing import Any

from memsim.errors import InputError

_PACKAGES = {
    "flashlight": "flashlight-text (for Python 3.12 and older)",
    "whisper_normalizer": "whisper-normalizer",
}
"""Packages by the module that they install, where the names differ."""


def require(module: str, purpose: str, extra: str = "lm") -> Any:
    """Import and return `module`, which the extra `extra` installs.

    Raises InputError that says what to install for `purpose` when it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        raise InputError(f"{purpose}: needs the package {package}; pip install 'memsim[{extra}]' installs it") from None
