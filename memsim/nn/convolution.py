"""Convolutions on simulated arrays, and in training for them: windows of the input become rows, and one matrix product
does the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as cartesian
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar.uncompiled import uncompiled
from memsim.nn.named_layers import naming_its_layer
from memsim.nn.product import QuantisedLayerOfOne, Stream, finished, kept_output_quantiser
from memsim.nn.sources import WeightSource, kept
from memsim.nn.stand_in import OnArrays, WeightOnArrays
from memsim.units import counted

PIECE_VALUES = 1 << 20
"""About how many values of windows exist at a time: changes speed and memory, never a result."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class Windows:
    """How a convolution cuts its input into rows, one for each window: [in, *kernel].

    `ends` is the padding of each end of each dimension, the last one first, as F.pad takes it.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    ends: tuple[int, ...]
    padding_mode: str
    groups: int

    @classmethod
    def of(cls, module: Any) -> Windows:
        """Those of nn.Conv1d, 2d or 3d."""
        if isinstance(module, QuantisedConvolution):
            return module.windows
        ends = tuple(module._reversed_padding_repeated_twice)  # torch works out `same` likewise
        return cls(module.kernel_size, module.stride, module.dilation, ends, module.padding_mode, module.groups)

    def padded(self, x: Tensor) -> Tensor:
        """`x` [batch, in, *space] with its padding."""
        padded: Tensor = F.pad(x, self.ends, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        return padded

    def multiply(self, x: Tensor, stream: Stream) -> Tensor:
        """`x` [batch, *space, in] -> [batch, *space', out] by the products of rows that `stream` gives."""
        windows = self._cut(self.padded(x.movedim(-1, 1)))
        space = windows.shape[1 : 1 + len(self.kernel_size)]
        product = stream(_rows(windows, len(self.kernel_size)))
        return product.view(len(x), *space, product.shape[1])

    def convolve(self, x: Tensor, matrix: Tensor) -> Tensor:
        """The same with a `matrix` [out, in / groups * kernel], computed by torch's own convolution."""
        weight = matrix.view(len(matrix), -1, *self.kernel_size)
        function: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        options = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return function(self.padded(x.movedim(-1, 1)), weight, **options).movedim(1, -1)

    def _cut(self, padded: Tensor) -> Tensor:
        """A view [batch, *space', in, *kernel] of the padded input [batch, in, *space]."""
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

    def __str__(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


class _OnArrays(OnArrays):
    """A convolution of either kind whose weight is on arrays: what both keep of their layer."""

    bias: Tensor | None

    def __init__(self, module: Any, matrix: nn.Module) -> None:
        """`matrix` stands for the weight of `module`; like a `MappedMatrix` it streams."""
        super().__init__()
        _keep_sizes(self, module)
        self.matrix = matrix
        self.output_quantiser = kept_output_quantiser(module)
        self.weight_shape = tuple(module.weight.shape)
        self.bias = kept(module.bias)
        self._keep_dtype(module.weight)

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> Self:
        return cls(module, products[""])

    @property
    def weight(self) -> Tensor:
        """For networks that look it up: without its values."""
        return WeightOnArrays(self.matrix, self.weight_dtype, self.weight_shape)


class MappedConvolution(_OnArrays):
    """nn.Conv1d, 2d or 3d: [batch, in, *space] -> [batch, out, *space'], or both without the batch.

    Groups are blocks on the matrix's diagonal. Padding happens before the arrays, the bias is added after them.
    """

    def __init__(self, module: Convolution | QuantisedConvolution, matrix: nn.Module) -> None:
        super().__init__(module, matrix)
        self.windows = Windows.of(module)

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        assert isinstance(module.weight, Tensor)
        return {"": WeightSource.of("weight", tuple(module.weight.shape), Windows.of(module).groups)}

    @uncompiled
    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        batched, has_batch = with_batch(input, len(self.windows.kernel_size))
        stream: Stream = self.matrix.stream  # type: ignore[assignment]
        product = self.windows.multiply(batched.movedim(1, -1), stream)
        return as_given(finished(product, self.bias, self.output_quantiser), has_batch)

    def extra_repr(self) -> str:
        return str(self.windows)


class QuantisedConvolution(QuantisedLayerOfOne):
    """nn.Conv1d, 2d or 3d with quantisers."""

    def __init__(self, module: Convolution) -> None:
        super().__init__(module)
        _keep_sizes(self, module)
        self.windows = Windows.of(module)
        self.source = MappedConvolution.sources(module)[""]

    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        batched, has_batch = with_batch(input, len(self.windows.kernel_size))
        product = self.matrix()(batched.movedim(1, -1), self.windows.convolve, self.windows.multiply)
        return as_given(self.finished(product, self.bias), has_batch)

    def extra_repr(self) -> str:
        return str(self.windows)


@dataclass(frozen=True)
class Overlap:
    """How a transposed convolution adds up what its matrix gives for each position of the input: [out, *kernel]."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, module: Any) -> Overlap:
        """That of nn.ConvTranspose1d, 2d or 3d."""
        if isinstance(module, QuantisedTransposedConvolution):
            return module.overlap
        padding = tuple(int(size) for size in module.padding)
        sizes = (module.kernel_size, module.stride, module.dilation)
        return cls(*sizes, padding, module.output_padding, module.groups)

    def add_up(self, columns: Tensor, output_size: Sequence[int] | None) -> Tensor:
        """`columns` [batch, *space, out * kernel] -> [batch, *space', out]."""
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
        """What is added at the far ends: the layer's own, or what makes the output `output_size`."""
        if output_size is None:
            return self.output_padding
        wanted = list(output_size)[-len(self.kernel_size) :]
        least = [size - 2 * p for size, p in zip(uncut, self.padding, strict=True)]
        extra = [size - low for size, low in zip(wanted, least, strict=True)]
        if any(not 0 <= e < max(s, d) for e, s, d in zip(extra, self.stride, self.dilation, strict=True)):
            raise ValueError(f"output_size {wanted} is not within a stride above {least}")
        return extra

    def __str__(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


class MappedTransposedConvolution(_OnArrays):
    """nn.ConvTranspose1d, 2d or 3d: [batch, in, *space] -> [batch, out, *space'], or both without the batch.

    Every position of the input is a row; the product's columns [out, *kernel] are added up digitally where they
    overlap, and so is the bias.
    """

    def __init__(self, module: TransposedConvolution | QuantisedTransposedConvolution, matrix: nn.Module) -> None:
        super().__init__(module, matrix)
        self.overlap = Overlap.of(module)

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        assert isinstance(module.weight, Tensor)
        return {"": WeightSource.transposed("weight", tuple(module.weight.shape), Overlap.of(module).groups)}

    @uncompiled
    @naming_its_layer
    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        batched, has_batch = with_batch(input, len(self.overlap.kernel_size))
        product = self.overlap.add_up(self.matrix(batched.movedim(1, -1)), output_size)
        return as_given(finished(product, self.bias, self.output_quantiser), has_batch)

    def extra_repr(self) -> str:
        return str(self.overlap)


class QuantisedTransposedConvolution(QuantisedLayerOfOne):
    """nn.ConvTranspose1d, 2d or 3d with quantisers."""

    def __init__(self, module: TransposedConvolution) -> None:
        super().__init__(module)
        _keep_sizes(self, module)
        self.overlap = Overlap.of(module)
        self.source = MappedTransposedConvolution.sources(module)[""]

    @naming_its_layer
    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        batched, has_batch = with_batch(input, len(self.overlap.kernel_size))
        product = self.overlap.add_up(self.matrix()(batched.movedim(1, -1)), output_size)
        return as_given(self.finished(product, self.bias), has_batch)

    def extra_repr(self) -> str:
        return str(self.overlap)


def _keep_sizes(layer: nn.Module, module: nn.Module) -> None:
    """Give `layer` the attributes by which networks ask a convolution for its sizes."""
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        setattr(layer, name, getattr(module, name))


def with_batch(x: Tensor, dimensions: int) -> tuple[Tensor, bool]:
    """`x` with a batch, and whether it came with one."""
    if x.ndim not in (dimensions + 1, dimensions + 2):
        raise ValueError(
            f"an input of {list(x.shape)}; expected [batch, channels] and {counted(dimensions, 'more dimension')}"
        )
    has_batch = x.ndim == dimensions + 2
    return (x if has_batch else x[None]), has_batch


def as_given(y: Tensor, has_batch: bool) -> Tensor:
    """`y` [batch, *space, out] as [batch, out, *space], without the batch where there was none."""
    y = y.movedim(-1, 1)
    return y if has_batch else y[0]


def _rows(windows: Tensor, dimensions: int) -> Iterator[Tensor]:
    """The windows [batch, *space, in, *kernel] as rows [n, in * kernel], piece by piece."""
    values = math.prod(windows.shape[1 + dimensions :])
    by_image = math.prod(windows.shape[1:])
    images = max(1, PIECE_VALUES // max(1, by_image))
    lines = max(1, PIECE_VALUES // max(1, by_image // windows.shape[1])) if images == 1 else windows.shape[1]
    for group in windows.split(images):
        for part in group.split(lines, dim=1):
            yield part.reshape(math.prod(part.shape[: 1 + dimensions]), values)
