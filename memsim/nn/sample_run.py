"""A run of a network in which its work is counted: of an utterance, or of a batch of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn

from memsim.nn.chip import ChipMapping
from memsim.nn.collect import RowCounter, collecting
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.nn.operations import Step, counting_operations


@dataclass(frozen=True)
class SampleRun:
    """A run of a network, mapped or not, that computes `amount` of the unit that `per` names."""

    model: nn.Module
    compute: Callable[[], object]
    """Runs the network; every call computes the same."""
    amount: float
    """The seconds of audio of an utterance, or the examples of a batch."""
    per: Literal["audio_second", "example"]
    batch: str | None = None
    """The types and shapes of the batch, in words; None for an utterance."""

    def vectors(self) -> dict[str, float]:
        """Count the input vectors of every matrix, on arrays or not, for one unit."""
        layers = mappable_layers(self.model)
        counters = {name: RowCounter() for name in matrix_sources(layers)}
        mapping = getattr(self.model, "mapping", None)
        on_arrays = mapping.layers if isinstance(mapping, ChipMapping) else {}
        before = {name: matrix.work.vectors for name, matrix in on_arrays.items()}
        with collecting(layers, counters), _counting_work(mapping):
            self.compute()
        rows = {name: counter.rows for name, counter in counters.items()}
        rows |= {name: matrix.work.vectors - before[name] for name, matrix in on_arrays.items()}
        return {name: count / self.amount for name, count in rows.items()}

    def operations(self) -> list[Step]:
        """Count the operations beside the layers' matrices."""
        with counting_operations(self.model) as steps:
            self.compute()
        return steps


@contextmanager
def _counting_work(mapping: object) -> Iterator[None]:
    if not isinstance(mapping, ChipMapping):
        yield
        return
    counted, mapping.reads.count_work = mapping.reads.count_work, True
    try:
        yield
    finally:
        mapping.reads.count_work = counted
