"""The matrices in a checkpoint, judged by the names and shapes of its tensors alone.

The names are those of torch's own layers. Where they leave something open, such as the groups of a convolution, it is
not guessed: the tensor stays digital, and the reason names the missing fact.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from memsim.nn.attention import PROJECTIONS, projection_rows
from memsim.nn.sources import WeightSource
from memsim.units import counted

_EMBEDDING = re.compile(
    r"embed|(^|\.)(wte|wpe|emb|lookup|shared|relative_attention_bias)\b|position(?!_?wise)", re.IGNORECASE
)
_NO_TOKENS = re.compile(
    r"position|type|relative|distance|speaker|wpe", re.IGNORECASE
)  # tables that are never tied to an output layer
_RECURRENT = re.compile(r"(^|\.)weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_WEIGHT_NORM = re.compile(r"weight_[gv]$|parametrizations\.\w+\.original\d*$")
_TRANSPOSED = re.compile(r"transpose|deconv|(^|[._])ups?(\d|[._]|$)|upsampl", re.IGNORECASE)
_DEPTHWISE = re.compile(r"(^|\.)(\w*_)?(depth_?wise|dw|depth)(_?conv([123]d)?)?\d*(\.|$)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_OF_EXPERTS = re.compile(r"(^|[._])(experts?|\w*moe)$")
_DOWN = re.compile(r"(^|[._])(down|output|wo|w2)", re.IGNORECASE)
_ROUTER = re.compile(r"(^|\.)(gate|router|router\.layer|gate\.wg)$")
_MOST_DIMENSIONS = 5  # an nn.Conv3d's weight has as many

Shapes = Mapping[str, tuple[int, ...]]


def matrices_by_tensor(shapes: Shapes, integers: Collection[str] = ()) -> dict[str, dict[str, WeightSource] | str]:
    """Return the matrices that each tensor holds, by name, or the reason why it holds none, by the tensor's name.

    `integers` holds the names of the tensors of whole numbers.
    """
    stored_transposed = frozenset(_ending(name) for name in shapes if _told_by_bias(name, shapes))
    found = {name: _matrices_in(name, shapes, integers, stored_transposed) for name in shapes}
    return found | _experts(shapes, integers)


def tables_perhaps_tied(shapes: Shapes) -> list[str]:
    """Return the tables of tokens that an output layer may share: the file has no layer with as many outputs."""
    outputs = {shape[0] for name, shape in shapes.items() if len(shape) > 1 and not _is_table(name, shapes)}
    return [
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and _is_table(name, shapes) and not _NO_TOKENS.search(name) and shape[0] not in outputs
    ]


def _is_table(name: str, shapes: Shapes) -> bool:
    """Whether the tensor is the table of an nn.Embedding: a matrix without a bias, with the name of one."""
    layer = name.removesuffix(".weight")
    is_matrix = layer != name and len(shapes[name]) == 2 and f"{layer}.bias" not in shapes
    return is_matrix and _EMBEDDING.search(name) is not None


def _experts(shapes: Shapes, integers: Collection[str]) -> dict[str, dict[str, WeightSource] | str]:
    """Return the matrices in tensors [experts, ...], or why there are none; also why routers beside them are none.

    The shapes of a module's tensors and of their biases together tell [out, in] from [in, out].
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name, shape in shapes.items():
        owner = name.removesuffix(".weight").rpartition(".")[0]
        if len(shape) == 3 and 0 not in shape and name not in integers and _OF_EXPERTS.search(owner):
            groups.setdefault((owner, shape[0]), []).append(name)
    found: dict[str, dict[str, WeightSource] | str] = {}
    for (_, count), names in groups.items():
        ways = [is_turned for is_turned in (False, True) if _fit_together(names, shapes, is_turned)]
        for name in names:
            if len(ways) != 1:
                found[name] = "experts' weights, whose shapes do not tell [out, in] from [in, out]"
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
                found[name] = "router of experts, which is not computed by a layer"
    return found


def _listed_experts(shapes: Shapes) -> dict[str, set[str]]:
    """Return the numbers of the experts that are modules, `<block>.experts.<number>`, by `<block>.experts`."""
    listed: dict[str, set[str]] = {}
    for name in shapes:
        owner, found, rest = name.partition(".experts.")
        if found and (number := rest.partition(".")[0]).isdecimal():
            listed.setdefault(f"{owner}.experts", set()).add(number)
    return listed


def _fit_together(names: Collection[str], shapes: Shapes, is_turned: bool) -> bool:
    """Whether the tensors fit together as experts' weights that are stored [out, in], or [in, out] if `is_turned`."""
    sizes = {name: shapes[name][1:][::-1] if is_turned else shapes[name][1:] for name in names}
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
        return f"its bias has {dimensions} dimensions, which no layer that can be mapped has"
    if len(shape) > 2:
        return _convolution(name, shapes)
    is_square = shape[0] == shape[1]
    if _told_by_bias(name, shapes) or (is_square and _ending(name) in stored_transposed):
        return {layer: WeightSource.transposed(name, shape)}
    return {layer: WeightSource.of(name, shape)}


def _projections(name: str, shapes: Shapes) -> dict[str, WeightSource] | str:
    """Return the projections of nn.MultiheadAttention in `in_proj_weight`, or in `q_proj_weight` and so on."""
    layer, _, kind = name.rpartition(".")
    shape = shapes[name]
    if kind == "in_proj_weight" and shape[0] == 3 * shape[1]:
        return {f"{layer}.{part}": WeightSource.of(name, shape, rows=rows) for part, rows in projection_rows(shape[1])}
    if (projection := kind.removesuffix("_weight")) in PROJECTIONS:
        return {f"{layer}.{projection}": WeightSource.of(name, shape)}
    return f"{len(shape)}-dimensional, but not named <layer>.weight"


def _convolution(name: str, shapes: Shapes) -> dict[str, WeightSource] | str:
    """Return the matrix of a convolution [out, in, *kernel] without groups, or why its shape does not tell.

    A bias of another length shows a transposed convolution [in, out / groups, *kernel].
    """
    layer = name.rpartition(".")[0]
    shape, bias = shapes[name], shapes.get(f"{layer}.bias")
    first, second = shape[:2]
    if len(shape) > _MOST_DIMENSIONS:
        return f"{len(shape)}-dimensional: no convolution has so many dimensions"
    if bias is not None and bias != (first,):
        groups, rest = divmod(bias[0], second)
        if rest or not groups or first % groups:
            return f"its bias has {counted(bias[0], 'value')}, which fits no convolution of this shape"
        return {layer: WeightSource.transposed(name, shape, groups)}
    if _TRANSPOSED.search(layer):
        if bias is None or first != second:
            return "a transposed convolution by its name; its shape does not tell the groups"
        return {layer: WeightSource.transposed(name, shape)}
    if second == 1 and first > 1:
        before, after = _beside(layer, shapes)
        if _DEPTHWISE.search(layer) or (before is not None and before[0] == first):
            return {layer: WeightSource.of(name, shape, first)}
        if before is None and after is not None and after[1] == first and max(after[2:]) > 1:
            return {layer: WeightSource.of(name, shape)}
        return "one channel a filter: depthwise, or with one input channel, which the shape does not tell"
    return {layer: WeightSource.of(name, shape)}


def _beside(layer: str, shapes: Shapes) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return the shapes of the convolutions before and after `layer`, whose names differ in the last number."""
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
    """Whether the bias shows the weight of GPT-2's `Conv1D`, stored [in, out]; it cannot if the weight is square."""
    shape, bias = shapes[name], shapes.get(f"{name.removesuffix('.weight')}.bias")
    return len(shape) == 2 and shape[0] != shape[1] and bias == (shape[1],)


def _ending(name: str) -> str:
    """Return the last part of the layer's name.

    Square weights are stored as those of other layers with the same ending, such as `attn.c_proj` and `mlp.c_proj`.
    """
    return name.removesuffix(".weight").rpartition(".")[2]
