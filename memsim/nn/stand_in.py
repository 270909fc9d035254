"""What stands for a weight that is on arrays, where a network asks its layer for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.nn.named_layers import NamedLayer

_ASK_WHAT_IT_IS_LIKE = {
    f"{made}{how}" for made in ("new_empty", "new_full", "new_ones", "new_zeros") for how in ("", "_strided")
} | {f"{made}_like" for made in ("empty", "full", "ones", "rand", "randn", "zeros")}


class WeightOnArrays(Tensor):
    """The shape, dtype and device of a weight, without its values.

    Networks look these up (`x.to(layer.weight.dtype)`, `layer.weight.new_zeros(...)`), which is harmless; some multiply
    by the weight themselves, past its layer and past its arrays, which raises an InputError that names the matrix.
    """

    matrix_name: str
    glob: str

    @staticmethod
    def __new__(
        cls, matrix: object, dtype: torch.dtype, shape: Sequence[int] | None = None, glob: str | None = None
    ) -> WeightOnArrays:
        """The weight that `matrix` holds; its `shape` (default: out, in) as a layer stores it.

        Where the matrix is a part of the weight, `glob` matches all of its parts.
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
        """Of torch's operations, those that only ask what it is like."""
        if function.overloadpacket.__name__ in _ASK_WHAT_IT_IS_LIKE:  # type: ignore[attr-defined]
            weight, *others = args
            return function(
                torch.empty((), dtype=weight.dtype, device=weight.device).expand(weight.shape), *others, **options
            )
        weight = next(leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, cls))
        raise InputError(
            f"{weight.matrix_name}: the network computes with this weight itself, past its layer, so it cannot be on "
            f"arrays; keep it digital: exclude=[{weight.glob!r}]"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightOnArrays({self.matrix_name}, {list(self.shape)})"


class OnArrays(NamedLayer):
    """A layer with weights on arrays: it goes on having their dtype, which a cast of the network changes."""

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
        like = self._like_weight
        assert isinstance(like, Tensor)
        return like.dtype
