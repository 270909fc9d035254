from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.ngram import BEGIN, END, UNKNOWN, NgramModel, read_arpa_words, witten_bell
from memsim.errors import InputError

SENTENCES = [["a", "b"], ["a", "b"], ["a", "c"]]


def probability(model: NgramModel, word: str, *history: str) -> float:
    return 10 ** model.log10_probability(word, history)


def test_unigrams_by_hand() -> None:
    """9 tokens, of 4 kinds (a 3, b 2, c 1, </s> 3); 5 entries with <unk>, each 1/5 at the bottom."""
    model = witten_bell(SENTENCES, 1)
    for word, count in (("a", 3), ("b", 2), ("c", 1), (END, 3), (UNKNOWN, 0), ("never seen", 0)):
        assert probability(model, word) == pytest.approx((count + 4 / 5) / (9 + 4))


def test_bigrams_by_hand() -> None:
    """After a: b twice and c once, so c(a) = 3 and T(a) = 2; after <s> only a."""
    model = witten_bell(SENTENCES, 2)
    unigram = {w: (n + 0.8) / 13 for w, n in (("a", 3), ("b", 2), ("c", 1), (END, 3), (UNKNOWN, 0))}
    assert probability(model, "b", "a") == pytest.approx((2 + 2 * unigram["b"]) / 5)
    assert probability(model, "c", "a") == pytest.approx((1 + 2 * unigram["c"]) / 5)
    assert probability(model, END, "a") == pytest.approx(2 / 5 * unigram[END])
    assert probability(model, "nobody", "a") == pytest.approx(2 / 5 * unigram[UNKNOWN])
    assert probability(model, "a", BEGIN) == pytest.approx((3 + unigram["a"]) / 4)
    assert probability(model, "b", "c", "nobody") == pytest.approx(unigram["b"])


def test_trigrams_by_hand() -> None:
    """After a b: </s> twice, so c = 2 and T = 1; after b: the same."""
    model = witten_bell(SENTENCES, 3)
    bigram = (2 + (3 + 0.8) / 13) / 3
    assert probability(model, END, "b") == pytest.approx(bigram)
    assert probability(model, END, "a", "b") == pytest.approx((2 + bigram) / 3)
    assert probability(model, END, BEGIN, "x", "a", "b") == probability(model, END, "a", "b")


def test_perplexity_by_hand() -> None:
    model = witten_bell(SENTENCES, 2)
    terms = [("a", BEGIN), ("z", "a"), (END, "z")]
    expected = math.prod(probability(model, word, history) for word, history in terms) ** (-1 / 3)
    assert model.perplexity([["a", "z"]]) == pytest.approx(expected)


sentences = st.lists(st.lists(st.sampled_from("abcd"), max_size=5), min_size=1, max_size=8).filter(any)


@given(sentences, st.integers(1, 4), st.lists(st.sampled_from("abcdz"), max_size=4))
def test_probabilities_sum_to_one_after_any_history(corpus: list[list[str]], order: int, history: list[str]) -> None:
    model = witten_bell(corpus, order)
    words = [ngram[0] for ngram in model.log10_probabilities if len(ngram) == 1 and ngram != (BEGIN,)]
    for context in (history, [BEGIN, *history]):
        assert sum(probability(model, word, *context) for word in words) == pytest.approx(1)


def test_the_arpa_file() -> None:
    """Of `a b`: unigrams (1 + 3/4... ) by hand: 3 tokens of 3 kinds, 4 entries: (1 + 3/4) / 6; <unk> (3/4) / 6."""
    text = witten_bell([["a", "b"]], 2).to_arpa()
    lines = text.splitlines()
    assert lines[0] == "\\data\\"
    assert lines[1:3] == ["ngram 1=5", "ngram 2=3"]
    known = f"{math.log10(1.75 / 6):.7f}"
    assert f"{known}\ta\t{math.log10(0.5):.7f}" in lines
    assert f"{known}\t</s>" in lines
    assert f"{math.log10(0.75 / 6):.7f}\t<unk>" in lines
    assert f"-99.0000000\t<s>\t{math.log10(0.5):.7f}" in lines
    assert f"{math.log10((1 + 1.75 / 6) / 2):.7f}\ta b" in lines
    assert lines[-1] == "\\end\\"


def test_words_of_an_arpa_file(tmp_path: Path) -> None:
    text = witten_bell(SENTENCES, 2).to_arpa()
    (tmp_path / "lm.arpa").write_text(text)
    with gzip.open(tmp_path / "lm.arpa.gz", "wt") as file:
        file.write(text)
    assert read_arpa_words(tmp_path / "lm.arpa") == read_arpa_words(tmp_path / "lm.arpa.gz") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\n", "has no section"),
        (b"\\1-grams:\n-0.3\n", "lm.arpa:2: expected `log10-probability word"),
        (b"mmap lm\x00\xff\xfe", "not an ARPA file; a binary language model"),
    ],
)
def test_bad_arpa_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "lm.arpa").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_arpa_words(tmp_path / "lm.arpa")


def test_a_missing_arpa_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.arpa: cannot be read \(No such file"):
        read_arpa_words(tmp_path / "gone.arpa")


@pytest.mark.parametrize(
    ("corpus", "order", "message"),
    [
        ([], 2, "no words"),
        ([[]], 1, "no words"),
        ([["a"]], 0, "order is 0"),
        ([["<s>"]], 1, "<s> is a mark of language models"),
    ],
)
def test_bad_corpora(corpus: list[list[str]], order: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        witten_bell(corpus, order)
