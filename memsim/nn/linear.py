"""Linear layers, nn.Linear and GPT-2's Conv1D, on simulated arrays and in training for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar.uncompiled import uncompiled
from memsim.nn.named_layers import naming_its_layer
from memsim.nn.quantised_product import (
    QuantisedLayerOfOne,
    QuantisedProduct,
    RoundedMatrix,
    copied_output_quantiser,
    finished,
)
from memsim.nn.sources import WeightSource, frozen_copy
from memsim.nn.stand_in import OnArrays, WeightOnArrays


class MappedLinear(OnArrays):
    """A linear layer whose product runs on a crossbar; the bias is added digitally."""

    bias: Tensor | None

    def __init__(
        self, matrix: nn.Module, weight: Tensor, bias: Tensor | None, output_quantiser: nn.Module | None = None
    ) -> None:
        """Multiply by `matrix`, a `MappedMatrix` or a module in its place, instead of by `weight`.

        `output_quantiser` rounds the output; a layer that was trained with one passes it on.
        """
        super().__init__()
        self.matrix = matrix
        self.output_quantiser = output_quantiser or nn.Identity()
        self.bias = frozen_copy(bias)
        self._keep_dtype(weight)

    @classmethod
    def sources(cls, module: Any) -> dict[str, WeightSource]:
        """Return the matrix of an nn.Linear, or of a QuantisedLinear."""
        return {"": WeightSource.of("weight", tuple(module.weight.shape))}

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> MappedLinear:
        """Return the layer in place of `module`, whose matrix is `products[""]`."""
        return cls(products[""], module.weight, module.bias, copied_output_quantiser(module))

    @property
    def weight(self) -> Tensor:
        """A weight without values, for networks that look up its shape, dtype or device."""
        return WeightOnArrays(self.matrix, self.weight_dtype)

    @uncompiled
    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        """Multiply `input` [..., in] by the matrix and add the bias, giving [..., out]."""
        return finished(self.matrix(input), self.bias, self.output_quantiser)


class MappedConv1D(MappedLinear):
    """GPT-2's `Conv1D` of Hugging Face transformers: a linear layer whose weight is stored [in, out]."""

    @classmethod
    def sources(cls, module: Any) -> dict[str, WeightSource]:
        """Return the matrix of a Conv1D, or of a QuantisedConv1D."""
        return {"": WeightSource.transposed("weight", tuple(module.weight.shape))}

    @property
    def weight(self) -> Tensor:
        """A weight [in, out] without values."""
        return WeightOnArrays(self.matrix, self.weight_dtype, super().weight.shape[::-1])

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as `MappedLinear.forward`; the argument has Conv1D's name."""
        return super().forward(x)

    @staticmethod
    def is_original(module: nn.Module) -> bool:
        """Whether `module` is such a layer, judged by its name and sizes: transformers need not be installed."""
        weight = getattr(module, "weight", None)
        return (
            type(module).__name__ == "Conv1D"
            and isinstance(weight, Tensor)
            and weight.ndim == 2
            and getattr(module, "nf", None) == weight.shape[1]
        )


class QuantisedLinear(QuantisedLayerOfOne):
    """An nn.Linear with quantisers."""

    sources = MappedLinear.sources

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.out_features, self.in_features = self.source.shape

    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        """Multiply `input` [..., in] by the rounded matrix and add the bias, giving [..., out]."""
        return finished(self.matrix()(input), self.bias, self.output_quantiser)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class QuantisedConv1D(QuantisedLinear):
    """GPT-2's `Conv1D` with quantisers."""

    sources = MappedConv1D.sources

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as `QuantisedLinear.forward`; the argument has Conv1D's name."""
        return super().forward(x)


def mapped_product(
    quantisers: nn.ModuleDict, name: str, x: Tensor, matrix: nn.Module | Tensor, bias: Tensor | None
) -> Tensor:
    """Multiply `x` [..., in] by one matrix of a layer of several, and add its bias [out], giving [..., out].

    A `matrix` that is a module is on arrays, a tensor [out, in] is digital. `quantisers` are the layer's (see
    `copied_quantisers`).
    """
    product = quantisers._modules.get(name)
    assert product is None or isinstance(product, QuantisedProduct)
    if not isinstance(matrix, Tensor):
        y: Tensor = matrix(x)
    elif product is None:
        y = F.linear(x, matrix.to(x.dtype))
    else:
        y = RoundedMatrix(product, matrix)(x)
    return finished(y, bias, product and product.output_quantiser)
