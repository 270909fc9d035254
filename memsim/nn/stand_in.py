"""Stand-ins for weights that are on arrays, for networks that ask a layer for its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.nn.named_layers import NamedLayer
from memsim.nn.quantised_product import copied_output_quantiser

_NEEDS_NO_VALUES = {
    f"{made}{how}" for made in ("new_empty", "new_full", "new_ones", "new_zeros") for how in ("", "_strided")
} | {f"{made}_like" for made in ("empty", "full", "ones", "rand", "randn", "zeros")}


class WeightOnArrays(Tensor):
    """The shape, dtype and device of a weight, without its values.

    Networks may look these up (`x.to(layer.weight.dtype)`, `layer.weight.new_zeros(...)`). Any other operation, such as
    multiplying by the weight without its layer and so without its arrays, raises an InputError that names the matrix.
    """

    matrix_name: str
    glob: str

    @staticmethod
    def __new__(
        cls, matrix: object, dtype: torch.dtype, shape: Sequence[int] | None = None, glob: str | None = None
    ) -> WeightOnArrays:
        """Stand for the weight that `matrix` holds and a layer stores with `shape`, by default (out, in).

        Where `matrix` is one of several parts of the weight, `glob` matches the names of all parts.
        """
        assert isinstance(matrix, MappedMatrix)
        stored = (matrix.out_features, matrix.in_features) if shape is None else tuple(shape)
        weight = Tensor._make_wrapper_subclass(cls, stored, dtype=dtype, device=matrix.scale.device)
        assert isinstance(weight, WeightOnArrays)
        weight.matrix_name = matrix.name
        weight.glob = glob or matrix.name
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Callable[..., Any], types: Iterable[type], args: Sequence[Any], options: dict[str, Any]
    ) -> Any:
        """Run an operation that needs no values; raise InputError for any other."""
        if function.overloadpacket.__name__ in _NEEDS_NO_VALUES:  # type: ignore[attr-defined]
            weight, *others = args
            return function(
                torch.empty((), dtype=weight.dtype, device=weight.device).expand(weight.shape), *others, **options
            )
        weight = next(leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, cls))
        raise weight.refusal()

    def refusal(self) -> InputError:
        """Return the error for an operation that needs the weight's values."""
        return InputError(
            f"{self.matrix_name}: the network computes with this weight itself, without its layer, so it cannot be "
            f"on arrays; keep it digital: exclude=[{self.glob!r}]"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightOnArrays({self.matrix_name}, {list(self.shape)})"


class OnArrays(NamedLayer):
    """A layer with weights on arrays, which keeps their dtype; a cast of the network changes it."""

    def __repr__(self) -> str:
        """Return one line with what its matrix is on, for a layer of one matrix; otherwise a line for each."""
        matrix = self._modules.get("matrix")
        others = [child for child in self.children() if child is not matrix and not isinstance(child, nn.Identity)]
        if not isinstance(matrix, MappedMatrix) or others:
            return super().__repr__()
        return f"{type(self).__name__}({', '.join(filter(None, [matrix.extra_repr(), self.extra_repr()]))})"

    def _keep_dtype(self, weight: Tensor) -> None:
        empty = torch.empty(0, dtype=weight.dtype, device="cpu")
        self.register_buffer("_like_weight", empty, persistent=False)

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        like = self._like_weight
        assert isinstance(like, Tensor)
        return like.dtype


class OnOneMatrix(OnArrays):
    """A layer whose weight, of shape `weight_shape`, is one matrix on arrays."""

    def __init__(self, module: Any, matrix: nn.Module) -> None:
        """Replace `module`, whose weight `matrix` holds; `matrix` has the methods of a `MappedMatrix`."""
        super().__init__()
        self._copy_sizes(module)
        self.matrix = matrix
        self.output_quantiser = copied_output_quantiser(module)
        self.weight_shape = tuple(module.weight.shape)
        self._keep_dtype(module.weight)

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> Self:
        """Return the layer in place of `module`, whose matrix is `products[""]`."""
        return cls(module, products[""])

    @property
    def weight(self) -> Tensor:
        """A weight without values, for networks that look up its shape, dtype or device."""
        return WeightOnArrays(self.matrix, self.weight_dtype, self.weight_shape)
