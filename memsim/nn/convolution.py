"""Convolutions on simulated arrays, and in training for them.

A convolution multiplies windows of its input, as rows, by one matrix. A transposed convolution multiplies the positions
of its input, as rows, and adds up the products where they overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product as cartesian
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar.uncompiled import uncompiled
from memsim.nn.named_layers import NamedLayer, naming_its_layer
from memsim.nn.quantised_product import QuantisedLayerOfOne, Stream, finished
from memsim.nn.sources import WeightSource, frozen_copy
from memsim.nn.stand_in import OnOneMatrix
from memsim.units import counted

PIECE_VALUES = 1 << 20
"""The number of window values, roughly, that exist at a time. It changes speed and memory, never a result."""


@dataclass(frozen=True)
class _Kernel:
    """The kernel of a convolution of either kind, and how it moves."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def __str__(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


@dataclass(frozen=True)
class Windows(_Kernel):
    """The windows [in, *kernel] into which a convolution cuts its input, one row each.

    `ends` is the padding of each end of each dimension, the last dimension first, as F.pad takes it.
    """

    ends: tuple[int, ...]
    padding_mode: str
    groups: int

    @classmethod
    def of(cls, module: Any) -> Windows:
        """Windows of an nn.Conv1d, 2d or 3d, or of the quantised layer in its place."""
        if isinstance(module, QuantisedConvolution):
            return module.geometry
        ends = tuple(module._reversed_padding_repeated_twice)  # torch has resolved `same` here
        return cls(module.kernel_size, module.stride, module.dilation, ends, module.padding_mode, module.groups)

    def source(self, stored: tuple[int, ...]) -> WeightSource:
        """The matrix in the layer's weight, which has the shape `stored`."""
        return WeightSource.of("weight", stored, self.groups)

    def _padded(self, x: Tensor) -> Tensor:
        """Pad `x` [batch, *space, in], giving [batch, in, *padded space]."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded: Tensor = F.pad(x.movedim(-1, 1), self.ends, mode=mode)
        return padded

    def multiply(self, x: Tensor, stream: Stream) -> Tensor:
        """Multiply the windows of `x` [batch, *space, in] with `stream`, giving [batch, *space', out]."""
        windows = self._cut(self._padded(x))
        space = windows.shape[1 : 1 + len(self.kernel_size)]
        product = stream(_rows(windows, len(self.kernel_size)))
        return product.view(len(x), *space, product.shape[1])

    def convolve(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Convolve `x` as `multiply` does, by torch's own kernel, with a `matrix` [out, in / groups * kernel]."""
        weight = matrix.view(len(matrix), -1, *self.kernel_size)
        function: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        options = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return function(self._padded(x), weight, **options).movedim(1, -1)

    def _cut(self, padded: Tensor) -> Tensor:
        """Return a view [batch, *space', in, *kernel] of the padded input [batch, in, *space]."""
        batch_step, channel_step, *steps = padded.stride()
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if any(size < needed for size, needed in zip(padded.shape[2:], reach, strict=True)):
            raise ValueError(
                f"an input of {list(padded.shape[2:])}, padding included, is smaller than the kernel's reach of {reach}"
            )
        space = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, self.stride, strict=True)]
        strides = [step * s for step, s in zip(steps, self.stride, strict=True)]
        within = [step * d for step, d in zip(steps, self.dilation, strict=True)]
        return padded.as_strided(
            (len(padded), *space, padded.shape[1], *self.kernel_size), (batch_step, *strides, channel_step, *within)
        )


class _Convolution(NamedLayer):
    """A convolution of either kind, mapped or in training."""

    _kind: ClassVar[type[Windows | Overlap]]
    geometry: Windows | Overlap

    def _copy_sizes(self, module: Any) -> None:
        """Copy the attributes of `module` that networks ask a convolution for, and its geometry."""
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(module, name))
        self.geometry = self._kind.of(module)

    @classmethod
    def sources(cls, module: Any) -> dict[str, WeightSource]:
        """Return the layer's only matrix."""
        return {"": cls._kind.of(module).source(tuple(module.weight.shape))}

    def extra_repr(self) -> str:
        """Return the kernel's size, stride and dilation."""
        return str(self.geometry)


class _OnArrays(_Convolution, OnOneMatrix):
    """A convolution of either kind whose weight is on arrays."""

    bias: Tensor | None

    def __init__(self, module: Any, matrix: nn.Module) -> None:
        super().__init__(module, matrix)
        self.bias = frozen_copy(module.bias)


class MappedConvolution(_OnArrays):
    """An nn.Conv1d, 2d or 3d on arrays.

    Groups are blocks on the matrix's diagonal. Padding is added before the arrays, the bias after them.
    """

    _kind = Windows
    geometry: Windows

    @uncompiled
    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input` [batch, in, *space], giving [batch, out, *space']; the batch may be missing in both.

        Raises ValueError where the input has other dimensions or is smaller than the kernel.
        """
        x, has_batch = channels_last(input, len(self.geometry.kernel_size))
        stream: Stream = self.matrix.stream  # type: ignore[assignment]
        product = self.geometry.multiply(x, stream)
        return channels_first(finished(product, self.bias, self.output_quantiser), has_batch)


class QuantisedConvolution(_Convolution, QuantisedLayerOfOne):
    """An nn.Conv1d, 2d or 3d with quantisers."""

    _kind = Windows
    geometry: Windows

    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        """Convolve as `MappedConvolution.forward`."""
        x, has_batch = channels_last(input, len(self.geometry.kernel_size))
        product = self.matrix()(x, self.geometry.convolve, self.geometry.multiply)
        return channels_first(finished(product, self.bias, self.output_quantiser), has_batch)


@dataclass(frozen=True)
class Overlap(_Kernel):
    """The sum of a transposed convolution's products [out, *kernel], one for each position of its input."""

    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, module: Any) -> Overlap:
        """Overlap of an nn.ConvTranspose1d, 2d or 3d, or of the quantised layer in its place."""
        if isinstance(module, QuantisedTransposedConvolution):
            return module.geometry
        padding = tuple(int(size) for size in module.padding)
        sizes = (module.kernel_size, module.stride, module.dilation)
        return cls(*sizes, padding, module.output_padding, module.groups)

    def source(self, stored: tuple[int, ...]) -> WeightSource:
        """The matrix in the layer's weight, which has the shape `stored`."""
        return WeightSource.transposed("weight", stored, self.groups)

    def add_up(self, columns: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Add up `columns` [batch, *space, out * kernel], giving [batch, *space', out].

        Raises ValueError where no padding of the output gives `output_size`.
        """
        columns = columns.unflatten(-1, (-1, math.prod(self.kernel_size)))  # [batch, *space, out, taps]
        space = columns.shape[1:-2]
        axes = list(zip(space, self.kernel_size, self.stride, self.dilation, strict=True))
        extra = self._output_padding([(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in axes], output_size)
        sizes = [(n - 1) * s + d * (k - 1) + 1 + e for (n, k, s, d), e in zip(axes, extra, strict=True)]
        full = columns.new_zeros(len(columns), *sizes, columns.shape[-2])
        for index, tap in enumerate(cartesian(*(range(k) for k in self.kernel_size))):
            places = [slice(d * t, d * t + (n - 1) * s + 1, s) for t, (n, _, s, d) in zip(tap, axes, strict=True)]
            full[slice(None), *places] += columns[..., index]
        return full[slice(None), *[slice(p, size - p) for p, size in zip(self.padding, sizes, strict=True)]]

    def _output_padding(self, uncut: Sequence[int], output_size: Sequence[int] | None) -> Sequence[int]:
        """Return the padding at the far ends: the layer's own, or the one that makes the output `output_size`."""
        if output_size is None:
            return self.output_padding
        wanted = list(output_size)[-len(self.kernel_size) :]
        least = [size - 2 * p for size, p in zip(uncut, self.padding, strict=True)]
        extra = [size - low for size, low in zip(wanted, least, strict=True)]
        if any(not 0 <= e < max(s, d) for e, s, d in zip(extra, self.stride, self.dilation, strict=True)):
            raise ValueError(f"output_size {wanted} is not within a stride above {least}")
        return extra


class MappedTransposedConvolution(_OnArrays):
    """An nn.ConvTranspose1d, 2d or 3d on arrays.

    Every position of the input is a row. The product's columns [out, *kernel] are added up digitally where they
    overlap, and the bias is added digitally.
    """

    _kind = Overlap
    geometry: Overlap

    @uncompiled
    @naming_its_layer
    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Convolve `input` [batch, in, *space], giving [batch, out, *space']; the batch may be missing in both.

        Raises ValueError where the input has other dimensions, or no padding of the output gives `output_size`.
        """
        x, has_batch = channels_last(input, len(self.geometry.kernel_size))
        product = self.geometry.add_up(self.matrix(x), output_size)
        return channels_first(finished(product, self.bias, self.output_quantiser), has_batch)


class QuantisedTransposedConvolution(_Convolution, QuantisedLayerOfOne):
    """An nn.ConvTranspose1d, 2d or 3d with quantisers."""

    _kind = Overlap
    geometry: Overlap

    @naming_its_layer
    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Convolve as `MappedTransposedConvolution.forward`."""
        x, has_batch = channels_last(input, len(self.geometry.kernel_size))
        product = self.geometry.add_up(self.matrix()(x), output_size)
        return channels_first(finished(product, self.bias, self.output_quantiser), has_batch)


def channels_last(x: Tensor, dimensions: int) -> tuple[Tensor, bool]:
    """Return `x` [batch, in, *space] or [in, *space] as [batch, *space, in], and whether it had a batch.

    Raises ValueError where `space` does not have this number of `dimensions`.
    """
    if x.ndim not in (dimensions + 1, dimensions + 2):
        raise ValueError(
            f"an input of {list(x.shape)}; expected [batch, channels] and {counted(dimensions, 'more dimension')}"
        )
    has_batch = x.ndim == dimensions + 2
    return (x if has_batch else x[None]).movedim(1, -1), has_batch


def channels_first(y: Tensor, has_batch: bool) -> Tensor:
    """Return `y` [batch, *space, out] as [batch, out, *space], without the batch where there was none."""
    y = y.movedim(-1, 1)
    return y if has_batch else y[0]


def _rows(windows: Tensor, dimensions: int) -> Iterator[Tensor]:
    """Yield the windows [batch, *space, in, *kernel] as rows [n, in * kernel], in pieces of PIECE_VALUES."""
    values = math.prod(windows.shape[1 + dimensions :])
    by_image = math.prod(windows.shape[1:])
    images = max(1, PIECE_VALUES // max(1, by_image))
    lines = max(1, PIECE_VALUES // max(1, by_image // windows.shape[1])) if images == 1 else windows.shape[1]
    for group in windows.split(images):
        for part in group.split(lines, dim=1):
            yield part.reshape(math.prod(part.shape[: 1 + dimensions]), values)
