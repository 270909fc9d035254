from __future__ import annotations

import gzip
import itertools
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim.asr.beam import BeamOptions, BeamSearch
from memsim.asr.lexicon import Lexicon
from memsim.asr.ngram import BEGIN, END, NgramModel, witten_bell
from memsim.asr.tokens import CharacterTokens, PhonemeTokens, PieceTokens
from memsim.errors import InputError

pytest.importorskip("flashlight.lib.text", reason="the extra lm is not installed")

CHARACTERS = CharacterTokens((" ", "a", "b"))
WORDS = ["a", "ab", "bb"]
MODEL = witten_bell([["a", "ab"], ["bb"], ["ab", "ab"]], 2)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    path.write_text(MODEL.to_arpa())
    return path


def noise(frames: int, tokens: int, seed: int) -> Tensor:
    return (2 * torch.randn(frames, tokens, generator=torch.Generator().manual_seed(seed))).log_softmax(dim=-1)


def decode(search: BeamSearch, log_probs: Tensor) -> str:
    return search.texts(log_probs[None], torch.tensor([len(log_probs)]))[0]


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label]


def score_of_words(model: NgramModel, words: list[str]) -> float:
    padded = [BEGIN, *words, END]
    return sum(model.log10_probability(padded[i], padded[:i]) for i in range(1, len(padded)))


def best_by_brute_force(log_probs: Tensor, log_prior: Tensor, options: BeamOptions) -> dict[str, float]:
    """The score of the best path of every text whose words are all in WORDS."""
    best: dict[str, float] = {}
    scores = (log_probs - options.prior_weight * log_prior).tolist()
    for path in itertools.product(range(4), repeat=len(scores)):
        words = CHARACTERS.decode(collapsed(path)).split()
        if set(words) <= set(WORDS):
            score = sum(row[label] for row, label in zip(scores, path, strict=True))
            score += options.lm_weight * score_of_words(MODEL, words)
            text = " ".join(words)
            best[text] = max(score, best.get(text, -math.inf))
    return best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 3), st.floats(0, 1))
def test_the_beam_finds_what_brute_force_finds(arpa, seed, frames, lm_weight, prior_weight) -> None:
    log_prior = noise(1, 4, seed + 1)[0]
    options = BeamOptions(lm_weight, prior_weight, beam_size=5000, beam_tokens=4, beam_threshold=1000.0)
    search = BeamSearch(CHARACTERS, WORDS, arpa, log_prior, options)
    log_probs = noise(frames, 4, seed)
    expected = sorted(best_by_brute_force(log_probs, log_prior, options).items(), key=lambda item: -item[1])
    found = search.best(log_probs[None], torch.tensor([frames]), 3)[0]
    for hypothesis, (text, score) in zip(found, expected, strict=False):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        if score - 1e-3 > max((s for t, s in expected if t != text and s <= score), default=-math.inf):
            assert hypothesis.text == text
    assert len(found) == min(3, len(expected))


def emitting(paths: list[int], tokens: int, certainty: float = 0.9) -> Tensor:
    """Log-probabilities in which each frame gives `certainty` to its label and the rest to the others."""
    rest = (1 - certainty) / (tokens - 1)
    return torch.full((len(paths), tokens), rest).scatter(1, torch.tensor(paths)[:, None], certainty).log()


def test_the_language_model_decides_where_sound_does_not(arpa) -> None:
    log_probs = emitting([2, 3, 0], 4)
    log_probs[0, 3] = log_probs[0, 2]  # ab or bb
    log_probs[1] = emitting([3], 4)[0]
    assert decode(BeamSearch(CHARACTERS, WORDS, arpa, options=BeamOptions(lm_weight=3.0)), log_probs) == "ab"


def test_the_prior_takes_from_what_is_always_likely(arpa) -> None:
    log_probs = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()
    log_prior = torch.tensor([0.85, 0.05, 0.05, 0.05]).log()
    without, corrected = BeamOptions(0.0, 0.0), BeamOptions(0.0, 0.5)
    search = BeamSearch(CHARACTERS, WORDS, arpa, log_prior, without)
    assert decode(search, log_probs) == ""
    search.use(corrected)
    assert decode(search, log_probs) == "a"


PHONEMES = PhonemeTokens.from_lexicon(
    Lexicon({"a": (("EY",), ("AH",)), "bay": (("B", "EY"),), "b": (("B", "IY"),), "be": (("B", "IY"),)}), ["b b be"]
)


def phoneme_path(*symbols: str) -> list[int]:
    return [PHONEMES.symbols.index(symbol) for symbol in symbols]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (["B", "EY#", "", "EY#"], "bay a"),
        (["B", "B", "EY#", "EY#", "EY#"], "bay"),
        (["AH#", "", "EY#", "EY#", "EY#", ""], "a a"),
        (["EY#", "EY#", "", "EY#", "EY#"], "a a"),
        (["B", "B", "EY#", "EY#", "B", "EY#", "EY#", "EY#"], "bay bay"),
        (["", "", ""], ""),
    ],
)
def test_words_end_however_long_their_last_phoneme_lasts(path: list[str], text: str) -> None:
    """Nothing is lost to the runs: the score is the path's own."""
    search = BeamSearch(PHONEMES, PHONEMES.lexicon.words, options=BeamOptions(0.0, 0.0))
    log_probs = emitting(phoneme_path(*path), len(PHONEMES), 0.99)
    assert decode(search, log_probs) == text
    best = search.best(log_probs[None], torch.tensor([len(path)]), 1)[0][0]
    assert best.score == pytest.approx(len(path) * math.log(0.99), abs=1e-2)


def test_words_that_sound_alike_are_the_language_model_s(tmp_path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(witten_bell([["be", "a"], ["a", "b"]], 2).to_arpa())
    search = BeamSearch(PHONEMES, PHONEMES.lexicon.words, path, options=BeamOptions(2.0, 0.0))
    assert decode(search, emitting(phoneme_path("B", "IY#", "EY#"), len(PHONEMES))) == "be a"
    assert decode(search, emitting(phoneme_path("EY#", "B", "IY#"), len(PHONEMES))) == "a b"
    found = search.best(emitting(phoneme_path("B", "IY#"), len(PHONEMES))[None], torch.tensor([2]), 2)[0]
    assert sorted(hypothesis.text for hypothesis in found) == ["b", "be"]


def test_pieces_of_words() -> None:
    tokens = PieceTokens.from_texts(["low lower lowest", "new newer newest"] * 3, 16)
    search = BeamSearch(tokens, ["low", "lower", "newest"], options=BeamOptions(0.0, 0.0))
    path = [label for label in tokens.encode("lower newest low") for _ in range(2)]
    assert decode(search, emitting(path, len(tokens))) == "lower newest low"
    assert search.words == 3


def test_other_processes_get_one_of_their_own(arpa) -> None:
    search = BeamSearch(CHARACTERS, WORDS, arpa, noise(1, 4, 0)[0], BeamOptions(1.0, 0.2))
    copy = pickle.loads(pickle.dumps(search))
    log_probs = noise(9, 4, 1)[None]
    assert copy.options == search.options
    assert copy.best(log_probs, torch.tensor([9]), 5) == search.best(log_probs, torch.tensor([9]), 5)


def test_lengths_count(arpa) -> None:
    search = BeamSearch(CHARACTERS, WORDS, arpa, options=BeamOptions(0.0, 0.0))
    batch = torch.stack([emitting([2, 1, 3, 3], 4), emitting([3, 0, 3, 1], 4)])
    assert search.texts(batch, torch.tensor([1, 3])) == ["a", "bb"]
    assert search.texts(batch, torch.tensor([0, 4])) == ["", "bb"]


def test_words_without_a_spelling_are_left_out(arpa) -> None:
    assert BeamSearch(CHARACTERS, [*WORDS, "caf\u00e9"], arpa).words == 3
    with pytest.raises(InputError, match="none of 1 word to recognise can be written"):
        BeamSearch(CHARACTERS, ["caf\u00e9"], arpa)


@pytest.mark.parametrize("count", ["-6", "18446744073709551610"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_counts_on_which_kenlm_crashes(tmp_path: Path, arpa: Path, count: str, suffix: str) -> None:
    """They wrap around in 64 bits."""
    text = re.sub(r"ngram 2=.*", f"ngram 2={count}", arpa.read_text())
    path = tmp_path / f"model.arpa{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode() + b"\xb0")
    with pytest.raises(InputError, match=rf"arpa{suffix}:3: expected a number of n-grams .*, found 'ngram 2={count}'"):
        BeamSearch(CHARACTERS, WORDS, path)


def test_bad_input(tmp_path, arpa, capfd) -> None:
    (tmp_path / "bad.arpa").write_text("hello\n")
    with pytest.raises(InputError, match=r"bad\.arpa: not a language model that KenLM can read"):
        BeamSearch(CHARACTERS, WORDS, tmp_path / "bad.arpa")
    with pytest.raises(InputError, match=r"gone\.arpa: no such language model"):
        BeamSearch(CHARACTERS, WORDS, tmp_path / "gone.arpa")
    with pytest.raises(ValueError, match="does not fit 4 tokens"):
        BeamSearch(CHARACTERS, WORDS, arpa, torch.zeros(3))
    for options in ({"beam_size": 0}, {"beam_tokens": 0}, {"beam_threshold": 0.0}):
        with pytest.raises(InputError, match=r"expected (1 to|a number above 0)"):
            BeamOptions(**options)
    assert capfd.readouterr().err == ""


def test_what_to_install_is_said(arpa, monkeypatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *rest: object) -> object:
        if name.startswith("flashlight"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(
        InputError, match=r"beam search: needs the package flashlight-text .*; pip install 'memsim\[lm\]'"
    ):
        BeamSearch(CHARACTERS, WORDS, arpa)
