from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.scoring import align, score
from memsim.errors import InputError


def test_counts_and_rates() -> None:
    result = score(["a b c", "d e"], ["a x c y", "e"])
    assert (result.hits, result.substitutions, result.insertions, result.deletions) == (3, 1, 1, 1)
    assert result.words == 5
    assert result.wer == pytest.approx(3 / 5)
    assert result.characters == 8
    assert result.cer == pytest.approx(5 / 8)  # b -> x, " y" inserted, "d " deleted
    assert result.utterance_errors == ((2, 3), (1, 2))


def test_perfect() -> None:
    result = score(["it's so"], ["it's so"])
    assert (result.wer, result.cer, result.hits) == (0.0, 0.0, 2)


def test_empty_hypotheses_are_deletions() -> None:
    result = score(["a b", "c"], ["", ""])
    assert (result.wer, result.cer, result.deletions) == (1.0, 1.0, 3)
    assert result.utterance_errors == ((2, 2), (1, 1))


def test_rates_may_exceed_one() -> None:
    assert score(["a"], ["b c d"]).wer == 3.0


def test_to_dict_has_the_keys_of_a_result_file() -> None:
    assert score(["a b"], ["a"]).to_dict() == {
        "wer": 0.5,
        "cer": pytest.approx(2 / 3),
        "hits": 1,
        "substitutions": 0,
        "insertions": 0,
        "deletions": 1,
    }


sentences = st.lists(st.sampled_from("abc"), min_size=0, max_size=6).map(" ".join)


@given(pairs=st.lists(st.tuples(sentences, sentences), min_size=1))
def test_the_whole_is_the_sum_of_its_utterances(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = ["a", *(r for r, _ in pairs)], ["a", *(h for _, h in pairs)]
    result = score(references, hypotheses)
    errors = result.substitutions + result.insertions + result.deletions
    assert sum(e for e, _ in result.utterance_errors) == errors
    assert sum(w for _, w in result.utterance_errors) == result.words == sum(len(r.split()) for r in references)
    assert result.hits + result.substitutions + result.deletions == result.words
    assert result.wer == pytest.approx(errors / result.words)


@pytest.mark.parametrize("references", [[], ["", " "]])
def test_no_reference_words(references: list[str]) -> None:
    with pytest.raises(InputError, match="hold no words"):
        score(references, references)


def test_numbers_must_agree() -> None:
    with pytest.raises(InputError, match="2 references but 1 hypotheses"):
        score(["a", "b"], ["a"])


def test_alignment() -> None:
    assert align("a b c d", "a xx c e d").splitlines() == ["REF: a  b c * d", "HYP: a xx c e d", "        S   I"]
    assert align("a b", "").splitlines() == ["REF: a b", "HYP: * *", "     D D"]
    assert align("a b", "a b").splitlines() == ["REF: a b", "HYP: a b"]


def test_the_worst_utterances() -> None:
    result = score(["a b c", "d", "e f", "g", "h i"], ["a b c", "x y", "x y", "h", "x y"])
    assert result.utterance_errors == ((0, 3), (2, 1), (2, 2), (1, 1), (2, 2))
    assert result.worst(3) == [1, 2, 4]
    assert result.worst(9) == [1, 2, 4, 3]
    assert (result.references[1], result.hypotheses[1]) == ("d", "x y")


@pytest.mark.parametrize(
    ("reference", "hypothesis"), [("caf\u00e9", "cafe\u0301"), ("it\u2019s", "it's"), ("it's", "it\u02bcs")]
)
def test_the_same_letters_are_no_error(reference: str, hypothesis: str) -> None:
    assert score([reference], [hypothesis]).wer == score([hypothesis], [reference]).cer == 0
