"""Keeping torch.compile out of what arrays compute."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

_REASON = "simulated arrays are read as they are, between compiled graphs; compile without fullgraph"

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """`function`, which torch.compile runs as it is, with a break of the graph before and after it.

    As by torch.compiler.disable, which would import the compiler (seconds) for everybody who never compiles.
    """
    disabled: Callable[..., Any] | None = None

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*arguments, **options)
        if disabled is None:
            disabled = torch.compiler.disable(function, reason=_REASON)
        return disabled(*arguments, **options)

    # by these marks torch's compiler knows the function before it is first called
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = _REASON  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
