"""Measuring the inputs of a network's layers while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from memsim.crossbar.statistics import BINS, InputStatistics
from memsim.errors import InputError


class StatisticsCollector:
    """Accumulates one layer's statistics over calls; the histogram's limit doubles when a value exceeds it."""

    def __init__(self, sample_rows: int, generator: torch.Generator) -> None:
        self._sample_rows = sample_rows
        self._generator = generator
        self._limit = 0.0
        self._absmax = 0.0
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


@contextmanager
def collecting(
    layers: Mapping[str, nn.Module], generator: Callable[[str], torch.Generator], sample_rows: int = 24
) -> Iterator[dict[str, StatisticsCollector]]:
    """While open, each layer's inputs are counted. Errors name the layer."""
    collectors = {name: StatisticsCollector(sample_rows, generator(name)) for name in layers}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            try:
                collectors[name].add(inputs[0])
            except InputError as error:
                raise InputError(f"{name}: {error}") from None

        return count

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        yield collectors
    finally:
        for handle in handles:
            handle.remove()
