"""The options of `memsim eval`, by the groups that `memsim.evaluate` takes them in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.cli import options
from memsim.cli.signals import noted_stop_signals
from memsim.errors import InputError

if TYPE_CHECKING:
    from memsim.evaluation.run import StopRequest

DECODING_PANEL = "Decoding"


def _option(*names: str, help: str, metavar: str | None = None, **limits: Any) -> Any:
    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=DECODING_PANEL, show_default=False, **limits
    )


Decoder = Annotated[
    str,
    _option("--decoder", metavar="greedy|beam", help="Best path (default), or beam search: CTC's through a lexicon."),
]
Lm = Annotated[Path | None, _option("--lm", metavar="FILE", help="N-gram language model: ARPA, or KenLM's binary.")]
Lexicon = Annotated[
    str | None,
    _option(
        "--lexicon",
        metavar="FILE|cmudict",
        help="The words that can be recognised. Default: the checkpoint's, else the language model's.",
    ),
]
LmWeight = Annotated[
    float | None, _option("--lm-weight", metavar="X", help="Weight of the language model's log10 P. Default: 2.0.")
]
PriorWeight = Annotated[
    float | None,
    _option("--prior-weight", metavar="X", help="Weight of the outputs' log prior, subtracted. Default: 0.5."),
]
BeamSize = Annotated[int | None, _option("--beam-size", metavar="N", help="Most hypotheses kept. Default: 1024.")]
BeamTokens = Annotated[
    int | None, _option("--beam-tokens", metavar="N", help="Most tokens tried in a frame. Default: 12.")
]
BeamThreshold = Annotated[
    float | None, _option("--beam-threshold", metavar="X", help="Drop hypotheses so far below the best. Default: 14.")
]
Tune = Annotated[
    bool, _option("--tune", help="Choose both weights on the dev split with the digital model; chips use the same.")
]
Hypotheses = Annotated[
    Path | None,
    _option(
        "--hypotheses",
        metavar="FILE",
        help="Write reference, hypothesis and errors of every utterance (.jsonl; - is standard output).",
    ),
]
NBest = Annotated[int | None, _option("--nbest", metavar="N", min=1, help="Give the N best of each in --hypotheses.")]
Worst = Annotated[
    int, _option("--worst", metavar="N", min=0, help="Align the N utterances with the most errors, on the last chip.")
]

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


def require_sweep(figure: Path | None, *, is_sweep: bool) -> None:
    """Raise InputError for a --figure of a single point."""
    if figure is not None and not is_sweep:
        raise InputError(f"--figure {figure}: nothing is swept; give a key several values, --set KEY=V1,V2,...")


@contextmanager
def stop_requests(results: Path | None) -> Iterator[StopRequest]:
    """Note signals, so that one stops the study in good order, where there are results to keep."""
    if results is None:
        yield lambda: None
        return
    with noted_stop_signals() as stops:
        yield stops
