"""Tables of what each effect and each layer costs, for `map` and `eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.cli.progress import stdout
from memsim.spec import effect_label
from memsim.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from memsim.ablation import AblationStep, Sensitivity
    from memsim.asr.scoring import Score
    from memsim.budget import Budget

WORST_LAYERS = 10
"""So many layers are shown without --verbose."""


def render_budget(budget: Budget, verbose: bool) -> None:
    """What each effect adds to the products' errors, the worst first; with `verbose`, of every layer too."""
    from memsim.budget import increments

    errors = budget.errors
    added = increments(errors)
    table = table_of("error of the product", "adds %", "up to here %", "most %", left=("in layer",))
    for effect in sorted(added, key=lambda effect: -added[effect]):
        name, most = budget.worst_layer(effect)
        table.add_row(effect_label(effect), _percent(added[effect]), _percent(errors[effect]), _percent(most), name)
    table.add_row(
        "all", "", _percent(budget.total), _percent(budget.sorted_layers()[0].total), budget.sorted_layers()[0].name
    )
    stdout.print(table)
    if verbose:
        table = table_of("error of the product", "all %", *(f"{effect_label(effect)} %" for effect in added))
        for layer in budget.sorted_layers():
            table.add_row(layer.name, _percent(layer.total), *map(_percent, increments(layer.errors).values()))
        stdout.print(table)
    weights = "full-precision" if budget.against_full_precision else "quantised"
    stdout.print(
        f"relative (L2) to products with the {weights} weights on calibration inputs; root mean square over "
        f"{counted(len(budget.layers), 'layer')}. Effects are switched on in the order "
        f"{', '.join(map(effect_label, added))}; what one adds is the root of the difference of squares, "
        "negative where it makes the error less",
        style="dim",
        highlight=False,
    )


def render_ablation(steps: Sequence[AblationStep], full_precision: Score | None) -> None:
    """The WER with the effects switched on one after the other, in their order."""
    table = table_of("with effects up to", "WER %", "std", "CER %", "adds to WER %")
    before = None
    if full_precision is not None:
        before = full_precision.wer
        table.add_row("none: full precision", _percent(full_precision.wer), "", _percent(full_precision.cer), "")
    for step in steps:
        mean, std = step.wer["mean"], step.wer["std"]
        difference = "" if before is None else f"{100 * (mean - before):+.2f}"
        spread = _percent(std) if len(step.scores) > 1 else ""
        table.add_row(effect_label(step.effect), _percent(mean), spread, _percent(step.cer["mean"]), difference)
        before = mean
    stdout.print(table)


def render_sensitivity(sensitivity: Sensitivity, verbose: bool) -> None:
    """WER and loss with one layer at a time on hardware, the worst first."""
    digital, layers = sensitivity.digital, sensitivity.layers
    table = table_of("only this layer on hardware", "WER %", f"{sensitivity.loss_name} loss", "adds %")
    table.add_row("none: digital, quantised", _percent(digital.score.wer), f"{digital.loss:.4f}", "")
    for result in layers if verbose else layers[:WORST_LAYERS]:
        added = f"{100 * (result.loss / digital.loss - 1):+.2f}" if digital.loss else ""
        table.add_row(result.layer, _percent(result.score.wer), f"{result.loss:.4f}", added)
    stdout.print(table)
    rest = "" if verbose or len(layers) <= WORST_LAYERS else f"; {len(layers) - WORST_LAYERS} more with --verbose"
    said = f"{sensitivity.loss_name} loss: the mean a character, by which layers are sorted{rest}"
    stdout.print(said, style="dim", highlight=False)


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


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
