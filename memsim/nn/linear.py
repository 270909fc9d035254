"""nn.Linear on simulated arrays."""

from __future__ import annotations

from torch import Tensor, nn

from memsim.crossbar.matrix import MappedMatrix


class MappedLinear(nn.Module):
    """A linear layer whose product runs on a crossbar: [..., in] -> [..., out]. The bias is added digitally."""

    bias: Tensor | None

    def __init__(self, matrix: MappedMatrix, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.matrix(x)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def extra_repr(self) -> str:
        out_features, in_features = self.matrix.levels.shape
        return f"in_features={in_features}, out_features={out_features}, hardware={self.matrix.spec.name}"
