"""The work of an utterance, or of a batch of examples: matrices on arrays and the digital operations between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memsim.crossbar.drive import phase_count
from memsim.crossbar.tiling import Tiling, tiling_for
from memsim.hardware import HardwareSpec
from memsim.nn.layer_cost import LayerCost
from memsim.nn.operations import LayerStep, Step
from memsim.nn.plan import DigitalLayer, MappedLayer

FLOAT_BYTES = 2
"""The bytes of an activation that no DAC quantises."""


@dataclass(frozen=True)
class MatrixWork:
    """A matrix on arrays, which reads `vectors` input vectors in all, in `rounds` one after the other.

    `cell_joules` is the energy of the cells for one vector at the spec's read pulse; None where it is unknown. A round
    is one call of the layer, and one frame where the next input depends on the last output.
    """

    name: str
    tiling: Tiling
    spec: HardwareSpec
    vectors: float
    rounds: float
    cell_joules: float | None = None

    @property
    def phases(self) -> int:
        """The number of reads of an input vector."""
        return phase_count(self.spec.dac)

    @property
    def inputs(self) -> int:
        """The features of an input vector."""
        return self.tiling.groups * self.tiling.block_inputs

    @property
    def outputs(self) -> int:
        """The features of an output vector."""
        return self.tiling.out_features

    @property
    def weights(self) -> int:
        """The number of weights."""
        return self.tiling.weights

    @property
    def macs(self) -> float:
        """The multiplications with an addition."""
        return self.vectors * self.weights

    @property
    def input_bytes(self) -> float:
        """The bytes of an input feature."""
        dac = self.spec.dac
        return FLOAT_BYTES if dac is None or dac.bits is None else math.ceil(dac.bits / 8)

    @property
    def sum_bytes(self) -> int:
        """The bytes of a sum over slices, phases and row tiles."""
        adc, dac, tiling = self.spec.adc, self.spec.dac, self.tiling
        bits = (8 * FLOAT_BYTES if adc is None else adc.bits) + (tiling.slices - 1) * tiling.cell_bits
        if dac is not None and dac.slice_bits is not None and dac.bits is not None:
            bits += dac.bits - 1 - dac.slice_bits
        return math.ceil((bits + math.ceil(math.log2(tiling.row_tiles))) / 8)

    def on_tiles(self, rows: int, cols: int) -> MatrixWork:
        """Return the same matrix on arrays of another size."""
        spec = self.spec.with_settings({"tile.rows": rows, "tile.cols": cols, "weights.bits": self.tiling.bits})
        shape = (self.tiling.out_features, self.tiling.block_inputs)
        return replace(self, spec=spec, tiling=tiling_for(shape, spec, self.tiling.groups))


@dataclass(frozen=True)
class DigitalWork:
    """Work that stays digital: a product with `weights`, products over time (attention), or other operations.

    All numbers are for the whole workload, which takes `rounds` calls one after the other; `reason` says why it is
    digital.
    """

    name: str
    kind: Literal["product", "attention", "other"]
    rounds: float
    macs: float = 0.0
    special: float = 0.0
    elementwise: float = 0.0
    vectors: float = 0.0
    inputs: int = 0
    outputs: int = 0
    weights: int = 0
    reason: str = ""

    def dram_bytes(self, weight_bytes: float, sram_share: float) -> float:
        """Return the bytes of weights read from DRAM, where SRAM holds that share: all others in every round."""
        return (1 - sram_share) * self.weights * weight_bytes * self.rounds


Work = MatrixWork | DigitalWork


@dataclass(frozen=True)
class Workload:
    """The work of `amount` seconds of audio, or examples, as `per` says, in the order in which its parts first run."""

    amount: float
    works: tuple[Work, ...]
    per: Literal["audio_second", "example"] = "audio_second"

    @property
    def matrices(self) -> tuple[MatrixWork, ...]:
        """The matrices on arrays."""
        return tuple(work for work in self.works if isinstance(work, MatrixWork))

    @property
    def digital(self) -> tuple[DigitalWork, ...]:
        """The work that stays digital."""
        return tuple(work for work in self.works if isinstance(work, DigitalWork))

    @property
    def macs(self) -> float:
        """All multiplications with an addition, on arrays and digital."""
        return math.fsum(work.macs for work in self.works)

    @property
    def weights(self) -> int:
        """The weights of all matrices."""
        return sum(work.weights for work in self.works)

    @property
    def digital_weights(self) -> int:
        """The weights that stay digital."""
        return sum(work.weights for work in self.digital)

    def on_tiles(self, rows: int, cols: int) -> Workload:
        """Return the same work on arrays of another size."""
        works = (work.on_tiles(rows, cols) if isinstance(work, MatrixWork) else work for work in self.works)
        return replace(self, works=tuple(works))

    def chunks(self, chunk_seconds: float | None) -> float:
        """Return the number of chunks in the utterance, at least 1; a network that hears no audio has no chunks."""
        if chunk_seconds is None or self.per != "audio_second":
            return 1.0
        return max(1.0, self.amount / chunk_seconds)

    def powered_seconds(self, powered: str, computing_seconds: float) -> float:
        """Return the time of leakage: of computing, or of all the audio where a chip is `powered` always."""
        return self.amount if powered == "always" and self.per == "audio_second" else computing_seconds

    def in_chunks(self, chunk_seconds: float | None) -> Workload:
        """Return the work with attention within chunks; decoders, which attend to all that was heard, stay as they are.

        Products over time fall in proportion to the chunk.
        """
        if (chunks := self.chunks(chunk_seconds)) <= 1:
            return self
        share = 1 / chunks
        works = tuple(
            replace(work, macs=share * work.macs, special=share * work.special, elementwise=share * work.elementwise)
            if isinstance(work, DigitalWork) and work.kind == "attention" and work.rounds == 1
            else work
            for work in self.works
        )
        return replace(self, works=works)


def workload_of(
    steps: Sequence[Step],
    rates: Mapping[str, float],
    amount: float,
    mapped: Iterable[MappedLayer],
    digital: Iterable[DigitalLayer],
    costs: Iterable[LayerCost] = (),
    per: Literal["audio_second", "example"] = "audio_second",
) -> Workload:
    """Return the work of the utterance, or batch of examples, in which `steps` were counted.

    Args:
        steps: the operations of the network in their order.
        rates: the input vectors of every matrix in a second of audio, or for an example.
        amount: the length of the utterance in seconds, or the number of examples.
        mapped: the layers on arrays.
        digital: the layers that stay digital.
        costs: the costs of the layers on arrays, which hold the energy of their cells and of transforms of inputs.
        per: the unit of `rates` and `amount`.
    """
    at_once = 1.0 if per == "audio_second" else amount  # the sequences of a batch go through recurrent layers together
    on_arrays = {layer.name: layer for layer in mapped}
    reasons = {layer.name: layer.reason for layer in digital}
    cost_of = {cost.name: cost for cost in costs}
    works: list[Work] = []
    for step in steps:
        if not isinstance(step, LayerStep):
            kind: Literal["attention", "other"] = "attention" if step.over_time else "other"
            name = step.name or "network"
            amounts = (step.macs, step.special, step.elementwise)
            works.append(DigitalWork(name, kind, step.calls, *amounts, reason="not a product with weights"))
            continue
        for name, source in step.sources.items():
            vectors = rates.get(name, 0.0) * amount
            rounds = vectors / at_once if step.is_recurrent(name) else step.calls
            if (layer := on_arrays.get(name)) is not None:
                cost = cost_of.get(name)
                if cost is not None and cost.transform_operations:
                    operations = vectors * cost.transform_operations
                    transform = DigitalWork(f"{name} (input)", "other", rounds, elementwise=operations)
                    works.append(replace(transform, reason="a transform of inputs, by the mapping recipe"))
                joules = None if cost is None else cost.cell_joules
                works.append(MatrixWork(name, layer.tiling, layer.spec, vectors, rounds, joules))
            elif not source.is_lookup:
                outputs, block = source.shape
                work = DigitalWork(name, "product", rounds, vectors * outputs * block, vectors=vectors)
                inputs, weights = block * source.groups, outputs * block
                reason = reasons.get(name, "stays digital")
                works.append(replace(work, inputs=inputs, outputs=outputs, weights=weights, reason=reason))
    return Workload(amount, tuple(works), per)
