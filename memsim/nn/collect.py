"""Collectors of the inputs of a network's matrices while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memsim import rng
from memsim.crossbar.histogram import ALL_OCTAVES, MagnitudeHistogram
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import MANTISSA_BITS, InputStatistics, distribution
from memsim.errors import InputError
from memsim.nn.layer_adapters import MappableLayer, matrix_sources
from memsim.nn.quantised_product import QuantisedLayer, RoundedMatrix, multiplied

MOST_ROWS, LEAST_ROWS, MOST_VALUES = 256, 8, 1 << 18
"""The sizes of a sample: at most MOST_ROWS rows, at least LEAST_ROWS, and between them at most MOST_VALUES values.

A quarter are the heaviest rows, those with the largest norms; the others are drawn from the rest. If the sample chooses
a range so that a share q of its conversions clips, the share of all conversions that clip is, with a probability of
95 %, below q + sqrt(2 q b) + 2 b, where b = ln(20) / (number of drawn rows): 3.3 % with 192 drawn rows and q = 0.01 %.
This is Chernoff's bound for the drawn rows; the heavy ones are known. Fewer clip where the columns of a row do not all
clip together.
"""


FEW_ROWS, ROWS_TOGETHER = 16, 256
"""Calls of up to FEW_ROWS rows are collected up to ROWS_TOGETHER rows, or MOST_VALUES values, at a time."""
WIDE = 8192
"""Calls of up to ROWS_TOGETHER rows of more features are collected up to as many rows.

Long windows of convolutions come ten at a time, and adding to their second moments takes as long as hundreds of rows.
"""


class Collector(Protocol):
    """A collector of the input rows of a matrix."""

    def add(self, x: Tensor) -> None:
        """Add the rows of `x` [..., features]. Raises InputError where they hold NaN or Inf."""


class Collectors:
    """Several collectors of the same rows."""

    def __init__(self, *collectors: Collector) -> None:
        self._collectors = collectors

    def add(self, x: Tensor) -> None:
        """Add the rows of `x` [..., features] to each."""
        for collector in self._collectors:
            collector.add(x)


class _Gathered:
    """A collector of the matrix `name` that passes on the rows of small calls together.

    A decoder that writes token by token makes many of them, and each call of a collector takes time.
    """

    def __init__(self, name: str, collector: Collector) -> None:
        self._name = name
        self._collector = collector
        self._waiting: list[Tensor] = []
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Add the rows of `x` [..., features] in their order. Raises InputError where they hold NaN or Inf."""
        rows = x.detach()[None].flatten(end_dim=-2)
        is_wide = rows.shape[-1] > WIDE
        if len(rows) > (ROWS_TOGETHER if is_wide else FEW_ROWS):
            self.pass_on()
            self._pass(rows)
            return
        self._waiting.append(rows.clone())
        self._count += len(rows)
        if self._count >= (ROWS_TOGETHER if is_wide else min(ROWS_TOGETHER, MOST_VALUES // max(1, x.shape[-1]))):
            self.pass_on()

    def pass_on(self) -> None:
        """Add the rows that wait to the collector."""
        waiting, self._waiting, self._count = self._waiting, [], 0
        if waiting:
            self._pass(torch.cat(waiting))

    def _pass(self, rows: Tensor) -> None:
        try:
            self._collector.add(rows)
        except InputError as error:
            raise InputError(f"{self._name}: {error}") from None


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
        norms = torch.linalg.vector_norm(rows, dim=1)
        # norms overflow where values are huge
        if not torch.isfinite(norms).all() and not torch.isfinite(rows).all():
            raise InputError("an input holds NaN or Inf")
        self._histogram.add_by_sign(rows)
        places = torch.arange(self.rows, self.rows + len(rows))
        keys = torch.rand(len(rows), generator=self._generator)
        size = min(self._most_rows, max(LEAST_ROWS, MOST_VALUES // rows.shape[1]))
        heavy, light = size // 4, size - size // 4
        if self._heavy is None or self._drawn is None:
            self._heavy, self._drawn = _Kept(heavy, rows.shape[1]), _Kept(light, rows.shape[1])
        self._heavy.offer(-norms, places, rows)
        # the rows with the smallest random keys are a uniform sample of all; heavy ones among them leave it in `result`
        self._drawn.offer(keys, places, rows)
        self.rows += len(rows)

    def result(self) -> InputStatistics | None:
        """Return the statistics; None where no rows were added."""
        heavy, drawn = self._heavy, self._drawn
        if heavy is None or drawn is None:
            return None
        is_light = ~torch.isin(drawn.places, heavy.places)
        light = drawn.rows[is_light]
        each = (self.rows - len(heavy.rows)) / max(1, len(light))
        return InputStatistics(
            sample=torch.cat([heavy.rows, light]),
            weights=torch.cat([torch.ones(len(heavy.rows)), torch.full((len(light),), each)]),
            **distribution(self._histogram, self.rows * heavy.rows.shape[1]),
        )


class _Kept:
    """The input rows of the smallest ranks so far; among equal ranks, those that came first.

    Attributes:
        ranks: [n], ascending.
        places: [n], the places of the rows in the stream.
    """

    def __init__(self, most: int, features: int) -> None:
        """Keep up to `most` rows."""
        self.ranks, self.places = torch.empty(0), torch.empty(0, dtype=torch.long)
        self._stored, self._lines = torch.empty(most, features), torch.empty(0, dtype=torch.long)

    @property
    def rows(self) -> Tensor:
        """The rows [n, features]."""
        return self._stored[self._lines]

    def offer(self, ranks: Tensor, places: Tensor, rows: Tensor) -> None:
        """Keep those of `rows` [m, features] whose `ranks` [m] are among the smallest now; `places` [m] are theirs."""
        kept, most = len(self.ranks), len(self._stored)
        ranks = torch.cat([self.ranks, ranks])
        chosen = ranks.sort(stable=True).indices[:most]
        is_new = chosen >= kept
        new = chosen[is_new]
        if not len(new):
            return
        # a new row is stored in the line of one that leaves, so that few rows are copied
        is_free = torch.ones(most, dtype=torch.bool)
        is_free[self._lines[chosen[~is_new]]] = False
        lines = torch.cat([self._lines, torch.empty_like(places)])
        lines[new] = is_free.nonzero()[: len(new), 0]
        self._stored[lines[new]] = rows[new - kept]
        self.ranks, self.places = ranks[chosen], torch.cat([self.places, places])[chosen]
        self._lines = lines[chosen]


class Recorded(BaseException):
    """The end of a layer's run that has passed all input rows of its only matrix to a collector."""


class Recorder(nn.Module):
    """A module that multiplies in place of a mapped matrix and passes its input rows to a collector.

    `multiply` is a function of rows that returns their product. Without it, Recorded is raised where the product would
    be returned: a layer of a single matrix need not run on, as its output is not used.
    """

    def __init__(
        self,
        multiply: Callable[[Tensor], Tensor] | None,
        collector: Collector | None,
        reads: ReadContext | None = None,
    ) -> None:
        super().__init__()
        self._multiply = multiply
        self._collector = collector
        self._reads = reads or ReadContext()

    def expect_masked_rows(self) -> None:
        """Leave out rows with NaN from now on, for all matrices with these `reads`."""
        self._reads.has_masked_rows = True

    def forward(self, x: Tensor) -> Tensor:
        """Multiply rows `x` [..., in], giving [..., out]. Raises InputError where they hold NaN or Inf."""
        self._record(x)
        if self._multiply is None:
            raise Recorded
        return self._multiply(x)

    def _record(self, x: Tensor) -> None:
        if self._collector is not None:
            self._collector.add(x[torch.isfinite(x).all(dim=-1)] if self._reads.has_masked_rows else x)

    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """Multiply parts of the rows, as `MappedMatrix.stream`."""
        if self._multiply is not None:
            return torch.cat([self(part) for part in parts])
        for part in parts:
            self._record(part)
        raise Recorded


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
    reads = ReadContext()
    layers = [layer for layer in layers if not collectors.keys().isdisjoint(layer.matrices.values())]
    gathered = {name: _Gathered(name, collector) for name, collector in collectors.items()}

    def recorders(layer: MappableLayer) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for local, name in layer.matrices.items():
            is_alone = len(layer.matrices) == 1 and not layer.keeps_forward
            multiply = None if is_alone else product_of(layer, local)
            found[name] = Recorder(multiply, gathered.get(name), reads)
        return found

    def hook(layer: MappableLayer) -> Callable[..., None]:
        recording = layer.mapped(recorders(layer))
        assert recording is not None  # there is a recorder for each of its matrices
        recording.eval()

        def count(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            with torch.no_grad(), suppress(Recorded):
                recording(*inputs, **options)

        return count

    handles = [layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True) for layer in layers]
    try:
        yield
        for collector in gathered.values():
            collector.pass_on()
    finally:
        for handle in handles:
            handle.remove()


def product_of(layer: MappableLayer, local: str) -> Callable[[Tensor], Tensor]:
    """Return the function by which `layer` multiplies rows by its matrix `local`, with quantisers if it has them."""
    matrix = layer.matrix(local)
    if isinstance(layer.module, QuantisedLayer):
        return RoundedMatrix(layer.module.products[local], matrix)
    return lambda x: multiplied(x, matrix.to(x.dtype), layer.sources[local].groups)
