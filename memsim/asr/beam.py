"""Beam search of CTC outputs through a lexicon with an n-gram language model, by flashlight-text.

A hypothesis W scores log P(path | speech) - prior_weight log P(path) + lm_weight log10 P(W): natural logarithms of the
outputs and of their priors, but base-10 ones of the language model, as KenLM gives them and as published weights mean.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memsim.asr.extras import require
from memsim.asr.lexicon import load_lexicon
from memsim.asr.ngram import read_arpa_words
from memsim.asr.text import canonical
from memsim.asr.tokens import PhonemeTokens, Tokens
from memsim.errors import InputError
from memsim.units import counted

_IMPOSSIBLE = -1e9
"""The log-probability of what cannot be; far below any beam, but finite, so that sums stay numbers."""

_MOST = 1_000_000  # of a size of the beam: flashlight's are C's `int`

_PREFERENCE = 1e-3
"""By which a word's last token going on beats the same token beginning another word."""


@dataclass(frozen=True)
class BeamOptions:
    """How wide to search and what to weigh; the defaults are those of arXiv 2505.24721."""

    lm_weight: float = 2.0  # of log10 probabilities of the language model
    prior_weight: float = 0.5  # of log-probabilities of the outputs' prior
    beam_size: int = 1024  # hypotheses kept after each frame
    beam_tokens: int = 12  # tokens tried at each frame, the most likely ones
    beam_threshold: float = 14.0  # hypotheses that score so much less than the best one are dropped

    def __post_init__(self) -> None:
        for name in ("beam_size", "beam_tokens"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise InputError(f"{name} is {getattr(self, name)}; expected 1 to {_MOST}")
        if not 0 < self.beam_threshold < math.inf:
            raise InputError(f"beam_threshold is {self.beam_threshold}; expected a number above 0")
        for name in ("lm_weight", "prior_weight"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; expected a number")

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Hypothesis:
    """One of the best texts of an utterance, and its score."""

    text: str
    score: float


class BeamSearch:
    """From CTC log-probabilities to texts of words in a lexicon.

    Args:
        tokens: what the outputs stand for; they spell the words.
        words: that can be recognised. Those without a spelling are left out.
        language_model: an ARPA or KenLM binary file; None: every sequence of words is equally likely.
        log_prior: [tokens], the logarithm of the outputs' mean; None, or `prior_weight` 0: not corrected for.
        options: the beam and the weights.

    A word's last token may last for several frames, but at the root of the lexicon flashlight's decoder stays on one
    token only, the separator. Where words end in a separator (characters) that is right; to texts it is added after
    the last word, too, by a frame that can be nothing else. Where they do not (phonemes, pieces), the decoder is given
    one more token in its place: as likely, at a frame, as the token that was best at the frame before.

    Raises InputError when flashlight-text is not installed, the language model cannot be read or no word can be
    spelled; ValueError for a prior of another size.
    """

    def __init__(
        self,
        tokens: Tokens,
        words: Sequence[str],
        language_model: Path | None = None,
        log_prior: Tensor | None = None,
        options: BeamOptions = BeamOptions(),
    ) -> None:
        if log_prior is not None and log_prior.shape != (len(tokens),):
            raise ValueError(f"a prior of the shape {list(log_prior.shape)} is none of {len(tokens)} tokens")
        self._made_of = (tokens, tuple(words), language_model, log_prior)
        self._flashlight = require("flashlight.lib.text.decoder", "beam search")
        self._tokens = tokens
        self._log_prior = None if log_prior is None else log_prior.float().cpu()
        separator = tokens.separator_id
        self._stay_id = len(tokens) if separator is None else separator
        spelled = {word: ways for word in words if (ways := tokens.spellings(canonical(word)))}
        if not spelled:
            raise InputError(
                f"none of {counted(len(words), 'word')} to recognise can be written with the recogniser's tokens"
            )
        self.words = len(spelled)
        self._dictionary = _dictionary(spelled)
        self._language_model = _language_model(language_model, self._dictionary)
        ending = () if separator is None else (separator,)
        self._trie = self._flashlight.Trie(len(tokens) + 1, tokens.blank_id)
        start = self._language_model.start(False)
        ends_word = torch.zeros(len(tokens), dtype=torch.bool)
        for word, ways in spelled.items():
            label = self._dictionary.get_index(word)
            score = self._language_model.score(start, label)[1]
            for way in ways:
                self._trie.insert([*way, *ending], label, score)
                ends_word[way[-1]] = True
        self._trie.smear(self._flashlight.SmearingMode.MAX)
        self._ends_word = ends_word
        self.use(options)

    def use(self, options: BeamOptions) -> None:
        """Decode with other weights from now on."""
        self.options = options
        flashlight = self._flashlight
        self._decoder = flashlight.LexiconDecoder(
            flashlight.LexiconDecoderOptions(
                beam_size=options.beam_size,
                beam_size_token=options.beam_tokens,
                beam_threshold=options.beam_threshold,
                lm_weight=options.lm_weight,
                word_score=0.0,
                unk_score=float("-inf"),
                sil_score=0.0,
                log_add=False,
                criterion_type=flashlight.CriterionType.CTC,
            ),
            self._trie,
            self._language_model,
            self._stay_id,
            self._tokens.blank_id,
            -1,
            [],
            False,
        )

    def __reduce__(self) -> tuple[type[BeamSearch], tuple[Any, ...]]:
        """Other processes build their own."""
        return BeamSearch, (*self._made_of, self.options)

    def __call__(self, model: nn.Module, log_probs: Tensor, lengths: Tensor) -> list[str]:
        """`texts`, as the decoder of a recogniser, whose `model` has nothing to add."""
        return self.texts(log_probs, lengths)

    def texts(self, log_probs: Tensor, lengths: Tensor) -> list[str]:
        """Best texts: [batch, frames, tokens] and [batch] -> one each, empty where there is no way through."""
        return [found[0].text if found else "" for found in self.best(log_probs, lengths, 1)]

    def best(self, log_probs: Tensor, lengths: Tensor, count: int) -> list[list[Hypothesis]]:
        """Of each utterance up to `count` different texts, the best first."""
        emissions = log_probs.detach().float().cpu()
        return [
            self._search(frames[:length], count) for frames, length in zip(emissions, lengths.tolist(), strict=True)
        ]

    def _search(self, log_probs: Tensor, count: int) -> list[Hypothesis]:
        if not len(log_probs):
            return []
        scores = self._emissions(log_probs).contiguous()
        found = self._decoder.decode(scores.data_ptr(), *scores.shape)
        best: dict[str, float] = {}
        for result in found:  # the best first; several paths may give one text
            best.setdefault(" ".join(self._dictionary.get_entry(w) for w in result.words if w >= 0), result.score)
            if len(best) == count:
                break
        return [Hypothesis(text, score) for text, score in best.items()]

    def _emissions(self, log_probs: Tensor) -> Tensor:
        """[frames, tokens] -> what the decoder sums up: corrected, and such that words can end."""
        scores = log_probs
        if self._log_prior is not None:
            scores = scores - self.options.prior_weight * self._log_prior
        if self._tokens.separator_id is not None:
            final = torch.full((1, scores.shape[1]), _IMPOSSIBLE)
            final[0, self._stay_id] = 0.0
            return torch.cat([scores, final])
        before = log_probs[:-1].argmax(dim=1)
        stay = _PREFERENCE + scores[1:].gather(1, before[:, None])[:, 0]
        stay = stay.masked_fill(~self._ends_word[before], _IMPOSSIBLE)
        return torch.cat([scores, torch.cat([torch.tensor([_IMPOSSIBLE]), stay])[:, None]], dim=1)


def words_to_recognise(tokens: Tokens, lexicon: str | None, language_model: Path | None) -> tuple[str, ...]:
    """The words of a lexicon (a file, or `cmudict`); else those that the tokens come with; else the language model's.

    They are as the language model writes them, where that is in another form than `canonical`. Raises
    InputError where there are none, or what has them cannot be read.
    """
    if lexicon is not None:
        return _as_written_in(language_model, load_lexicon(lexicon).words)
    if isinstance(tokens, PhonemeTokens):
        return _as_written_in(language_model, tokens.lexicon.words)
    if language_model is None:
        raise InputError("beam search: which words can be said is not known; name --lexicon FILE or --lm FILE")
    return tuple(read_arpa_words(language_model))


def _as_written_in(language_model: Path | None, words: tuple[str, ...]) -> tuple[str, ...]:
    """`words`, those that a language model has in another form than `canonical` as it has them."""
    try:
        known = [] if language_model is None else read_arpa_words(language_model)
    except InputError:  # of a binary one the words are not known
        known = []
    theirs = {canonical(word): word for word in known} | {word: word for word in known}
    return tuple(theirs.get(word, word) for word in words)


def _dictionary(words: Iterable[str]) -> Any:
    """Flashlight's numbering of `words`."""
    dictionary = require("flashlight.lib.text.dictionary", "beam search").Dictionary()
    for word in words:
        dictionary.add_entry(word)
    return dictionary


def _language_model(path: Path | None, dictionary: Any) -> Any:
    if path is None:
        return require("flashlight.lib.text.decoder", "beam search").ZeroLM()
    if not path.is_file():
        raise InputError(f"{path}: no such language model")
    kenlm = require("flashlight.lib.text.decoder.kenlm", "language models")
    try:
        with _standard_error_hushed():
            return kenlm.KenLM(str(path), dictionary)
    except (RuntimeError, UnicodeDecodeError, MemoryError) as error:  # its errors quote the file, in whatever encoding
        reason = (str(error).strip() or "its sizes cannot be").splitlines()[-1]
        raise InputError(
            f"{path}: not a language model that KenLM can read (ARPA or its own binary): {reason}"
        ) from None


@contextmanager
def _standard_error_hushed() -> Iterator[None]:
    """KenLM draws on the terminal while it reads."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
