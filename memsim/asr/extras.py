"""Packages that only the extra `lm` installs."""

from __future__ import annotations

import importlib
from typing import Any

from memsim.errors import InputError

_PACKAGES = {"flashlight": "flashlight-text (which is there for Python 3.12 and older)"}
"""By the modules that they install, where the names differ."""


def require(module: str, purpose: str) -> Any:
    """The imported `module`. Raises InputError, saying what is to be installed for `purpose`, where there is none."""
    try:
        return importlib.import_module(module)
    except ImportError:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        raise InputError(f"{purpose}: needs the package {package}; pip install 'memsim[lm]' installs it") from None
