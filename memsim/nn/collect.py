"""Measuring the inputs of a network's layers while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memsim.crossbar.statistics import BINS, InputStatistics
from memsim.errors import InputError
from memsim.nn.front_ends import MappableLayer, matrix_sources
from memsim.nn.own_forward import OwnForward
from memsim.nn.product import QuantisedLayer, multiplied


class StatisticsCollector:
    """Accumulates one layer's statistics over calls; the histogram's limit doubles when a value exceeds it.

    `rows` counts the input rows that were added.
    """

    def __init__(self, sample_rows: int, generator: torch.Generator) -> None:
        self._sample_rows = sample_rows
        self._generator = generator
        self._limit = 0.0
        self._absmax = 0.0
        self.rows = 0
        self._counts = torch.zeros(BINS, dtype=torch.float64)
        self._rows: Tensor | None = None
        self._row_keys = torch.empty(0)

    def add(self, x: Tensor) -> None:
        """Count the values of `x` [..., features] and let its rows compete for a place in the sample."""
        rows = x.detach().reshape(-1, x.shape[-1]).float().cpu()
        if not rows.numel():
            return
        if not torch.isfinite(rows).all():
            raise InputError("an input holds NaN or Inf")
        self.rows += len(rows)
        absmax = float(rows.abs().max())
        self._absmax = max(self._absmax, absmax)
        if not self._limit:
            self._limit = 2.0 ** math.ceil(math.log2(max(absmax, 1e-12)))
        while absmax > self._limit:
            merged = self._counts.view(-1, 2).sum(1)
            self._counts = nn.functional.pad(merged, (BINS // 4, BINS // 4))
            self._limit *= 2
        self._counts += torch.histc(rows, BINS, -self._limit, self._limit).double()
        # A uniform sample of all rows: those with the smallest random keys.
        keys = torch.cat([self._row_keys, torch.rand(len(rows), generator=self._generator)])
        together = rows if self._rows is None else torch.cat([self._rows, rows])
        kept = keys.argsort()[: self._sample_rows]
        self._row_keys, self._rows = keys[kept], together[kept]

    def result(self) -> InputStatistics | None:
        """None when nothing was added."""
        if self._rows is None:
            return None
        return InputStatistics(self._limit, self._absmax, (self._counts / self._counts.sum()).float(), self._rows)


class Recorder(nn.Module):
    """Multiplies in place of a mapped matrix and counts the rows that it is given.

    Without `multiply` (rows to their product) it gives zeros: enough for a layer of a single matrix, whose result
    nobody needs.
    """

    def __init__(
        self,
        name: str,
        out_features: int,
        multiply: Callable[[Tensor], Tensor] | None,
        collector: StatisticsCollector,
    ) -> None:
        super().__init__()
        self._name = name
        self._out_features = out_features
        self._multiply = multiply
        self._collector = collector

    def forward(self, x: Tensor) -> Tensor:
        try:
            self._collector.add(x)
        except InputError as error:
            raise InputError(f"{self._name}: {error}") from None
        if self._multiply is None:
            return x.new_zeros(()).expand(*x.shape[:-1], self._out_features)
        return self._multiply(x)

    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """As `MappedMatrix.stream`."""
        return torch.cat([self(part) for part in parts])


@contextmanager
def collecting(
    layers: Sequence[MappableLayer], generator: Callable[[str], torch.Generator], sample_rows: int = 24
) -> Iterator[dict[str, StatisticsCollector]]:
    """While open, what the rows of each of the layers' matrices would see is counted. Errors name the matrix.

    Layers compute as they are; before each call, those with several matrices are computed a second time, to learn what
    lies between them.
    """
    sources = matrix_sources(layers)
    collectors = {name: StatisticsCollector(sample_rows, generator(name)) for name in sources}

    def recorders(layer: MappableLayer) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for local, name in layer.matrices.items():
            is_alone = len(layer.matrices) == 1 and not isinstance(layer.front_end, OwnForward)
            multiply = None if is_alone else _multiplication(layer, local)
            found[name] = Recorder(name, sources[name].shape[0], multiply, collectors[name])
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
        yield collectors
    finally:
        for handle in handles:
            handle.remove()


def _multiplication(layer: MappableLayer, local: str) -> Callable[[Tensor], Tensor]:
    """What `layer` does with rows and its matrix `local`: the product of both as they are, or rounded in training."""
    matrix = layer.matrix(local)
    if isinstance(layer.module, QuantisedLayer):
        return layer.module.products[local].times(matrix)
    return lambda x: multiplied(x, matrix.to(x.dtype), layer.sources[local].groups)
