"""The tables of configs/chips/README.md: networks on the shipped chips beside the digital alternative.

    python tests/tools/chip_costs.py --network bundled --network paper --network whisper-tiny.en --csv chips.csv
    python tests/tools/chip_costs.py --sweep chip-paper.csv

With `--csv` what the figure of chips needs is written, too. `--sweep` writes energy and area of the paper's Conformer
on `isaac` over array sizes, bits of weights and bits of ADCs. `guide_figures.py` draws both.

A network is `bundled`, `paper` or a folder of Hugging Face's. The cells of the paper's Conformer, which has random
weights here, and of a folder take as much energy for a multiplication as those of the bundled recogniser, with inputs
as in its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from guide_figures import write_table

from memsim import load_hardware
from memsim.asr.input_rates import RATE_SECONDS, sample_utterance
from memsim.asr.recogniser import Recogniser, build, load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.chip.chip_cost import ChipCost
from memsim.chip.workload import MatrixWork, workload_of
from memsim.hardware import HardwareSpec
from memsim.mapping import map_checkpoint
from memsim.networks.open_checkpoint import open_checkpoint
from memsim.networks.opened_network import OpenedNetwork
from memsim.networks.whole_chip import chip_of
from memsim.nn.plan import Selection, plan_modules

SHORT_NAMES = {"adc": "ADCs", "dac": "DACs", "dram": "DRAM"}
"""Circuits whose names are abbreviations."""

CHIPS = {"isaac": 128, "pcm-64-core": 256}
"""The chips, with the size of their arrays."""


SWEPT_BITS, SWEPT_ADCS = (2, 3, 4, 6), (4, 6, 8)
"""The bits of weights and those of ADCs of the sweep."""


def hardware(chip: str, bits: int, size: int | None = None, adc_bits: int = 8) -> HardwareSpec:
    """Return `physical` with weights of so many bits, on arrays of a size that is the chip's own by default."""
    size = size or CHIPS[chip]
    changes = {"weights": {"bits": bits}, "tile": {"rows": size, "cols": size}, "adc": {"bits": adc_bits}}
    return load_hardware({"base": "physical", "chip": chip} | changes)


def paper_conformer() -> Recogniser:
    """Return the recogniser of arXiv 2505.24721, with random weights and 79 tokens."""
    torch.manual_seed(0)
    characters = CharacterTokens([chr(0x4E00 + place) for place in range(78)])
    return build(*load_model_config("conformer-paper"), characters, "kaldi")


class Network:
    """A network whose cells take `joules_per_mac`, with the operations and rates of one utterance."""

    def __init__(self, recogniser: Recogniser, joules_per_mac: float) -> None:
        recogniser.model.eval()
        self.model, self.joules_per_mac = recogniser.model, joules_per_mac
        sample = sample_utterance(recogniser)
        self.operations, self.rates = sample.operations(), sample.vectors()

    def on(self, spec: HardwareSpec) -> ChipCost:
        """Estimate the cost on the chip that `spec` names."""
        plan = plan_modules(self.model, spec, Selection())
        workload = workload_of(self.operations, self.rates, RATE_SECONDS, plan.mapped, plan.digital, ())
        works = tuple(
            replace(work, cell_joules=self.joules_per_mac * work.weights * work.tiling.slices / 2)
            if isinstance(work, MatrixWork)
            else work
            for work in workload.works
        )
        return ChipCost.of(chip_of(spec), replace(workload, works=works))


def bundled_network(chip: str) -> tuple[ChipCost, float]:
    """Return the cost of the bundled recogniser on a chip, and the energy of its cells for a multiplication."""
    mapped = map_checkpoint("demo", hardware(chip, 3), cost=True)
    assert mapped.cost is not None
    cost = mapped.cost.chip
    assert isinstance(cost, ChipCost)
    on_arrays = cost.workload.matrices
    cells = sum(work.vectors * (work.cell_joules or 0.0) for work in on_arrays)
    return cost, cells / sum(work.macs for work in on_arrays)


def rows(networks: Sequence[str]) -> Iterator[tuple[str, str, ChipCost]]:
    """Yield each network and chip with its cost."""
    for chip in CHIPS:
        bundled, joules_per_mac = bundled_network(chip)
        for network in networks:
            if network == "bundled":
                yield "bundled recogniser", chip, bundled
            elif network == "paper":
                yield "Conformer of the paper", chip, Network(paper_conformer(), joules_per_mac).on(hardware(chip, 3))
            else:
                recogniser = OpenedNetwork(open_checkpoint(network, None, None)[0]).recogniser
                name = Path(network).name.replace("whisper", "Whisper").replace("-", " ")
                yield name, chip, Network(recogniser, joules_per_mac).on(hardware(chip, 6))


def sweep(arrays: Sequence[int]) -> Iterator[dict[str, object]]:
    """Yield energy and area of the paper's Conformer on `isaac`, over arrays, weights and ADCs."""
    network = Network(paper_conformer(), bundled_network("isaac")[1])
    for size, bits, adc_bits in product(arrays, SWEPT_BITS, SWEPT_ADCS):
        cost = network.on(hardware("isaac", bits, size, adc_bits))
        digital = {f"int{n}_microjoules": micro(cost.alternative(n).energies.joules) for n in (8, 4)}
        own = {"microjoules": micro(cost.energies().joules), "square_millimetres": f"{sum(cost.areas().values()):.4g}"}
        yield {"array": size, "bits": bits, "adc": adc_bits} | own | digital


def micro(joules: float) -> str:
    """Return an energy in microjoules."""
    return f"{1e6 * joules:.4g}"


def chips_row(network: str, chip: str, facts: Mapping[str, Any]) -> dict[str, object]:
    """Return what the figure of chips needs of a cost."""
    ratio, nominal = facts["ratio_to_digital"], facts["joules"]["nominal"]
    int4 = next(other["joules"]["nominal"] for other in facts["digital"] if other["bits"] == 4)
    ends = {"ratio": "nominal", "ratio_low": "low", "ratio_high": "high"}
    own = {column: f"{ratio[end]:.3g}" for column, end in ends.items()}
    return {"network": network, "chip": chip} | own | {"ratio_int4": f"{nominal / int4:.3g}"}


def rounded(value: float, digits: int = 3) -> str:
    """Return `value` with so many digits and no exponent: 1100, 31.5."""
    return f"{float(f'{value:.{digits}g}'):g}"


def main() -> None:
    """Print a line of the table for each network and chip, and the facts beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", default=[])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--sweep", type=Path)
    parser.add_argument("--arrays", type=int, nargs="+", default=[64, 128, 256, 512], help="sizes of arrays of --sweep")
    arguments = parser.parse_args()
    if arguments.sweep:
        write_table(arguments.sweep, list(sweep(arguments.arrays)))
    kept = []
    for network, chip, cost in rows(arguments.network) if arguments.network else ():
        facts = cost.to_dict()
        kept.append(chips_row(network, chip, facts))
        joules, other, ratio = facts["joules"], facts["digital"], facts["ratio_to_digital"]
        placement, times = facts["placement"], facts["schedule"]
        circuits = sorted(facts["joules_by_circuit"].items(), key=lambda item: -item[1])[:3]
        shares = [f"{SHORT_NAMES.get(name, name)} {100 * own / joules['nominal']:.0f} %" for name, own in circuits]
        areas = [side["square_millimetres"]["nominal"] for side in (facts, other[0])]
        cells = [
            network,
            f"`{chip}`",
            "{} ({} to {})".format(*(rounded(1e6 * joules[end]) for end in ("nominal", "low", "high"))),
            " / ".join(rounded(1e6 * each["joules"]["nominal"]) for each in other),
            f"{ratio['nominal']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            ", ".join(shares),
            f"{placement['arrays']:,} / {placement['cores']} / {placement['chips']}",
            f"{rounded(areas[0])} / {rounded(areas[1], 2)}",
            f"{1e3 * times['real_time_factor']['1']:.2g} / {1e3 * other[0]['real_time_factor']:.2g}",
        ]
        print("|", " | ".join(cells), "|", flush=True)
        print("  break-even", facts["break_even"])
        print("  bottleneck", times["bottleneck"], times["real_time_factor"], times["one_more_replica"])
        roomy = cost.chip.with_settings({"accelerator.sram_bytes": 1 << 23 << 5})  # 256 MB
        print("  ratio with all weights in SRAM", vars(ChipCost.of(roomy, cost.workload).ratio))
        print("  weights in SRAM", other[0]["sram_share"], "public", facts["public"])
        print("  prices", facts["tornado"][:5], flush=True)
    if arguments.csv:
        write_table(arguments.csv, kept)


if __name__ == "__main__":
    main()
