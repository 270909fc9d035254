"""`memsim lm`: an n-gram language model, and a lexicon, of the words in transcripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memsim.cli import options
from memsim.errors import InputError
from memsim.units import counted


def command(
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="DATA",
            help=f"{options.DATA}. Repeatable: all are counted.",
            rich_help_panel=options.DATA_PANEL,
        ),
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
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="Which split, of corpora that have some (default train).",
            rich_help_panel=options.DATA_PANEL,
        ),
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
    outputs = (out, write_lexicon, write_texts)
    if not any(outputs):
        raise InputError("nothing to write: give -o OUT, --write-lexicon FILE or --write-texts FILE")
    if lexicon is not None and write_lexicon is None:
        raise InputError(f"--lexicon {lexicon}: gives the pronunciations of --write-lexicon FILE, which is not there")
    if split is not None and all(map(options.has_one_split, data)):
        raise InputError(f"--split {split}: {', '.join(data)} is not divided into splits; leave --split out")
    options.require_outputs(outputs, force)
    from memsim.asr.corpora import load_corpus
    from memsim.asr.lexicon import Lexicon, load_lexicon
    from memsim.asr.ngram import witten_bell
    from memsim.cli.progress import say

    texts = []
    for name in data:
        root = None if options.has_one_split(name) else data_root
        corpus = load_corpus(name, split=split or "train", root=root, text_style=text_style)
        texts += [utterance.text for utterance in corpus.utterances]
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    known = Lexicon(dict.fromkeys(sorted(words), ()))
    if lexicon is not None:
        known = load_lexicon(lexicon).restricted(sorted(words), ", ".join(data))
    if out is not None:
        model = witten_bell([text.split() for text in texts], order)
        options.write_text(out, model.to_arpa())
        if not quiet:
            count = sum(len(text.split()) for text in texts)
            sizes = f"{counted(len(model.log10_probabilities), 'n-gram')} up to {order} words"
            perplexity = model.perplexity(text.split() for text in texts)
            found = f"{counted(count, 'word')} ({len(words):,} different)"
            say(f"{out}: {sizes}, of {found}; perplexity on them {perplexity:.1f}")
    if write_lexicon is not None:
        options.write_text(write_lexicon, known.to_text())
        if not quiet:
            say(f"{write_lexicon}: {counted(len(known), 'word')}")
    if write_texts is not None:
        lines = "".join(f"{text}\n" for text in texts)
        if str(write_texts) == "-":
            typer.echo(lines, nl=False)
        else:
            options.write_text(write_texts, lines)
