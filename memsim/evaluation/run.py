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
from memsim.evaluation.study import PointFacts, Study, StudyFacts, System, WorkItem, divided, share
from memsim.evaluation.target import EvaluationTarget
from memsim.evaluation.work import Done, Evaluator, Resumed, Unwatched, Watcher, tally

StopRequest = Callable[[], int | None]
"""The number of the signal that asked to stop, if any."""


def run_study(
    study: Study,
    *,
    device: str = "cpu",
    jobs: int = 1,
    shard: Shard | None = None,
    results: Path | None = None,
    workers: Workers | None = None,
    target: EvaluationTarget | None = None,
    watcher: Watcher | None = None,
    stop_request: StopRequest = lambda: None,
    on_resume: Callable[[Resumed], None] = lambda found: None,
) -> list[tuple[PointFacts, Evaluation]]:
    """The result of every point of `study`; of a shard, and in all but the first of `workers`, none.

    Args:
        device: `cpu`, `cuda`, or one GPU of several.
        jobs: how many processes of this machine share the work. They are spawned: a script that asks for more than one
            guards its own start with ``if __name__ == "__main__"``.
        shard: do only this share of the work; `memsim.evaluation.merge` puts the `results` of all together.
        results: a results file that grows as parts are done. What another run of the study has left there is kept.
        workers: the processes of a torchrun, which share the work.
        target: that of the first point, where it is prepared already.
        stop_request: asked after every batch.
        on_resume: told what `results` held already, before anything runs; not called where it held nothing.

    Raises InputError as `prepare` and `adding_to` do, and Stopped when it was asked to stop and something is left.
    """
    workers, watcher = workers or Workers(), watcher or Unwatched()
    facts = study.facts
    items = divided(list(facts.systems()), len(study.groups), shard[1] if shard else max(jobs, workers.size))
    if shard:
        items = share(items, shard[0] - 1, shard[1])
    adding = adding_to(results, facts, shard) if results is not None and workers.is_first else nullcontext()
    with adding as file:
        collected = _Collected(facts, file, whole=shard is None and workers.is_first)
        wanted = _utterances(study, items)
        covered = workers.gather(
            {n: {i for part in parts for i in part.texts} for n, parts in collected.parts.items()}
        )[0]
        planned = items
        items = [item for item in (_left(study, item, covered) for item in planned) if item.batches]
        left = _utterances(study, items)
        if file is not None and file.parts:
            on_resume(_resumed(planned, items, wanted, wanted - left))
        watcher.begin(facts, wanted, wanted - left)
        if jobs > 1:
            done = in_processes(study, items, device, jobs, watcher, stop_request)
        else:
            evaluator = Evaluator(study, device, target)
            done = _in_turn(evaluator, share(items, workers.rank, workers.size), watcher, stop_request)
            done = _together(study, done, -(-len(items) // workers.size), workers, watcher, stop_request)
        with closing(done):
            for system, part in done:
                collected.add(system, part)
                left -= len(part.texts)
        stops = [number for number in workers.gather(stop_request()) if number is not None]
        if left and stops:
            kept = f"{results} keeps what is done, the same command goes on" if results else "nothing was kept"
            raise Stopped(f"stopped with {1 - left / wanted:.0%} done; {kept}", by_keyboard=signal.SIGINT in stops)
        if file is not None:
            file.finish()
    return [(point, collected.evaluations[point.hardware]) for point in facts.points] if collected.whole else []


def _resumed(planned: Sequence[WorkItem], left: Sequence[WorkItem], wanted: int, done: int) -> Resumed:
    """What is done of the items that are planned."""
    chips, unfinished = ({item.system for item in items if item.system.role == "chip"} for items in (planned, left))
    return Resumed((len(planned) - len(left), len(planned)), (len(chips - unfinished), len(chips)), (done, wanted))


def _utterances(study: Study, items: Iterable[WorkItem]) -> int:
    """How many transcripts `items` are."""
    return sum(len(study.groups[batch]) for item in items for batch in item.batches)


def _left(study: Study, item: WorkItem, covered: Mapping[System, set[int]]) -> WorkItem:
    """`item` without the batches of utterances that are `covered`."""
    done = covered.get(item.system, set())
    return WorkItem(item.system, tuple(batch for batch in item.batches if not done.issuperset(study.groups[batch])))


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
    """What all `workers` have done, one part of each at a time; all end where one of them is asked to stop."""
    for _ in range(rounds):
        results = workers.gather((next(own, None), stop_request()))
        for rank, (done, _) in enumerate(results):
            if done is not None:
                system, part = done
                if rank != workers.rank:
                    watcher.step(system, tally(part.texts, study.corpus))
                yield done
        if any(number is not None for _, number in results):
            return


class _Collected:
    """The parts that there are, and the results of the points that are complete, if the `whole` study comes here."""

    def __init__(self, facts: StudyFacts, file: ResultsFile | None, *, whole: bool) -> None:
        self.whole = whole
        self.evaluations: dict[str, Evaluation] = {}
        self.parts = by_system([] if file is None else file.parts)
        self._facts, self._file = facts, file
        self._finish(facts.points)

    def covered(self) -> dict[System, set[int]]:
        """The utterances whose transcripts there are."""
        return {system: {i for part in parts for i in part.texts} for system, parts in self.parts.items()}

    def add(self, system: System, part: PartialResult) -> None:
        self.parts.setdefault(system, []).append(part)
        if self._file is not None:
            self._file.add_part(system, part)
        self._finish([point for point in self._facts.points if point.has(system)])

    def _finish(self, points: Sequence[PointFacts]) -> None:
        """Those of `points` that are complete now."""
        for point in points if self.whole else ():
            systems = self._facts.systems_of(point)
            if all(self._is_whole(system) for system in systems):
                whole = {system: PartialResult.joined(self.parts[system]) for system in systems}
                evaluation = self._facts.evaluation(point, whole)
                self.evaluations[point.hardware] = evaluation
                if self._file is not None:
                    self._file.add_point(point, evaluation.to_dict())

    def _is_whole(self, system: System) -> bool:
        done = sum(len(part.texts) for part in self.parts.get(system, ()))
        return done == len(self._facts.corpus.utterances)
