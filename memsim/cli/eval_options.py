"""The options of `memsim eval`, in the groups in which `memsim.evaluate` takes them."""

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
        "--decoder",
        metavar="greedy|beam",
        help="greedy: best path (default). beam: beam search, with a lexicon for CTC; num_beams of transformers "
        "where text is generated.",
    ),
]
Lm = Annotated[
    Path | None, decoding_option("--lm", metavar="FILE", help="N-gram language model, ARPA or KenLM binary.")
]
Lexicon = Annotated[
    str | None,
    decoding_option(
        "--lexicon",
        metavar="FILE|cmudict",
        help="Words that can be recognised. Default: those of the checkpoint, else of the language model.",
    ),
]
LmWeight = Annotated[
    float | None,
    decoding_option("--lm-weight", metavar="X", help="Weight of the language model's log10 probability. Default: 2.0."),
]
PriorWeight = Annotated[
    float | None,
    decoding_option(
        "--prior-weight", metavar="X", help="Weight of the log prior of the outputs, which is subtracted. Default: 0.5."
    ),
]
BeamSize = Annotated[
    int | None,
    decoding_option(
        "--beam-size", metavar="N", help="Maximum number of hypotheses. Default: 1024; 5 where text is generated."
    ),
]
BeamTokens = Annotated[
    int | None, decoding_option("--beam-tokens", metavar="N", help="Maximum number of tokens per frame. Default: 12.")
]
BeamThreshold = Annotated[
    float | None,
    decoding_option(
        "--beam-threshold", metavar="X", help="Drop hypotheses that score more than X below the best. Default: 14."
    ),
]
Tune = Annotated[
    bool,
    decoding_option(
        "--tune", help="Tune both weights on the dev split with the digital network, and use them for all chips."
    ),
]
Hypotheses = Annotated[
    Path | None,
    decoding_option(
        "--hypotheses",
        metavar="FILE",
        help="Write reference, hypothesis and errors of every utterance (.jsonl; - for standard output).",
    ),
]
NBest = Annotated[
    int | None, decoding_option("--nbest", metavar="N", min=1, help="Write the N best per utterance to --hypotheses.")
]
Worst = Annotated[
    int,
    decoding_option(
        "--worst", metavar="N", min=0, help="Show the N utterances with the most errors on the last chip, aligned."
    ),
]

Trials = Annotated[int, study_option("--trials", metavar="N", min=1, max=100_000, help="Number of chips.")]
Jobs = Annotated[int, study_option("--jobs", metavar="N", min=1, help="Number of processes that share the work.")]
ResultsOption = Annotated[
    Path | None,
    study_option(
        "--results",
        metavar="FILE.jsonl",
        help="Append results as JSON lines while chips are done. Type the same command again to continue.",
    ),
]
ShardOption = Annotated[
    str | None,
    study_option(
        "--shard",
        metavar="I/N",
        help="Do only shard I (1 to N) of the work and write it to --results; --merge joins the shards.",
    ),
]
Merge = Annotated[
    str | None,
    study_option(
        "--merge",
        metavar="'GLOB.jsonl'",
        help="Join the results files of all shards into one result; nothing is evaluated.",
    ),
]
Figure = Annotated[
    Path | None,
    study_option(
        "--figure", metavar="FILE.svg", help="Draw the WER against each swept key; with --cost also against energy."
    ),
]

Sweep = Annotated[
    list[str] | None,
    options.hardware_option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the spec, such as adc.bits=6. Repeatable. KEY=V1,V2,... sweeps the values; several "
        "swept keys form a grid.",
    ),
]

Mappings = Annotated[
    str | None,
    options.hardware_option(
        "--mapping",
        metavar="NAME|FILE",
        help="Recipe by which weights become levels: nearest, feedback, read-back, or a YAML file. Default: feedback "
        "with --calibrate, else nearest. NAME,NAME,... sweeps "
        "several.",
    ),
]

OF_MERGE = ("merge", "figure", "worst", "json_file", "report", "force", "quiet", "verbose")
"""The parameters that may be given with --merge."""


def require_alone(merge: str, context: typer.Context) -> None:
    """Raise InputError for options of an evaluation that are given with --merge."""
    unused = [
        parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
        for parameter in context.command.params
        if parameter.name and parameter.name not in OF_MERGE and is_given(context, parameter.name)
    ]
    if unused:
        raise InputError(f"--merge {merge}: evaluates nothing; leave out {', '.join(unused)}")


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether `parameter` is on the command line."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def require_svg(figure: Path | None) -> None:
    """Raise InputError for a --figure whose name does not end in .svg."""
    if figure is not None and figure.suffix != ".svg":
        raise InputError(f"{figure}: expected a name that ends in .svg")


def require_sweep(figure: Path | None, *, is_sweep: bool) -> None:
    """Raise InputError for a --figure without a sweep."""
    if figure is not None and not is_sweep:
        raise InputError(
            f"--figure {figure}: nothing is swept; give a key several values, --set KEY=V1,V2,..., "
            "or several recipes, --mapping NAME,NAME,..."
        )


@contextmanager
def stop_requests(results: Path | None) -> Iterator[StopRequest]:
    """Note stop signals where there are results to keep, so that the study stops after its current step."""
    if results is None:
        yield lambda: None
        return
    with noted_stop_signals() as stops:
        yield stops
