"""`memsim lm` estimates an n-gram language model, and makes a lexicon, from transcripts."""

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
        list[str], options.data_option("--data", metavar="DATA", help=f"{DATA}. Repeatable: all are counted.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="OUT", help="The language model, an ARPA file.")
    ] = None,
    order: Annotated[
        int,
        typer.Option("--order", metavar="N", min=2, max=6, help="Words in the longest n-gram (KenLM reads 2 to 6)."),
    ] = 3,
    data_root: options.DataRoot = None,
    split: Annotated[
        str | None,
        options.data_option("--split", metavar="SPLIT", help="Which split, of corpora that have some (default train)."),
    ] = None,
    text_style: options.TextStyle = "kaldi",
    lexicon: Annotated[
        str | None,
        typer.Option(
            "--lexicon",
            metavar="FILE|cmudict",
            help="Where --write-lexicon takes pronunciations from; without it, it is a list of words.",
        ),
    ] = None,
    write_lexicon: Annotated[
        Path | None,
        typer.Option("--write-lexicon", metavar="FILE", help="Write the words, as eval --lexicon and qat read them."),
    ] = None,
    write_texts: Annotated[
        Path | None,
        typer.Option(
            "--write-texts", metavar="FILE", help="Write the transcripts, a line each, for other tools; - to stdout."
        ),
    ] = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Build a word n-gram model (Witten-Bell, ARPA) and a lexicon from the transcripts of a corpus.

    For corpora that fit into memory; of billions of words, KenLM's lmplz makes models that eval reads just as well.
    """
    if not (out or write_lexicon or write_texts):
        raise InputError("nothing to write: give -o OUT, --write-lexicon FILE or --write-texts FILE")
    if lexicon is not None and write_lexicon is None:
        raise InputError(f"--lexicon {lexicon}: gives the pronunciations of --write-lexicon FILE, which is not there")
    from memsim.cli.progress import TerminalListener

    memsim.estimate_language_model(
        data,
        out=out,
        order=order,
        data_root=data_root,
        split=split,
        text_style=text_style,
        lexicon=lexicon,
        write_lexicon=write_lexicon,
        write_texts=write_texts,
        force=force,
        listener=None if quiet else TerminalListener(),
    )
