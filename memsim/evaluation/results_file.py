"""Results files: JSON lines that a study adds to while it runs, and from which it is continued or merged.

The first line identifies the study. Every `part` has the outcomes of a system for some items, with its measures (of
speech, WER and CER) on them; every `point` is the result of one hardware spec, as `memsim eval --json` writes it, and
its settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from memsim.errors import InputError
from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.study import PointFacts, StudyFacts
from memsim.evaluation.task import CheckpointFacts, System
from memsim.post_training.recipe import NEAREST
from memsim.storage.files import require_format, writing
from memsim.storage.locks import held_file, lock
from memsim.units import counted
from memsim.version import __version__

FORMAT = "memsim-results/1"

SPEECH = "speech"
TASKS = {SPEECH: "memsim.evaluation.speech:SpeechTask", "module": "memsim.evaluation.modules:ModuleTask"}
"""The kinds of task that a file may be of, each with its class; imported when a file is read."""

Shard = tuple[int, int]
"""(which, of how many), from 1."""


@dataclass(frozen=True)
class Header:
    """The first line of a results file."""

    facts: StudyFacts
    shard: Shard | None
    memsim: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, that `from_dict` reads back."""
        facts = self.facts
        return {
            "kind": "study",
            "format": FORMAT,
            "memsim": self.memsim,
            "shard": self.shard,
            "checkpoint": {**asdict(facts.checkpoint), "path": str(facts.checkpoint.path)},
            "reference_sha256": facts.reference_sha256,
            "points": [asdict(point) for point in facts.points],
            "trials": facts.trials,
            "seed": facts.seed,
            "as_it_is": facts.as_it_is,
            "full_precision": facts.full_precision,
            "mapping": facts.mapping,
            **({} if facts.calibration is None else {"calibration": facts.calibration}),
            **({} if facts.task.kind == SPEECH else {"task": facts.task.kind}),
            **facts.task.to_dict(),
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Header:
        """Make the header that `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        module, _, name = TASKS[line.get("task", SPEECH)].partition(":")
        task = getattr(import_module(module), name).from_dict(line)
        written = _HEADER.validate_python(line)
        if written.trials < 1 or not written.points:
            raise ValueError("a study of no points")
        facts = dict(vars(written))
        shard, memsim = facts.pop("shard"), facts.pop("memsim")
        return cls(StudyFacts(task=task, **facts), shard, memsim)

    def difference(self, other: Header) -> str | None:
        """Return the first difference between two commands: its name, and the values there and here; else None."""
        mine, theirs = self._compared(), other._compared()
        pairs = [(key, theirs.get(key), mine.get(key)) for key in mine | theirs]
        return next((f"{key} {there}, not {here}" for key, there, here in pairs if there != here), None)

    def _compared(self) -> dict[str, Any]:
        """The facts that must be equal for parts of two files to belong together, in words."""
        facts = self.facts
        return {
            "memsim": self.memsim,
            "checkpoint": facts.checkpoint.sha256[:12],
            "reference": (facts.reference_sha256 or "none")[:12],
            **facts.task.identity(),
            "seed": facts.seed,
            "mapping": facts.mapping,
            "calibration": facts.calibration or "that of the checkpoint",
            "chip 1": "as it is in the file" if facts.as_it_is else "programmed anew",
        }


@dataclass(frozen=True)
class _WrittenHeader:
    """The entries of a first line that are not the task's."""

    checkpoint: CheckpointFacts
    reference_sha256: str | None
    points: tuple[PointFacts, ...]
    trials: int
    seed: int
    as_it_is: bool
    full_precision: bool
    shard: Shard | None
    memsim: str
    mapping: str = NEAREST.identity
    calibration: str | None = None


_HEADER = TypeAdapter(_WrittenHeader)
_SYSTEM = TypeAdapter(System)


def shown(shard: Shard | None) -> str:
    """Return `shard 2/8`, for messages."""
    return "no shard" if shard is None else f"shard {shard[0]}/{shard[1]}"


@dataclass(frozen=True)
class Results:
    """The contents of a results file."""

    header: Header
    parts: list[tuple[System, PartialResult]]
    is_finished: bool


def read_results(path: Path) -> Results:
    """Read a results file, but not a last line that was cut off. Raises InputError for other files and formats."""
    parts: list[tuple[System, PartialResult]] = []
    is_finished = False
    try:
        with path.open(encoding="utf-8") as file:
            lines = _whole_lines(file)
            first = json.loads(next(lines, ""))
            require_format(path, first["format"], FORMAT)
            header = Header.from_dict(first)
            for line in map(json.loads, lines):
                if line["kind"] == "part":
                    system = _SYSTEM.validate_python({key: line[key] for key in ("role", "hardware", "trial")})
                    parts.append((system, PartialResult.from_dict(line, header.facts.task)))
                is_finished = line["kind"] == "end"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InputError(f"{path}: is not a results file of memsim eval, or is damaged") from None
    return Results(header, parts, is_finished)


def _whole_lines(file: IO[str]) -> Iterator[str]:
    return (line for line in file if line.endswith("\n"))


def by_system(parts: Iterable[tuple[System, PartialResult]]) -> dict[System, list[PartialResult]]:
    """Group parts by their systems."""
    found: dict[System, list[PartialResult]] = {}
    for system, part in parts:
        found.setdefault(system, []).append(part)
    return found


class ResultsFile:
    """A results file that is being added to; `parts` is what was in it before."""

    def __init__(self, path: Path, file: IO[str], facts: StudyFacts, parts: list[tuple[System, PartialResult]]) -> None:
        self.path, self.parts = path, parts
        self._file, self._facts = file, facts

    def add_part(self, system: System, part: PartialResult) -> None:
        """Append the outcomes of `system` for a part of the data. Raises OSError where that cannot be written."""
        task = self._facts.task
        line = {"kind": "part", **asdict(system), "settings": self._settings(system)}
        self._add(line | dict(task.score(part.outcomes).rates) | part.to_dict(task))

    def _settings(self, system: System) -> dict[str, Any]:
        """The settings that tell a chip from others."""
        points = self._facts.points if system.role == "chip" else ()
        return next((dict(point.settings) for point in points if point.has(system)), {})

    def add_point(self, point: PointFacts, result: Mapping[str, Any]) -> None:
        """Append the result of a point whose parts are complete. Raises OSError where that cannot be written."""
        self._add({"kind": "point", "settings": dict(point.settings), **result})

    def finish(self) -> None:
        """Note in the file that nothing is missing."""
        self._add({"kind": "end"})

    def _add(self, line: Mapping[str, Any]) -> None:
        """Write one line, so that it is on disk whatever happens next."""
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            kept = "earlier results are kept; type the same command again to continue"
            raise OSError(f"{self.path}: could not be written ({error.strerror or error}); {kept}") from None


@contextmanager
def adding_to(path: Path, facts: StudyFacts, shard: Shard | None = None) -> Iterator[ResultsFile]:
    """Open the results file at `path`, or create it.

    Its parts are kept where the study is the same, or has more points or trials now (for a shard it may not: who runs
    what would change).

    Raises InputError for the results of another command, and while another process adds to the file.
    """
    header = Header(facts, shard)
    parts: list[tuple[System, PartialResult]] = []
    with ExitStack() as files:
        kept: list[str] = []
        with _one_at_a_time(path):
            if path.exists():
                _lock(files.enter_context(path.open(encoding="utf-8")), path)
                known = read_results(path)
                parts = known.parts
                if problem := _conflict(known.header, header):
                    raise InputError(
                        f"{path}: holds results of another command ({problem}); name another file, or --force "
                        "overwrites it"
                    )
                # without a line that was cut off, and without points, which may get more trials
                lines = _whole_lines(files.enter_context(path.open(encoding="utf-8")))
                kept = [line for line in lines if line.startswith('{"kind": "part"')]
            with writing(path) as temporary:
                temporary.write_text("".join([json.dumps(header.to_dict()) + "\n", *kept]), encoding="utf-8")
            file = path.open("a", encoding="utf-8")
            files.callback(_close, file)
            _lock(file, path)
        yield ResultsFile(path, file, facts, parts)


def _close(file: IO[str]) -> None:
    """Close `file`. Every line is on disk but for one that could not be written, which closing would try again."""
    with suppress(OSError):
        file.close()


def require_results(path: Path) -> None:
    """Raise InputError when the file at `path` is not empty and does not begin like a results file."""
    try:
        with path.open("rb") as file:
            start = file.read(100)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if start and not start.startswith(b'{"kind": "study"'):
        raise InputError(
            f"{path}: is not a results file of memsim eval, so --force does not overwrite it; name another"
        )


def remove_results(path: Path) -> None:
    """Remove a results file, if there is one. Raises InputError while another process adds to it."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        _lock(file, path)
        path.unlink()


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Keep other processes from looking for a results file meanwhile, as one of two new files would be lost."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held_file(path.resolve().with_name(f".{path.name}.lock")))
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        yield


def _lock(file: IO[str], path: Path) -> None:
    """Hold `file` for this process until it is closed, where the system has such locks."""
    try:
        lock(file.fileno())
    except BlockingIOError:
        raise InputError(f"{path}: another process is adding to it") from None


def _conflict(old: Header, new: Header) -> str | None:
    """Return why `new` cannot continue the file of `old`, or None."""
    if old.shard != new.shard:
        return f"{shown(old.shard)}, not {shown(new.shard)}"
    if difference := new.difference(old):
        return difference
    mine = {point.hardware for point in new.facts.points}
    other = [point.label or "other hardware" for point in old.facts.points if point.hardware not in mine]
    if other:
        return f"{other[0]}, which is not among the points here"
    if old.facts.trials > new.facts.trials:
        return f"{counted(old.facts.trials, 'trial')}, not {new.facts.trials}"
    if new.shard and (old.facts.trials != new.facts.trials or len(old.facts.points) != len(mine)):
        return "fewer trials or points, by which the shards were divided"
    return None
