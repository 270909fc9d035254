"""The work of one process of a study."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from memsim.evaluation.partial_results import PartialResult, run_network
from memsim.evaluation.study import Study, StudyFacts, WorkItem
from memsim.evaluation.target import Target
from memsim.evaluation.task import Score, System, Task
from memsim.listener import Listener
from memsim.units import counted, plural_of

Done = Generator[tuple[System, PartialResult], None, None]
"""A generator of parts as they finish; closing it cancels the rest."""


@dataclass(frozen=True)
class Tally:
    """The score of some items: how many they are, and the sums of their amounts and weights."""

    items: int
    amount: float
    weight: float


def tally(outcomes: Mapping[int, Any], task: Task) -> Tally:
    """Sum up outcomes, by their items' numbers; their errors are counted already."""
    score: Score = task.score(outcomes)
    return Tally(len(outcomes), sum(score.amounts), sum(score.weights))


class Watcher:
    """Shows a study to a listener as one job, with the measure so far of the network that is running.

    `outcomes` are to be made, over all systems, and an earlier run has made `done` of them.
    """

    def __init__(self, listener: Listener, facts: StudyFacts, outcomes: int, done: int) -> None:
        self._listener, self._facts, self._outcomes, self._done = listener, facts, outcomes, done
        self._sums: dict[System, Tally] = {}
        self._show("")

    def step(self, system: System, more: Tally) -> None:
        """Learn that a batch more is done."""
        before = self._sums.get(system, Tally(0, 0, 0))
        now = Tally(before.items + more.items, before.amount + more.amount, before.weight + more.weight)
        self._sums[system] = now
        self._done += more.items
        task, measure = self._facts.task, self._facts.task.measures[0]
        over = "" if now.items >= len(task) else f" so far, over {now.items:,} of {counted(len(task), task.item)}"
        value = measure.show(now.amount / (now.weight or 1))
        self._show(f"{self._name(system)}: {measure.name} {value}{'%' if measure.in_percent else ''}{over}")

    def _show(self, detail: str) -> None:
        total = self._outcomes
        self._listener.progress(
            "evaluation", self._done / total if total else 1.0, detail, total, plural_of(self._facts.task.item)
        )

    def _name(self, system: System) -> str:
        if system.role != "chip":
            return system.role.replace("_", " ")
        point = next(point for point in self._facts.points if point.has(system))
        chip = f"chip {system.trial + 1} of {self._facts.trials}"
        return f"{chip}, {point.label}" if point.label else chip


class Evaluator:
    """Runs items of a study. It keeps the target of the last one."""

    def __init__(self, study: Study, device: str = "cpu", first: Target | None = None) -> None:
        self._study, self._device = study, device
        self._target = None if first is None else (0, first)

    def run(self, item: WorkItem, on_batch: Callable[[System, Tally], None], stop: Callable[[], bool]) -> PartialResult:
        """Run the system of `item` on its batches, or on those before `stop`."""
        study = self._study

        def tell(outcomes: Mapping[int, Any]) -> bool:
            on_batch(item.system, tally(outcomes, study.task))
            return stop()

        batches = [study.task.groups[batch] for batch in item.batches]
        network = self._target_of(item.system).network(item.system)
        return run_network(study.task, network, batches, self._device, tell)

    def _target_of(self, system: System) -> Target:
        points = self._study.facts.points
        if self._target is None or not points[self._target[0]].has(system):
            self._target = None  # freed before the next is made
            number = next(number for number, point in enumerate(points) if point.has(system))
            self._target = (number, self._study.target(number))
        return self._target[1]
