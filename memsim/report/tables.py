"""Tables of the error budget and of the cost of a chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from memsim.hardware import effect_label
from memsim.nn.budget import Budget, increments
from memsim.nn.layer_cost import Cost
from memsim.report.cells import (
    NO_WHOLE_CHIP,
    UNITS,
    circuit_rows,
    currents_of_cells,
    layer_cost,
    programming_cost,
    trim_cost,
)
from memsim.report.chip_cells import (
    TORNADO_HEAD,
    break_even_text,
    chip_head,
    chip_rows,
    placement_text,
    public_text,
    schedule_text,
    tornado_rows,
    verdict_text,
)
from memsim.report.text import note, percent, table_of
from memsim.units import counted, si

WORST_LAYERS = 10
"""The number of layers that are shown without `verbose`."""

WORST_PRICES = 5
"""The number of prices of a whole chip that are shown."""


def budget_parts(budget: Budget, *, verbose: bool = False, with_layers: bool = True) -> list[RenderableType]:
    """Return the table of what each non-ideality adds to the products' errors, the largest first.

    With `verbose` there is a table of all layers, too. Without `with_layers` no layer is named: another table has them.
    """
    errors = budget.errors
    added = increments(errors)
    most_in = (("most %",), ("in layer",)) if with_layers else ((), ())
    table = table_of("error of the product", "adds %", "up to here %", *most_in[0], left=most_in[1])
    for effect in sorted(added, key=lambda effect: -added[effect]):
        name, most = budget.worst_layer(effect)
        worst = (percent(most), name) if with_layers else ()
        table.add_row(effect_label(effect), percent(added[effect]), percent(errors[effect]), *worst)
    largest = budget.sorted_layers()[0]
    table.add_row("all", "", percent(budget.total), *((percent(largest.total), largest.name) if with_layers else ()))
    parts: list[RenderableType] = [table]
    if verbose:
        table = table_of("error of the product", "all %", *(f"{effect_label(effect)} %" for effect in added))
        for layer in budget.sorted_layers():
            table.add_row(layer.name, percent(layer.total), *map(percent, increments(layer.errors).values()))
        parts.append(table)
    like = budget.like_the_worst()
    if with_layers and len(like) > 1:
        several = f"{', '.join(like[:4])}{f' and {len(like) - 4} more' if len(like) > 4 else ''}"
        parts.append(Text(f"within noise, these layers have the largest error: {several}"))
    weights = "full-precision" if budget.against_full_precision else "quantised"
    parts.append(
        note(
            f"relative (L2) to products with the {weights} weights on calibration inputs; root mean square over "
            f"{counted(len(budget.layers), 'layer')}. {_meaning(list(added))}"
        )
    )
    return parts


def _meaning(effects: Sequence[str]) -> str:
    """Return an explanation of the rows of a budget."""
    if not effects:
        return "The spec has no non-ideality that adds an error"
    return (
        f"Non-idealities are switched on in the order {', '.join(map(effect_label, effects))}; each adds the root of "
        "the difference of squares, negative if the error becomes smaller. `eval --sensitivity` shows what the error "
        "of each layer costs the network"
    )


def cost_parts(cost: Cost, *, verbose: bool = False) -> list[RenderableType]:
    """Return the tables of energy, time and area, by circuit and by layer.

    They show the layers that take most energy, and all layers with `verbose`.
    """
    facts = cost.to_dict()
    layers = facts["layers"]
    of = UNITS[cost.per]
    table = table_of(f"estimate for {of}", "energy", "share %", "conversions", "circuits", "mm2")
    for row in circuit_rows(facts, "DAC, row drivers", "ADC"):
        table.add_row(*row)
    parts: list[RenderableType] = [table]
    table = table_of("layer", "energy", "DAC %", "ADC %", "cells %", "vectors", "latency", "TOPS/W")
    for layer in layers if verbose else layers[:WORST_LAYERS]:
        cells, efficiency = layer_cost(layer)
        table.add_row(*cells, efficiency)
    parts.append(table)
    lines = []
    if not verbose and len(layers) > WORST_LAYERS:
        lines.append(f"{counted(len(layers) - WORST_LAYERS, 'more layer')} with --verbose")
    efficiency = facts["tops_per_watt"]
    lines.append(
        f"latency for {of}: {si(facts['seconds'], 's')}"
        + ("" if efficiency is None else f"; {efficiency:.3g} TOPS/W of reading (two operations per weight)")
    )
    if (programming := programming_cost(facts)) is not None:
        lines.append(f"programming the chip once: {programming}")
    if (trims := trim_cost(facts)) is not None:
        lines.append(f"fitting its trims once, such as drift compensation: {trims}")
    parts.append(Text("\n".join(lines)))
    parts.append(note(f"{currents_of_cells(facts)}; {'; '.join(facts['assumptions'])}"))
    return parts + (chip_parts(facts["chip"]) if "chip" in facts else [note(NO_WHOLE_CHIP)])


def chip_parts(chip: Mapping[str, Any]) -> list[RenderableType]:
    """Return the tables and sentences of a whole chip beside the digital alternative."""
    table = table_of(*chip_head(chip))
    for row in chip_rows(chip):
        table.add_row(*row)
    prices = table_of(*TORNADO_HEAD)
    for row in tornado_rows(chip, WORST_PRICES):
        prices.add_row(*row)
    sentences = (verdict_text, placement_text, schedule_text, break_even_text, public_text)
    said = Text("\n".join(sentence(chip) for sentence in sentences))
    return [table, said, prices, note("; ".join(chip["assumptions"]))]
