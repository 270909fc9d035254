"""Stand-ins for the weights of a layer that keeps its forward: they multiply on arrays, and refuse all other uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.nn.convolution import Overlap, Windows, channels_first, channels_last
from memsim.nn.quantised_product import finished
from memsim.nn.sources import WeightSource
from memsim.nn.stand_in import WeightOnArrays


class OtherUseError(InputError):
    """A forward has used a weight in another way than in a product."""


class WeightInProducts(WeightOnArrays):
    """A weight whose products are computed by `products`: by one matrix, or by one for each expert.

    It may be transposed, asked for its shape, dtype and device and, with experts, indexed. Any other operation raises
    OtherUseError.
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
        """Return a stand-in of this shape. `source` describes its tensor, or the tensor of each expert.

        `is_turned`, by default whether the source is transposed, says that the shape is [in, out] of a linear layer.
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

    def refusal(self) -> OtherUseError:
        """Return the error for any other use than a product."""
        return OtherUseError(str(super().refusal()))

    def transposed(self) -> WeightInProducts:
        """Return the weight with its last two dimensions exchanged."""
        *first, rows, columns = self.shape
        return self.make(self.products, [*first, columns, rows], self.dtype, self.source, not self.is_turned)

    def expert(self, index: int) -> WeightInProducts:
        """Return the weight of one expert."""
        return self.make([self.products[index]], self.shape[1:], self.dtype, self.source, self.is_turned)

    def times(self, x: Tensor, is_turned: bool) -> Tensor:
        """Multiply rows `x` [..., in], giving [..., out]; the operation takes the weight to be `is_turned`."""
        if self.ndim != 2 or self.source.groups != 1 or is_turned != self.is_turned:
            raise self.refusal()
        (product,) = self.products
        y: Tensor = F.linear(x, product.to(x.dtype)) if isinstance(product, Tensor) else product(x)
        return y

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", "")
        if (handler := _HANDLERS.get(name)) is not None:
            return handler(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def _refuse(*operands: Any) -> NoReturn:
    """Raise the refusal of the first stand-in among the operands."""
    raise next(operand for operand in operands if isinstance(operand, WeightInProducts)).refusal()


def _only(weight: Any, *others: Any) -> WeightInProducts:
    """Return `weight`; raise OtherUseError unless it is the only stand-in among the operands."""
    if not isinstance(weight, WeightInProducts) or any(isinstance(other, WeightInProducts) for other in others):
        _refuse(*others, weight)
    return weight


def _linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    return finished(_only(weight, input, bias).times(input, is_turned=False), bias)


def _matmul(input: Any, other: Any) -> Tensor:
    weight = _only(other, input)
    if weight.ndim == 3:
        if input.ndim != 3 or len(input) != len(weight):
            _refuse(weight)
        return torch.stack([weight.expert(index).times(rows, is_turned=True) for index, rows in enumerate(input)])
    return weight.times(input, is_turned=True)


def _addmm(bias: Any, input: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta != 1 or alpha != 1:
        _refuse(bias, weight, input)
    return finished(_matmul(input, _only(weight, bias, input)), bias)


def _item(tensor: Any, index: Any) -> WeightInProducts:
    """Return the weight of one expert, by a number or a tensor [] of one."""
    weight = _only(tensor, index)
    if isinstance(index, Tensor) and index.ndim == 0 and not index.is_floating_point() and index.dtype != torch.bool:
        index = int(index)
    if weight.ndim != 3 or isinstance(index, bool) or not isinstance(index, int):
        _refuse(weight)
    return weight.expert(range(len(weight))[index])


def _unbind(weight: WeightInProducts, dim: int = 0) -> tuple[WeightInProducts, ...]:
    if weight.ndim != 3 or dim != 0:
        _refuse(weight)
    return tuple(weight.expert(index) for index in range(len(weight)))


def _transpose(weight: WeightInProducts, *dims: int) -> WeightInProducts:
    """Exchange the last two dimensions, of a matrix or of all experts'."""
    last = {weight.ndim - 2, weight.ndim - 1}
    if weight.ndim > 3 or weight.source.groups != 1 or {dim % weight.ndim for dim in dims} not in (set(), last):
        _refuse(weight)
    return weight.transposed()


def _itself(weight: Any, *args: Any, **options: Any) -> WeightInProducts:
    """Return the weight: its products are computed in the dtype and on the device of the inputs."""
    return _only(weight, *args, *options.values())


def _type_as(x: Any, other: Any) -> Any:
    return x if isinstance(x, WeightInProducts) else x.to(other.dtype)


_SIZES = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_SIZES_TRANSPOSED = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}


def _convolution(
    dimensions: int, is_transposed: bool, input: Any, weight: Any, bias: Any = None, *sizes: Any, **named: Any
) -> Tensor:
    """Convolve as F.conv1d, F.conv_transpose1d and so on; `sizes` and `named` are their other arguments."""
    weight, defaults = _only(weight, input, bias), _SIZES_TRANSPOSED if is_transposed else _SIZES
    given = {**defaults, **dict(zip(defaults, sizes, strict=False)), **named}
    is_own_kind = weight.source.is_transposed == is_transposed and weight.source.groups == given["groups"]
    if weight.ndim != dimensions + 2 or not is_own_kind:
        _refuse(weight)
    (matrix,) = weight.products
    kernel, padding = tuple(weight.shape[2:]), given["padding"]
    stride, dilation = _each(given["stride"], dimensions), _each(given["dilation"], dimensions)
    x, has_batch = channels_last(input, dimensions)
    if is_transposed:
        cut, extra = _each(padding, dimensions), _each(given["output_padding"], dimensions)
        product = Overlap(kernel, stride, dilation, cut, extra, weight.source.groups).add_up(matrix(x))
    else:
        if padding == "same":
            totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
            pairs = [(total // 2, total - total // 2) for total in totals]
        else:
            pairs = [(size, size) for size in _each(0 if padding == "valid" else padding, dimensions)]
        ends = tuple(end for pair in reversed(pairs) for end in pair)
        windows = Windows(kernel, stride, dilation, ends, "zeros", weight.source.groups)
        product = windows.multiply(x, matrix.stream)
    return channels_first(finished(product, bias), has_batch)


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return a size for each dimension."""
    values = (value,) if isinstance(value, int) else tuple(int(size) for size in value)
    return values * dimensions if len(values) == 1 else values


_HANDLERS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), _matmul),
    "addmm": _addmm,
    "__getitem__": _item,
    "unbind": _unbind,
    "__iter__": lambda weight: iter(_unbind(weight)),
    **dict.fromkeys(("t", "T", "mT", "transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("to", "type", "float", "half", "bfloat16", "double", "contiguous", "detach", "data"), _itself),
    "type_as": _type_as,
    **{f"conv{n}d": partial(_convolution, n, False) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": partial(_convolution, n, True) for n in (1, 2, 3)},
}
"""The functions that a stand-in uses in place of torch's functions and methods, by name."""
