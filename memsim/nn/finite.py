"""Search for the layer of a network that makes NaN or Inf."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """Return the name of the first module of `model` whose inputs are finite and whose output holds NaN or Inf.

    `run` calls the model. The model's own name is "the network"; None where there is no such module.
    """
    found: list[str] = []
    hooks = [
        module.register_forward_hook(partial(_note, found, name or "the network"))
        for name, module in model.named_modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _note(found: list[str], name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if not found and not _are_finite(output) and _are_finite(inputs):
        found.append(name)


def _are_finite(values: Any) -> bool:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return all(torch.isfinite(tensor).all() for tensor in tensors)
