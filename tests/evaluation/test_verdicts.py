"""Results that are called unusable or lost, and results that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.scoring import count_errors, score
from memsim.evaluation.speech import SpeechScore, SpeechTask
from memsim.evaluation.verdicts import lost_text, warnings_of, why_unusable, worst_layers
from memsim.hardware import apply_settings, load_hardware
from memsim.hardware.facts import unfitted, unfitted_note

REFERENCES = ["one two three four", "five six seven", "eight nine", "ten eleven twelve thirteen", "go"]
WORDS = sum(len(text.split()) for text in REFERENCES)


def heard(*texts: str) -> SpeechScore:
    return score_of(REFERENCES, list(texts))


def score_of(references: list[str], texts: list[str]) -> SpeechScore:
    return SpeechScore.of(count_errors(references, texts))


RIGHT = heard(*REFERENCES)
SILENT = heard(*[""] * 5)


def test_what_is_unusable() -> None:
    assert why_unusable([RIGHT]) is None
    assert why_unusable([heard("one two three four", "", "", "", "")]) is None  # bad, but something
    assert why_unusable([SILENT]) == "WER 100.0%, as many errors as words or more"
    assert "of the words are right" in str(why_unusable([heard("one xxx xxx xxx", *[""] * 4)]))
    assert why_unusable([heard(*["the wrong language altogether"] * 5)])
    assert why_unusable([RIGHT, SILENT]) is None  # together, half of the words are right


@given(st.lists(st.integers(0, 4), min_size=5, max_size=5))
def test_the_bounds_are_those_that_are_documented(kept: list[int]) -> None:
    texts = [" ".join(text.split()[:count]) for text, count in zip(REFERENCES, kept, strict=True)]
    found = heard(*texts)
    assert (why_unusable([found]) is not None) == (found.wer >= 1 or found.hits < 0.1 * WORDS)


@pytest.mark.parametrize(
    ("texts", "kind", "said"),
    [
        ([""] * 5, "empty", "5 of 5 transcripts are empty"),
        (["", " ", "", "eight nine", "go"], "empty", "3 of 5 transcripts are empty"),
        (["thank you"] * 5, "repeated", "5 of 5 transcripts are the same text, 'thank you'"),
        (["a b", "a b", "a b", "ten", "go"], "repeated", "3 of 5 transcripts are the same text, 'a b'"),
        ([f"{text} bla bla bla bla" for text in REFERENCES], "babbling", "2.4 times as long as their references"),
        (["a" * 200, *REFERENCES[1:]], "babbling", "times as long as their references"),
        (["one", "five", "eight", "ten", "go"], "short", f"have 5 words, their references {WORDS}"),
        (["one b c d", "five b c", "eight c", "x y z u", "go"], "lost", "of the 14 words of the digital text are lost"),
    ],
)
def test_texts_that_are_lost(texts: list[str], kind: str, said: str) -> None:
    found = lost_text(heard(*texts), RIGHT, "digital")
    assert list(found) == [kind]
    assert said in found[kind]


@pytest.mark.parametrize(
    "texts",
    [
        REFERENCES,
        [*REFERENCES[:3], "", ""],
        ["one two three", "five six", "eight nine ten", "ten eleven", "gone"],
        [f"{text} and" for text in REFERENCES],
    ],
)
def test_texts_that_are_only_wrong(texts: list[str]) -> None:
    assert not lost_text(heard(*texts), RIGHT, "digital")


def test_some_babble_is_said_and_counted_apart() -> None:
    """A hypothesis babbles from twice the words of its reference and ten more on."""
    long = ["alpha bravo charlie delta echo foxtrot golf hotel india juliett"] * 20
    loop = [f"{long[0]} {' '.join(['and so'] * 10)}", long[0][:-8], *long[2:]]
    assert not lost_text(score_of(long, loop))
    loop[0] += " on"
    found = score_of(long, loop)
    assert found.babbling == (0,)
    assert found.wer_without_babbling == 1 / 190
    assert lost_text(found) == {
        "some babble": "1 transcript is more than twice as long as the reference (babbling); "
        "the others have a WER of 0.53%"
    }
    assert found.to_dict()["babbling"] == 1
    assert "babbling" not in score_of(long, long).to_dict()


def test_texts_that_end_early_are_said_and_counted() -> None:
    """A hypothesis is cut short from less than half of the words of its reference on, over ten of which it lacks."""
    half, less = " ".join(["alpha"] * 15), " ".join(["alpha"] * 14)
    long = [f"{half} {half}"] * 8
    baseline = score_of(long, [*long[:6], less, half])
    assert baseline.cut_short == (6,)
    found = score_of(long, [*long[:4], "alpha", less, less, half])
    assert found.cut_short == (4, 5, 6)
    assert lost_text(found, baseline, "digital") == {
        "some end early": "2 transcripts have less than half of the reference's words (cut short), where the digital "
        "network goes on; 45 of the 76 word errors are theirs"
    }
    assert not lost_text(found)
    assert not lost_text(baseline, found, "digital")
    assert {key: found.to_dict()[key] for key in ("cut_short", "cut_short_errors")} == {
        "cut_short": 3,
        "cut_short_errors": 61,
    }
    assert "cut_short" not in score_of(long, long).to_dict()
    assert not score_of(["alpha bravo charlie delta"], ["alpha"]).cut_short


def test_one_command_said_by_all_is_no_repetition() -> None:
    assert not lost_text(score(["yes"] * 4, ["yes"] * 4))
    assert not lost_text(score(["yes", "yes", "yes", "no"], ["yes"] * 4))
    assert lost_text(score(["no", "maybe", "yes", "no"], ["yes"] * 4)).keys() == {"repeated"}


def test_what_fails_first_comes_with_the_remedy() -> None:
    def remedies(lines: list[str]) -> list[str]:
        return [line.partition(":")[0] for line in lines if ";" in line]

    assert warnings_of(SpeechTask, RIGHT, RIGHT, {0: RIGHT}) == []
    chips = warnings_of(SpeechTask, RIGHT, RIGHT, {0: RIGHT, 1: SILENT, 2: SILENT})
    assert all(line.startswith("mapped, 2 of 3 chips, such as that of seed 1: ") for line in chips)
    assert "--sensitivity" in chips[-1]
    digital = warnings_of(SpeechTask, RIGHT, SILENT, {0: SILENT})
    assert remedies(digital) == ["digital, quantised"]
    assert "--bits" in digital[1]
    assert remedies(warnings_of(SpeechTask, SILENT, SILENT, {0: SILENT})) == ["full precision"]
    # whether it was trained at all is the first question where nothing is known of full precision
    (_, line, *_) = warnings_of(SpeechTask, None, SILENT, {0: SILENT})
    assert "is the checkpoint trained" in line


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ([], []),
        (["retention.age_seconds=1e6"], ["retention"]),
        (["programming.relaxation=0.02", "faults.stuck_lrs=0.01"], ["faults", "programming.relaxation"]),
        (["wires.ohms=1"], ["wires"]),
        (["adc.gain_error=0.01", "adc.nonlinearity_codes=-1"], ["adc.gain_error", "adc.nonlinearity_codes"]),
        (["adc=none"], []),
        (["overrides=[{match: a, programming: {relaxation: 0.1}}]"], ["programming.relaxation"]),
    ],
)
def test_laws_that_nobody_has_fitted(settings: list[str], keys: list[str]) -> None:
    found = unfitted(apply_settings(load_hardware("physical"), settings))
    assert found == keys
    if keys:
        assert unfitted_note(found).startswith(", ".join(keys))
        assert "not fitted to measurements" in unfitted_note(found)


@pytest.mark.parametrize("name", ["physical", "paper", "ideal", "best", "multilevel"])
def test_shipped_chips_have_no_such_laws(name: str) -> None:
    assert unfitted(load_hardware(name)) == []


def layer(name: str, value: float, low: float, high: float, *, worst: bool = False) -> dict:
    added = {"value": value, "low": low, "high": high}
    return {"name": name, "added": added, "within_noise": low <= 0 <= high, "may_be_worst": worst}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([layer("a", 0.1, -0.1, 0.3)], "no single layer adds to the CTC loss beyond noise"),
        ([layer("a", 0.3, 0.1, 0.5, worst=True), layer("b", 0.1, -0.1, 0.2)], "1 of 2 layers adds to the CTC loss"),
        (
            [layer(name, 0.3, 0.1, 0.5, worst=True) for name in "abcdefg"],
            "cannot be told apart on these utterances, are a, b, c, d, e and 2 more",
        ),
        ([{"name": "a"}], "no single layer"),  # of a network without a loss
    ],
)
def test_which_layer_is_one_answer(layers: list[dict], said: str) -> None:
    result = {"loss_name": "CTC", "layers": layers}
    assert said in worst_layers(result)
    budget = {"layers": [{"name": "p", "error": 0.05}, {"name": "q", "error": 0.2}]}
    assert "The largest product error is that of q (20.0%)" in worst_layers(result, budget)
