"""Gradient checkpointing: blocks whose activations are computed again in the backward pass, which saves memory.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from memsim.errors import InputError
from memsim.nn.layer_adapters import mappable_layers
from memsim.nn.rounding import QUANTISERS
from memsim.nn.transfer import HardwareTransfer


def blocks_of(network: nn.Module, name: str) -> list[nn.Module]:
    """Return the blocks of `network`: the members of several layers that its outermost lists of modules have.

    Raises InputError, in which the network is called `name`, where there are none.
    """
    found = list(_blocks(network, {id(layer.module) for layer in mappable_layers(network)}))
    if not found:
        raise InputError(
            f"gradient_checkpointing: {name} has no blocks (an nn.ModuleList of several layers each) that could be "
            "computed again; leave it out, and take a larger `accumulate` to save memory"
        )
    return found


def _blocks(module: nn.Module, layers: set[int]) -> Iterator[nn.Module]:
    for child in module.children():
        if id(child) in layers:
            continue
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if sum(id(part) in layers for part in block.modules()) > 1)
        else:
            yield from _blocks(child, layers)


@contextmanager
def computed_again(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let the forward passes within the context keep the inputs of `blocks` alone for the backward pass.

    That computes their activations again, with the same random numbers and to the same bits.
    """
    for block in blocks:
        contexts = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own is left


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """Return the contexts of the first and of the second computation of a block."""
    return nullcontext(), _observing_nothing(block)


@contextmanager
def _observing_nothing(block: nn.Module) -> Iterator[None]:
    """Keep what observes activations as the first computation left it."""
    with ExitStack() as stack:
        for module in block.modules():
            if module.training and isinstance(module, (*QUANTISERS, HardwareTransfer)):
                stack.callback(setattr, module, "training", module.training)
                module.training = False
            elif isinstance(module, _NormBase) and module.track_running_stats:
                stack.callback(setattr, module, "momentum", module.momentum)
                stack.callback(setattr, module, "num_batches_tracked", module.num_batches_tracked)
                module.momentum, module.num_batches_tracked = 0.0, None
        yield
