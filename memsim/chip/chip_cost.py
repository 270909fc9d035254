"""The cost of a network on a whole chip beside the digital alternative, as intervals, and what decides between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memsim.chip.accelerator import Accelerated, accelerated
from memsim.chip.architecture import Chip, Prices
from memsim.chip.estimate import CIRCUITS, Energies, chip_areas, chip_energies, conversion_share
from memsim.chip.placement import Placement
from memsim.chip.prices import LEVELS
from memsim.chip.schedule import Schedule, placed_and_scheduled, replica_gain
from memsim.chip.workload import Workload

ALTERNATIVE_BITS = (8, 4)
"""The weight bits of the digital alternative; the first is the one that break-even points are for."""

BATCH = 16
"""The number of utterances, or batches, at once for which times are given beside those of one."""

TILES = (64, 128, 256, 512, 1024)
"""The array sizes that are compared."""

ASSUMPTIONS = (
    "counted: arrays, converters and drivers, sums and scales, buffers, network, links, all operations that stay "
    "digital (front end included) with their memories, and leakage",
    "intervals: all prices at the low or the high end of their ranges at once; they are bounds, not probabilities",
    "not counted: programming, the host, the microphone and its converter, clock trees and control beyond the prices "
    "of the chip file, standby, beam search, language models",
)
"""The assumptions that the numbers rest on."""


_KEYS = {
    "audio_second": ("audio_seconds", "real_time_factor", "audio_seconds_per_second"),
    "example": ("examples", "seconds_per_example", "examples_per_second"),
}
"""The keys, in JSON, of the amount of a unit that was counted, of its time and of the throughput."""


@dataclass(frozen=True)
class Interval:
    """A value at low, nominal and high prices."""

    low: float
    nominal: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return {"low": self.low, "nominal": self.nominal, "high": self.high}


@dataclass(frozen=True)
class Sensitivity:
    """Joules for a unit of the workload on the chip, with one price at the low and the high end of its range.

    `ratio_low` and `ratio_high` are these energies divided by those of the digital alternative at the same prices.
    """

    price: str
    low: float
    high: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class ChipCost:
    """The estimate of a workload, whose attention is within the chip's chunks, on a chip."""

    chip: Chip
    workload: Workload
    placement: Placement
    schedule: Schedule

    @classmethod
    def of(cls, chip: Chip, workload: Workload) -> ChipCost:
        """Place and schedule `workload` on as many chips as it takes. Raises InputError where a core is too small."""
        workload = workload.in_chunks(chip.chunk_seconds)
        return cls(chip, workload, *placed_and_scheduled(chip, workload))

    def energies(self, prices: Prices | None = None) -> Energies:
        """Return the energy on the chip, at nominal prices by default."""
        return chip_energies(self.workload, self.placement, self.schedule, prices or self._nominal)

    def alternative(self, bits: int, prices: Prices | None = None) -> Accelerated:
        """Return the estimate on the digital accelerator."""
        return accelerated(self.workload, self.chip, prices or self._nominal, bits)

    def areas(self, prices: Prices | None = None) -> dict[str, float]:
        """Return the area by part in square millimetres."""
        return chip_areas(self.workload, self.placement, prices or self._nominal)

    @property
    def cells_are_known(self) -> bool:
        """Whether the energy of the cells of every matrix is known; where it is not, it is left out."""
        has_price = self.chip.core.cell_joules is not None
        return has_price or all(work.cell_joules is not None for work in self.workload.matrices)

    @cached_property
    def _nominal(self) -> dict[str, float]:
        return self.chip.prices()

    def interval(self, value: Callable[[Prices], float]) -> Interval:
        """Return a value at all prices low, nominal and high."""
        return Interval(*(value(self.chip.prices(level)) for level in LEVELS))

    @property
    def joules(self) -> Interval:
        """The energy for a unit (a second of audio, or an example) on the chip."""
        return self.interval(lambda prices: self.energies(prices).joules)

    def alternative_joules(self, bits: int) -> Interval:
        """Return the energy for a unit on the accelerator."""
        return self.interval(lambda prices: self.alternative(bits, prices).energies.joules)

    @property
    def public_joules(self) -> dict[str, Interval]:
        """The energy for a unit on processors of which public figures tell that of a multiplication."""
        macs, found = self.workload.macs / self.workload.amount, {}
        for processor in self.chip.public:
            price = processor.joules_per_mac
            found[processor.name] = Interval(macs * price.low, macs * price.nominal, macs * price.high)
        return found

    @cached_property
    def ratio(self) -> Interval:
        """The energy on the chip, as a multiple of that of the digital alternative.

        Low is at low prices of what only the chip has and high prices of what only the alternative has; prices that
        both have stay nominal.
        """
        low, high = self.chip.prices("low"), self.chip.prices("high")

        def at(own: Prices, other: Prices) -> float:
            prices = dict(self._nominal)
            for key in prices:
                side = key.partition(".")[0]
                prices[key] = own[key] if side in ("core", "network", "links") else prices[key]
                prices[key] = other[key] if side == "accelerator" else prices[key]
            return self._ratio(prices)

        return Interval(at(low, high), self._ratio(self._nominal), at(high, low))

    def _ratio(self, prices: Prices) -> float:
        other = self.alternative(ALTERNATIVE_BITS[0], prices).energies.joules
        return self.energies(prices).joules / other if other else math.inf

    @cached_property
    def tornado(self) -> tuple[Sensitivity, ...]:
        """The prices of the chip by how much their ranges move its energy, the largest first."""
        low, high = self.chip.prices("low"), self.chip.prices("high")
        found = []
        for key in self._nominal:
            if key.partition(".")[0] in ("accelerator", "public") or key.endswith("_micrometres"):
                continue
            ends = [self._nominal | {key: end[key]} for end in (low, high)]
            joules, ratios = [self.energies(end).joules for end in ends], [self._ratio(end) for end in ends]
            if joules[0] != joules[1]:
                found.append(Sensitivity(key, *joules, *ratios))
        return tuple(sorted(found, key=lambda price: price.low - price.high))

    def break_even_price(self, key: str) -> float | None:
        """Return the price at which chip and alternative take the same energy; None where no price above 0 does."""
        dearer = self._nominal | {key: 2 * self._nominal[key] or 1.0}
        step = dearer[key] - self._nominal[key]

        def excess(prices: Prices) -> float:
            return self.energies(prices).joules - self.alternative(ALTERNATIVE_BITS[0], prices).energies.joules

        slope = (excess(dearer) - excess(self._nominal)) / step
        if not slope:
            return None
        price = self._nominal[key] - excess(self._nominal) / slope
        return price if price > 0 else None

    @property
    def macs_per_conversion(self) -> float:
        """The multiplications that an ADC conversion serves in the mean."""
        return conversion_share(self.workload, self.chip)

    @property
    def break_even_macs_per_conversion(self) -> float:
        """The multiplications that a conversion would have to serve for arrays to take no more than digital products.

        All that arrays take (converters, cells, sums, buffers, network) is spread over their conversions.
        """
        names = {work.name for work in self.workload.matrices}
        arrays = self.energies().by_layer
        digital = self.alternative(ALTERNATIVE_BITS[0]).energies.by_layer
        on_arrays = math.fsum(math.fsum(arrays[name].values()) for name in names)
        instead = math.fsum(math.fsum(digital[name].values()) for name in names)
        return self.macs_per_conversion * on_arrays / instead if instead else math.inf

    def on_tiles(self, size: int) -> ChipCost:
        """Return the estimate with arrays of `size` x `size`."""
        workload = self.workload.on_tiles(size, size)
        return ChipCost(self.chip, workload, *placed_and_scheduled(self.chip, workload))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; energies are joules for a second of audio, or for an example."""
        return self._facts

    @cached_property
    def _facts(self) -> dict[str, Any]:
        energies, placement, times = self.energies(), self.placement, self.schedule
        gain = replica_gain(placement, self.workload, times)
        amount, time, throughput = _KEYS[self.workload.per]
        return {
            "name": self.chip.name,
            "node_nanometres": self.chip.node_nanometres,
            amount: self.workload.amount,
            "macs": self.workload.macs / self.workload.amount,
            "joules": self.joules.to_dict(),
            "cells_are_known": self.cells_are_known,
            "joules_by_circuit": {c: energies.by_circuit.get(c, 0.0) for c in CIRCUITS},
            "square_millimetres": self.interval(lambda prices: math.fsum(self.areas(prices).values())).to_dict(),
            "square_millimetres_by_part": self.areas(),
            "placement": {
                "chips": placement.chips,
                "cores": placement.cores,
                "arrays": placement.arrays,
                "array_utilisation": placement.array_utilisation,
                "cell_utilisation": placement.cell_utilisation,
                "layers": [
                    {
                        "name": placed.work.name,
                        "arrays": placed.arrays,
                        "replicas": len(placed.replicas),
                        "cores": [share.core for share in placed.replicas[0]],
                        "link_bytes_per_vector": placement.link_bytes(placed),
                    }
                    for placed in placement.matrices
                ],
                "digital": [
                    {"name": work.name, "kind": work.kind, "macs": work.macs / times.amount,
                     "operations": (work.special + work.elementwise) / times.amount, "reason": work.reason}
                    for work in self.workload.digital
                ],
            },
            "schedule": {
                "latency_seconds": times.latency_seconds,
                "delay_seconds": times.delay_seconds,
                time: {str(count): times.seconds_per_unit(count) for count in (1, BATCH)},
                throughput: times.throughput,
                "bottleneck": times.bottleneck,
                "busy_seconds": times.busy_seconds,
                "one_more_replica": None if gain is None else {
                    "name": gain.name, "arrays": gain.arrays, throughput: gain.throughput,
                    "latency_seconds": gain.latency_seconds,
                },
            },
            "digital": [self._alternative_dict(bits) for bits in ALTERNATIVE_BITS],
            "ratio_to_digital": self.ratio.to_dict(),
            "public": {name: joules.to_dict() for name, joules in self.public_joules.items()},
            "break_even": {
                "adc_joules_per_step": self.break_even_price("core.adc_joules_per_step"),
                "nominal_adc_joules_per_step": self._nominal["core.adc_joules_per_step"],
                "macs_per_conversion": self.macs_per_conversion,
                "needed_macs_per_conversion": self.break_even_macs_per_conversion,
                "tiles": [self._tile_dict(size) for size in TILES],
            },
            "tornado": [vars(price) for price in self.tornado],
            "layers": dict(sorted(energies.layers.items(), key=lambda layer: -layer[1])),
            "assumptions": list(ASSUMPTIONS),
            "spec": self.chip.to_dict(),
        }  # fmt: skip

    def _alternative_dict(self, bits: int) -> dict[str, Any]:
        found = self.alternative(bits)
        return {
            "bits": bits,
            "joules": self.alternative_joules(bits).to_dict(),
            "joules_by_circuit": found.energies.by_circuit,
            "square_millimetres": self.interval(
                lambda prices: math.fsum(self.alternative(bits, prices).areas.values())
            ).to_dict(),
            "sram_share": found.sram_share,
            _KEYS[self.workload.per][1]: found.seconds_per_unit,
        }

    def _tile_dict(self, size: int) -> Mapping[str, float]:
        other = self.on_tiles(size)
        ratio = other._ratio(other._nominal)
        return {"size": size, "joules": other.energies().joules, "ratio_to_digital": ratio}
