"""`memsim qat`: train a recogniser in full precision, or for weights of few bits on simulated hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import memsim
from memsim.asr.corpora import DATA
from memsim.cli import options
from memsim.cli.signals import noted_stop_signals
from memsim.launch import is_first
from memsim.storage.outputs import write_json


def command(
    data: Annotated[
        list[str],
        options.data_option(
            "--data",
            metavar="DATA",
            help=f"{DATA}. Repeatable; training uses all of them (a repeated name counts twice), and the first one "
            "gives the dev set.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="File for the best checkpoint (.safetensors).")
    ],
    bits: Annotated[
        str | None,
        typer.Option(
            "--bits",
            metavar="B|float",
            help="Weight bits, 2 to 16, or float. Required, except with a mapped --init, which has its own.",
            show_default=False,
        ),
    ] = None,
    data_root: options.DataRoot = None,
    dev: Annotated[
        str | None,
        options.data_option("--dev", metavar="DATA", help="Dev set. Default: the dev split of the first corpus."),
    ] = None,
    text_style: options.TextStyle = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="NAME|FILE",
            help="Training recipe: a shipped name or a YAML file. Default: robust, with --bits float float, and with a "
            "mapped --init adapt.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME|FILE", help="Network: a shipped name or a YAML file. Default: that of the recipe."
        ),
    ] = None,
    architecture: options.Architecture = None,
    architecture_config: options.ArchitectureConfig = None,
    hardware: options.Hardware = None,
    cell: options.Cell = None,
    set_: options.Set = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="CHECKPOINT",
            help="Start from the weights and tokens of this checkpoint, which has the same architecture, or of a "
            "folder of Hugging Face's, which names the network, too. Of a mapped file, the cells stay as they are "
            "programmed, and the digital parts learn: OUT is mapped, too.",
        ),
    ] = None,
    init_encoder: Annotated[
        str | None,
        typer.Option(
            "--init-encoder",
            metavar="CHECKPOINT",
            help="Start only the encoder from this checkpoint of another architecture, such as a Transducer from CTC.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="CHECKPOINT",
            help="Network that teaches, if the recipe has a teacher. Default: that of --init, unless it is mapped.",
        ),
    ] = None,
    lexicon: Annotated[
        str | None,
        options.data_option(
            "--lexicon",
            metavar="FILE|cmudict",
            help="Pronunciation lexicon for a recipe with phonemes, instead of the one that it names.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the stopped training that writes OUT; start it if it has not begun.",
        ),
    ] = False,
    compute: options.Compute = "auto",
    seed: options.Seed = 0,
    json_file: options.Json = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a recogniser on speech, for weights of few bits or in full precision.

    With weight bits, the hardware options choose the chip to train for: the layers on arrays, the grid of their inputs
    and, if the recipe asks for it, the non-idealities in training.

    Writes OUT (the checkpoint with the best dev WER; at the end it includes the input statistics from which `map`
    calibrates) and, beside it, *.last.safetensors, a CSV log and TensorBoard events (*.tensorboard). SIGTERM (exit
    status 75) and Ctrl-C (130) save the state, and --resume continues exactly there. torchrun trains with several
    processes.
    """
    with noted_stop_signals() as stop_request:
        from memsim.cli.progress import TerminalListener

        quiet = quiet or not is_first()
        listener = TerminalListener(quiet=quiet, silent=quiet)
        result = memsim.train(
            model,
            data=data,
            out=out,
            bits=bits,
            config=config,
            data_root=data_root,
            dev=dev,
            text_style=text_style,
            architecture=architecture,
            architecture_config=architecture_config,
            hardware=hardware,
            cell=cell,
            set=set_ or (),
            init=init,
            init_encoder=init_encoder,
            teacher=teacher,
            lexicon=lexicon,
            resume=resume,
            compute=compute,
            seed=seed,
            force=force,
            listener=listener,
            stop_request=stop_request,
            also_written=[json_file] if json_file else [],
        )
        listener.say(str(result))
        if is_first():
            write_json(json_file, result.to_dict())
