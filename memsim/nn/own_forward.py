"""Layers that keep their own forward; only their products with the weights go on arrays.

Some classes derived from a layer transpose their input or their result, or add to it (Parakeet's CTC head). The experts
of a mixture are one module, which keeps all their weights in one tensor [experts, out, in]. Such a forward is run once,
on trial, with stand-ins for its weights that can do nothing but multiply: the trial shows whether it can be mapped.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from memsim.nn.convolution import MappedConvolution, MappedTransposedConvolution
from memsim.nn.linear import MappedLinear
from memsim.nn.sources import LayerAdapter, WeightSource, effective_weight, frozen_copy
from memsim.nn.stand_in import OnArrays
from memsim.nn.weight_products import OtherUseError, WeightInProducts


@dataclass(frozen=True)
class OwnForward:
    """The adapter of a module with a forward of its own, whose `tensors` a trial has found to be matrices.

    `base` is the adapter of the layer that its class is derived from; None for experts. With `is_turned` the tensors of
    experts are [experts, in, out], otherwise [experts, out, in].
    """

    base: LayerAdapter | None
    tensors: tuple[str, ...]
    is_turned: bool = False

    def sources(self, module: nn.Module) -> dict[str, WeightSource]:
        """Return the matrix of a layer, or the matrices of all experts, which are named like `gate_up_proj.3`."""
        if self.base is not None:
            return self.base.sources(module)
        found = {}
        for tensor in self.tensors:
            stored = getattr(module, tensor)
            for expert in range(len(stored)):
                make = WeightSource.transposed if self.is_turned else WeightSource.of
                found[f"{tensor}.{expert}"] = replace(make(tensor, tuple(stored.shape[1:])), index=expert)
        return found

    def from_module(self, module: Any, products: Mapping[str, nn.Module]) -> nn.Module:
        """Return the module with its own forward, in which stand-ins for `products` replace the weights."""
        kind = type_before_parametrizations(module)
        layer = _blank(kind, self.tensors)
        assert isinstance(layer, _WithOwnForward)
        for name, value in vars(module).items():
            if name not in _INTERNAL and not isinstance(value, Tensor):
                layer.__dict__[name] = value
        for name, parameter in module._parameters.items():
            if name not in self.tensors:
                layer.register_parameter(name, frozen_copy(parameter))
        for name, buffer in module._buffers.items():
            layer.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
        for name, child in module._modules.items():
            if name != "parametrizations":
                layer.add_module(name, child)
        layer.own_sources = self.sources(module)
        layer.stored_shapes = {name: tuple(getattr(module, name).shape) for name in self.tensors}
        if self.base is not None:
            layer.add_module("matrix", products[""])
        else:
            holders = {name: _Matrices() for name in self.tensors}
            layer._modules.update(holders)
            for local, source in layer.own_sources.items():
                tensor, _, expert = local.rpartition(".")
                if local in products:
                    holders[tensor].add_module(expert, nn.ModuleDict({"matrix": products[local]}))
                else:
                    digital = source.matrix(effective_weight(module, source.tensor))
                    holders[tensor].register_parameter(f"{expert}_weight", frozen_copy(digital))
        layer._keep_dtype(getattr(module, self.tensors[0]))
        return layer.train(module.training)


_INTERNAL = frozenset(vars(nn.Module()))


class _Matrices(nn.Module):
    """The matrices in a tensor [experts, ...]: `<expert>.matrix`, or `<expert>_weight` where it stays digital."""

    def product(self, expert: int) -> nn.Module | Tensor:
        """Return the matrix of an expert: a module that multiplies on arrays, or a tensor [out, in]."""
        on_arrays = self._modules.get(str(expert))
        if isinstance(on_arrays, nn.ModuleDict):
            return on_arrays["matrix"]
        digital = self._parameters[f"{expert}_weight"]
        assert digital is not None
        return digital


class _WithOwnForward(OnArrays):
    """The base class of a layer that keeps its forward; the other is the class of the module that it replaces."""

    own_sources: dict[str, WeightSource]
    stored_shapes: dict[str, tuple[int, ...]]

    def stand_in(self, tensor: str) -> Tensor:
        """Return what the forward sees as the attribute `tensor`."""
        shape, dtype = self.stored_shapes[tensor], self.weight_dtype
        holder = self._modules.get(tensor)
        if not isinstance(holder, _Matrices):
            matrix = self._modules["matrix"]
            assert matrix is not None
            (source,) = self.own_sources.values()
            return WeightInProducts.make([matrix], shape, dtype, source)
        products = [holder.product(expert) for expert in range(shape[0])]
        return WeightInProducts.make(products, shape, dtype, self.own_sources[f"{tensor}.0"])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle and copy by the arguments of `_blank`: the class itself has no name that can be imported."""
        derived = type(self)
        return _blank, (derived.own, tuple(self.stored_shapes)), self.__dict__  # type: ignore[attr-defined]


def _blank(kind: type[nn.Module], tensors: tuple[str, ...]) -> nn.Module:
    """Return an empty module of a class derived from `kind`, whose attributes `tensors` are stand-ins."""
    derived = _derived(kind, tensors)  # type: ignore[arg-type]  # a class can be hashed
    layer = derived.__new__(derived)
    nn.Module.__init__(layer)
    return layer


@functools.cache
def _derived(kind: type[nn.Module], tensors: tuple[str, ...]) -> type[nn.Module]:
    namespace: dict[str, Any] = {"own": kind, "__module__": __name__}
    for name in tensors:
        namespace[name] = property(functools.partial(_WithOwnForward.stand_in, tensor=name))
    if _is_decorated_by_transformers(kind):
        # transformers would choose a forward that multiplies all experts at once, by a kernel of its own
        namespace["forward"] = inspect.unwrap(kind.forward)
    return type(f"{kind.__name__}OnArrays", (_WithOwnForward, kind), namespace)


def _is_decorated_by_transformers(kind: type[nn.Module]) -> bool:
    """Whether the decorator `use_experts_implementation`, which chooses a forward by the config, was applied."""
    return hasattr(kind, "_apply_gate") and hasattr(kind.forward, "__wrapped__")


class _OnTrial(nn.Module):
    """A matrix on trial: its products are zeros, and `count` is their number."""

    def __init__(self, source: WeightSource) -> None:
        super().__init__()
        self.name = ""
        self._out, self._in = source.shape[0], source.shape[1] * source.groups
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.shape[-1] != self._in:
            raise ValueError(f"an input of {list(x.shape)} for {self._in} features")
        self.count += 1
        return x.new_zeros(*x.shape[:-1], self._out)

    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """Multiply rows, as `MappedMatrix.stream`."""
        return torch.cat([self(part) for part in parts])


def own_forward_of(module: nn.Module, base: type[nn.Module], base_adapter: LayerAdapter) -> OwnForward | None:
    """Return the adapter of a module whose class is derived from the layer `base` and has a forward of its own.

    Returns None where the forward does more with the weight than multiply by it, or takes none of the inputs that are
    tried: laid out as the layer's, and transposed.
    """
    if base_adapter not in (MappedLinear, MappedConvolution, MappedTransposedConvolution):
        return None
    if type_before_parametrizations(module).__call__ is not base.__call__:
        return None
    adapter = OwnForward(base_adapter, ("weight",))
    try:
        product = _OnTrial(base_adapter.sources(module)[""])
        works = _only_multiplies(adapter.from_module(module, {"": product}), [product], [(x,) for x in _inputs(module)])
    except Exception:  # external code may raise anything
        return None
    return adapter if works else None


def experts_of(module: nn.Module) -> OwnForward | None:
    """Return the adapter of a module that holds the weights of several experts, in tensors [experts, ...].

    None for any other module, and where the forward does more with them than multiply rows by one expert's weights.
    """
    tensors = {
        name: parameter
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.ndim == 3 and parameter.is_floating_point() and parameter.numel()
    }
    experts = {len(parameter) for parameter in tensors.values()}
    held = sum(parameter.numel() for parameter in tensors.values())
    others = sum(parameter.numel() for parameter in module.parameters()) - held
    # where these tensors are the smaller part, the module is more than its experts
    if not tensors or len(experts) != 1 or others > held or "forward" in vars(module):
        return None
    count, widths = experts.pop(), {size for parameter in tensors.values() for size in parameter.shape[1:]}
    for is_turned in (False, True):
        adapter = OwnForward(None, tuple(tensors), is_turned)
        try:
            products = {local: _OnTrial(source) for local, source in adapter.sources(module).items()}
            layer, inputs = adapter.from_module(module, products), _expert_inputs(count, sorted(widths))
            if _only_multiplies(layer, list(products.values()), inputs, one_suffices=True):
                return adapter
        except Exception:  # external code may raise anything
            return None
    return None


def _only_multiplies(
    layer: nn.Module, products: Sequence[_OnTrial], inputs: Iterable[tuple[Any, ...]], one_suffices: bool = False
) -> bool:
    """Whether the forward of `layer`, with stand-ins for `products` as its weights, can do with products alone.

    It must take at least one of the `inputs` and use every product for it, and use a weight in no other way, for any of
    the inputs or, where `one_suffices`, until the first that it takes. A copy of the layer runs.
    """
    memo: dict[int, Any] = {id(product): product for product in products}
    copied = copy.deepcopy(layer, memo).eval()
    copied._apply(lambda t: torch.zeros_like(t, device="cpu") if t.is_meta else t.cpu())
    has_run = False
    for arguments in inputs:
        for product in products:
            product.count = 0
        with torch.random.fork_rng(devices=()), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                copied.forward(*arguments)
            except OtherUseError:
                return False
            except Exception:  # the forward does not take this input
                continue
        has_run |= all(product.count for product in products)
        if has_run and one_suffices:
            break
    return has_run


def _inputs(module: Any) -> Iterator[Tensor]:
    """Yield inputs for a layer: in its layout, transposed, and with dimensions missing that its forward may add."""
    options = {"dtype": module.weight.dtype}
    if isinstance(module, nn.Linear):
        features = module.in_features
        yield from (torch.ones(*shape, **options) for shape in ((2, features), (2, 3, features), (2, 5, 3, features)))
        yield from (torch.ones(*shape, **options) for shape in ((2, features, 3), (features, 3), (2, features, 5, 3)))
        return
    reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    space = [size + 3 * step + index for index, (size, step) in enumerate(zip(reach, module.stride, strict=True))]
    channels = module.in_channels
    yield torch.ones(2, channels, *space, **options)
    yield torch.ones(2, *space, channels, **options)
    yield torch.ones(channels, *space, **options)
    yield torch.ones(*space, channels, **options)
    if channels == 1:
        yield torch.ones(2, *space, **options)
    yield torch.ones(2, channels, *space[:-1], **options)
    yield torch.ones(2, *space[:-1], channels, **options)


def _expert_inputs(experts: int, widths: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Yield arguments that reach all experts.

    They are rows with the experts and the weights of each; rows sorted by expert, with the number that each expert has;
    and rows of which each expert has the same number.
    """
    order = torch.arange(experts)
    for width in widths:
        rows = torch.ones(experts, width)
        for chosen in (torch.stack([order, order.roll(1)], dim=1), order[:, None]):
            yield rows, chosen, torch.ones(chosen.shape)
        yield rows, [1] * experts
        yield rows, torch.ones(experts, dtype=torch.long)
        yield (rows,)
        yield (rows[:, None],)
