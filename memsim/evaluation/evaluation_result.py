"""The result of `memsim.evaluate`: one or several points, shown as tables, JSON, a page or a figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memsim.errors import InputError
from memsim.evaluation.ablation import AblationStep, Sensitivity
from memsim.evaluation.result import Evaluation, Trial
from memsim.evaluation.study import PointFacts
from memsim.hardware import HardwareSpec
from memsim.nn.budget import Budget
from memsim.nn.layer_cost import Cost
from memsim.storage.checkpoint import shown_name
from memsim.storage.outputs import require_page, write_text
from memsim.units import counted
from memsim.version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType


class EvaluatedPoint(NamedTuple):
    """One hardware spec of an evaluation: the settings that tell it from the others, and its result."""

    facts: PointFacts
    evaluation: Evaluation

    @property
    def settings(self) -> Mapping[str, Any]:
        """The swept keys and their values."""
        return self.facts.settings

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"settings": dict(self.settings), **self.evaluation.to_dict()}


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """The scores of every chip of every point, and further findings for a single point.

    `print` shows it as tables, and a notebook as the same tables in HTML. Where there is a single point, its scores are
    attributes of the result itself.

    >>> result = memsim.evaluate("demo", limit=2, hardware="ideal", set=["weights.bits=3,8"])
    >>> [dict(point.settings) for point in result.points]
    [{'weights.bits': 3}, {'weights.bits': 8}]
    """

    points: tuple[EvaluatedPoint, ...]
    """Empty for a shard, whose results `merge_results` joins with the others."""
    path: Path | None = None
    """The checkpoint's file; None where results were merged."""
    budget: Budget | None = None
    ablation: tuple[AblationStep, ...] = ()
    sensitivity: Sensitivity | None = None
    cost: Cost | None = None
    """The cost of the only point."""
    point_costs: tuple[Cost, ...] = ()
    """The cost of each of several points; empty where it was not asked for."""
    hypotheses: tuple[Mapping[str, Any], ...] = ()
    for_report: Callable[[], Mapping[str, Any]] | None = field(default=None, compare=False, repr=False)
    """Measures the findings that a report adds: the cost, and the error budget where it can be measured."""

    @property
    def evaluation(self) -> Evaluation:
        """The result of the only point. Raises ValueError where there are several, or none."""
        if len(self.points) != 1:
            raise ValueError(f"{len(self.points)} points: read this from the `evaluation` of each of `points`")
        return self.points[0].evaluation

    @property
    def full_precision(self) -> Any | None:
        """The score in full precision; None without full-precision weights."""
        return self.evaluation.full_precision

    @property
    def digital(self) -> Any:
        """The score of the quantised digital network."""
        return self.evaluation.digital

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The results of the chips."""
        return self.evaluation.trials

    @property
    def spec(self) -> HardwareSpec:
        """The hardware of the chips."""
        return self.evaluation.spec

    @property
    def relative_degradation(self) -> dict[str, float | None]:
        """The relative change of the chips' mean from each reference."""
        return self.evaluation.relative_degradation

    @property
    def warnings(self) -> list[str]:
        """Warnings about layers that clip, and about networks that are unusable or lose text.

        For a sweep, they are those of the first point that has any.
        """
        clipping = self.points[0].evaluation.clipping_warnings if len(self.points) == 1 else []
        bad = [(point, point.evaluation.warnings) for point in self.points if point.evaluation.warnings]
        if not bad:
            return clipping
        point, sentences = bad[0]
        label = f"{point.facts.label}: " if point.facts.label else ""
        more = [f"{len(bad)} of {len(self.points)} points have such warnings; --json holds them all"]
        return clipping + [label + sentence for sentence in sentences] + (more if len(bad) > 1 else [])

    @property
    def remarks(self) -> list[str]:
        """Remarks on how the outcomes were made."""
        return list(self.points[0].evaluation.task.remarks()) if self.points else []

    def to_dict(self) -> dict[str, Any]:
        """Return the values that --json writes: the result of a single point, or the `points` of a sweep."""
        if len(self.points) != 1:
            points = [point.to_dict() for point in self.points]
            for point, cost in zip(points, self.point_costs, strict=False):
                point["cost"] = cost.to_dict()
            return {"memsim": __version__, "points": points}
        found = {
            "budget": self.budget and self.budget.to_dict(),
            "ablation": [step.to_dict() for step in self.ablation],
            "sensitivity": self.sensitivity and self.sensitivity.to_dict(),
            "cost": self.cost and self.cost.to_dict(),
        }
        return self.evaluation.to_dict() | {name: value for name, value in found.items() if value}

    def write_report(self, path: str | Path, command: str | None = None) -> None:
        """Write a self-contained page; of a single point with the error budget and the cost, measured now if need be.

        Args:
            path: a name that ends in `.html`.
            command: the command that repeats the evaluation.
        """
        from memsim.report.drawing import svg_of
        from memsim.report.evaluation_page import evaluation_page
        from memsim.report.sweep_figure import sweep_figure
        from memsim.report.sweep_page import sweep_page

        require_page(Path(path), force=True)
        facts = (replace(self, **self.for_report()) if self.for_report else self).to_dict()
        if len(self.points) == 1:
            page = evaluation_page(facts, command)
        else:
            page = sweep_page(facts["points"], svg_of(sweep_figure(facts["points"])), command)
        write_text(Path(path), page)

    def write_figure(self, path: str | Path) -> None:
        """Draw a sweep as SVG: the measure against each swept key. Raises InputError where nothing was swept."""
        from memsim.report.sweep_figure import wer_by_setting

        if Path(path).suffix != ".svg":
            raise InputError(f"{path}: expected a name that ends in .svg")
        wer_by_setting(self.to_dict().get("points", []), Path(path))

    def write_hypotheses(self, path: str | Path) -> None:
        """Write a line of JSON for every utterance and network: reference, hypothesis and errors.

        With `nbest` of `Decoding` and `hypotheses` of `Findings` each has its n-best list, too.
        """
        from memsim.evaluation.decoders import hypotheses

        rows = self.hypotheses or hypotheses(self.evaluation)
        write_text(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def parts(self, *, verbose: bool = False, worst: int = 0) -> list[RenderableType]:
        """Return the tables and notes of the result, for `memsim.report.text`.

        Args:
            verbose: show every layer.
            worst: number of utterances with the most errors on the last chip that are shown, aligned.
        """
        from memsim.report.evaluation_tables import result_parts

        return result_parts(self, verbose=verbose, worst=worst) if self.points else []

    def __getstate__(self) -> dict[str, Any]:
        # a copy in a file has no networks to measure anything on
        return self.__dict__ | {"for_report": None}

    def __repr__(self) -> str:
        if not self.points:
            return f"EvaluationResult({self})"
        first = self.points[0].evaluation
        if len(self.points) > 1:
            keys = ", ".join(self.points[0].settings)
            points = counted(len(self.points), "point")
            return f"EvaluationResult({shown_name(first.checkpoint.path)}: {points} over {keys})"
        measure, mean = first.measure, first.spread()["mean"]
        values = f"{measure.title} {measure.show(first.digital.rates[measure.key])} digital, {measure.show(mean)} on"
        return (
            f"EvaluationResult({shown_name(first.checkpoint.path)} on {first.spec.title}: {values} "
            f"{counted(len(first.trials), 'chip')})"
        )

    def __str__(self) -> str:
        from memsim.report.text import as_text

        return as_text(*self.parts()) if self.points else "a shard of an evaluation; merge_results joins all shards"

    def _repr_html_(self) -> str:
        from memsim.report.text import as_html

        return as_html(*self.parts()) if self.points else str(self)
