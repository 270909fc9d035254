"""nn.Linear, and what else is a plain matrix product, on simulated arrays and in training for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar.uncompiled import uncompiled
from memsim.nn.named_layers import naming_its_layer
from memsim.nn.product import QuantisedLayerOfOne, QuantisedProduct, finished, kept_output_quantiser
from memsim.nn.sources import WeightSource, kept
from memsim.nn.stand_in import OnArrays, WeightOnArrays


class QuantisedLinear(QuantisedLayerOfOne):
    """nn.Linear with quantisers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.source = MappedLinear.sources(module)[""]
        self.out_features, self.in_features = self.source.shape

    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        return self.finished(self.matrix()(input), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class QuantisedConv1D(QuantisedLinear):
    """GPT-2's `Conv1D` with quantisers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.source = MappedConv1D.sources(module)[""]
        self.out_features, self.in_features = self.source.shape

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class MappedLinear(OnArrays):
    """A linear layer whose product runs on a crossbar: [..., in] -> [..., out]. The bias is added digitally.

    `output_quantiser` is that of a layer that was trained with one.
    """

    bias: Tensor | None

    def __init__(
        self, matrix: nn.Module, weight: Tensor, bias: Tensor | None, output_quantiser: nn.Module | None = None
    ) -> None:
        """`matrix`, a `MappedMatrix` or what multiplies in its place, stands for `weight`."""
        super().__init__()
        self.matrix = matrix
        self.output_quantiser = output_quantiser or nn.Identity()
        self.bias = kept(bias)
        self._keep_dtype(weight)

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        """The matrix of an nn.Linear, or of a QuantisedLinear."""
        assert isinstance(module.weight, Tensor)
        return {"": WeightSource.of("weight", tuple(module.weight.shape))}

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> MappedLinear:
        return cls(products[""], module.weight, module.bias, kept_output_quantiser(module))

    @property
    def weight(self) -> Tensor:
        """For networks that look it up: without its values."""
        return WeightOnArrays(self.matrix, self.weight_dtype)

    @uncompiled
    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        return finished(self.matrix(input), self.bias, self.output_quantiser)


class MappedConv1D(MappedLinear):
    """GPT-2's `Conv1D` of Hugging Face transformers: a linear layer whose weight is stored [in, out]."""

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        assert isinstance(module.weight, Tensor)
        return {"": WeightSource.transposed("weight", tuple(module.weight.shape))}

    @property
    def weight(self) -> Tensor:
        return WeightOnArrays(self.matrix, self.weight_dtype, super().weight.shape[::-1])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

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


def mapped_product(
    quantisers: nn.ModuleDict, name: str, x: Tensor, matrix: nn.Module | Tensor, bias: Tensor | None
) -> Tensor:
    """In a layer of several matrices: `x` times one that is on arrays, or (a tensor) digital, with its bias.

    `quantisers` are those of the layer (see `kept_quantisers`).
    """
    product = quantisers._modules.get(name)
    assert product is None or isinstance(product, QuantisedProduct)
    if not isinstance(matrix, Tensor):
        y: Tensor = matrix(x)
    elif product is None:
        y = F.linear(x, matrix.to(x.dtype))
    else:
        y = product.times(matrix)(x)
    return finished(y, bias, product and product.output_quantiser)
