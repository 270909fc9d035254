"""Layers whose own forward stays, and only the products that it takes with its weights go on arrays.

Some classes derived from a layer turn their input or their result round, or add to it (Parakeet's CTC head); experts of
a mixture are one module, which keeps the weights of all of them in one tensor [experts, out, in]. What such a forward
does is not guessed: it is run once, on trial, with stand-ins for its weights that know products and nothing else.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import type_before_parametrizations

from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.nn.convolution import MappedConvolution, MappedTransposedConvolution, Overlap, Windows, as_given, with_batch
from memsim.nn.linear import MappedLinear
from memsim.nn.product import Stream, finished
from memsim.nn.sources import WeightSource, effective_weight, kept
from memsim.nn.stand_in import OnArrays, WeightOnArrays


class _Simple(Protocol):
    """The front end of the layer that a class is derived from."""

    def sources(self, module: nn.Module) -> dict[str, WeightSource]: ...


@dataclass(frozen=True)
class OwnForward:
    """The front end of modules of one class: which of their tensors are matrices, as a trial of their forward found.

    `base` is that of the layer that the class is derived from; None for experts, of whose tensors those in `turned`
    hold [experts, in, out].
    """

    base: _Simple | None
    tensors: tuple[str, ...]
    turned: frozenset[str] = frozenset()

    def sources(self, module: nn.Module) -> dict[str, WeightSource]:
        """The matrix of a layer, or that of each expert, named like `gate_up_proj.3`."""
        if self.base is not None:
            return self.base.sources(module)
        found = {}
        for tensor in self.tensors:
            stored = getattr(module, tensor)
            for expert in range(len(stored)):
                make = WeightSource.transposed if tensor in self.turned else WeightSource.of
                found[f"{tensor}.{expert}"] = replace(make(tensor, tuple(stored.shape[1:])), index=expert)
        return found

    def from_module(self, module: Any, products: Mapping[str, nn.Module]) -> nn.Module:
        """The module with its own forward, whose weights are stand-ins for `products`."""
        kind = type_before_parametrizations(module)
        layer = _blank(kind, self.tensors)
        assert isinstance(layer, _WithOwnForward)
        for name, value in vars(module).items():
            if name not in _INTERNAL and not isinstance(value, Tensor):
                layer.__dict__[name] = value
        for name, parameter in module._parameters.items():
            if name not in self.tensors:
                layer.register_parameter(name, kept(parameter))
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
            for name in self.tensors:
                layer._modules[name] = _Matrices()
            for local, source in layer.own_sources.items():
                tensor, _, expert = local.rpartition(".")
                holder = layer._modules[tensor]
                assert isinstance(holder, _Matrices)
                if local in products:
                    holder.add_module(expert, _Matrix(products[local]))
                else:
                    digital = source.matrix(effective_weight(module, source.tensor))
                    holder.register_parameter(f"{expert}_weight", kept(digital))
        layer._keep_dtype(getattr(module, self.tensors[0]))
        return layer.train(module.training)


_INTERNAL = frozenset(vars(nn.Module()))


class _Matrix(nn.Module):
    """Holds the matrix of one expert, as a layer holds its own."""

    def __init__(self, matrix: nn.Module) -> None:
        super().__init__()
        self.matrix = matrix


class _Matrices(nn.Module):
    """What stands for a tensor [experts, ...]: a `_Matrix` of each expert, or the weight of one that stays digital."""

    def product(self, expert: int) -> nn.Module | Tensor:
        """The matrix of an expert: on arrays, or the tensor [out, in]."""
        on_arrays = self._modules.get(str(expert))
        if isinstance(on_arrays, _Matrix):
            return on_arrays.matrix
        digital = self._parameters[f"{expert}_weight"]
        assert digital is not None
        return digital


class _WithOwnForward(OnArrays):
    """What `_blank` makes is derived from this and from the class of the module in whose place it is."""

    own_sources: dict[str, WeightSource]
    stored_shapes: dict[str, tuple[int, ...]]

    def stand_in(self, tensor: str) -> Tensor:
        """What its forward gets for the attribute `tensor`."""
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
        """Its class is made as it is needed, so pickle and copy know it by what it is made of."""
        derived = type(self)
        return _blank, (derived.own, tuple(self.stored_shapes)), self.__dict__  # type: ignore[attr-defined]


def _blank(kind: type[nn.Module], tensors: tuple[str, ...]) -> nn.Module:
    """A module of a class derived from `kind`, without anything in it, whose attributes `tensors` are stand-ins."""
    derived = _derived(kind, tensors)
    layer = derived.__new__(derived)
    nn.Module.__init__(layer)
    return layer


_DERIVED: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def _derived(kind: type[nn.Module], tensors: tuple[str, ...]) -> type[nn.Module]:
    if (found := _DERIVED.get((kind, tensors))) is not None:
        return found
    namespace: dict[str, Any] = {"own": kind, "__module__": __name__}
    for name in tensors:
        namespace[name] = property(functools.partial(_WithOwnForward.stand_in, tensor=name))
    if _is_decorated_by_transformers(kind):
        # the forward that transformers would choose multiplies all experts at once, by kernels of its own
        namespace["forward"] = inspect.unwrap(kind.forward)
    return _DERIVED.setdefault((kind, tensors), type(f"{kind.__name__}OnArrays", (_WithOwnForward, kind), namespace))


def _is_decorated_by_transformers(kind: type[nn.Module]) -> bool:
    """Whether `kind` went through `use_experts_implementation`, which chooses another forward by the config."""
    return hasattr(kind, "_apply_gate") and hasattr(kind.forward, "__wrapped__")


# --- stand-ins for weights in products -------------------------------------------------------------------------------


class OtherUseError(InputError):
    """A forward has used a weight in another way than in a product."""


class WeightInProducts(WeightOnArrays):
    """A weight whose products are computed by what `products` holds: one matrix, or one for each expert.

    It may be turned round, asked for what it is like and, with experts, indexed. All else raises OtherUseError.
    """

    products: Sequence[nn.Module | Tensor]
    source: WeightSource
    is_turned: bool

    @staticmethod
    def make(
        products: Sequence[nn.Module | Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        source: WeightSource,
        is_turned: bool | None = None,
    ) -> WeightInProducts:
        """A stand-in of this shape. `source` says how its tensor, or that of each expert, lies.

        With `is_turned` it is shown the other way round: [in, out] of a linear layer.
        """
        device = next((p.scale.device for p in products if isinstance(p, MappedMatrix)), torch.device("cpu"))
        weight = Tensor._make_wrapper_subclass(WeightInProducts, tuple(shape), dtype=dtype, device=device)
        assert isinstance(weight, WeightInProducts)
        names = [getattr(product, "name", "") for product in products if not isinstance(product, Tensor)]
        weight.matrix_name = names[0] if names else ""
        weight.glob = weight.matrix_name if len(products) == 1 else f"{weight.matrix_name.rpartition('.')[0]}.*"
        weight.products, weight.source = products, source
        weight.is_turned = source.is_transposed if is_turned is None else is_turned
        return weight

    def shown(self, shape: Sequence[int], *, turn: bool = False) -> WeightInProducts:
        """The same in another shape, or turned round."""
        return self.make(self.products, shape, self.dtype, self.source, self.is_turned != turn)

    def expert(self, index: int) -> WeightInProducts:
        """That of one expert."""
        return self.make([self.products[index]], self.shape[1:], self.dtype, self.source, self.is_turned)

    def times(self, x: Tensor, is_turned: bool) -> Tensor:
        """Rows `x` [..., in] times the matrix, which whoever asks takes to be shown `is_turned`."""
        if self.ndim != 2 or self.source.groups != 1 or is_turned != self.is_turned:
            raise _refusal(self)
        (product,) = self.products
        y: Tensor = F.linear(x, product.to(x.dtype)) if isinstance(product, Tensor) else product(x)
        return y

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", "")
        if (handler := _KNOWN.get(name)) is not None:
            return handler(*args, **options)
        with torch._C.DisableTorchFunctionSubclass():
            try:
                return function(*args, **options)
            except OtherUseError:
                raise
            except InputError as error:
                raise OtherUseError(str(error)) from None


def _refusal(weight: WeightOnArrays) -> OtherUseError:
    return OtherUseError(
        f"{weight.matrix_name}: the network computes with this weight itself, past its layer, so it cannot be on "
        f"arrays; keep it digital: exclude=[{weight.glob!r}]"
    )


def _require_weight(value: Any, among: Sequence[Any] = ()) -> WeightInProducts:
    """`value`, which is to be the stand-in of an operation; what it is that of is `among` the other operands if not."""
    if isinstance(value, WeightInProducts):
        return value
    raise _refusal(next(other for other in among if isinstance(other, WeightInProducts)))


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    if isinstance(input, WeightInProducts) or isinstance(bias, WeightInProducts):
        raise _refusal(next(x for x in (input, bias) if isinstance(x, WeightInProducts)))
    return finished(_require_weight(weight, (input, bias)).times(input, is_turned=False), bias, None)


def _matmul(input: Any, other: Any) -> Tensor:
    if isinstance(input, WeightInProducts):
        raise _refusal(input)
    weight = _require_weight(other)
    if weight.ndim == 3:
        if input.ndim != 3 or len(input) != len(weight):
            raise _refusal(weight)
        return torch.stack([weight.expert(index).times(rows, is_turned=True) for index, rows in enumerate(input)])
    return weight.times(input, is_turned=True)


def _addmm(bias: Any, input: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta != 1 or alpha != 1 or isinstance(bias, WeightInProducts):
        raise _refusal(next(x for x in (bias, weight, input) if isinstance(x, WeightInProducts)))
    return finished(_matmul(input, weight), bias, None)


def _item(tensor: Any, index: Any) -> WeightInProducts:
    """Of experts, one. (A 0-dimensional tensor is a number; several at once are not known.)"""
    weight = _require_weight(tensor, (index,))
    if isinstance(index, Tensor) and index.ndim == 0 and not index.is_floating_point() and index.dtype != torch.bool:
        index = int(index)
    if weight.ndim != 3 or isinstance(index, bool) or not isinstance(index, int):
        raise _refusal(weight)
    return weight.expert(range(len(weight))[index])


def _unbind(weight: WeightInProducts, dim: int = 0) -> tuple[WeightInProducts, ...]:
    if weight.ndim != 3 or dim != 0:
        raise _refusal(weight)
    return tuple(weight.expert(index) for index in range(len(weight)))


def _transpose(weight: WeightInProducts, *dims: int) -> WeightInProducts:
    """Of the last two dimensions, of a matrix or of all experts'."""
    wanted = {dim % weight.ndim for dim in dims} or {weight.ndim - 2, weight.ndim - 1}
    if weight.ndim > 3 or weight.source.groups != 1 or wanted != {weight.ndim - 2, weight.ndim - 1}:
        raise _refusal(weight)
    *first, rows, columns = weight.shape
    return weight.shown([*first, columns, rows], turn=True)


def _itself(weight: Any, *args: Any, **options: Any) -> Any:
    """In another dtype or place, which products do not mind: they are computed where and as the inputs are."""
    if any(isinstance(value, WeightInProducts) for value in args):  # x.type_as(weight): of the input
        raise _refusal(next(value for value in args if isinstance(value, WeightInProducts)))
    return _require_weight(weight)


def _type_as(x: Any, other: Any) -> Any:
    return x if isinstance(x, WeightInProducts) else x.to(other.dtype)


def _convolution(
    dimensions: int,
    input: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    weight = _require_weight(weight, (input, bias))
    (product,) = weight.products
    if weight.ndim != dimensions + 2 or weight.source.is_transposed or groups != weight.source.groups:
        raise _refusal(weight)
    kernel = tuple(weight.shape[2:])
    steps, spread = _each(stride, dimensions), _each(dilation, dimensions)
    if padding == "same":
        ends = [end for size, step in zip(kernel, spread, strict=True) for end in _halves(step * (size - 1))]
    else:
        ends = [end for size in _each(0 if padding == "valid" else padding, dimensions) for end in (size, size)]
    by_dimension = [tuple(ends[2 * index : 2 * index + 2]) for index in reversed(range(dimensions))]
    windows = Windows(kernel, steps, spread, tuple(end for pair in by_dimension for end in pair), "zeros", groups)
    x, has_batch = with_batch(input, dimensions)
    assert isinstance(product, nn.Module)
    stream: Stream = product.stream  # type: ignore[assignment]
    return as_given(finished(windows.multiply(x.movedim(1, -1), stream), bias, None), has_batch)


def _transposed_convolution(
    dimensions: int,
    input: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    weight = _require_weight(weight, (input, bias))
    (product,) = weight.products
    if weight.ndim != dimensions + 2 or not weight.source.is_transposed or groups != weight.source.groups:
        raise _refusal(weight)
    steps, spread, cut, extra = (_each(value, dimensions) for value in (stride, dilation, padding, output_padding))
    x, has_batch = with_batch(input, dimensions)
    overlap = Overlap(tuple(weight.shape[2:]), steps, spread, cut, extra, groups)
    assert isinstance(product, nn.Module)
    return as_given(finished(overlap.add_up(product(x.movedim(1, -1)), None), bias, None), has_batch)


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(int(size) for size in value)
    return values * dimensions if len(values) == 1 else values


def _halves(total: int) -> tuple[int, int]:
    """The padding of both ends as torch shares it out."""
    return total // 2, total - total // 2


_KNOWN: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), _matmul),
    "addmm": _addmm,
    "__getitem__": _item,
    "unbind": _unbind,
    "__iter__": lambda weight: iter(_unbind(weight)),
    **dict.fromkeys(("t", "T", "mT", "transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("to", "type", "float", "half", "bfloat16", "double", "contiguous", "detach", "data"), _itself),
    "type_as": _type_as,
    **{f"conv{n}d": functools.partial(_convolution, n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": functools.partial(_transposed_convolution, n) for n in (1, 2, 3)},
}
"""By the name of torch's function or method: what a stand-in does in its place."""


# --- what a forward does, found on trial -----------------------------------------------------------------------------


class _OnTrial(nn.Module):
    """Stands for a matrix on trial: counts the products that are taken with it, which are zeros."""

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
        return torch.cat([self(part) for part in parts])


def own_forward_of(module: nn.Module, base: type[nn.Module], simple: _Simple) -> OwnForward | None:
    """The front end of a module whose class is derived from the layer `base` with a forward of its own.

    None where its forward does anything with the weight but multiply by it, or where no input that was tried, lying as
    the layer's or turned round, went through.
    """
    if simple not in (MappedLinear, MappedConvolution, MappedTransposedConvolution):
        return None
    if type_before_parametrizations(module).__call__ is not base.__call__:
        return None
    front_end = OwnForward(simple, ("weight",))
    try:
        product = _OnTrial(simple.sources(module)[""])
        trial = _Trial(front_end.from_module(module, {"": product}), [product])
        for x in _inputs(module):
            trial.run(x)
    except Exception:  # whatever a class of somebody's own raises
        return None
    return front_end if trial.has_run and not trial.has_other_use else None


def experts_of(module: nn.Module) -> OwnForward | None:
    """The front end of a module that holds the weights of several experts, each in a tensor [experts, ...].

    None for any other, and where its forward does anything with them but multiply rows by one expert's.
    """
    tensors = {
        name: parameter
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.ndim == 3 and parameter.is_floating_point() and parameter.numel()
    }
    experts = {len(parameter) for parameter in tensors.values()}
    held = sum(parameter.numel() for parameter in tensors.values())
    others = sum(parameter.numel() for parameter in module.parameters()) - held
    # a module of which they are a small part is more than its experts
    if not tensors or len(experts) != 1 or others > held or "forward" in vars(module):
        return None
    count, widths = experts.pop(), {size for parameter in tensors.values() for size in parameter.shape[1:]}
    for turned in _turns(tuple(tensors)):
        front_end = OwnForward(None, tuple(tensors), turned)
        try:
            products = {local: _OnTrial(source) for local, source in front_end.sources(module).items()}
            trial = _Trial(front_end.from_module(module, products), list(products.values()))
            for arguments in _expert_inputs(count, sorted(widths)):
                trial.run(*arguments)
                if trial.has_run:
                    break
        except Exception:  # whatever a class of somebody's own raises
            return None
        if trial.has_run and not trial.has_other_use:
            return front_end
    return None


def _turns(tensors: tuple[str, ...]) -> Iterator[frozenset[str]]:
    """How they may lie: all [experts, out, in], all [experts, in, out], as one class has them."""
    yield frozenset()
    yield frozenset(tensors)


@dataclass
class _Trial:
    """Runs of the own forward of a copy of `layer`, whose weights are stand-ins for `products`."""

    layer: nn.Module
    products: Sequence[_OnTrial]
    has_run: bool = False
    """Whether an input went through, and every product was taken."""
    has_other_use: bool = False
    _copied: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        memo: dict[int, Any] = {id(product): product for product in self.products}
        self._copied = copy.deepcopy(self.layer, memo).eval()
        self._copied._apply(lambda t: torch.zeros_like(t, device="cpu") if t.is_meta else t.cpu())

    def run(self, *arguments: Any) -> None:
        for product in self.products:
            product.count = 0
        with torch.random.fork_rng(devices=()), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._copied.forward(*arguments)
            except OtherUseError:
                self.has_other_use = True
            except Exception:  # an input that it does not take
                return
        self.has_run |= all(product.count for product in self.products)


def _inputs(module: Any) -> Iterator[Tensor]:
    """Inputs for a layer, lying as it takes them, turned round, and without what its forward may add."""
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
    """Arguments that reach all experts: rows with the experts that each goes to and their weights, rows in the order of
    the experts with how many each has, or as many rows for each."""
    order = torch.arange(experts)
    for width in widths:
        rows = torch.ones(experts, width)
        for chosen in (torch.stack([order, order.roll(1)], dim=1), order[:, None]):
            yield rows, chosen, torch.ones(chosen.shape)
        yield rows, [1] * experts
        yield rows, torch.ones(experts, dtype=torch.long)
        yield (rows,)
        yield (rows[:, None],)
