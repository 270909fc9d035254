"""The table of configs/chips/README.md: networks on the shipped chips beside the digital alternative.

    python tests/tools/chip_costs.py --network bundled --network paper --network whisper-tiny.en

A network is `bundled`, `paper` or a folder of Hugging Face's. The cells of the paper's Conformer, which has random
weights here, and of a folder take as much energy for a multiplication as those of the bundled recogniser, with inputs
as in its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from memsim import load_hardware
from memsim.asr.recogniser import Recogniser, build, load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.chip.architecture import load_chip
from memsim.chip.chip_cost import ChipCost
from memsim.chip.workload import MatrixWork
from memsim.hardware import HardwareSpec
from memsim.mapping import map_checkpoint
from memsim.networks.open_checkpoint import open_checkpoint
from memsim.networks.opened_network import OpenedNetwork
from memsim.networks.whole_chip import whole_chip
from memsim.nn.plan import Selection, plan_modules

SHORT_NAMES = {"adc": "ADCs", "dac": "DACs", "dram": "DRAM"}
"""Circuits whose names are abbreviations."""

CHIPS = {"isaac": 128, "pcm-64-core": 256}
"""The chips, with the size of their arrays."""


def hardware(chip: str, bits: int) -> HardwareSpec:
    """Return `physical` with that many bits on the arrays of a chip."""
    size = CHIPS[chip]
    tile = {"rows": size, "cols": size}
    return load_hardware({"base": "physical", "weights": {"bits": bits}, "tile": tile, "chip": chip})


def paper_conformer() -> Recogniser:
    """Return the recogniser of arXiv 2505.24721, with random weights and 79 tokens."""
    torch.manual_seed(0)
    characters = CharacterTokens([chr(0x4E00 + place) for place in range(78)])
    return build(*load_model_config("conformer-paper"), characters, "kaldi")


def of_network(recogniser: Recogniser, chip: str, bits: int, joules_per_mac: float) -> ChipCost:
    """Estimate the cost of a network whose cells take `joules_per_mac`."""
    recogniser.model.eval()
    plan = plan_modules(recogniser.model, hardware(chip, bits), Selection())
    cost = whole_chip(recogniser, load_chip(chip), plan.mapped, plan.digital, ())
    works = tuple(
        replace(work, cell_joules=joules_per_mac * work.weights * work.tiling.slices / 2)
        if isinstance(work, MatrixWork)
        else work
        for work in cost.workload.works
    )
    return ChipCost.of(cost.chip, replace(cost.workload, works=works))


def rows(networks: Sequence[str]) -> Iterator[tuple[str, str, ChipCost]]:
    """Yield each network and chip with its cost."""
    for chip in CHIPS:
        mapped = map_checkpoint("demo", hardware(chip, 3), cost=True)
        assert mapped.cost is not None
        bundled = mapped.cost.chip
        assert isinstance(bundled, ChipCost)
        on_arrays = bundled.workload.matrices
        cells = sum(work.vectors * (work.cell_joules or 0.0) for work in on_arrays)
        joules_per_mac = cells / sum(work.macs for work in on_arrays)
        for network in networks:
            if network == "bundled":
                yield "bundled recogniser", chip, bundled
            elif network == "paper":
                yield "Conformer of the paper", chip, of_network(paper_conformer(), chip, 3, joules_per_mac)
            else:
                recogniser = OpenedNetwork(open_checkpoint(network, None, None)[0]).recogniser
                name = Path(network).name.replace("whisper", "Whisper").replace("-", " ")
                yield name, chip, of_network(recogniser, chip, 6, joules_per_mac)


def rounded(value: float, digits: int = 3) -> str:
    """Return `value` with so many digits and no exponent: 1100, 31.5."""
    return f"{float(f'{value:.{digits}g}'):g}"


def main() -> None:
    """Print a line of the table for each network and chip, and the facts beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", required=True)
    networks = parser.parse_args().network
    for network, chip, cost in rows(networks):
        facts = cost.to_dict()
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


if __name__ == "__main__":
    main()
