"""Running a study: in this process, in several of this machine, or in those that torchrun started."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from memsim.distributed import Workers
from memsim.errors import Stopped
from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.processes import in_processes
from memsim.evaluation.result import Evaluation
from memsim.evaluation.results_file import ResultsFile, Shard, adding_to, by_system
from memsim.evaluation.study import PointFacts, Study, StudyFacts, WorkItem, divided, share
from memsim.evaluation.target import Target
from memsim.evaluation.task import Score, System
from memsim.evaluation.work import Done, Evaluator, Watcher, tally
from memsim.listener import Listener
from memsim.units import counted

StopRequest = Callable[[], int | None]
"""Returns the number of the signal that asked to stop, if one did."""


def run_study(
    study: Study,
    *,
    device: str = "cpu",
    jobs: int = 1,
    shard: Shard | None = None,
    results: Path | None = None,
    workers: Workers | None = None,
    target: Target | None = None,
    listener: Listener | None = None,
    stop_request: StopRequest = lambda: None,
) -> list[tuple[PointFacts, Evaluation]]:
    """Return the result of every point of `study`; nothing for a shard, and in all but the first of `workers`.

    Args:
        study: the study to run.
        device: `cpu`, `cuda`, or one GPU of several.
        jobs: Number of processes of this machine that share the work. They are spawned: a script that asks for several
            guards its own start with ``if __name__ == "__main__"``.
        shard: Do only this shard of the work; `memsim.evaluation.merge` joins the `results` of all shards.
        results: a results file that grows as parts are done. Parts of an earlier run of the study are kept.
        workers: the processes of a torchrun, which share the work.
        target: the networks of the first point, where they are prepared already.
        listener: follows the run, and is told before it what `results` held already.
        stop_request: asked after every batch.

    Raises InputError as `prepare` and `adding_to` do, and Stopped when it was asked to stop and something is left.
    """
    workers, listener = workers or Workers(), listener or Listener()
    facts = study.facts
    items = divided(list(facts.systems()), len(study.task.groups), shard[1] if shard else max(jobs, workers.size))
    if shard:
        items = share(items, shard[0] - 1, shard[1])
    adding = adding_to(results, facts, shard) if results is not None and workers.is_first else nullcontext()
    with adding as file:
        collected = _Collected(facts, file, whole=shard is None and workers.is_first)
        wanted = _outcomes(study, items)
        covered = workers.gather(collected.covered())[0]
        planned = items
        items = [item for item in (_left(study, item, covered) for item in planned) if item.batches]
        left = _outcomes(study, items)
        if file is not None and file.parts:
            listener.say(f"{results}: {_resumed(study, planned, items, wanted, left)}")
        watcher = Watcher(listener, facts, wanted, wanted - left)
        if jobs > 1:
            done = in_processes(study, items, device, jobs, watcher, stop_request)
        else:
            evaluator = Evaluator(study, device, target)
            done = _in_turn(evaluator, share(items, workers.rank, workers.size), watcher, stop_request)
            done = _together(study, done, -(-len(items) // workers.size), workers, watcher, stop_request)
        with closing(done):
            for system, part in done:
                collected.add(system, part)
                left -= len(part.outcomes)
        stops = [number for number in workers.gather(stop_request()) if number is not None]
        if left and stops:
            kept = f"the same command continues {results}" if results else "no results were kept"
            raise Stopped(f"stopped with {1 - left / wanted:.0%} done; {kept}", by_keyboard=signal.SIGINT in stops)
        if file is not None:
            file.finish()
    return [(point, collected.evaluations[point.hardware]) for point in facts.points] if collected.whole else []


def _resumed(study: Study, planned: Sequence[WorkItem], rest: Sequence[WorkItem], wanted: int, left: int) -> str:
    """Say what an earlier run has done of the items that are planned and of the outcomes that are wanted."""
    chips, unfinished = ({item.system for item in items if item.system.role == "chip"} for items in (planned, rest))
    return (
        f"found {len(planned) - len(rest)} of {counted(len(planned), 'work item')} "
        f"({len(chips - unfinished)} of {counted(len(chips), 'chip')}, "
        f"{wanted - left:,} of {counted(wanted, study.task.outcome)}); "
        + (f"continues with the other {len(rest)}" if rest else "nothing is left to run")
    )


def _outcomes(study: Study, items: Iterable[WorkItem]) -> int:
    """Count the outcomes of `items`."""
    return sum(len(study.task.groups[batch]) for item in items for batch in item.batches)


def _left(study: Study, item: WorkItem, covered: Mapping[System, set[int]]) -> WorkItem:
    """Return `item` without the batches whose items are `covered`."""
    done, groups = covered.get(item.system, set()), study.task.groups
    return WorkItem(item.system, tuple(batch for batch in item.batches if not done.issuperset(groups[batch])))


def _in_turn(evaluator: Evaluator, items: Iterable[WorkItem], watcher: Watcher, stop_request: StopRequest) -> Done:
    for item in items:
        if stop_request() is not None:
            return
        part = evaluator.run(item, watcher.step, lambda: stop_request() is not None)
        yield item.system, part


def _together(
    study: Study,
    own: Done,
    rounds: int,
    workers: Workers,
    watcher: Watcher,
    stop_request: StopRequest,
) -> Done:
    """Yield the parts of all `workers`, one of each at a time; all end where one of them is asked to stop."""
    for _ in range(rounds):
        results = workers.gather((next(own, None), stop_request()))
        for rank, (done, _) in enumerate(results):
            if done is not None:
                system, part = done
                if rank != workers.rank:
                    watcher.step(system, tally(part.outcomes, study.task))
                yield done
        if any(number is not None for _, number in results):
            return


class _Collected:
    """The collected parts, and the results of complete points if this process gets the `whole` study."""

    def __init__(self, facts: StudyFacts, file: ResultsFile | None, *, whole: bool) -> None:
        self.whole = whole
        self.evaluations: dict[str, Evaluation] = {}
        self.parts = by_system([] if file is None else file.parts)
        self._facts, self._file = facts, file
        self._complete: dict[System, PartialResult] = {}
        self._scores: dict[System, Score] = {}
        self._finish(facts.points)

    def covered(self) -> dict[System, set[int]]:
        """The items with outcomes."""
        return {system: {i for part in parts for i in part.outcomes} for system, parts in self.parts.items()}

    def add(self, system: System, part: PartialResult) -> None:
        """Add a new part."""
        self.parts.setdefault(system, []).append(part)
        if self._file is not None:
            self._file.add_part(system, part)
        self._finish([point for point in self._facts.points if point.has(system)])

    def _finish(self, points: Sequence[PointFacts]) -> None:
        """Make the results of those of `points` that are complete now. Points share the scores of their systems."""
        for point in points if self.whole else ():
            systems = self._facts.systems_of(point)
            if all(self._is_complete(system) for system in systems):
                evaluation = self._facts.evaluation(point, self._complete, self._scores)
                self.evaluations[point.hardware] = evaluation
                if self._file is not None:
                    self._file.add_point(point, evaluation.to_dict())

    def _is_complete(self, system: System) -> bool:
        if system in self._complete:
            return True
        parts = self.parts.get(system, ())
        if sum(len(part.outcomes) for part in parts) != len(self._facts.task):
            return False
        self._complete[system] = PartialResult.joined(parts)
        self._scores[system] = self._facts.task.score(self._complete[system].outcomes)
        return True
