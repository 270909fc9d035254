"""Which matrices a checkpoint holds, judged by the names and shapes of its tensors alone.

Names are those of torch's own layers. What they leave open (whether a convolution has groups, say) is not guessed:
such a tensor stays digital, and the reason says what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from memsim.nn.attention import PROJECTIONS
from memsim.nn.sources import WeightSource
from memsim.units import counted

_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|emb|lookup|relative_attention_bias)\b|position(?!_?wise)", re.IGNORECASE)
_RECURRENT = re.compile(r"(^|\.)weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_WEIGHT_NORM = re.compile(r"weight_[gv]$|parametrizations\.\w+\.original\d*$")
_TRANSPOSED = re.compile(r"transpose|deconv|(^|[._])ups?(\d|[._]|$)|upsampl", re.IGNORECASE)
_MOST_DIMENSIONS = 5  # of the weight of a nn.Conv3d

Shapes = Mapping[str, tuple[int, ...]]


def matrices_by_tensor(shapes: Shapes, integers: Collection[str] = ()) -> dict[str, dict[str, WeightSource] | str]:
    """For each tensor the matrices that it holds, by name, or why it is taken for none.

    `integers` names the tensors that hold whole numbers.
    """
    stored_transposed = frozenset(_ending(name) for name in shapes if _told_by_bias(name, shapes))
    return {name: _matrices_in(name, shapes, integers, stored_transposed) for name in shapes}


def _matrices_in(
    name: str, shapes: Shapes, integers: Collection[str], stored_transposed: Collection[str]
) -> dict[str, WeightSource] | str:
    shape = shapes[name]
    layer, _, kind = name.rpartition(".")
    if len(shape) < 2:
        return "norm, bias or scalar"
    if 0 in shape:
        return "empty"
    if _WEIGHT_NORM.search(name):
        return "part of a parametrised weight; store the weight itself (torch.nn.utils.parametrize)"
    if name in integers:
        return "whole numbers, whose scale is unknown"
    if len(shape) == 2 and _RECURRENT.search(name):
        return {name: WeightSource.of(name, shape)}
    if len(shape) == 2 and kind.startswith(("in_proj", *PROJECTIONS)) and f"{layer}.out_proj.weight" in shapes:
        return _projections(name, shapes)
    if not name.endswith(".weight"):
        return f"{len(shape)}-dimensional, but not named <layer>.weight"
    if _EMBEDDING.search(name):
        return "embedding table (by its name)"
    if (dimensions := len(shapes.get(f"{layer}.bias", (0,)))) != 1:
        return f"its bias has {dimensions} dimensions, as no layer's has that can be mapped"
    if len(shape) > 2:
        return _convolution(name, shapes)
    is_square = shape[0] == shape[1]
    if _told_by_bias(name, shapes) or (is_square and _ending(name) in stored_transposed):
        return {layer: WeightSource.transposed(name, shape)}
    return {layer: WeightSource.of(name, shape)}


def _projections(name: str, shapes: Shapes) -> dict[str, WeightSource] | str:
    """Those of nn.MultiheadAttention: `in_proj_weight`, or `q_proj_weight` and so on."""
    layer, _, kind = name.rpartition(".")
    shape = shapes[name]
    if kind == "in_proj_weight" and shape[0] == 3 * shape[1]:
        rows = [(part * shape[1], (part + 1) * shape[1]) for part in range(len(PROJECTIONS))]
        return {
            f"{layer}.{projection}": WeightSource.of(name, shape, rows=part)
            for projection, part in zip(PROJECTIONS, rows, strict=True)
        }
    if (projection := kind.removesuffix("_weight")) in PROJECTIONS:
        return {f"{layer}.{projection}": WeightSource.of(name, shape)}
    return f"{len(shape)}-dimensional, but not named <layer>.weight"


def _convolution(name: str, shapes: Shapes) -> dict[str, WeightSource] | str:
    """[out, in, *kernel] of an ungrouped convolution, or [in, out / groups, *kernel] of one that its bias shows to be
    transposed."""
    layer = name.rpartition(".")[0]
    shape, bias = shapes[name], shapes.get(f"{layer}.bias")
    first, second = shape[:2]
    if len(shape) > _MOST_DIMENSIONS:
        return f"{len(shape)}-dimensional: no convolution has so many"
    if bias is not None and bias != (first,):
        groups, rest = divmod(bias[0], second)
        if rest or not groups or first % groups:
            return f"its bias has {counted(bias[0], 'value')}, which fits no convolution of this shape"
        return {layer: WeightSource.transposed(name, shape, groups)}
    if _TRANSPOSED.search(layer):
        if bias is None or first != second:
            return "by its name a transposed convolution; its shape does not tell its groups"
        return {layer: WeightSource.transposed(name, shape)}
    if second == 1 and first > 1:
        return "one channel a filter: depthwise, or of one input channel, which the shape does not tell"
    return {layer: WeightSource.of(name, shape)}


def _told_by_bias(name: str, shapes: Shapes) -> bool:
    """Whether it is the weight of GPT-2's `Conv1D`, stored [in, out], as its bias tells if it is not square."""
    shape, bias = shapes[name], shapes.get(f"{name.removesuffix('.weight')}.bias")
    return len(shape) == 2 and shape[0] != shape[1] and bias == (shape[1],)


def _ending(name: str) -> str:
    """The last part of the layer's name: square weights are stored as those of other layers that end alike are, such as
    `attn.c_proj` and `mlp.c_proj`."""
    return name.removesuffix(".weight").rpartition(".")[2]
