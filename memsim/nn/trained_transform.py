"""The transform of a matrix's inputs in training, where the plain weight learns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar.input_transform import InputTransform, factors_and_block
from memsim.errors import InputError


class TrainedTransform(InputTransform):
    """A transform of inputs [n, in] whose digital rows are computed from the plain weight [out, in].

    Attributes:
        hidden_weight: [out, k], the weights on the arrays of the k digital rows. Their inputs are 0 there, so they
            change no product by themselves. They complete rotated blocks, all of whose levels are free only with them.
    """

    hidden_weight: nn.Parameter
    places: Tensor

    def __init__(self, factors: Tensor, block: int, hidden_weight: Tensor) -> None:
        """Take the tensors, which fit each other."""
        super().__init__(factors, block)
        self.hidden_weight = nn.Parameter(hidden_weight)
        self.register_buffer("places", (factors == 0).nonzero().flatten(), persistent=False)

    @classmethod
    def of(cls, transform: InputTransform, on_arrays: Tensor) -> TrainedTransform:
        """Return the `transform` of a matrix with which training begins from the weight `on_arrays` [out, in]."""
        made = cls(transform.factors, transform.block_size, on_arrays[:, :0])
        plain = made.turned(on_arrays.double(), torch.ones_like(made._whole_factors)) * made._whole_factors
        return cls(transform.factors, transform.block_size, plain[:, made.places].to(on_arrays.dtype))

    @classmethod
    def from_checkpoint(cls, tensors: Mapping[str, Tensor]) -> TrainedTransform:
        """Return the transform whose `tensors` a checkpoint has. Raises InputError where they are missing or wrong."""
        factors, block = factors_and_block(tensors, "trained_transform")
        hidden = tensors.get("hidden_weight")
        silent = int((factors == 0).sum())
        if hidden is None or hidden.ndim != 2 or hidden.shape[1] != silent or not torch.isfinite(hidden).all():
            raise InputError(f"trained_transform.hidden_weight is missing, or not finite, or not [out, {silent}]")
        return cls(factors, block, hidden)

    def require_fit(self, matrix: str, out_features: int, in_features: int) -> None:
        """Raise InputError unless this is a transform of the inputs of the `matrix` [out, in]."""
        for name, found, wanted in (
            ("factors", list(self.factors.shape), [in_features]),
            ("hidden_weight", list(self.hidden_weight.shape), [out_features, len(self.places)]),
        ):
            if found != wanted:
                raise InputError(f"{matrix}.trained_transform.{name} is {found}, not {wanted}; the file is damaged")

    @property
    def _whole_factors(self) -> Tensor:
        """The factors [in], float64, with other numbers than 0 for digital rows."""
        usual = torch.ones_like(self.factors, dtype=torch.float64)
        usual[: self.rotated] = self.block_size**-0.5
        return torch.where(self.factors == 0, usual, self.factors.double())

    def weight(self, weight: Tensor) -> Tensor:
        """Return the weight [out, in], float32, on the arrays for the plain `weight` [out, in]."""
        hidden = self.hidden_weight.to(weight.dtype)
        return self._rotated_weight(weight.index_copy(1, self.places, hidden), 1 / self._whole_factors)

    def product_of_digital_rows(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Return the product [n, out] of the digital rows of inputs `x` [n, in] and of the plain `weight` [out, in]."""
        if not len(self.places):
            return None
        return F.linear(x[:, self.places], weight[:, self.places].to(x.dtype))

    def for_arrays(self, weight: Tensor) -> InputTransform:
        """Return the transform of a mapped matrix, with the digital rows of the plain `weight` [out, in]."""
        rows = self.places.to(weight.device)
        kept = (rows, weight.detach()[:, rows].float()) if len(rows) else (None, None)
        return InputTransform(self.factors, self.block_size, *kept).to(weight.device)
