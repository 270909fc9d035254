"""Functions that torch.compile leaves as they are, for the reads of arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

_REASON = "simulated arrays run between compiled graphs, uncompiled; compile without fullgraph"

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Mark `function` so that torch.compile runs it uncompiled, with a break of the graph before and after it.

    This does what torch.compiler.disable does, which would take seconds to import the compiler in every process.
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

    # torch's compiler recognises the function by these marks before it is first called
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = _REASON  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
