"""Options that several subcommands share, and what they mean together."""

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
Cell = Annotated[str | None, hardware_option("--cell", metavar="NAME|FILE", help="Device model of the cells.")]
Set = Annotated[
    list[str] | None,
    hardware_option("--set", metavar="KEY=VALUE", help="Change one key of the spec, such as adc.bits=6. Repeatable."),
]
Budget = Annotated[
    bool, typer.Option("--budget", help="Show what each effect of the hardware adds to the error of the products.")
]
Cost = Annotated[
    bool, typer.Option("--cost", help="Estimate energy, time and area, by circuit and layer; prices are the spec's.")
]
DataRoot = Annotated[
    Path | None, data_option("--data-root", metavar="DIR", help="Root of the corpus; otherwise $MEMSIM_DATA/NAME.")
]
TextStyle = Annotated[
    str,
    data_option(
        "--text-style",
        metavar="kaldi|rwth",
        help="Convention of the transcripts: kaldi joins it 's to it's, rwth keeps it split.",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="NAME|MODULE:FACTORY",
        help="A network that memsim did not make: a CTC bundle of torchaudio's such as WAV2VEC2_ASR_BASE_960H, or "
        "a function in Python code of your own, which is run.",
    ),
]
ArchitectureConfig = Annotated[
    str | None,
    typer.Option("--architecture-config", metavar="FILE", help="Its features, characters and options (YAML)."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything that is drawn.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every layer.")]
Compute = Annotated[
    str,
    typer.Option("--compute", metavar="auto|cpu|cuda", help="Where to compute; auto takes CUDA where there is one."),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for standard output.")
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Write a self-contained page; of one chip or point with the error budget and the cost, as by --budget "
        "and --cost.",
    ),
]


def command_line(*added: str) -> str:
    """What was typed, with `added` arguments: to do it again."""
    words = shlex.join(["memsim", *sys.argv[1:], *added])
    data = os.environ.get("MEMSIM_DATA")
    return f"MEMSIM_DATA={shlex.quote(data)} {words}" if data else words
