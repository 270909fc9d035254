"""The digital transform of a matrix's inputs before the DAC, and its inverse in the weights.

Each input is multiplied by a factor, and blocks of neighbouring inputs are then rotated by a Hadamard matrix:

    x' = (x D) H      W' = W D^-1 H^-1      x' W'^T = x W^T

so that x' and W' suit the converters and the levels better. The factors have the input scales of SmoothQuant (Xiao et
al., ICML 2023, eq. 3) and the random signs of QuaRot (Ashkboos et al., NeurIPS 2024, section 2). Inputs with factor 0
are kept off the arrays: their product is computed digitally in float32 and added (LLM.int8, Dettmers et al., NeurIPS
2022, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from memsim.crossbar.histogram import ALL_OCTAVES, MagnitudeHistogram
from memsim.crossbar.statistics import MANTISSA_BITS, InputStatistics, distribution
from memsim.errors import InputError
from memsim.portable.kernels import as_array, in_threads, is_compiled, kernel


class InputTransform(nn.Module):
    """A digital transform of the inputs [n, in] of a matrix [out, in] without groups.

    Attributes:
        factors: [in], float32: the factor of each input, 0 for those that are computed digitally.
        block: [], the number of inputs of a rotated block, a power of 2; 1 for no rotation. The inputs behind the last
            whole block are not rotated.
        digital_rows: [k], the places of the inputs that are computed digitally, ascending; None without any.
        digital_weight: [out, k], float32, their weights; None without any.

    The tensors are those of a mapped checkpoint.
    """

    factors: Tensor
    block: Tensor
    digital_rows: Tensor | None
    digital_weight: Tensor | None

    def __init__(
        self,
        factors: Tensor,
        block: int = 1,
        digital_rows: Tensor | None = None,
        digital_weight: Tensor | None = None,
    ) -> None:
        """Take the tensors, which fit each other."""
        super().__init__()
        self.register_buffer("factors", factors)
        self.register_buffer("block", torch.tensor(block))
        self.register_buffer("digital_rows", digital_rows)
        self.register_buffer("digital_weight", digital_weight)
        self._block = block  # a look at the tensor would wait for the device

    @classmethod
    def make(
        cls,
        weight: Tensor,
        *,
        scale: Tensor | None = None,
        signs: Tensor | None = None,
        block: int = 1,
        digital_rows: Tensor | None = None,
    ) -> InputTransform:
        """Make the transform of the inputs of `weight` [out, in].

        Args:
            weight: the weight in full precision.
            scale: [in], above 0, what each input is divided by; None for 1.
            signs: [in], 1 or -1, of the inputs that are rotated; None for 1.
            block: the number of inputs of a rotated block, a power of 2.
            digital_rows: [k], the inputs that are computed digitally; None or no elements for none.
        """
        inputs = weight.shape[1]
        factors = torch.ones(inputs, dtype=torch.float64) if scale is None else 1 / scale.cpu().double()
        rotated = inputs - inputs % block
        if block > 1:
            factors[:rotated] *= block**-0.5
            if signs is not None:
                factors[:rotated] *= signs[:rotated].double()
        kept: Tensor | None = None
        if digital_rows is not None and len(digital_rows):
            digital_rows = digital_rows.cpu().sort().values
            factors[digital_rows] = 0
            kept = weight.detach()[:, digital_rows.to(weight.device)].float()
        else:
            digital_rows = None
        device = weight.device
        places = None if digital_rows is None else digital_rows.to(device)
        return cls(factors.float().to(device), block, places, kept).to(device)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], out_features: int, in_features: int) -> InputTransform:
        """Return the transform that a mapped checkpoint holds. Raises InputError where its tensors do not fit."""
        factors, size = factors_and_block(tensors, "input_transform")
        rows, weight = tensors.get("digital_rows"), tensors.get("digital_weight")
        if len(factors) != in_features:
            raise InputError(f"input_transform.factors is {list(factors.shape)}, not [{in_features}]")
        silent = (factors == 0).nonzero().flatten()
        if rows is None or weight is None:
            fits = rows is None and weight is None and not len(silent)
        else:
            fits = torch.equal(rows.long().cpu(), silent.cpu()) and weight.shape == (out_features, len(silent))
        if not fits:
            raise InputError("input_transform.digital_rows are not those whose input_transform.factors are 0")
        return cls(factors, size, *(None, None) if rows is None or weight is None else (rows.long(), weight.float()))

    def sharing_tensors(self) -> InputTransform:
        """Return another module of the same tensors, which can be moved to a device without this one."""
        return InputTransform(self.factors, self._block, self.digital_rows, self.digital_weight)

    @property
    def in_features(self) -> int:
        """The number of inputs."""
        return len(self.factors)

    @property
    def block_size(self) -> int:
        """The number of inputs of a rotated block; 1 for no rotation."""
        return self._block

    @property
    def rotated(self) -> int:
        """The number of inputs in rotated blocks."""
        return 0 if self._block == 1 else self.in_features - self.in_features % self._block

    @property
    def digital(self) -> int:
        """The number of inputs whose product is computed digitally."""
        return 0 if self.digital_rows is None else len(self.digital_rows)

    @property
    def operations(self) -> int:
        """The digital multiplications and additions for one input vector.

        They are one multiplication for each input, log2(block) additions for each rotated one, and a multiplication and
        an addition for each weight of a digital row.
        """
        outputs = 0 if self.digital_weight is None else len(self.digital_weight)
        return self.in_features + self.rotated * (self._block.bit_length() - 1) + 2 * outputs * self.digital

    def forward(self, x: Tensor) -> Tensor:
        """Return the inputs at the DAC for inputs `x` [n, in], float32; each row's bits depend on that row alone."""
        result: Tensor = _AtDac.apply(x, self)
        return result

    def turned(self, values: Tensor, factors: Tensor) -> Tensor:
        """Multiply `values` [n, in] by `factors` [in], then rotate their blocks, in the wider of the two dtypes."""
        if self._block == 1:
            return values * factors
        if not is_compiled(values):
            return rotated(values * factors, self._block)
        result = torch.empty(values.shape, dtype=torch.promote_types(values.dtype, factors.dtype))
        arrays = as_array(values), as_array(factors), self._block, result.numpy()
        if values.numel() < _WORTH_THREADS:
            _rotate(*arrays, 0, len(values))
        else:
            in_threads(lambda first, last: _rotate(*arrays, first, last), len(values))
        return result

    def digital_product(self, x: Tensor) -> Tensor | None:
        """Return the product [n, out], float32, of the digital rows of inputs `x` [n, in]; None without such rows.

        It is summed in float64, so that it does not depend on the number of rows or threads.
        """
        if self.digital_rows is None or self.digital_weight is None:
            return None
        product: Tensor = x[:, self.digital_rows].double() @ self.digital_weight.T.double()
        return product.float()

    def weight(self, weight: Tensor) -> Tensor:
        """Return the weight [out, in], float32, on the arrays for the plain `weight` [out, in]."""
        factors = self.factors.double()
        return self._rotated_weight(weight, torch.where(factors == 0, 0.0, 1 / factors))

    def _rotated_weight(self, weight: Tensor, inverse: Tensor) -> Tensor:
        """Return the weight on the arrays, float32, for `weight` [out, in] and the `inverse` [in] of the factors."""
        inverse = inverse.clone()
        inverse[: self.rotated] /= self._block
        result: Tensor = _OnArrays.apply(weight, self, inverse)
        return result

    def plain_weight(self, weight: Tensor) -> Tensor:
        """Return the plain weight [out, in], float64, for the `weight` [out, in] on the arrays."""
        plain = rotated(weight.double(), self._block) * self.factors.double()
        if self.digital_rows is not None and self.digital_weight is not None:
            plain[:, self.digital_rows] = self.digital_weight.double()
        return plain

    def moments(self, moments: Tensor) -> Tensor:
        """Return the second moments [parts, size, size], float32, of the inputs at the DAC, for those of plain inputs.

        The block of the rotation divides the size of a part where there are several.
        """
        factors = self.factors.double().to(moments.device).view(len(moments), -1)
        scaled = moments.double() * factors[:, None] * factors[:, :, None]
        both = [rotated(rotated(own, self._block).T.contiguous(), self._block) for own in scaled]
        return torch.stack(both).float()

    def statistics(self, statistics: InputStatistics) -> InputStatistics:
        """Return the statistics of the inputs at the DAC, for those of plain inputs.

        The distribution of their values is that of the sample's rows, each counted as often as it stands for. A full
        scale that training chose is that of the inputs at the DAC, and stays.
        """
        rows = self(statistics.sample.to(self.factors.device)).cpu()
        weights = statistics.weights.cpu()
        histogram = MagnitudeHistogram(2, MANTISSA_BITS, octaves=ALL_OCTAVES)
        groups = torch.arange(2).repeat_interleave(len(rows))
        histogram.add(torch.cat([rows.clamp(max=0), rows.clamp(min=0)]), groups, weights.repeat(2))
        counts = distribution(histogram, float(weights.sum()) * rows.shape[1])
        return replace(statistics, sample=rows, weights=weights, moments=None, mean=None, **counts)


def factors_and_block(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, int]:
    """Return the factors [in] and the block of a transform. Raises InputError where its tensors are wrong.

    `name` is that of the transform in the file.
    """
    if missing := {"factors", "block"} - tensors.keys():
        raise InputError(f"the file lacks the tensor {name}.{sorted(missing)[0]}")
    factors, block = tensors["factors"].float(), tensors["block"]
    size = int(block) if block.numel() == 1 and not block.is_floating_point() else 0
    if factors.ndim != 1 or not torch.isfinite(factors).all():
        raise InputError(f"{name}.factors is {list(factors.shape)}, or not finite")
    if not 1 <= size <= max(1, len(factors)) or size & (size - 1):
        raise InputError(f"{name}.block is {size}, not a power of 2 up to {len(factors)}")
    return factors, size


class _AtDac(torch.autograd.Function):
    """The inputs at the DAC for inputs `x` [n, in], with their gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transform: InputTransform) -> Tensor:
        ctx.transform = transform
        return transform.turned(x, transform.factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        transform: InputTransform = ctx.transform
        return transform.turned(gradient, torch.ones_like(transform.factors)) * transform.factors, None


class _OnArrays(torch.autograd.Function):
    """The weight [out, in], float32, on the arrays for the plain `weight` [out, in], with its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, transform: InputTransform, inverse: Tensor) -> Tensor:
        ctx.transform, ctx.inverse, ctx.dtype = transform, inverse.float(), weight.dtype
        return transform.turned(weight.double(), inverse).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        transform: InputTransform = ctx.transform
        turned = transform.turned(gradient, torch.ones_like(transform.factors))
        return (turned * ctx.inverse).to(ctx.dtype), None, None


def rotated(values: Tensor, block: int) -> Tensor:
    """Multiply each whole block of `values` [n, in] by the Hadamard matrix [block, block] of entries 1 and -1.

    Sylvester's matrix by the fast Walsh-Hadamard transform: log2(block) additions for each value. It is symmetric, and
    twice it multiplies by `block`. Values behind the last whole block stay as they are.
    """
    n, inputs = values.shape
    used = inputs - inputs % block
    whole = values[:, :used].reshape(n, used)
    half = 1
    while half < block:
        pairs = whole.view(n, used // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        whole = torch.stack([first + second, first - second], dim=2).view(n, used)
        half *= 2
    return torch.cat([whole, values[:, used:]], dim=1)


_WORTH_THREADS = 1 << 17
"""The number of values from which threads save more time than it takes to start them."""


@kernel
def _rotate(x, factors, block, result, first, last):  # type: ignore[no-untyped-def]
    """Write the inputs at the DAC to `result`: the additions of `rotated`, in its order."""
    inputs = len(factors)
    used = inputs - inputs % block
    for n in range(first, last):
        row = result[n]
        for i in range(inputs):
            row[i] = x[n, i] * factors[i]
        half = 1
        while half < block:
            for start in range(0, used, 2 * half):
                left, right = row[start : start + half], row[start + half : start + 2 * half]
                for i in range(half):
                    a, b = left[i], right[i]
                    left[i] = a + b
                    right[i] = a - b
            half *= 2
    return 0
