"""Search for the layer of a network that makes NaN or Inf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


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
    return all(torch.isfinite(tensor).all() for tensor in _tensors(values) if tensor.is_floating_point())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
