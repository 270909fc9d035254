"""The options of `memsim eval`, by the groups that `memsim.evaluate` takes them in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memsim.cli import options
from memsim.cli.signals import noted_stop_signals
from memsim.errors import InputError

if TYPE_CHECKING:
    from memsim.evaluation.run import StopRequest

decoding_option = partial(typer.Option, rich_help_panel="Decoding", show_default=False)
study_option = partial(typer.Option, rich_help_panel="Many chips")

Decoder = Annotated[
    str,
    decoding_option(
        "--decoder", metavar="greedy|beam", help="Best path (default), or beam search: CTC's through a lexicon."
    ),
]
Lm = Annotated[
    Path | None, decoding_option("--lm", metavar="FILE", help="N-gram language model: ARPA, or KenLM's binary.")
]
Lexicon = Annotated[
    str | None,
    decoding_option(
        "--lexicon",
        metavar="FILE|cmudict",
        help="The words that can be recognised. Default: the checkpoint's, else the language model's.",
    ),
]
LmWeight = Annotated[
    float | None,
    decoding_option("--lm-weight", metavar="X", help="Weight of the language model's log10 P. Default: 2.0."),
]
PriorWeight = Annotated[
    float | None,
    decoding_option("--prior-weight", metavar="X", help="Weight of the outputs' log prior, subtracted. Default: 0.5."),
]
BeamSize = Annotated[
    int | None, decoding_option("--beam-size", metavar="N", help="Most hypotheses kept. Default: 1024.")
]
BeamTokens = Annotated[
    int | None, decoding_option("--beam-tokens", metavar="N", help="Most tokens tried in a frame. Default: 12.")
]
BeamThreshold = Annotated[
    float | None,
    decoding_option("--beam-threshold", metavar="X", help="Drop hypotheses so far below the best. Default: 14."),
]
Tune = Annotated[
    bool,
    decoding_option("--tune", help="Choose both weights on the dev split with the digital model; chips use the same."),
]
Hypotheses = Annotated[
    Path | None,
    decoding_option(
        "--hypotheses",
        metavar="FILE",
        help="Write reference, hypothesis and errors of every utterance (.jsonl; - is standard output).",
    ),
]
NBest = Annotated[
    int | None, decoding_option("--nbest", metavar="N", min=1, help="Give the N best of each in --hypotheses.")
]
Worst = Annotated[
    int,
    decoding_option(
        "--worst", metavar="N", min=0, help="Align the N utterances with the most errors, on the last chip."
    ),
]

Trials = Annotated[int, study_option("--trials", metavar="N", min=1, max=100_000, help="How many chips.")]
Jobs = Annotated[int, study_option("--jobs", metavar="N", min=1, help="How many processes share the work.")]
ResultsOption = Annotated[
    Path | None,
    study_option(
        "--results",
        metavar="FILE.jsonl",
        help="JSON lines that grow as chips are done. The same command again goes on with what is there.",
    ),
]
ShardOption = Annotated[
    str | None,
    study_option(
        "--shard", metavar="I/N", help="Do only share I (1 to N) of the work, into --results; --merge joins the shares."
    ),
]
Merge = Annotated[
    str | None,
    study_option(
        "--merge",
        metavar="'GLOB.jsonl'",
        help="Evaluate nothing: join the results files of all shards into one result.",
    ),
]
Figure = Annotated[
    Path | None,
    study_option("--figure", metavar="FILE.svg", help="Draw a sweep: the WER against each key that was swept."),
]

Sweep = Annotated[
    list[str] | None,
    options.hardware_option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the spec, such as adc.bits=6. Repeatable. KEY=V1,V2,... evaluates each of them, and of "
        "several such keys the whole grid.",
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
