"""Options that several subcommands share."""

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
    typer.Option(
        "--cell",
        metavar="NAME|FILE",
        help="Device model of the cells: a shipped name or a file.",
        rich_help_panel=HARDWARE_PANEL,
    ),
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
    bool, typer.Option("--budget", help="Show how much each non-ideality adds to the error of the products.")
]
Cost = Annotated[
    bool,
    typer.Option("--cost", help="Estimate energy, time and area by circuit and layer, with the costs in the spec."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Root folder of the corpus. Default: $MEMSIM_DATA/NAME.",
        rich_help_panel=DATA_PANEL,
    ),
]
TextStyle = Annotated[
    str,
    typer.Option(
        "--text-style",
        metavar="kaldi|rwth",
        help="Style of the transcripts: kaldi joins it 's to it's, rwth keeps it split.",
        rich_help_panel=DATA_PANEL,
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
    """Return the command line that was typed, with `added` arguments, for repeating it."""
    words = shlex.join(["memsim", *sys.argv[1:], *added])
    data = os.environ.get("MEMSIM_DATA")
    return f"MEMSIM_DATA={shlex.quote(data)} {words}" if data else words
