"""Which matrices a checkpoint holds, judged by the names and shapes of its tensors alone.

Names are those of torch's own layers. What they leave open (whether a convolution has groups, say) is not guessed:
such a tensor stays digital, and the reason says what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from memsim.nn.attention import PROJECTIONS
from memsim.nn.sources import WeightSource
from memsim.units import counted

_EMBEDDING = re.compile(
    r"embed|(^|\.)(wte|wpe|emb|lookup|shared|relative_attention_bias)\b|position(?!_?wise)", re.IGNORECASE
)
_NO_TOKENS = re.compile(
    r"position|type|relative|distance|speaker|wpe", re.IGNORECASE
)  # tables that no output is tied to
_RECURRENT = re.compile(r"(^|\.)weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_WEIGHT_NORM = re.compile(r"weight_[gv]$|parametrizations\.\w+\.original\d*$")
_TRANSPOSED = re.compile(r"transpose|deconv|(^|[._])ups?(\d|[._]|$)|upsampl", re.IGNORECASE)
_DEPTHWISE = re.compile(r"(^|\.)(\w*_)?(depth_?wise|dw|depth)(_?conv([123]d)?)?\d*(\.|$)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_OF_EXPERTS = re.compile(r"(^|[._])(experts?|\w*moe)$")
_DOWN = re.compile(r"(^|[._])(down|output|wo|w2)", re.IGNORECASE)
_ROUTER = re.compile(r"(^|\.)(gate|router|router\.layer|gate\.wg)$")
_MOST_DIMENSIONS = 5  # of the weight of a nn.Conv3d

Shapes = Mapping[str, tuple[int, ...]]


def matrices_by_tensor(shapes: Shapes, integers: Collection[str] = ()) -> dict[str, dict[str, WeightSource] | str]:
    """For each tensor the matrices that it holds, by name, or why it is taken for none.

    `integers` names the tensors that hold whole numbers.
    """
    stored_transposed = frozenset(_ending(name) for name in shapes if _told_by_bias(name, shapes))
    found = {name: _matrices_in(name, shapes, integers, stored_transposed) for name in shapes}
    return found | _experts(shapes, integers)


def tables_perhaps_tied(shapes: Shapes) -> list[str]:
    """The tables of tokens that an output layer may share, since the file has no layer of as many outputs."""
    outputs = {shape[0] for name, shape in shapes.items() if len(shape) > 1 and not _is_table(name, shapes)}
    return [
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and _is_table(name, shapes) and not _NO_TOKENS.search(name) and shape[0] not in outputs
    ]


def _is_table(name: str, shapes: Shapes) -> bool:
    """Whether it is that of an nn.Embedding, by its name: a matrix without a bias."""
    layer = name.removesuffix(".weight")
    is_matrix = layer != name and len(shapes[name]) == 2 and f"{layer}.bias" not in shapes
    return is_matrix and _EMBEDDING.search(name) is not None


def _experts(shapes: Shapes, integers: Collection[str]) -> dict[str, dict[str, WeightSource] | str]:
    """The matrices of tensors [experts, ...] of one module, or why there are none, also of the routers beside them.

    How they lie, [out, in] or [in, out], is what their shapes have in common, or their biases'.
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name, shape in shapes.items():
        owner = name.removesuffix(".weight").rpartition(".")[0]
        if len(shape) == 3 and 0 not in shape and name not in integers and _OF_EXPERTS.search(owner):
            groups.setdefault((owner, shape[0]), []).append(name)
    found: dict[str, dict[str, WeightSource] | str] = {}
    for (_, count), names in groups.items():
        ways = [turned for turned in (False, True) if _lie(names, shapes, turned)]
        for name in names:
            if len(ways) != 1:
                found[name] = "experts' weights, of which the shapes do not tell [out, in] from [in, out]"
                continue
            make = WeightSource.transposed if ways[0] else WeightSource.of
            source, layer = make(name, shapes[name][1:]), name.removesuffix(".weight")
            found[name] = {f"{layer}.{index}": replace(source, index=index) for index in range(count)}
    counts = dict(groups.keys())
    counts |= {owner: len(members) for owner, members in _listed_experts(shapes).items()}
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight")
        if len(shape) == 2 and layer != name and (match := _ROUTER.search(layer)):
            block = layer[: match.start()]
            if shape[0] in (counts.get(block), counts.get(f"{block}.experts")):
                found[name] = "router of experts, which is computed past layers"
    return found


def _listed_experts(shapes: Shapes) -> dict[str, set[str]]:
    """The numbers of experts that are modules of their own, `<block>.experts.<number>`, by `<block>.experts`."""
    listed: dict[str, set[str]] = {}
    for name in shapes:
        owner, found, rest = name.partition(".experts.")
        if found and (number := rest.partition(".")[0]).isdecimal():
            listed.setdefault(f"{owner}.experts", set()).add(number)
    return listed


def _lie(names: Collection[str], shapes: Shapes, turned: bool) -> bool:
    """Whether the tensors fit together as experts' weights that are stored [out, in], or `turned` [in, out]."""
    sizes = {name: shapes[name][1:][::-1] if turned else shapes[name][1:] for name in names}
    for name, (outputs, _) in sizes.items():
        bias = shapes.get(f"{name}_bias", shapes.get(f"{name.removesuffix('.weight')}.bias"))
        if bias is not None and bias[-1] != outputs:
            return False
    down = [name for name in names if _DOWN.search(name.removesuffix(".weight").rpartition(".")[2])]
    if len(down) != 1:
        return False
    hidden, inner = sizes[down[0]]
    return all(sizes[name] in ((inner, hidden), (2 * inner, hidden)) for name in names if name != down[0])


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
    if _is_table(name, shapes):
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
        before, after = _beside(layer, shapes)
        if _DEPTHWISE.search(layer) or (before is not None and before[0] == first):
            return {layer: WeightSource.of(name, shape, first)}
        if before is None and after is not None and after[1] == first and max(after[2:]) > 1:
            return {layer: WeightSource.of(name, shape)}
        return "one channel a filter: depthwise, or of one input channel, which the shape does not tell"
    return {layer: WeightSource.of(name, shape)}


def _beside(layer: str, shapes: Shapes) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The weights of the convolutions before and after `layer` among those whose names differ in their last number."""
    numbers = list(_NUMBER.finditer(layer))
    if not numbers:
        return None, None
    number = numbers[-1]
    pattern = re.compile(f"{re.escape(layer[: number.start()])}(\\d+){re.escape(layer[number.end() :])}\\.weight")
    found = {int(match[1]): shapes[name] for name in shapes if (match := pattern.fullmatch(name))}
    found = {place: shape for place, shape in found.items() if len(shape) > 2}
    own = int(number[0])
    before = max((place for place in found if place < own), default=None)
    after = min((place for place in found if place > own), default=None)
    return (None if before is None else found[before]), (None if after is None else found[after])


def _told_by_bias(name: str, shapes: Shapes) -> bool:
    """Whether it is the weight of GPT-2's `Conv1D`, stored [in, out], as its bias tells if it is not square."""
    shape, bias = shapes[name], shapes.get(f"{name.removesuffix('.weight')}.bias")
    return len(shape) == 2 and shape[0] != shape[1] and bias == (shape[1],)


def _ending(name: str) -> str:
    """The last part of the layer's name: square weights are stored as those of other layers that end alike are, such as
    `attn.c_proj` and `mlp.c_proj`."""
    return name.removesuffix(".weight").rpartition(".")[2]
