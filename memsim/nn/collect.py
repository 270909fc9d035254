"""Measuring the inputs of a network's layers while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memsim import rng
from memsim.crossbar.histogram import ALL_OCTAVES, MagnitudeHistogram
from memsim.crossbar.statistics import MANTISSA_BITS, InputStatistics
from memsim.errors import InputError
from memsim.nn.layer_adapters import MappableLayer, matrix_sources
from memsim.nn.own_forward import OwnForward
from memsim.nn.product import QuantisedLayer, multiplied

_NEGLIGIBLE = 1e-6  # of the values other than 0, the smallest; they are counted as 0


MOST_ROWS, LEAST_ROWS, MOST_VALUES = 256, 8, 1 << 18
"""Rows of a sample: so many, and fewer where they would hold more values than the last.

A quarter are the heaviest rows, those of the largest norms; the others are drawn from the rest. Of the conversions of
all inputs, the share beyond a range that the sample chooses for a share q is then, with a probability of 95 %, below
q + sqrt(2 q b) + 2 b, where b = ln(20) / (number of drawn rows): with 192 of them 3.3 % where 0.01 % is wanted. This is
Chernoff's bound for the drawn rows, the heavy ones being known; it is far less where the columns of a row do not all
clip together.
"""


class Collector(Protocol):
    """Takes note of the input rows of a matrix."""

    def add(self, x: Tensor) -> None:
        """Take note of the rows of `x` [..., features]. Raises InputError where they hold NaN or Inf."""


class RowCounter:
    """Counts the input rows of a matrix."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Count the rows of `x` [..., features]."""
        self.rows += x.numel() // max(1, x.shape[-1])


class StatisticsCollector:
    """Accumulates the statistics of one matrix's input over calls, in bounded memory.

    `generator` draws the light rows of the sample; `rows` counts the input rows that were added.
    """

    def __init__(self, generator: torch.Generator, most_rows: int = MOST_ROWS, most_values: int = MOST_VALUES) -> None:
        self._generator = generator
        self._most_rows, self._most_values = most_rows, most_values
        self._histogram = MagnitudeHistogram(2, MANTISSA_BITS, octaves=ALL_OCTAVES)
        self.rows = 0
        self._heavy: _Kept | None = None
        self._drawn: _Kept | None = None

    def add(self, x: Tensor) -> None:
        """Count the values of `x` [..., features] and let its rows compete for a place in the sample."""
        rows = x.detach().reshape(-1, x.shape[-1]).float().cpu()
        if not rows.numel():
            return
        require_finite(rows)
        flat = rows.reshape(-1)
        self._histogram.add(torch.stack([-flat, flat]).clamp_(min=0))
        places = torch.arange(self.rows, self.rows + len(rows))
        norms = torch.linalg.vector_norm(rows, dim=1)
        keys = torch.rand(len(rows), generator=self._generator)
        size = min(self._most_rows, max(LEAST_ROWS, self._most_values // rows.shape[1]))
        heavy, light = size // 4, size - size // 4
        self._heavy = _Kept.best(heavy, self._heavy, _Kept(-norms, places, rows))
        # a uniform sample of all rows: those with the smallest random keys; heavy ones among them leave it in the end
        self._drawn = _Kept.best(light, self._drawn, _Kept(keys, places, rows))
        self.rows += len(rows)

    def result(self) -> InputStatistics | None:
        """None when nothing was added."""
        heavy, drawn = self._heavy, self._drawn
        if heavy is None or drawn is None:
            return None
        is_light = ~torch.isin(drawn.places, heavy.places)
        light = drawn.rows[is_light]
        each = (self.rows - len(heavy.rows)) / max(1, len(light))
        counts, edges = self._histogram.counts, self._histogram.edges
        cumulative = counts.sum(dim=0).cumsum(0)
        first = int((cumulative < _NEGLIGIBLE * cumulative[-1]).sum())
        last = max(first + 1, int((cumulative < cumulative[-1]).sum()) + 1)
        return InputStatistics(
            float(self._histogram.largest.max()),
            edges[first : last + 1],
            (counts[:, first:last] / (self.rows * heavy.rows.shape[1])).float(),
            torch.cat([heavy.rows, light]),
            torch.cat([torch.ones(len(heavy.rows)), torch.full((len(light),), each)]),
        )


@dataclass(frozen=True)
class _Kept:
    """Input rows [n, features], their places in the stream, and the ranks [n] by which the smallest are kept."""

    ranks: Tensor
    places: Tensor
    rows: Tensor

    @classmethod
    def best(cls, count: int, kept: _Kept | None, new: _Kept) -> _Kept:
        """The `count` rows of the smallest ranks; of equal ones, those that came first."""
        if kept is not None and len(kept.ranks) >= count:
            candidates = new.ranks < kept.ranks[-1]
            new = cls(new.ranks[candidates], new.places[candidates], new.rows[candidates])
        parts = [new] if kept is None else [kept, new]
        ranks = torch.cat([part.ranks for part in parts])
        chosen = ranks.sort(stable=True).indices[:count]
        places = torch.cat([part.places for part in parts])[chosen]
        return cls(ranks[chosen], places, torch.cat([part.rows for part in parts])[chosen])


def require_finite(rows: Tensor) -> None:
    """Raise InputError where `rows` hold NaN or Inf."""
    if not torch.isfinite(rows).all():
        raise InputError("an input holds NaN or Inf")


class MaskedRows:
    """Which input rows are left out: none, until attention gives NaN for queries that see no key, then those of NaN."""

    def __init__(self) -> None:
        self.expected = False

    def without(self, x: Tensor) -> Tensor:
        """The rows of `x` [..., features] that are counted."""
        return x[torch.isfinite(x).all(dim=-1)] if self.expected else x


class Recorder(nn.Module):
    """Multiplies in place of a mapped matrix and hands the rows that it is given to a collector.

    Without `multiply` (rows to their product) it gives zeros: enough for a layer of a single matrix, whose result
    nobody needs.
    """

    def __init__(
        self,
        name: str,
        out_features: int,
        multiply: Callable[[Tensor], Tensor] | None,
        collector: Collector | None,
        masked: MaskedRows | None = None,
    ) -> None:
        super().__init__()
        self._name = name
        self._out_features = out_features
        self._multiply = multiply
        self._collector = collector
        self._masked = masked or MaskedRows()

    def expect_masked_rows(self) -> None:
        """As `MappedMatrix.expect_masked_rows`, for all matrices of the network."""
        self._masked.expected = True

    def forward(self, x: Tensor) -> Tensor:
        if self._collector is not None:
            try:
                self._collector.add(self._masked.without(x))
            except InputError as error:
                raise InputError(f"{self._name}: {error}") from None
        if self._multiply is None:
            return x.new_zeros(()).expand(*x.shape[:-1], self._out_features)
        return self._multiply(x)

    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """As `MappedMatrix.stream`."""
        return torch.cat([self(part) for part in parts])


def statistics_collectors(
    layers: Sequence[MappableLayer], most_rows: int = MOST_ROWS, most_values: int = MOST_VALUES
) -> dict[str, StatisticsCollector]:
    """One for each matrix of the layers, by name; what they draw depends on the name alone."""
    return {
        name: StatisticsCollector(rng.generator(name, "statistics"), most_rows, most_values)
        for name in matrix_sources(layers)
    }


@contextmanager
def collecting(layers: Sequence[MappableLayer], collectors: Mapping[str, Collector]) -> Iterator[None]:
    """While open, the rows of the input of each of the layers' matrices go to its collector. Errors name the matrix.

    Layers compute as they are; before each call, those with several matrices are computed a second time, to learn what
    lies between them. Layers none of whose matrices has a collector are left alone.
    """
    sources, masked = matrix_sources(layers), MaskedRows()
    layers = [layer for layer in layers if not collectors.keys().isdisjoint(layer.matrices.values())]

    def recorders(layer: MappableLayer) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for local, name in layer.matrices.items():
            is_alone = len(layer.matrices) == 1 and not isinstance(layer.front_end, OwnForward)
            multiply = None if is_alone else _multiplication(layer, local)
            found[name] = Recorder(name, sources[name].shape[0], multiply, collectors.get(name), masked)
        return found

    def hook(layer: MappableLayer) -> Callable[..., None]:
        recording = layer.mapped(recorders(layer))
        assert recording is not None  # it has all of its matrices
        recording.eval()

        def count(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            with torch.no_grad():
                recording(*inputs, **options)

        return count

    handles = [layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _multiplication(layer: MappableLayer, local: str) -> Callable[[Tensor], Tensor]:
    """What `layer` does with rows and its matrix `local`: the product of both as they are, or rounded in training."""
    matrix = layer.matrix(local)
    if isinstance(layer.module, QuantisedLayer):
        return layer.module.products[local].times(matrix)
    return lambda x: multiplied(x, matrix.to(x.dtype), layer.sources[local].groups)
