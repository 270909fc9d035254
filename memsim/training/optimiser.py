"""Optimiser of a recipe, and moving average of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from memsim.training.hooks import ParameterGroup
from memsim.training.recipe import TrainConfig


def make_optimiser(model: nn.Module, groups: Sequence[ParameterGroup], config: TrainConfig) -> torch.optim.Optimizer:
    """Make the recipe's optimiser over `groups`. Raises ValueError unless they hold each trained parameter once."""
    times = Counter(id(parameter) for group in groups for parameter in group.parameters)
    wrong = [name for name, p in model.named_parameters() if times[id(p)] != int(p.requires_grad)]
    if wrong:
        raise ValueError(f"parameter groups hold {wrong[0]} {times[id(model.get_parameter(wrong[0]))]} times")
    names = ("weight_decay", "rate_scale", "follows_size")
    settings: list[dict[str, Any]] = [
        {"params": list(group.parameters)} | {name: getattr(group, name) for name in names} for group in groups
    ]
    first_rate = config.learning_rate[0][1]
    if config.optimiser == "radam":
        return torch.optim.RAdam(settings, lr=first_rate, decoupled_weight_decay=True)
    return torch.optim.AdamW(settings, lr=first_rate, betas=(0.9, 0.98))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate to `rate` times its own scale, and times its parameter's mean where it follows that."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_scale"]
        if group["follows_size"]:
            group["lr"] *= float(group["params"][0].detach().mean().clamp_min(0))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of `model`'s parameters; its buffers are copied.

    The decay grows from near 0 to `decay`, so that the first steps soon lose weight.
    """

    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=update)
