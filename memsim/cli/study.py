"""Many chips in `memsim eval`: sharing the work out, results files, sweeps, and how far it is."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.cli import options
from memsim.cli.signals import noted_stop_signals
from memsim.errors import InputError
from memsim.launch import is_torchrun
from memsim.units import counted

if TYPE_CHECKING:
    from memsim.cli.progress import Draw
    from memsim.distributed import Workers
    from memsim.evaluation.result import Evaluation
    from memsim.evaluation.run import StopRequest
    from memsim.evaluation.study import PointFacts, Study, StudyFacts
    from memsim.evaluation.target import EvaluationTarget
    from memsim.evaluation.task import System
    from memsim.evaluation.work import Tally

STUDY_PANEL = "Many chips"

Trials = Annotated[
    int, typer.Option("--trials", metavar="N", min=1, max=100_000, help="How many chips.", rich_help_panel=STUDY_PANEL)
]
Jobs = Annotated[
    int,
    typer.Option("--jobs", metavar="N", min=1, help="How many processes share the work.", rich_help_panel=STUDY_PANEL),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE.jsonl",
        help="JSON lines that grow as chips are done. The same command again goes on with what is there.",
        rich_help_panel=STUDY_PANEL,
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Do only share I (1 to N) of the work, into --results; --merge joins the shares.",
        rich_help_panel=STUDY_PANEL,
    ),
]
Merge = Annotated[
    str | None,
    typer.Option(
        "--merge",
        metavar="'GLOB.jsonl'",
        help="Evaluate nothing: join the results files of all shards into one result.",
        rich_help_panel=STUDY_PANEL,
    ),
]
Figure = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        metavar="FILE.svg",
        help="Draw a sweep: the WER against each key that was swept.",
        rich_help_panel=STUDY_PANEL,
    ),
]

Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the spec, such as adc.bits=6. Repeatable. KEY=V1,V2,... evaluates each of them, and of "
        "several such keys the whole grid.",
        rich_help_panel=options.HARDWARE_PANEL,
    ),
]

OF_MERGE = ("merge", "figure", "worst", "json_file", "report", "force", "quiet", "verbose")
"""The parameters that mean something where results are merged."""

PATIENCE = timedelta(days=7)
"""How long the processes of a torchrun wait for the slowest of them."""


@dataclass(frozen=True)
class Sharing:
    """How the work of a study is shared out, and where its results go."""

    jobs: int = 1
    shard: tuple[int, int] | None = None
    results: Path | None = None

    @classmethod
    def of(cls, jobs: int, shard: str | None, results: Path | None) -> Sharing:
        """What the options mean. Raises InputError for such that do not go together."""
        if shard is None:
            numbers = None
        else:
            match = re.fullmatch(r"(\d+)/(\d+)", shard)
            if match is None or not 1 <= int(match[1]) <= int(match[2]):
                raise InputError(f"--shard {shard}: expected I/N with I from 1 to N, such as 2/8")
            numbers = int(match[1]), int(match[2])
            if results is None:
                raise InputError(f"--shard {shard}: name the file of its results with --results FILE.jsonl")
        if is_torchrun() and (jobs > 1 or shard):
            raise InputError("torchrun shares the work out already; leave out --jobs and --shard")
        return cls(jobs, numbers, results)

    @contextmanager
    def stop_requests(self) -> Iterator[StopRequest]:
        """While open, a signal stops the study in good order, where there are results to keep."""
        if self.results is None:
            yield lambda: None
            return
        with noted_stop_signals() as stops:
            yield stops

    def require_outputs(
        self, files: Sequence[Path | None], inputs: Sequence[str | Path | None], *, force: bool
    ) -> None:
        """Raise InputError when results or `files` must not or cannot be written, or have a name of `inputs`.

        Whoever goes on with results writes `files` anew.
        """
        goes_on = False
        if self.results is not None:
            if str(self.results) == "-":
                raise InputError("--results -: results are added to and read again; name a file")
            options.require_new(self.results, force=True)
            goes_on = self.results.exists()
            if force and goes_on:
                from memsim.evaluation.results_file import require_results

                require_results(self.results)
        options.require_outputs((self.results, *files), force, inputs, resumed=goes_on)

    def make_way(self, workers: Workers, *, force: bool) -> None:
        """With `force`, remove old results, when all else is known to be right; the first of several processes does."""
        if self.results is None or not force:
            return
        from memsim.evaluation.results_file import remove_results

        if workers.is_first:
            remove_results(self.results)
        workers.wait()


def require_alone(merge: str, context: typer.Context) -> None:
    """Raise InputError when --merge is given something to evaluate, or how."""
    unused = [
        parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
        for parameter in context.command.params
        if parameter.name and parameter.name not in OF_MERGE and is_given(context, parameter.name)
    ]
    if unused:
        raise InputError(f"--merge {merge}: evaluates nothing; leave out {', '.join(unused)}")


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether it is on the command line."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def require_svg(figure: Path | None) -> None:
    """Raise InputError for a --figure that is not named as what it will hold."""
    if figure is not None and figure.suffix != ".svg":
        raise InputError(f"{figure}: expected a name that ends in .svg")


def require_sweep(figure: Path | None, points: int) -> None:
    """Raise InputError for a --figure of a single point."""
    if figure is not None and points < 2:
        raise InputError(f"--figure {figure}: nothing is swept; give a key several values, --set KEY=V1,V2,...")


def require_no_costs(**wanted: bool) -> None:
    """Raise InputError for what is found out about the chips of one point, in one process."""
    for name, is_wanted in wanted.items():
        if is_wanted:
            raise InputError(f"--{name}: goes with a single point that is evaluated here, not with a sweep or shares")


@contextmanager
def eval_workers() -> Iterator[Workers]:
    """The processes of this torchrun, or this one."""
    from memsim.distributed import joined_workers

    with joined_workers("cpu", PATIENCE) as workers:
        yield workers


def run(
    study: Study,
    sharing: Sharing,
    workers: Workers,
    target: EvaluationTarget | None,
    device: str,
    draw: Draw,
    stop_request: StopRequest,
    quiet: bool,
) -> list[tuple[PointFacts, Evaluation]]:
    """`run_study`, watched; unless `quiet` it says what an earlier run has left."""
    from memsim.cli.progress import say
    from memsim.evaluation.run import run_study

    return run_study(
        study,
        device=device,
        jobs=sharing.jobs,
        shard=sharing.shard,
        results=sharing.results,
        workers=workers,
        target=target,
        watcher=Progress(draw),
        stop_request=stop_request,
        on_resume=lambda found: None if quiet else say(f"{sharing.results}: {found}"),
    )


class Progress:
    """Shows a study as one job: transcripts made, and the WER so far of the chip that is running."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._errors: dict[System, float] = defaultdict(int)
        self._words: dict[System, float] = defaultdict(int)
        self._transcripts: dict[System, int] = defaultdict(int)

    def begin(self, facts: StudyFacts, utterances: int, done: int) -> None:
        """See `Watcher`."""
        self._facts, self._utterances, self._done = facts, utterances, done
        self._show("")

    def step(self, system: System, more: Tally) -> None:
        """See `Watcher`."""
        self._done += more.items
        self._errors[system] += more.amount
        self._words[system] += more.weight
        self._transcripts[system] += more.items
        wer = self._errors[system] / max(self._words[system], 1)
        done, total = self._transcripts[system], len(self._facts.task)
        over = "" if done >= total else f" so far, over {done:,} of {counted(total, 'utterance')}"
        self._show(f"{self._name(system)}: WER {wer:.2%}{over}")

    def _show(self, detail: str) -> None:
        total = self._utterances
        self._draw("evaluation", self._done / total if total else 1.0, detail, total, "utterances")

    def _name(self, system: System) -> str:
        if system.role != "chip":
            return system.role.replace("_", " ")
        point = next(point for point in self._facts.points if point.has(system))
        chip = f"chip {system.trial + 1} of {self._facts.trials}"
        return f"{chip}, {point.label}" if point.label else chip


def merged(pattern: str) -> list[tuple[PointFacts, Evaluation]]:
    """The study whose results files `pattern` names."""
    from memsim.evaluation.merge import merge

    paths = [Path(path) for path in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - it may be an absolute one
    if not paths:
        raise InputError(f"--merge {pattern}: no such files")
    return merge(paths)


def sweep_dict(points: Sequence[tuple[PointFacts, Evaluation]]) -> dict[str, Any]:
    """What --json holds of a sweep."""
    from memsim.version import __version__

    return {
        "memsim": __version__,
        "points": [{"settings": dict(point.settings), **evaluation.to_dict()} for point, evaluation in points],
    }


def draw_figure(path: Path | None, points: Sequence[tuple[PointFacts, Evaluation]]) -> None:
    """Write --figure."""
    if path is None:
        return
    from memsim.report.sweep_figure import wer_by_setting

    wer_by_setting(sweep_dict(points)["points"], path)


def heading(points: Sequence[tuple[PointFacts, Evaluation]]) -> str:
    """What was measured, of which system, on which chip with which changed keys; of a sweep, over which keys."""
    from memsim.config.changes import title, without

    point, result = points[0]
    corpus, spec = result.task.corpus, result.spec
    kind = "synthetic speech" if corpus.synthetic else "speech"
    chips = [each.chip for _, each in points]
    bits = "/".join(map(str, sorted({bits for chip in chips for bits in chip.bits})))
    layers, arrays = ({getattr(chip, name) for chip in chips} for name in ("layers", "arrays"))
    onto = f"{_counts(layers, 'layer')} on {_counts(arrays, 'array')}"
    hardware = title(
        spec.name, without(spec.changes, "weights.bits", *point.settings)
    )  # bits have a place of their own
    over = f", over {', '.join(point.settings)}" if point.settings else ""
    return (
        f"{corpus.name} {corpus.split}: {counted(len(corpus.utterances), 'utterance')}, "
        f"{counted(corpus.words, 'word')}, {result.task.seconds:.0f} s of {kind}\n"
        f"{result.checkpoint.path.name} on {hardware}{over}, {bits}-bit weights, {onto}"
    )


def _counts(numbers: set[int], thing: str) -> str:
    """The numbers of the points of a sweep: `60 layers`, `456/912 arrays`."""
    *first, last = sorted(numbers)
    return "".join(f"{number:,}/" for number in first) + counted(last, thing)


def interval_name(result: Evaluation) -> str:
    """Over what the intervals are: `95% interval over 80 utterances, of these 3 chips`."""
    from memsim.asr.bootstrap import CONFIDENCE

    chips = f"these {len(result.trials)} chips" if len(result.trials) > 1 else "this chip"
    return f"{CONFIDENCE:.0%} interval over {counted(len(result.task.corpus.utterances), 'utterance')}, of {chips}"


def unfitted_lines(points: Sequence[tuple[PointFacts, Evaluation]]) -> list[str]:
    """What to say of laws that nobody has fitted, where there are any."""
    from memsim.evaluation.verdicts import unfitted, unfitted_note

    keys = list(dict.fromkeys(key for _, result in points for key in unfitted(result.spec)))
    return [unfitted_note(keys)] if keys else []


def render_sweep(points: Sequence[tuple[PointFacts, Evaluation]]) -> None:
    """A table with a row a point, below what all of them share."""
    from rich.box import SIMPLE
    from rich.table import Table

    from memsim.asr.bootstrap import CONFIDENCE
    from memsim.cli.budget import percent
    from memsim.cli.progress import stdout
    from memsim.config.changes import setting_text
    from memsim.evaluation.result import spread

    first = points[0][1]
    stdout.print(heading(points), style="bold", highlight=False, soft_wrap=True)
    interval = f"{CONFIDENCE:.0%} interval"
    loss = [f"{first.task.loss_name} loss"] if first.losses else []
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    keys = list(points[0][0].settings)
    for key in keys:
        table.add_column(key, overflow="fold")
    names = ("digital %", "WER %", interval, "std", "min", "max", "to digital %", interval, "CER %", *loss, "chips")
    for name in names:
        table.add_column(name, justify="right")
    if (full_precision := first.full_precision) is not None:
        cells = [percent(full_precision.wer), _ends(first.intervals["wer"]["full_precision"]), *[""] * 5]
        cells += [percent(full_precision.cer)] + ([] if full_precision.loss is None else [f"{full_precision.loss:.4f}"])
        table.add_row(*["full precision", *[""] * len(keys)][: len(keys) + 1], *cells, "")
    for point, result in points:
        intervals, wer = result.intervals, spread([trial.score.wer for trial in result.trials])
        shown = [percent(result.digital.wer), percent(wer["mean"]), _ends(intervals["wer"]["mapped"])]
        shown += [percent(wer[end]) for end in ("std", "min", "max")]
        relative = intervals["to_digital"]["relative"]
        ratio = "" if relative is None else f"{100 * relative['value']:+.1f}"
        shown += ["unusable" if result.unusable else ratio, _ends(relative, "+")]
        shown += [percent(spread([trial.score.cer for trial in result.trials])["mean"])]
        shown += [f"{spread(losses)['mean']:.4f}"] if (losses := result.losses) else []
        settings = (setting_text(value) for value in point.settings.values())
        table.add_row(*settings, *shown, str(len(result.trials)))
    stdout.print(table)
    notes = [
        f"{interval_name(first)}; those to digital are paired. std, min and max are over chips",
        *unfitted_lines(points),
    ]
    stdout.print("\n".join(notes), style="dim", highlight=False)


def _ends(interval: dict[str, Any] | None, sign: str = "") -> str:
    """`9.5 to 15.8`, in percent; nothing without an interval."""
    if interval is None:
        return ""
    low, high = (
        "unbounded" if interval[end] is None else f"{100 * interval[end]:{sign}.1f}" for end in ("low", "high")
    )
    return f"{low} to {high}"
