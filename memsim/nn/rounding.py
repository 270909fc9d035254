"""Fake quantisers, which round weights and activations in training.

Their grids are the hardware's: weights are rounded as in `memsim.crossbar.encode`, activations as by the DAC
(`memsim.crossbar.convert`). The codes in training are therefore the codes on the arrays.

A scale or range of 0 is not known yet: its values have always been 0. An observer takes the first values that it sees.
Learning would take far too long, because its steps are relative to the value learned. Therefore the scales of channels
and the ranges of inputs that are almost 0 when training begins (a residual branch or an adapter that starts at zero, a
dead ReLU) follow the weights and inputs, and are learned only while they fit these.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar import convert, encode
from memsim.hardware import BinaryPlanes, Weights
from memsim.nn import compiled_rounding
from memsim.nn.trained_transform import TrainedTransform

Method = Literal["lsq", "minmax"]

LEAST = 1e-12  # the smallest range or scale, which avoids a division by 0
NEGLIGIBLE = 0.05  # weights and inputs below this fraction of the usual size count as 0
FOLLOWED_VALUES = 1 << 16  # the number of values of a batch, roughly, of which a percentile is taken


class _Rounding(torch.autograd.Function):
    """The multiples of a step nearest to `x`, with the gradients of LSQ (Esser et al., ICLR 2020, equations 3 and 5).

    `x` has one `step` for all its values or, as [..., 1], one for each of its rows. The code of a value is the value
    times `per_step` or, where that is None, divided by `step`, rounded and limited to +-`largest`. The gradient with
    respect to `x` passes where `x` is in range, and where `passes` is true. The gradient with respect to `step`,
    codes - x / step in range and codes beyond, is multiplied by `gradient_scale`, a number or one for each step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        per_step: Tensor | None,
        largest: int,
        gradient_scale: float | Tensor,
        passes: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, step, per_step, passes)
        ctx.largest, ctx.gradient_scale = largest, gradient_scale
        if compiled_rounding.can_round(x, dtype):
            return compiled_rounding.rounded(x, step, per_step, largest, dtype)
        return (_codes(x, step, per_step, largest) * step).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step, per_step, passes = ctx.saved_tensors
        needs_step = ctx.needs_input_grad[1]
        if compiled_rounding.can_round(x, gradient.dtype):
            of_x, terms = compiled_rounding.gradients(gradient, x, step, per_step, ctx.largest, passes, needs_step)
        else:
            gradient, fraction = gradient.to(step.dtype), x / step
            inside = fraction.abs() <= ctx.largest
            terms = gradient * (_codes(x, step, per_step, ctx.largest) - fraction * inside) if needs_step else None
            of_x = gradient * (inside if passes is None else inside | passes)
        of_step = None if terms is None else terms.sum_to_size(step.shape) * ctx.gradient_scale
        return of_x, of_step, None, None, None, None, None


def _codes(x: Tensor, step: Tensor, per_step: Tensor | None, largest: int) -> Tensor:
    return (x / step if per_step is None else x * per_step).round_().clamp_(-largest, largest)


def _rounded(
    x: Tensor,
    step: Tensor,
    largest: int,
    values: int | Tensor,
    dtype: torch.dtype | None,
    per_step: Tensor | None = None,
    passes: Tensor | None = None,
) -> Tensor:
    """Return `x` as `_Rounding` rounds it, in `dtype`, by default that of the steps; `values` share a step."""
    gradient_scale = (values * largest) ** -0.5
    result: Tensor = _Rounding.apply(x, step, per_step, largest, gradient_scale, passes, dtype or step.dtype)
    return result


class _Positive(torch.autograd.Function):
    """The maximum of a value and LEAST, with the identity's gradient, so that training can raise a negative value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp_min(LEAST)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _positive(x: Tensor) -> Tensor:
    result: Tensor = _Positive.apply(x)
    return result


def dtype_of_state(values: Tensor) -> torch.dtype:
    """Return the dtype of the scales and ranges of `values`: float32, or float64 in a float64 network."""
    return torch.promote_types(values.dtype, torch.float32)


def _hold(module: nn.Module, name: str, value: Tensor, method: Method) -> None:
    """Register the state `name` of `module`: a parameter where it is learned, a buffer where it is observed."""
    if method == "lsq":
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


class TrainedScale(NamedTuple):
    """The weight bits that a matrix was trained for, its scale, and the transform of its inputs, if any.

    The scale is [out], [1] or, on tiles of `tile_rows` rows, [row_tiles, out].
    """

    bits: int
    scale: Tensor
    tile_rows: int | None = None
    transform: TrainedTransform | None = None


class WeightQuantiser(nn.Module):
    """A quantiser of a weight [out, in] to levels * `scale`, which is [out], [1] or [row_tiles, out].

    The method `lsq` learns the scale. The method `minmax` observes it in training: the largest magnitude so far is on
    the last level. `followed` [n] holds the indices of the flat scale that follow the weights (`lsq` only); None for
    none. `tile_rows` [] are the rows of the tiles that have scales of their own; None for other scales.
    """

    scale: Tensor
    followed: Tensor | None
    tile_rows: Tensor | None

    def __init__(
        self,
        bits: int,
        scale: Tensor,
        method: Method = "lsq",
        followed: Tensor | None = None,
        tile_rows: int | None = None,
    ) -> None:
        super().__init__()
        self._rows_of_tile = tile_rows
        self.method = method
        self.weight_bits = bits
        self.largest = encode.max_level(bits)
        self.register_buffer("bits", torch.tensor(bits))
        self.register_buffer("followed", followed, persistent=False)
        self.register_buffer("tile_rows", None if tile_rows is None else torch.tensor(tile_rows))
        _hold(self, "scale", scale, method)

    @classmethod
    def fitted(
        cls,
        weight: Tensor,
        bits: int,
        method: Method,
        config: Weights,
        tile_rows: int | None = None,
        scale: Tensor | None = None,
    ) -> WeightQuantiser:
        """Return a quantiser of `weight` [out, in] with `scale`, or the one that mapping would choose.

        A scale is 0 where all weights are. Scales follow the weights where these are below NEGLIGIBLE times the weights
        with which layers are usually initialised. `tile_rows` are the rows of a tile, for scales per tile.
        """
        weight = weight.detach()
        scale = encode.fit_scale(weight, bits, config, tile_rows) if scale is None else scale
        scale = scale.to(dtype_of_state(weight))
        rows_of_tile = tile_rows if scale.ndim == 2 else None
        largest = _rows(weight, scale, rows_of_tile).abs().amax(dim=1)
        scale = torch.where(largest.view_as(scale) > 0, scale, torch.zeros_like(scale))
        (followed,) = torch.nonzero(largest < NEGLIGIBLE / math.sqrt(weight.shape[1]), as_tuple=True)
        return cls(bits, scale, method, followed if method == "lsq" and len(followed) else None, rows_of_tile)

    def forward(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Round `weight` [out, in] to numbers of `dtype`, by default that of the scale.

        In training, first observe or follow it.
        """
        if self.method == "minmax" and self.training:
            self._observe(weight.detach())
        if self.followed is not None and self.training:
            self._follow(weight.detach(), self.followed)
        passes = None if self.followed is None else self._each(self._follows(self.followed))
        scale = self.positive_scale()
        if self._rows_of_tile is None:
            values = weight.numel() // len(scale)
            return _rounded(weight, self._each(scale), self.largest, values, dtype, passes=passes)
        rows, width = self._rows_of_tile, weight.shape[1]
        padded = F.pad(weight, (0, -width % rows)) if width % rows else weight
        values_of_tiles = (width - rows * torch.arange(len(scale), device=weight.device)).clamp(max=rows)[:, None]
        tiles = padded.unflatten(1, (-1, rows))  # [out, row_tiles, rows]
        rounded = _rounded(tiles, self._each(scale), self.largest, values_of_tiles, dtype, passes=passes)
        return rounded.flatten(1)[:, :width]

    def _each(self, of_scales: Tensor) -> Tensor:
        """Return a value for each scale in a shape that broadcasts with weights [out, in] or [out, row_tiles, rows]."""
        return of_scales[:, None] if of_scales.ndim == 1 else of_scales.T[..., None]

    def _follows(self, followed: Tensor) -> Tensor:
        """Return which scales follow the weights, in the shape of the scale."""
        follows = torch.zeros_like(self.scale, dtype=torch.bool)
        follows.view(-1).index_fill_(0, followed, True)
        return follows

    @property
    def trained(self) -> TrainedScale:
        """The bits and the scale, for mapping."""
        return TrainedScale(self.weight_bits, self.positive_scale().detach().float(), self._rows_of_tile)

    def positive_scale(self) -> Tensor:
        """Return `scale`, or LEAST where training has made it smaller."""
        return _positive(self.scale)

    def learned_from_the_start(self) -> Tensor:
        """Return the scales [n] that do not follow the weights."""
        scale = self.scale.detach().reshape(-1)
        return scale if self.followed is None else scale[~torch.isin(torch.arange(len(scale)), self.followed.cpu())]

    @torch.no_grad()
    def levels(self, weight: Tensor) -> Tensor:
        """Return the levels [out, in] of `weight`, whole numbers in its dtype."""
        width = weight.shape[1]
        return self._levels(weight, encode.scale_of_weights(self.positive_scale(), width, self._rows_of_tile or width))

    def _levels(self, rows: Tensor, scale: Tensor) -> Tensor:
        return (rows / scale).round_().clamp_(-self.largest, self.largest)

    def _observe(self, weight: Tensor) -> None:
        largest = _rows(weight, self.scale, self._rows_of_tile).abs().amax(dim=1).view_as(self.scale)
        self.scale.copy_(torch.maximum(self.scale, largest / self.largest))

    @torch.no_grad()
    def _follow(self, weight: Tensor, followed: Tensor) -> None:
        """Fit anew the scales that no longer fit: weights are clipped, or leave levels unused."""
        rows = _rows(weight, self.scale, self._rows_of_tile)[followed]
        scale, stored = self.positive_scale().view(-1)[followed], self.scale.data.view(-1)
        levels = self._levels(rows, scale[:, None])
        grown = (rows * levels).sum(dim=1) / (levels.square().sum(dim=1) * scale)  # NaN where all levels are 0
        clipped = (rows.abs() - self.largest * scale[:, None]).clamp(min=0).norm(dim=1) / rows.norm(dim=1)
        fits = ((grown - 1).abs() < 0.1) & (clipped < 0.15) & (levels.abs().amax(dim=1) > self.largest / 2)
        is_zero = ~rows.any(dim=1)
        stored[followed[is_zero]] = 0
        (outdated,) = torch.nonzero(~(fits | is_zero), as_tuple=True)
        if len(outdated):
            fitted = encode.fit_scale(rows[outdated], self.weight_bits, _LEAST_SQUARES)
            stored[followed[outdated]] = fitted.to(self.scale.dtype)

    def extra_repr(self) -> str:
        """Return the largest level and the method."""
        return f"levels=+-{self.largest}, {self.method}"


_LEAST_SQUARES = BinaryPlanes(scale="per_channel", scale_method="mse")


def _rows(weight: Tensor, scale: Tensor, tile_rows: int | None) -> Tensor:
    """Return `weight` [out, in] with one row for each value of the flat `scale`; `tile_rows` are those of its tiles."""
    if tile_rows is not None:
        return encode.by_tile(weight, tile_rows).flatten(0, 1)
    return weight if len(scale) == len(weight) else weight.reshape(1, -1)


class ActivationQuantiser(nn.Module):
    """A quantiser of activations to the codes of a signed converter whose full scale is `range` [].

    The method `lsq` learns the range. The method `minmax` observes it in training: the largest magnitude so far. With
    `followed_percentile`, a learned range also follows that percentile of the magnitudes that are not 0.
    """

    range: Tensor

    def __init__(
        self, bits: int, range_: Tensor, method: Method = "lsq", followed_percentile: float | None = None
    ) -> None:
        super().__init__()
        self.method = method
        self.dac_bits = bits
        self.followed_percentile = followed_percentile
        self.register_buffer("bits", torch.tensor(bits))
        _hold(self, "range", range_, method)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Round `x` [..., features] to numbers of `dtype`, by default `dtype_of_state(x)`.

        In training, first observe or follow it.
        """
        x = x.to(dtype_of_state(x))
        if self.method == "minmax" and self.training:
            self.range.copy_(torch.maximum(self.range, x.detach().abs().amax()))
        if self.followed_percentile is not None and self.training:
            self._follow(x.detach(), self.followed_percentile)
        full_scale = self.positive_range()
        largest = convert.dac_max_code(self.dac_bits)
        per_step = largest / full_scale.detach()  # as `convert.dac_codes`
        return _rounded(x, full_scale / largest, largest, x.shape[-1], dtype, per_step)

    def positive_range(self) -> Tensor:
        """Return `range`, or LEAST where training has made it smaller."""
        return _positive(self.range)

    @property
    def is_observed(self) -> bool:
        """Whether training sets the range from the inputs, always or until it is learned."""
        return self.method == "minmax" or self.followed_percentile is not None

    def learned_from_the_start(self) -> Tensor:
        """Return the range [1] unless it follows the inputs, in which case nothing [0]."""
        return self.range.detach().reshape(1)[: int(not self.is_observed)]

    @torch.no_grad()
    def _follow(self, x: Tensor, percentile: float) -> None:
        """Enlarge the range at once when inputs grow, reduce it slowly when they are far smaller; ignore zeros."""
        magnitudes = x[x != 0].abs()
        if not len(magnitudes):
            return
        some = magnitudes[:: -(-len(magnitudes) // FOLLOWED_VALUES)]
        wanted = some.kthvalue(max(1, round(percentile / 100 * len(some)))).values.to(self.range.dtype)
        shrunk = torch.where(self.range > 2 * wanted, self.range.lerp(wanted, 0.02), self.range)
        self.range.data.copy_(torch.where(wanted > 1.25 * self.range, wanted, shrunk))

    def extra_repr(self) -> str:
        """Return the bits and the method."""
        return f"bits={self.dac_bits}, {self.method}"


QUANTISERS = (WeightQuantiser, ActivationQuantiser)
