"""Tables of what a chip takes, for `map` and `eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.cli.budget import WORST_LAYERS, table_of
from memsim.cli.progress import stdout
from memsim.units import counted, si

if TYPE_CHECKING:
    from memsim.evaluation.network_cost import Cost


def render_cost(cost: Cost, verbose: bool) -> None:
    """Energy, time and area by circuit, and of the layers that take most; of all with `verbose`."""
    facts = cost.to_dict()
    layers, joules, shares, area = (facts[key] for key in ("layers", "joules", "shares", "square_millimetres"))
    of = "a second of audio" if cost.per == "audio_second" else "one input vector of each layer"
    rows = {
        "DAC, row drivers": ("dac", sum(layer["dac_conversions"] for layer in layers), facts["dacs"], area["dacs"]),
        "ADC": ("adc", sum(layer["adc_conversions"] for layer in layers), facts["adcs"], area["adcs"]),
        "cells": ("cells", None, facts["cells"], area["cells"]),
        "programming": ("programming", None, None, None),
    }
    table = table_of(f"estimate for {of}", "energy", "share %", "conversions", "circuits", "mm2")
    for name, (circuit, conversions, count, millimetres) in rows.items():
        energy, share = joules[circuit], shares[circuit]
        table.add_row(
            name,
            "unknown" if energy is None else si(energy, "J"),
            "" if share is None else f"{100 * share:.1f}",
            "" if conversions is None else si(conversions),
            "" if count is None else f"{count:,}",
            "" if millimetres is None else f"{millimetres:.3g}",
        )
    table.add_row("all", si(joules["total"], "J"), "", "", counted(facts["arrays"], "array"), f"{area['total']:.3g}")
    stdout.print(table)
    table = table_of("layer", "energy", "DAC %", "ADC %", "cells %", "vectors", "latency", "TOPS/W")
    for layer in layers if verbose else layers[:WORST_LAYERS]:
        own = layer["joules"]
        percent = (
            "" if own[circuit] is None or not own["total"] else f"{100 * own[circuit] / own['total']:.1f}"
            for circuit in ("dac", "adc", "cells")
        )
        efficiency = layer["tops_per_watt"]
        table.add_row(
            layer["name"],
            si(own["total"], "J"),
            *percent,
            f"{layer['vectors']:.4g}",
            si(layer["seconds"], "s"),
            "" if efficiency is None else f"{efficiency:.3g}",
        )
    stdout.print(table)
    lines = []
    if not verbose and len(layers) > WORST_LAYERS:
        lines.append(f"{counted(len(layers) - WORST_LAYERS, 'more layer')} with --verbose")
    efficiency = facts["tops_per_watt"]
    lines.append(
        f"latency for {of}: {si(facts['seconds'], 's')}"
        + ("" if efficiency is None else f"; {efficiency:.3g} TOPS/W of reading (two operations a weight)")
    )
    programming = facts["programming"]
    if programming["joules"] is not None:
        line = f"programming the chip once: {si(programming['joules'], 'J')}"
        if (audio := programming["audio_seconds_of_as_much_reading"]) is not None:
            line += (
                f", as much as reading {si(audio, 's')} of audio; above it is spread over "
                f"{programming['spread_over_audio_seconds']:,.0f} s of audio"
            )
        lines.append(line)
    stdout.print("\n".join(lines), highlight=False)
    measured = "at the inputs that the checkpoint keeps"
    if cost.audio_seconds is not None:
        measured = f"in {cost.audio_seconds:.0f} s of speech, read one utterance at a time"
    stdout.print(f"cells: their currents {measured}; {'; '.join(facts['assumptions'])}", style="dim", highlight=False)
