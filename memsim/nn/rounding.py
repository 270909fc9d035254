"""Fake quantisers: what weights and activations are rounded to in training.

Their grids are those of the hardware: a weight's is that of `memsim.crossbar.encode`, an activation's the DAC's own
(`memsim.crossbar.convert`). What they round to in training is therefore, code for code, what is on the arrays later.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from memsim.crossbar import convert, encode
from memsim.spec import Weights

Method = Literal["lsq", "minmax"]

LEAST = 1e-12  # of a range or scale, so that nothing is divided by 0


class _Rounding(torch.autograd.Function):
    """codes * step, with the gradients of LSQ (Esser et al., ICLR 2020, equations 3 and 5).

    The gradient of `x` passes where it is in range; that of `step`, codes - x / step in range and codes beyond, is
    multiplied by `gradient_scale`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, codes: Tensor, largest: int, gradient_scale: float) -> Tensor:
        ctx.save_for_backward(x, step, codes)
        ctx.largest, ctx.gradient_scale = largest, gradient_scale
        return codes * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step, codes = ctx.saved_tensors
        fraction = x / step
        inside = fraction.abs() <= ctx.largest
        of_step = None
        if ctx.needs_input_grad[1]:
            of_step = (gradient * (codes - fraction * inside)).sum_to_size(step.shape) * ctx.gradient_scale
        return gradient * inside, of_step, None, None, None


def _rounded(x: Tensor, step: Tensor, codes: Tensor, largest: int, values: int) -> Tensor:
    """`codes` * `step` in place of `x`; `values` are those that share a step."""
    result: Tensor = _Rounding.apply(x, step, codes, largest, (values * largest) ** -0.5)
    return result


def _hold(module: nn.Module, name: str, value: Tensor, method: Method) -> None:
    """Give `module` the state `name`: a parameter where it is learned, a buffer where it is observed."""
    if method == "lsq":
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


class WeightQuantiser(nn.Module):
    """Rounds a weight [out, in] to levels * `scale`, `scale` being [out] (per channel) or [1] (per tensor).

    `lsq` learns the scale; `minmax` observes it in training: the largest magnitude that there ever was is on the last
    level.
    """

    scale: Tensor

    def __init__(self, bits: int, scale: Tensor, method: Method = "lsq") -> None:
        super().__init__()
        self.method = method
        self.weight_bits = bits
        self.largest = encode.max_level(bits)
        self.register_buffer("bits", torch.tensor(bits))
        _hold(self, "scale", scale, method)

    @classmethod
    def fitted(cls, weight: Tensor, bits: int, method: Method, config: Weights) -> WeightQuantiser:
        """With the scale that mapping would choose for `weight` [out, in]."""
        return cls(bits, encode.fit_scale(weight.detach(), bits, config), method)

    def forward(self, weight: Tensor) -> Tensor:
        if self.method == "minmax" and self.training:
            self._observe(weight.detach())
        scale = self.positive_scale()
        return _rounded(weight, scale[:, None], self.levels(weight), self.largest, weight.numel() // len(scale))

    def positive_scale(self) -> Tensor:
        """`scale`, above 0 wherever training has led it."""
        return self.scale.clamp_min(LEAST)

    @torch.no_grad()
    def levels(self, weight: Tensor) -> Tensor:
        """Levels [out, in], whole numbers in float32."""
        return (weight / self.positive_scale()[:, None]).round_().clamp_(-self.largest, self.largest)

    def _observe(self, weight: Tensor) -> None:
        rows = weight if len(self.scale) == len(weight) else weight.reshape(1, -1)
        self.scale.copy_(torch.maximum(self.scale, rows.abs().amax(dim=1) / self.largest))

    def extra_repr(self) -> str:
        return f"levels=+-{self.largest}, {self.method}"


class ActivationQuantiser(nn.Module):
    """Rounds to the codes of a signed converter whose full scale is `range` [].

    `lsq` learns the range; `minmax` observes it in training: the largest magnitude that there ever was.
    """

    range: Tensor

    def __init__(self, bits: int, range_: Tensor, method: Method = "lsq") -> None:
        super().__init__()
        self.method = method
        self.dac_bits = bits
        self.register_buffer("bits", torch.tensor(bits))
        _hold(self, "range", range_, method)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.method == "minmax" and self.training:
            self.range.copy_(torch.maximum(self.range, x.detach().abs().amax()))
        full_scale = self.positive_range()
        largest = convert.dac_max_code(self.dac_bits)
        with torch.no_grad():
            codes = convert.dac_codes(x, full_scale, self.dac_bits)
        return _rounded(x, full_scale / largest, codes, largest, x.shape[-1])

    def positive_range(self) -> Tensor:
        """`range`, above 0 wherever training has led it."""
        return self.range.clamp_min(LEAST)

    def extra_repr(self) -> str:
        return f"bits={self.dac_bits}, {self.method}"


QUANTISERS = (WeightQuantiser, ActivationQuantiser)
