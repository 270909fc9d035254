"""Tables of what each effect and each layer costs, for `map` and `eval`."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from memsim.cli.progress import stdout
from memsim.report.tables import WORST_LAYERS
from memsim.report.text import percent as percent
from memsim.report.text import table_of
from memsim.spec import effect_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memsim.asr.scoring import Score
    from memsim.evaluation.ablation import AblationStep, Sensitivity
    from memsim.nn.budget import Budget


def render_budget(budget: Budget, verbose: bool, *, with_layers: bool = True) -> None:
    """Print `memsim.report.tables.budget_parts`."""
    from memsim.report.tables import budget_parts
    from memsim.report.text import show

    show(stdout, *budget_parts(budget, verbose=verbose, with_layers=with_layers))


def render_ablation(steps: Sequence[AblationStep], full_precision: Score | None) -> None:
    """The WER with the effects switched on one after the other, in their order."""
    table = table_of("with effects up to", "WER %", "std", "CER %", "adds to WER %")
    before = None
    if full_precision is not None:
        before = full_precision.wer
        table.add_row("none: full precision", percent(full_precision.wer), "", percent(full_precision.cer), "")
    for step in steps:
        mean = fmean(score.wer for score in step.scores)
        difference = "" if before is None else f"{100 * (mean - before):+.2f}"
        std, cer = percent(step.wer["std"]), percent(step.cer["mean"])
        table.add_row(effect_label(step.effect), percent(mean), std, cer, difference)
        before = mean
    stdout.print(table)


def render_sensitivity(sensitivity: Sensitivity, budget: Budget | None, verbose: bool) -> None:
    """WER and loss with one layer at a time on hardware, the worst first; beside the errors of a `budget`."""
    from memsim.evaluation.verdicts import noise_note, worst_layers

    facts, errors = sensitivity.to_dict(), None if budget is None else budget.to_dict()
    layers, loss = facts["layers"], f"{sensitivity.loss_name} loss"
    interval = f"{facts['confidence']:.0%} interval"
    names = ("WER %", loss, f"adds to {loss} %", interval, "", *(["product error %"] if errors else []))
    table = table_of("only this layer on hardware", *names)
    products = {layer["name"]: layer for layer in errors["layers"]} if errors else {}
    table.add_row("none: digital, quantised", percent(facts["digital"]["wer"]), f"{facts['digital']['loss']:.4f}")
    for layer in layers if verbose else layers[:WORST_LAYERS]:
        row = [layer["name"], percent(layer["wer"]), f"{layer['loss']:.4f}"]
        if (added := layer.get("added")) is not None:
            row += [f"{100 * added['value']:+.2f}", f"{100 * added['low']:+.2f} to {100 * added['high']:+.2f}"]
            row += ["noise" if layer["within_noise"] else "worst" if layer["may_be_worst"] else ""]
        table.add_row(*row, *([""] * (6 - len(row))), error_of(products.get(layer["name"])))
    stdout.print(table)
    rest = "" if verbose or len(layers) <= WORST_LAYERS else f"; {len(layers) - WORST_LAYERS} more with --verbose"
    stdout.print(worst_layers(facts, errors), highlight=False)
    said = f"{noise_note(facts)}{rest}"
    if errors:
        said += "; product error: relative (L2), ± its standard error over calibration inputs"
    stdout.print(said, style="dim", highlight=False)


def error_of(layer: dict[str, Any] | None) -> str:
    """The error of a layer's product, with its standard error."""
    if layer is None:
        return ""
    spread = layer.get("standard_error")
    return percent(layer["error"]) + ("" if spread is None else f" ± {100 * spread:.2f}")
