"""The table of what each effect of the hardware costs, for `map`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.cli.progress import stdout
from memsim.spec import effect_label
from memsim.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from memsim.nn.budget import Budget

WORST_LAYERS = 10
"""So many layers are shown without --verbose."""


def render_budget(budget: Budget, verbose: bool, *, with_layers: bool = True) -> None:
    """What each effect adds to the products' errors, the worst first; with `verbose`, of every layer too.

    Without `with_layers` it names no worst layer: another table has them.
    """
    from memsim.nn.budget import increments

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
    stdout.print(table)
    if verbose:
        table = table_of("error of the product", "all %", *(f"{effect_label(effect)} %" for effect in added))
        for layer in budget.sorted_layers():
            table.add_row(layer.name, percent(layer.total), *map(percent, increments(layer.errors).values()))
        stdout.print(table)
    like = budget.like_the_worst()
    if with_layers and len(like) > 1:
        several = f"{', '.join(like[:4])}{f' and {len(like) - 4} more' if len(like) > 4 else ''}"
        stdout.print(f"which layer errs most is within noise: {several}", highlight=False)
    weights = "full-precision" if budget.against_full_precision else "quantised"
    stdout.print(
        f"relative (L2) to products with the {weights} weights on calibration inputs; root mean square over "
        f"{counted(len(budget.layers), 'layer')}. {_meaning(list(added))}",
        style="dim",
        highlight=False,
    )


def _meaning(effects: Sequence[str]) -> str:
    """What the rows of a budget say."""
    if not effects:
        return "The spec has no effect that adds an error"
    return (
        f"Effects are switched on in the order {', '.join(map(effect_label, effects))}; what one adds is the root of "
        "the difference of squares, negative where it makes the error less. How much the recogniser minds a layer's "
        "error, eval's --sensitivity says"
    )


def table_of(name: str, *columns: str, left: tuple[str, ...] = ()) -> Table:
    """A table whose first column, and those in `left`, are text; the others are numbers."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(name, overflow="fold", min_width=16)
    for column in columns:
        table.add_column(column, justify="right")
    for column in left:
        table.add_column(column, overflow="fold")
    return table


def percent(fraction: float | None) -> str:
    """A fraction in percent; nothing for None."""
    return "" if fraction is None else f"{100 * fraction:.2f}"
