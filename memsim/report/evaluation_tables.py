"""Tables and notes of evaluations: one point, a sweep, and further findings about a chip."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memsim.asr.bootstrap import CONFIDENCE
from memsim.config.changes import setting_text, title, without
from memsim.evaluation.ablation import AblationStep, Sensitivity
from memsim.evaluation.evaluation_result import EvaluatedPoint, EvaluationResult
from memsim.evaluation.measure import Measure
from memsim.evaluation.result import Evaluation
from memsim.evaluation.task import Score
from memsim.evaluation.verdicts import noise_note, worst_layers
from memsim.hardware.facts import unfitted, unfitted_note
from memsim.nn.budget import Budget
from memsim.nn.layer_cost import Cost
from memsim.report.cells import ablation_head, ablation_rows, interval_name, sensitivity_head, sensitivity_row
from memsim.report.chip_cells import energy_cells, energy_head
from memsim.report.tables import WORST_LAYERS, budget_parts, cost_parts
from memsim.report.text import note, percent, table_of
from memsim.storage.checkpoint import shown_name
from memsim.units import counted


def result_parts(result: EvaluationResult, *, verbose: bool = False, worst: int = 0) -> list[RenderableType]:
    """Return the tables and notes of `result`: with `verbose`, of every layer; with the `worst` utterances aligned."""
    points = result.points
    parts = _point(points[0], verbose) if len(points) == 1 else _sweep(points, result.point_costs)
    first = points[0].evaluation
    parts += first.task.aligned(first.trials[-1].score, worst)
    if result.budget is not None:
        parts += budget_parts(result.budget, verbose=verbose, with_layers=result.sensitivity is None)
    if result.ablation:
        parts.append(_ablation(result.ablation, first))
    if result.sensitivity is not None:
        parts += _sensitivity(result.sensitivity, first.measure, result.budget, verbose)
    if result.cost is not None:
        parts += cost_parts(result.cost, verbose=verbose)
    return parts


def _heading(points: Sequence[EvaluatedPoint]) -> Text:
    """The data, the checkpoint, the hardware with its changed keys, and of a sweep the swept ones."""
    first, result = points[0]
    chips = [each.evaluation.chip for each in points]
    bits = "/".join(map(str, sorted({bits for chip in chips for bits in chip.bits})))
    layers, arrays = ({getattr(chip, name) for chip in chips} for name in ("layers", "arrays"))
    onto = f"{_counts(layers, 'layer')} on {_counts(arrays, 'array')}"
    changes = without(result.spec.changes, "weights.bits", *first.settings)  # bits have a place of their own
    over = f", over {', '.join(first.settings)}" if first.settings else ""
    return Text(
        f"{result.task.describe()}\n{shown_name(result.checkpoint.path)} on {title(result.spec.name, changes)}{over}, "
        f"{bits}-bit weights, {onto}",
        style="bold",
        no_wrap=True,
    )


def _counts(numbers: set[int], thing: str) -> str:
    """The numbers of the points of a sweep: `60 layers`, `456/912 arrays`."""
    *first, last = sorted(numbers)
    return "".join(f"{number:,}/" for number in first) + counted(last, thing)


def _unfitted(points: Sequence[EvaluatedPoint]) -> list[str]:
    """Return notes about laws that were not fitted to measurements."""
    keys = list(dict.fromkeys(key for point in points for key in unfitted(point.evaluation.spec)))
    return [unfitted_note(keys)] if keys else []


# ---- one point ----


def _point(point: EvaluatedPoint, verbose: bool) -> list[RenderableType]:
    result = point.evaluation
    measure, *others = result.task.measures
    table = Table()
    table.add_column("")
    loss = [] if result.digital.loss is None else [f"{result.task.losses} loss"]
    for column in (measure.title, "std", "min", "max", *(other.title for other in others), *loss):
        table.add_column(column, justify="right")
    if result.full_precision is not None:
        table.add_row("full precision", *_single(result, result.full_precision))
    table.add_row("digital, quantised", *_single(result, result.digital))
    over_chips = result.spread()
    means = [other.show(result.spread(other)["mean"]) for other in others] + _mean_loss(result)
    numbers = [measure.show(over_chips[key]) for key in ("mean", "std", "min", "max")]
    table.add_row(f"mapped, {counted(len(result.trials), 'chip')}", *numbers, *means)
    parts: list[RenderableType] = [_heading([point]), table]
    if verbose:
        parts.append(_clips(result))
    facts = result.to_dict()
    lines = [_degradation(result, facts, key) for key in facts["relative_degradation"]]
    clips = [f"{key.upper()} {rate:.3%}" for key, rate in facts["clip_rate"].items() if rate is not None]
    if clips:
        lines.append(f"clipped: {', '.join(clips)}")
    lines += [result.task.speed_line(facts[result.task.speed_key]), *_unfitted([point]), *result.task.notes()]
    return [*parts, Text("\n".join(lines))]


def _single(result: Evaluation, score: Score) -> list[str]:
    """The cells of a network that is not a chip."""
    first, *others = (measure.show(score.rates[measure.key]) for measure in result.task.measures)
    return [first, "", "", "", *others, *([] if score.loss is None else [f"{score.loss:.4f}"])]


def _mean_loss(result: Evaluation) -> list[str]:
    """The cell of the chips' mean loss, where there is one."""
    return [f"{fmean(result.losses):.4f}"] if result.losses else []


def _clips(result: Evaluation) -> Table:
    """Clip rates of every layer on the last chip."""
    table = Table(title="conversions beyond full scale, last chip", title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("DAC %", "ADC %"):
        table.add_column(column, justify="right")
    for name, rate in result.trials[-1].clip_rates.items():
        table.add_row(name, *("" if r is None else f"{100 * r:.3f}" for r in (rate.dac, rate.adc)))
    return table


def _degradation(result: Evaluation, facts: dict[str, Any], key: str) -> str:
    """The chips against a reference, with its paired interval; or why there is nothing to compare."""
    name, value = key.removeprefix("to_"), facts["relative_degradation"][key]
    change = "degradation" if result.measure.lower_is_better else "change"
    said = f"relative {change} {key.replace('_', ' ')}"
    if value is None:
        unusable = next(each for each in (name, "mapped") if each in result.unusable)
        return f"no {said}: {unusable.replace('_', ' ')} is unusable ({result.unusable[unusable]})"
    interval = facts["intervals"][key]["relative"]
    high = "unbounded" if interval["high"] is None else f"{interval['high']:+.1%}"
    return f"{said}: {value:+.1%} ({interval_name(facts)}: {interval['low']:+.1%} to {high})"


# ---- a sweep ----


def _sweep(points: Sequence[EvaluatedPoint], costs: Sequence[Cost]) -> list[RenderableType]:
    """Return a table with a row per point, with their `costs` if known, below the values that all points share."""
    first = points[0].evaluation
    measure, *others = first.task.measures
    interval, keys = f"{CONFIDENCE:.0%} interval", list(points[0].settings)
    loss = [f"{first.task.losses} loss"] if first.losses else []
    columns = ["digital %" if measure.in_percent else "digital", measure.title, interval, "std", "min", "max"]
    shown = [{"cost": cost.to_dict()} for cost in costs] or [{} for _ in points]
    columns += ["to digital %", interval, *(other.title for other in others), *loss, "chips", *energy_head(shown[0])]
    table = table_of(keys[0] if keys else "", *columns)
    table.columns.clear()
    for key in keys:
        table.add_column(key, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    if (score := first.full_precision) is not None:
        cells = [measure.show(score.value), _ends(score.interval.to_dict(), measure), *[""] * 5]
        cells += [other.show(score.rates[other.key]) for other in others]
        cells += [] if score.loss is None else [f"{score.loss:.4f}"]
        table.add_row(*["full precision", *[""] * len(keys)][: len(keys) + 1], *cells, "")
    for point, cost in zip(points, shown, strict=True):
        settings = (setting_text(value) for value in point.settings.values())
        table.add_row(*settings, *_row(point.evaluation), *energy_cells(cost))
    said = f"{interval_name(first.to_dict())}; those to digital are paired. std, min and max are over chips"
    return [_heading(points), table, note("\n".join([said, *_unfitted(points)]))]


_RELATIVE = Measure("relative", "relative")


def _row(result: Evaluation) -> list[str]:
    """The cells of a point after its settings."""
    measure, *others = result.task.measures
    intervals, over_chips = result.intervals, result.spread()
    cells = [measure.show(result.digital.value), measure.show(over_chips["mean"])]
    cells += [_ends(intervals[measure.key]["mapped"], measure)]
    cells += [measure.show(over_chips[key]) for key in ("std", "min", "max")]
    relative = intervals["to_digital"]["relative"]
    ratio = "" if relative is None else f"{100 * relative['value']:+.1f}"
    cells += ["unusable" if result.unusable else ratio, _ends(relative, _RELATIVE, signed=True)]
    cells += [other.show(result.spread(other)["mean"]) for other in others]
    return [*cells, *_mean_loss(result), str(len(result.trials))]


def _ends(interval: dict[str, Any] | None, measure: Measure, *, signed: bool = False) -> str:
    """Return a text such as `9.5 to 15.8`; an empty one without an interval."""
    if interval is None:
        return ""
    low, high = (
        "unbounded" if interval[end] is None else measure.show(interval[end], 1, signed=signed)
        for end in ("low", "high")
    )
    return f"{low} to {high}"


# ---- what was found out about a chip ----


def _ablation(steps: Sequence[AblationStep], result: Evaluation) -> Table:
    measures, score = result.task.measures, result.full_precision
    table = table_of(*ablation_head(measures, "std"))
    for row in ablation_rows([step.to_dict() for step in steps], score and score.rates, measures):
        table.add_row(*row)
    return table


def _sensitivity(found: Sensitivity, measure: Measure, budget: Budget | None, verbose: bool) -> list[RenderableType]:
    """Measure and loss with one layer at a time on hardware, the worst first; beside the errors of a `budget`."""
    facts, errors = found.to_dict(), None if budget is None else budget.to_dict()
    layers = facts["layers"]
    table = table_of(*sensitivity_head(facts, measure), *(["product error %"] if errors else []))
    products = {layer["name"]: layer for layer in errors["layers"]} if errors else {}
    table.add_row(*sensitivity_row("none: digital, quantised", facts["digital"], measure))
    for layer in layers if verbose else layers[:WORST_LAYERS]:
        error = [_error_of(products.get(layer["name"]))] if errors else []
        table.add_row(*sensitivity_row(layer["name"], layer, measure), *error)
    rest = "" if verbose or len(layers) <= WORST_LAYERS else f"; {len(layers) - WORST_LAYERS} more with --verbose"
    said = f"{noise_note(facts)}{rest}"
    if errors:
        said += "; product error: relative (L2), ± its standard error over calibration inputs"
    return [table, Text(worst_layers(facts, errors)), note(said)]


def _error_of(layer: dict[str, Any] | None) -> str:
    """The error of a layer's product, with its standard error."""
    if layer is None:
        return ""
    standard_error = layer.get("standard_error")
    return percent(layer["error"]) + ("" if standard_error is None else f" ± {100 * standard_error:.2f}")
