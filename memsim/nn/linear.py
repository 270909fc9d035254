"""nn.Linear, and what else is a plain matrix product, on simulated arrays."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from memsim.crossbar.matrix import MappedMatrix
from memsim.nn.quantisers import QuantisedLinear
from memsim.nn.sources import WeightSource, kept
from memsim.nn.stand_in import WeightOnArrays


class MappedLinear(nn.Module):
    """A linear layer whose product runs on a crossbar: [..., in] -> [..., out]. The bias is added digitally.

    `output_quantiser` is that of a layer that was trained with one.
    """

    bias: Tensor | None

    def __init__(self, matrix: nn.Module, bias: Tensor | None, output_quantiser: nn.Module | None = None) -> None:
        """`matrix` is a `MappedMatrix`, or what multiplies in its place."""
        super().__init__()
        self.matrix = matrix
        self.output_quantiser = output_quantiser or nn.Identity()
        self.register_buffer("bias", bias)

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        """The matrix of an nn.Linear, or of a QuantisedLinear."""
        assert isinstance(module, nn.Linear)
        return {"": WeightSource.of("weight", tuple(module.weight.shape))}

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> MappedLinear:
        output_quantiser = copy.deepcopy(module.output_quantiser) if isinstance(module, QuantisedLinear) else None
        return cls(products[""], kept(module.bias), output_quantiser)

    @property
    def weight(self) -> Tensor:
        """For networks that look it up: without its values."""
        return WeightOnArrays(self.matrix)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.matrix(x)
        if self.bias is not None:
            product = product + self.bias.to(product.dtype)
        result: Tensor = self.output_quantiser(product)
        return result

    def extra_repr(self) -> str:
        matrix = self.matrix
        if not isinstance(matrix, MappedMatrix):
            return ""
        return f"in_features={matrix.in_features}, out_features={matrix.out_features}, hardware={matrix.spec.name}"


class MappedConv1D(MappedLinear):
    """GPT-2's `Conv1D` of Hugging Face transformers: a linear layer whose weight is stored [in, out]."""

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        assert isinstance(module.weight, Tensor)
        return {"": WeightSource.transposed("weight", tuple(module.weight.shape))}

    @property
    def weight(self) -> Tensor:
        return WeightOnArrays(self.matrix, super().weight.shape[::-1])

    @staticmethod
    def is_original(module: nn.Module) -> bool:
        """Whether `module` is such a layer, judged by its looks: transformers need not be installed."""
        weight = getattr(module, "weight", None)
        return (
            type(module).__name__ == "Conv1D"
            and isinstance(weight, Tensor)
            and weight.ndim == 2
            and getattr(module, "nf", None) == weight.shape[1]
        )
