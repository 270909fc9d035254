"""nn.Linear on simulated arrays."""

from __future__ import annotations

from torch import Tensor, nn

from memsim.crossbar.matrix import MappedMatrix


class MappedLinear(nn.Module):
    """A linear layer whose product runs on a crossbar: [..., in] -> [..., out]. The bias is added digitally.

    `output_quantiser` is that of a layer that was trained with one.
    """

    bias: Tensor | None

    def __init__(self, matrix: MappedMatrix, bias: Tensor | None, output_quantiser: nn.Module | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.output_quantiser = output_quantiser or nn.Identity()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.matrix(x)
        if self.bias is not None:
            product = product + self.bias.to(product.dtype)
        result: Tensor = self.output_quantiser(product)
        return result

    def extra_repr(self) -> str:
        out_features, in_features = self.matrix.levels.shape
        return f"in_features={in_features}, out_features={out_features}, hardware={self.matrix.spec.name}"
