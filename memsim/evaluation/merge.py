"""Putting the results files of a study's shards together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memsim.errors import InputError
from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.result import Evaluation
from memsim.evaluation.results_file import Header, by_system, read_results, shown
from memsim.evaluation.study import PointFacts
from memsim.evaluation.task import Score, System
from memsim.units import counted


def merge(paths: Sequence[Path]) -> list[tuple[PointFacts, Evaluation]]:
    """Return the results of all points of a study from the files of its shards, or from its one file.

    Raises InputError for shards that are missing, unfinished, there twice, or of another study.
    """
    if not paths:
        raise InputError("no results files to merge")
    found = {path: read_results(path) for path in sorted(paths)}
    _require_all_shards({path: results.header for path, results in found.items()})
    if unfinished := [path for path, results in found.items() if not results.is_finished]:
        raise InputError(f"{', '.join(map(str, unfinished))}: not finished; run the command that wrote it again")
    facts = next(iter(found.values())).header.facts
    parts = by_system(pair for results in found.values() for pair in results.parts)
    whole = {system: PartialResult.joined(several) for system, several in parts.items()}
    scores: dict[System, Score] = {}
    for system in facts.systems():
        done = len(whole[system].outcomes) if system in whole else 0
        if done != len(facts.task):
            raise InputError(f"{paths[0].parent}: lacks {facts.task.outcome}s of {system.role}, trial {system.trial}")
        scores[system] = facts.task.score(whole[system].outcomes)
    return [(point, facts.evaluation(point, whole, scores)) for point in facts.points]


def _require_all_shards(headers: dict[Path, Header]) -> None:
    """Raise InputError unless each shard of one study is there once."""
    (first, like), *others = headers.items()
    for path, header in others:
        if difference := _difference(like, header):
            raise InputError(f"{path}: is of another study than {first} ({difference})")
    seen: dict[int, Path] = {}
    for path, header in headers.items():
        number = 0 if header.shard is None else header.shard[0]
        if number in seen:
            what = "the whole study" if header.shard is None else shown(header.shard)
            raise InputError(f"{seen[number]} and {path}: both are {what}")
        seen[number] = path
    if like.shard is not None:
        count = like.shard[1]
        if missing := [str(number) for number in range(1, count + 1) if number not in seen]:
            raise InputError(
                f"{first.parent}: of {counted(count, 'shard')}, {', '.join(missing)} not found; --shard makes them"
            )


def _difference(one: Header, other: Header) -> str | None:
    """The first thing in which `other` is not of the study of `one`: what, there and here."""
    if difference := one.difference(other):
        return difference

    def counts(header: Header) -> dict[str, int]:
        shards = 1 if header.shard is None else header.shard[1]
        return {"shards": shards, "points": len(header.facts.points), "trials": header.facts.trials}

    mine, theirs = counts(one), counts(other)
    for name, count in mine.items():
        if theirs[name] != count:
            return f"{theirs[name]} {name}, not {count}"
    if [point.hardware for point in one.facts.points] != [point.hardware for point in other.facts.points]:
        return "other hardware"
    return None
