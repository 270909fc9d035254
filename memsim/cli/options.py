"""Options that several subcommands share."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

hardware_option = partial(typer.Option, rich_help_panel="Hardware")
data_option = partial(typer.Option, rich_help_panel="Data")

Hardware = Annotated[
    str | None, hardware_option("--hardware", metavar="NAME|FILE", help="Hardware spec: a shipped name or a YAML file.")
]
Bits = Annotated[int | None, hardware_option("--bits", metavar="B", help="Weight bits, 2 to 16.")]
Cell = Annotated[
    str | None,
    hardware_option("--cell", metavar="NAME|FILE", help="Device model of the cells: a shipped name or a file."),
]
Set = Annotated[
    list[str] | None,
    hardware_option("--set", metavar="KEY=VALUE", help="Change one key of the spec, such as adc.bits=6. Repeatable."),
]
Budget = Annotated[
    bool, typer.Option("--budget", help="Show how much each non-ideality adds to the error of the products.")
]
Cost = Annotated[
    bool,
    typer.Option(
        "--cost",
        help="Estimate energy, time and area: of arrays and converters with the costs in the spec, and of the whole "
        "chip (--set chip=NAME|FILE, see configs/chips) beside a digital accelerator.",
    ),
]
DataRoot = Annotated[
    Path | None,
    data_option("--data-root", metavar="DIR", help="Root folder of the corpus. Default: $MEMSIM_DATA/NAME."),
]
Calibrate = Annotated[
    str | None,
    data_option(
        "--calibrate",
        metavar="DATA",
        help="Run the recogniser on this data (NAME:SPLIT, by default its dev split) to set converter ranges.",
    ),
]
CalibrationUtterances = Annotated[
    int,
    data_option(
        "--calibration-utterances",
        metavar="N",
        min=1,
        help="Run at most this many of those utterances, evenly spaced.",
    ),
]
Mapping = Annotated[
    str | None,
    hardware_option(
        "--mapping",
        metavar="NAME|FILE",
        help="Recipe by which weights become levels: nearest, feedback, read-back, or a YAML file. Default: feedback "
        "with --calibrate, else nearest.",
    ),
]
TextStyle = Annotated[
    str | None,
    data_option(
        "--text-style",
        metavar="kaldi|rwth|whisper|whisper-basic",
        help="Style of the transcripts: kaldi joins it 's to it's, rwth keeps it split, whisper takes case, "
        "punctuation and ways of writing numbers away, whisper-basic the first two alone. Default: kaldi; whisper for "
        "a recogniser that writes case, whisper-basic in other languages than English.",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="NAME|MODULE:FACTORY",
        help="An external network: a CTC bundle of torchaudio such as WAV2VEC2_ASR_BASE_960H, or a function in your "
        "own Python code, which is run.",
    ),
]
ArchitectureConfig = Annotated[
    str | None,
    typer.Option(
        "--architecture-config", metavar="FILE", help="Features, characters and options of an --architecture (YAML)."
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of all random draws.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every layer.")]
Compute = Annotated[
    str,
    typer.Option("--compute", metavar="auto|cpu|cuda", help="Device to compute on; auto uses CUDA if available."),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for standard output.")
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Write a self-contained page; for a single point it includes the error budget and the cost, as --budget "
        "and --cost do.",
    ),
]


def command_line(*added: str) -> str:
    """Return the command line that was typed, with `added` arguments, for repeating it."""
    words = shlex.join(["memsim", *sys.argv[1:], *added])
    data = os.environ.get("MEMSIM_DATA")
    return f"MEMSIM_DATA={shlex.quote(data)} {words}" if data else words
