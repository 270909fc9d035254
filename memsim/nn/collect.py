"""Collectors of the inputs of a network's matrices while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memsim import rng
from memsim.crossbar.histogram import ALL_OCTAVES, MagnitudeHistogram
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import MANTISSA_BITS, InputStatistics
from memsim.errors import InputError
from memsim.nn.layer_adapters import MappableLayer, matrix_sources
from memsim.nn.quantised_product import QuantisedLayer, RoundedMatrix, multiplied

_NEGLIGIBLE = 1e-6  # the share of the values other than 0, the smallest, that are counted as 0


MOST_ROWS, LEAST_ROWS, MOST_VALUES = 256, 8, 1 << 18
"""The sizes of a sample: at most MOST_ROWS rows, at least LEAST_ROWS, and between them at most MOST_VALUES values.

A quarter are the heaviest rows, those with the largest norms; the others are drawn from the rest. If the sample chooses
a range so that a share q of its conversions clips, the share of all conversions that clip is, with a probability of
95 %, below q + sqrt(2 q b) + 2 b, where b = ln(20) / (number of drawn rows): 3.3 % with 192 drawn rows and q = 0.01 %.
This is Chernoff's bound for the drawn rows; the heavy ones are known. Fewer clip where the columns of a row do not all
clip together.
"""


class Collector(Protocol):
    """A collector of the input rows of a matrix."""

    def add(self, x: Tensor) -> None:
        """Add the rows of `x` [..., features]. Raises InputError where they hold NaN or Inf."""


class RowCounter:
    """A counter of the input rows of a matrix."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Count the rows of `x` [..., features]."""
        self.rows += x.numel() // max(1, x.shape[-1])


class StatisticsCollector:
    """The statistics of one matrix's inputs, accumulated in bounded memory.

    `generator` draws the light rows of the sample; `rows` is the number of input rows that were added.
    """

    def __init__(self, generator: torch.Generator, most_rows: int = MOST_ROWS) -> None:
        self._generator = generator
        self._most_rows = most_rows
        self._histogram = MagnitudeHistogram(2, MANTISSA_BITS, octaves=ALL_OCTAVES)
        self.rows = 0
        self._heavy: _Kept | None = None
        self._drawn: _Kept | None = None

    def add(self, x: Tensor) -> None:
        """Count the values of `x` [..., features] and update the sample with its rows."""
        rows = x.detach().reshape(-1, x.shape[-1]).float().cpu()
        if not rows.numel():
            return
        if not torch.isfinite(rows).all():
            raise InputError("an input holds NaN or Inf")
        flat = rows.reshape(-1)
        self._histogram.add(torch.stack([-flat, flat]).clamp_(min=0))
        places = torch.arange(self.rows, self.rows + len(rows))
        norms = torch.linalg.vector_norm(rows, dim=1)
        keys = torch.rand(len(rows), generator=self._generator)
        size = min(self._most_rows, max(LEAST_ROWS, MOST_VALUES // rows.shape[1]))
        heavy, light = size // 4, size - size // 4
        self._heavy = _Kept.best(heavy, self._heavy, _Kept(-norms, places, rows))
        # the rows with the smallest random keys are a uniform sample of all; heavy ones among them leave it in `result`
        self._drawn = _Kept.best(light, self._drawn, _Kept(keys, places, rows))
        self.rows += len(rows)

    def result(self) -> InputStatistics | None:
        """Return the statistics; None where no rows were added."""
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
    """Input rows [n, features], their places [n] in the stream, and the ranks [n], of which the smallest are kept."""

    ranks: Tensor
    places: Tensor
    rows: Tensor

    @classmethod
    def best(cls, count: int, kept: _Kept | None, new: _Kept) -> _Kept:
        """Return the `count` rows with the smallest ranks; among equal ranks, the rows that came first."""
        if kept is not None and len(kept.ranks) >= count:
            candidates = new.ranks < kept.ranks[-1]
            new = cls(new.ranks[candidates], new.places[candidates], new.rows[candidates])
        parts = [new] if kept is None else [kept, new]
        ranks = torch.cat([part.ranks for part in parts])
        chosen = ranks.sort(stable=True).indices[:count]
        places = torch.cat([part.places for part in parts])[chosen]
        return cls(ranks[chosen], places, torch.cat([part.rows for part in parts])[chosen])


class Recorder(nn.Module):
    """A module that multiplies in place of a mapped matrix and passes its input rows to a collector.

    Without `multiply`, a function of rows that returns their product, it returns zeros. That is enough for a layer of a
    single matrix, whose output is not used.
    """

    def __init__(
        self,
        name: str,
        out_features: int,
        multiply: Callable[[Tensor], Tensor] | None,
        collector: Collector | None,
        reads: ReadContext | None = None,
    ) -> None:
        super().__init__()
        self._name = name
        self._out_features = out_features
        self._multiply = multiply
        self._collector = collector
        self._reads = reads or ReadContext()

    def expect_masked_rows(self) -> None:
        """Leave out rows with NaN from now on, for all matrices with these `reads`."""
        self._reads.has_masked_rows = True

    def forward(self, x: Tensor) -> Tensor:
        """Multiply rows `x` [..., in], giving [..., out]. Raises InputError where they hold NaN or Inf."""
        if self._collector is not None:
            try:
                self._collector.add(x[torch.isfinite(x).all(dim=-1)] if self._reads.has_masked_rows else x)
            except InputError as error:
                raise InputError(f"{self._name}: {error}") from None
        if self._multiply is None:
            return x.new_zeros(()).expand(*x.shape[:-1], self._out_features)
        return self._multiply(x)

    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """Multiply parts of the rows, as `MappedMatrix.stream`."""
        return torch.cat([self(part) for part in parts])


def statistics_collectors(
    layers: Sequence[MappableLayer], most_rows: int = MOST_ROWS
) -> dict[str, StatisticsCollector]:
    """Return a collector for each matrix of the layers, by name. Its draws depend on the name alone."""
    names = matrix_sources(layers)
    return {name: StatisticsCollector(rng.generator(name, "statistics"), most_rows) for name in names}


@contextmanager
def collecting(layers: Sequence[MappableLayer], collectors: Mapping[str, Collector]) -> Iterator[None]:
    """Pass the input rows of each of the layers' matrices to its collector. Errors name the matrix.

    The layers compute as usual. Before each of its calls, a layer runs once more with its matrices replaced by
    recorders, because the inputs of later matrices in a layer are known only there. Layers without a collector run
    once.
    """
    sources, reads = matrix_sources(layers), ReadContext()
    layers = [layer for layer in layers if not collectors.keys().isdisjoint(layer.matrices.values())]

    def recorders(layer: MappableLayer) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for local, name in layer.matrices.items():
            is_alone = len(layer.matrices) == 1 and not layer.keeps_forward
            multiply = None if is_alone else _multiplication(layer, local)
            found[name] = Recorder(name, sources[name].shape[0], multiply, collectors.get(name), reads)
        return found

    def hook(layer: MappableLayer) -> Callable[..., None]:
        recording = layer.mapped(recorders(layer))
        assert recording is not None  # there is a recorder for each of its matrices
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
    """Return the function by which `layer` multiplies rows by its matrix `local`, with quantisers if it has them."""
    matrix = layer.matrix(local)
    if isinstance(layer.module, QuantisedLayer):
        return RoundedMatrix(layer.module.products[local], matrix)
    return lambda x: multiplied(x, matrix.to(x.dtype), layer.sources[local].groups)
