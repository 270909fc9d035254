"""Options that several subcommands share, and what they mean together."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memsim.asr.corpora import DATA as DATA
from memsim.asr.corpora import has_one_split as has_one_split
from memsim.storage.outputs import require_new as require_new
from memsim.storage.outputs import require_outputs as require_outputs
from memsim.storage.outputs import require_page as require_page
from memsim.storage.outputs import require_safetensors as require_safetensors
from memsim.storage.outputs import write_json as write_json
from memsim.storage.outputs import write_text as write_text

if TYPE_CHECKING:
    from memsim.hardware import HardwareSpec

HARDWARE_PANEL = "Hardware"
DATA_PANEL = "Data"

Hardware = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        metavar="NAME|FILE",
        help="Hardware spec: a shipped name or a YAML file.",
        rich_help_panel=HARDWARE_PANEL,
    ),
]
Bits = Annotated[
    int | None, typer.Option("--bits", metavar="B", help="Weight bits, 2 to 16.", rich_help_panel=HARDWARE_PANEL)
]
Cell = Annotated[
    str | None,
    typer.Option("--cell", metavar="NAME|FILE", help="Device model of the cells.", rich_help_panel=HARDWARE_PANEL),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the spec, such as adc.bits=6. Repeatable.",
        rich_help_panel=HARDWARE_PANEL,
    ),
]
Budget = Annotated[
    bool, typer.Option("--budget", help="Show what each effect of the hardware adds to the error of the products.")
]
Cost = Annotated[
    bool, typer.Option("--cost", help="Estimate energy, time and area, by circuit and layer; prices are the spec's.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Root of the corpus; otherwise $MEMSIM_DATA/NAME.",
        rich_help_panel=DATA_PANEL,
    ),
]
TextStyle = Annotated[
    str,
    typer.Option(
        "--text-style",
        metavar="kaldi|rwth",
        help="Convention of the transcripts: kaldi joins it 's to it's, rwth keeps it split.",
        rich_help_panel=DATA_PANEL,
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


def choose_hardware(source: str | None, bits: int | None, cell: str | None, settings: list[str] | None) -> HardwareSpec:
    """See `memsim.hardware.options.choose_hardware`."""
    from memsim.hardware.options import choose_hardware

    return choose_hardware(source, bits, cell, settings)


def change_hardware(spec: HardwareSpec, bits: int | None, cell: str | None, settings: list[str] | None) -> HardwareSpec:
    """See `memsim.hardware.options.change_hardware`."""
    from memsim.hardware.options import change_hardware

    return change_hardware(spec, bits, cell, settings)


def choose_device(compute: str) -> str:
    """See `memsim.distributed.choose_device`."""
    from memsim.distributed import choose_device

    return choose_device(compute)


def command_line(*added: str) -> str:
    """What was typed, with `added` arguments: to do it again."""
    words = shlex.join(["memsim", *sys.argv[1:], *added])
    data = os.environ.get("MEMSIM_DATA")
    return f"MEMSIM_DATA={shlex.quote(data)} {words}" if data else words
