"""The schedule of a network on a placement: throughput, latency, the bottleneck, and the gain of one more replica.

Input vectors stream through the layers as through a pipeline: while a matrix reads a vector, the matrices behind it
read those before. Attention needs the keys and values of all frames (of its chunk), so it ends a segment: the next
segment starts when all of it has arrived. Rounds that depend on each other, of a decoder that reads the token before or
of recurrent matrices, follow one another, each through all layers of its loop. The digital part of a chip does one
thing at a time; those of several chips share its work.

A phase takes the longer of a read and of the conversions of the phase before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memsim.chip.architecture import WEIGHT_BYTES, Chip
from memsim.chip.placement import PlacedMatrix, Placement, place
from memsim.chip.workload import DigitalWork, MatrixWork, Work, Workload

DIGITAL, LINKS = "digital part", "links"
"""The names of the resources beside the matrices."""


@dataclass(frozen=True)
class Stage:
    """A part of the work on its resource: busy for `seconds_per_utterance`, and the time of one vector or round."""

    name: str
    resource: str
    seconds_per_utterance: float
    seconds_of_one: float
    rounds: float


@dataclass(frozen=True)
class Segment:
    """Stages that work at the same time, on the frames of a chunk, or (a loop) one after the other in every round."""

    stages: tuple[Stage, ...]
    is_loop: bool

    @property
    def seconds(self) -> float:
        """The time for an utterance: of the busiest resource and of filling the pipeline, or of all rounds."""
        if self.is_loop:
            return math.fsum(stage.seconds_per_utterance for stage in self.stages)
        return max(_busy(self.stages).values(), default=0.0) + math.fsum(stage.seconds_of_one for stage in self.stages)

    def seconds_of_chunk(self, chunks: int) -> float:
        """The time for one of `chunks` equal parts of an utterance."""
        if self.is_loop:
            return self.seconds / chunks
        busy = max(_busy(self.stages).values(), default=0.0)
        return busy / chunks + math.fsum(stage.seconds_of_one for stage in self.stages)


@dataclass(frozen=True)
class Schedule:
    """The times of a workload of `amount` units on a chip: of an utterance in seconds, or of a batch of examples."""

    amount: float
    segments: tuple[Segment, ...]
    chunks: int

    @property
    def busy_seconds(self) -> dict[str, float]:
        """The time for which each resource is busy with an utterance, the busiest first."""
        busy = _busy([stage for segment in self.segments for stage in segment.stages])
        return dict(sorted(busy.items(), key=lambda item: -item[1]))

    @property
    def bottleneck(self) -> str:
        """The resource that limits the throughput."""
        return next(iter(self.busy_seconds), "")

    @property
    def latency_seconds(self) -> float:
        """The time of an utterance alone on the chip, all of whose frames are there."""
        return math.fsum(segment.seconds for segment in self.segments)

    @property
    def delay_seconds(self) -> float:
        """The time from the last frame to the result, where the frames before it were computed as they came."""
        return math.fsum(segment.seconds_of_chunk(self.chunks) for segment in self.segments)

    def seconds_of(self, workloads: int) -> float:
        """Return the time of several such workloads that follow each other as closely as the bottleneck lets them."""
        return self.latency_seconds + (workloads - 1) * next(iter(self.busy_seconds.values()), 0.0)

    def seconds_per_unit(self, workloads: int = 1) -> float:
        """Return seconds of computing for a unit (of audio: the real-time factor), with that many workloads at once."""
        return self.seconds_of(workloads) / (workloads * self.amount)

    @property
    def throughput(self) -> float:
        """The units (seconds of audio, or examples) that are computed in a second, with enough workloads at once."""
        busy = next(iter(self.busy_seconds.values()), 0.0)
        return self.amount / busy if busy else math.inf


def schedule(placement: Placement, workload: Workload) -> Schedule:
    """Return the schedule of `workload`, whose matrices are those of `placement`."""
    chip = placement.chip
    sram_share = chip.sram_share(workload.digital_weights, WEIGHT_BYTES[chip.digital.precision])
    segments: list[Segment] = []
    stages: list[Stage] = []
    looping = False

    def close() -> None:
        if stages:
            segments.append(Segment(tuple(stages), looping))
            stages.clear()

    for work in workload.works:
        loops = work.rounds > 1
        waits = isinstance(work, DigitalWork) and work.kind == "attention" and not loops
        if loops != looping or waits:
            close()
            looping = loops
        stages += _stages(work, placement, chip, sram_share)
    close()
    return Schedule(workload.amount, tuple(segments), math.ceil(workload.chunks(chip.chunk_seconds)))


def _stages(work: Work, placement: Placement, chip: Chip, sram_share: float) -> list[Stage]:
    if isinstance(work, DigitalWork):
        seconds = digital_seconds(work, chip, sram_share) / placement.chips
        of_one = seconds / max(work.rounds, work.vectors, 1.0)
        return [Stage(work.name, DIGITAL, seconds, of_one, work.rounds)]
    placed = placement.by_name[work.name]
    period, way = vector_seconds(work, chip), placement.traffic(placed)
    period = max(period, way.most_bytes_of_core / chip.network.bytes_per_second)
    of_one = period + turns(work, chip) * chip.core.adc_seconds
    of_one += way.hops * chip.network.seconds_per_hop + way.links * chip.links.seconds
    serial = work.vectors * (of_one if work.rounds > 1 else period) / len(placed.replicas)
    if work.rounds > 1:  # a round waits for the one before; replicas share the vectors of a round
        serial = max(work.rounds, work.vectors / len(placed.replicas)) * of_one
    stages = [Stage(work.name, work.name, serial, of_one, work.rounds)]
    crossing = placement.link_bytes(placed)
    if crossing:
        on_link = crossing / chip.links.bytes_per_second
        stages.append(Stage(f"{work.name} (links)", LINKS, work.vectors * on_link, on_link, work.rounds))
    return stages


def turns(work: MatrixWork, chip: Chip) -> int:
    """Return the number of conversions that an ADC makes for one phase."""
    return min(work.tiling.pack_outputs, work.tiling.cols, chip.core.columns_per_adc)


def vector_seconds(work: MatrixWork, chip: Chip) -> float:
    """Return the time between two input vectors of a matrix."""
    return work.phases * max(chip.core.read_seconds, turns(work, chip) * chip.core.adc_seconds)


def digital_seconds(work: DigitalWork, chip: Chip, sram_share: float) -> float:
    """Return the time of digital work in the digital part of one chip, whose SRAM holds that share of the weights."""
    others = (work.special + work.elementwise) / chip.digital.operations_per_second
    from_dram = work.dram_bytes(WEIGHT_BYTES[chip.digital.precision], sram_share)
    loading = from_dram / chip.accelerator.dram_bytes_per_second
    return max(work.macs / chip.digital.macs_per_second, loading) + others


def _busy(stages: Sequence[Stage]) -> dict[str, float]:
    busy: dict[str, float] = {}
    for stage in stages:
        busy[stage.resource] = busy.get(stage.resource, 0.0) + stage.seconds_per_utterance
    return busy


def placed_and_scheduled(chip: Chip, workload: Workload) -> tuple[Placement, Schedule]:
    """Return the placement and the schedule of `workload`, with replicas where spare arrays are to hold some.

    The busiest matrix gets one more replica for as long as it is the bottleneck and fits the chips that are needed.
    """
    replicas: dict[str, int] = {}
    placement = place(chip, workload.matrices)
    found = schedule(placement, workload)
    while chip.replicas == "spare" and found.bottleneck in placement.by_name:
        more = replicas | {found.bottleneck: replicas.get(found.bottleneck, 1) + 1}
        larger = place(chip, workload.matrices, more)
        if larger.chips > placement.chips:
            break
        faster = schedule(larger, workload)
        if faster.throughput <= found.throughput:
            break
        replicas, placement, found = more, larger, faster
    return placement, found


@dataclass(frozen=True)
class ReplicaGain:
    """The gain of one more replica of the busiest matrix."""

    name: str
    arrays: int
    throughput: float
    latency_seconds: float


def replica_gain(placement: Placement, workload: Workload, found: Schedule) -> ReplicaGain | None:
    """Return what one more replica of the busiest matrix would bring; None without a matrix."""
    busiest = next((name for name in found.busy_seconds if name in placement.by_name), None)
    if busiest is None:
        return None
    counts = {placed.work.name: len(placed.replicas) for placed in placement.matrices}
    counts[busiest] += 1
    larger = place(placement.chip, workload.matrices, counts)
    faster = schedule(larger, workload)
    placed: PlacedMatrix = placement.by_name[busiest]
    return ReplicaGain(busiest, placed.work.tiling.tiles, faster.throughput, faster.latency_seconds)
