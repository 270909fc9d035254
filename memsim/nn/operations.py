"""A count of the operations of a network beside the matrices of its layers, in the order in which they first run.

    with counting_operations(model) as steps:
        model(x)

Steps are `LayerStep`s (a layer with matrices ran) and `OperationStep`s (other operations, by module). The products of a
layer with its matrices are not counted here: their number is that of its input vectors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memsim.crossbar.matrix import MappedMatrix
from memsim.nn.attention import MappedAttention, QuantisedAttention
from memsim.nn.chip import ChipMapping
from memsim.nn.layer_adapters import mappable_layers
from memsim.nn.sources import WeightSource


@dataclass
class LayerStep:
    """A layer with matrices, whose `sources` go by their names, and the number of times that it was called."""

    name: str
    sources: Mapping[str, WeightSource]
    calls: int = 0

    def is_recurrent(self, matrix: str) -> bool:
        """Whether the next input of `matrix` depends on its last output."""
        return "weight_hh" in self.sources[matrix].tensor


@dataclass
class OperationStep:
    """Operations of one module: products of activations, special functions, and element-wise operations.

    `macs` are multiplications with an addition. `over_time` tells products of activations (attention) from the rest.
    """

    name: str
    over_time: bool
    calls: int = 0
    macs: float = 0.0
    special: float = 0.0
    elementwise: float = 0.0


Step = LayerStep | OperationStep

OUTSIDE = "front end and decoder"
"""The name of operations outside of the network."""

_ATTENTIONS = (nn.MultiheadAttention, MappedAttention, QuantisedAttention)
"""The layers that have products of activations beside those with their matrices."""

_SPECIAL = {
    "exp", "exp2", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "silu", "gelu",
    "erf", "softplus", "mish", "pow", "reciprocal", "div", "elu", "log_sigmoid_forward", "glu",
}  # fmt: skip
"""Operations that take a special function for each element of their output."""

_OTHER_OUTPUTS = ("argmax", "max", "_fft_r2c")
"""Operations that are counted although their output is none of real numbers."""

_OF_INPUT = {"mean": 1, "sum": 1, "var": 3, "amax": 1, "max": 1, "argmax": 1, "cumsum": 1, "linalg_vector_norm": 2}
"""Element-wise operations for each element of the input, of operations that reduce it."""

_MOVES = {
    "clone", "copy_", "_to_copy", "cat", "stack", "constant_pad_nd", "index", "index_select", "gather", "embedding",
    "fill", "fill_", "zeros", "zeros_like", "ones", "ones_like", "empty", "empty_like", "new_zeros", "new_ones",
    "new_empty", "full", "full_like", "scalar_tensor", "arange", "lift_fresh", "_local_scalar_dense", "masked_select",
    "nonzero", "where", "slice_scatter", "select_scatter", "native_dropout", "scatter", "index_put", "index_put_",
}  # fmt: skip
"""Operations that move or make values."""


def _layers_of(model: nn.Module) -> dict[nn.Module, LayerStep]:
    """Return the layers of `model` with matrices, mapped or not."""
    found = {
        layer.module: LayerStep(layer.title, {name: layer.sources[local] for local, name in layer.matrices.items()})
        for layer in mappable_layers(model)
    }
    mapping = getattr(model, "mapping", None)
    if isinstance(mapping, ChipMapping):
        sources = {layer.name: layer.source for layer in mapping.plan.mapped}
        on_arrays: dict[str, dict[str, WeightSource]] = {}
        for name, module in model.named_modules():
            if isinstance(module, MappedMatrix):
                on_arrays.setdefault(name.rpartition(".")[0], {})[module.name] = sources[module.name]
        found |= {model.get_submodule(parent): LayerStep(parent, own) for parent, own in on_arrays.items()}
    return found


class _Counter(TorchDispatchMode):
    def __init__(self, weights: set[int]) -> None:
        """Count; `weights` are the addresses of the network's parameters."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = weights
        self.steps: dict[tuple[str, str], Step] = {}
        self.calls: Counter[str] = Counter()
        self.modules: list[str] = []  # names of the modules that run now, from the network inwards
        self.muted = 0  # the number of those of them that compute products with matrices and nothing besides
        self.attentions = 0  # the number of those of them that have matrices and attend, too

    def enter(self, name: str, module: nn.Module, layer: LayerStep | None) -> None:
        self.modules.append(name)
        self.calls[name] += 1
        if layer is not None:
            self.steps.setdefault((name, "layer"), layer)
            layer.calls += 1
        self._change(module, layer, 1)

    def leave(self, module: nn.Module, layer: LayerStep | None) -> None:
        self.modules.pop()
        self._change(module, layer, -1)

    def _change(self, module: nn.Module, layer: LayerStep | None, by: int) -> None:
        attends = isinstance(module, _ATTENTIONS)
        self.attentions += by * attends
        self.muted += by * (isinstance(module, MappedMatrix) or (layer is not None and not attends))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            decomposed = func.decompose(*args, **kwargs)  # in inference mode linear and matmul arrive whole
        if decomposed is not NotImplemented:
            return decomposed
        out = func(*args, **kwargs)
        self._count(func._overloadpacket.__name__, args, out)
        return out

    def _count(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if not outputs or not (outputs[0].is_floating_point() or name in _OTHER_OUTPUTS):
            return
        macs, special, elementwise, over_time = _operations(name, inputs, outputs[0])
        over_time = over_time and not any(_address(x) in self._weights for x in inputs)  # one factor may be a weight
        if self.muted or (self.attentions and not over_time):
            return  # a product with a matrix, what belongs to it, or a quantiser that stands for a converter
        if macs or special or elementwise:
            key = self.modules[-1] if self.modules else OUTSIDE
            over_time = over_time and bool(self.modules)
            step = self.steps.setdefault((key, f"operations {over_time}"), OperationStep(key, over_time))
            assert isinstance(step, OperationStep)
            step.macs += macs
            step.special += special
            step.elementwise += elementwise


def _address(x: Tensor) -> int:
    """Return the place of a tensor's values, which its views share."""
    return x.untyped_storage().data_ptr()


def _operations(name: str, inputs: Sequence[Tensor], out: Tensor) -> tuple[float, float, float, bool]:
    """Return macs, special functions and element-wise operations of an operation, and whether it is attention."""
    size = float(out.numel())
    if name in ("bmm", "baddbmm"):
        return size * inputs[-2].shape[-1], 0.0, 0.0, True
    if name.startswith("_scaled_dot_product"):
        query, key, value = inputs[:3]
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        return float(scores * (query.shape[-1] + value.shape[-1])), float(scores), 4.0 * scores, True
    if name in ("mm", "addmm"):
        return size * inputs[-2].shape[-1], 0.0, 0.0, False
    if name in ("convolution", "_convolution", "mkldnn_convolution"):
        weight = inputs[1]
        return size * math.prod(weight.shape[1:]), 0.0, 0.0, False
    if name in ("_softmax", "_safe_softmax", "_log_softmax"):
        return 0.0, size, 4 * size, False
    if name in ("native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm"):
        return 0.0, size / max(1, out.shape[-1]), 6 * size, False
    if name.startswith("_fft_r2c"):
        length = inputs[0].shape[-1]
        return 0.0, 0.0, inputs[0].numel() * 2.5 * math.log2(max(2, length)), False
    if name in _OF_INPUT:
        return 0.0, 0.0, float(_OF_INPUT[name] * inputs[0].numel()), False
    if name in _MOVES or any(_address(out) == _address(x) for x in inputs[1:]):
        return 0.0, 0.0, 0.0, False
    is_view = bool(inputs) and _address(out) == _address(inputs[0])
    if is_view and not name.endswith("_"):
        return 0.0, 0.0, 0.0, False
    return 0.0, size if name.rstrip("_") in _SPECIAL else 0.0, 0.0 if name.rstrip("_") in _SPECIAL else size, False


@contextmanager
def counting_operations(model: nn.Module) -> Iterator[list[Step]]:
    """Count the operations of `model`, mapped or not, while the block runs; the list is filled when it ends.

    Operations outside of the model have the name OUTSIDE.
    """
    counter, found = _Counter({_address(parameter) for parameter in model.parameters()}), list[Step]()
    layers = _layers_of(model)
    handles = []
    for name, module in model.named_modules():
        layer = layers.get(module)

        def enter(module: nn.Module, _: Any, name: str = name, layer: LayerStep | None = layer) -> None:
            counter.enter(name, module, layer)

        def leave(module: nn.Module, _: Any, __: Any, layer: LayerStep | None = layer) -> None:
            counter.leave(module, layer)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which computes attention, products included, in one operation
    try:
        with counter:
            yield found
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    for step in counter.steps.values():
        if isinstance(step, OperationStep):
            step.calls = max(1, counter.calls[step.name])
        found.append(step)
