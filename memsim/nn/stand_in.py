"""What stands for a weight that is on arrays, where a network asks its layer for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError


class WeightOnArrays(Tensor):
    """The shape, dtype and device of a weight, without its values.

    Networks look these up (`x.to(layer.weight.dtype)`), which is harmless; some multiply by the weight themselves,
    past its layer and past its arrays, which raises an InputError that names the matrix.
    """

    matrix_name: str
    glob: str

    @staticmethod
    def __new__(cls, matrix: object, shape: Sequence[int] | None = None, glob: str | None = None) -> WeightOnArrays:
        """The weight that `matrix` holds; its `shape` (default: out, in) as a layer stores it.

        Where the matrix is a part of the weight, `glob` matches all of its parts.
        """
        assert isinstance(matrix, MappedMatrix)
        stored = (matrix.out_features, matrix.in_features) if shape is None else tuple(shape)
        dtype, device = matrix.scale.dtype, matrix.scale.device
        weight = Tensor._make_wrapper_subclass(cls, stored, dtype=dtype, device=device)
        assert isinstance(weight, WeightOnArrays)
        weight.matrix_name = matrix.name
        weight.glob = glob or matrix.name
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Callable[..., Any], types: Iterable[type], args: Sequence[Any], options: dict[str, Any]
    ) -> Any:
        """No operation of torch can be had on it."""
        weight = next(leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, cls))
        raise InputError(
            f"{weight.matrix_name}: the network computes with this weight itself, past its layer, so it cannot be on "
            f"arrays; keep it digital: exclude=[{weight.glob!r}]"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightOnArrays({self.matrix_name}, {list(self.shape)})"
