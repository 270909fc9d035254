from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.stm import StmSegment, parse_stm_line
from memsim.errors import InputError

words = st.text(alphabet="abcdefghijklmnopqrstuvwxyz'", min_size=1)
marks = st.sampled_from(["", "(2)", "(13)", " <sil>", " {NOISE}", " {BREATH}", " <unk>"])
times = st.integers(min_value=0, max_value=10**6).map(lambda hundredths: hundredths / 100)


@given(
    talk=words,
    speaker=words,
    marked=st.lists(st.tuples(words, marks)),
    start=times,
    duration=st.integers(min_value=1, max_value=3000),
    label=st.sampled_from(["<o,f0,male>", "<NA>", "<F0_M>"]),
    name=st.sampled_from(["", " (talk-1.00-2.00-<F0_M>-<sil>)"]),
)
def test_stm_line_round_trip(
    talk: str, speaker: str, marked: list[tuple[str, str]], start: float, duration: int, label: str, name: str
) -> None:
    end = start + duration / 100
    text = " ".join(word + mark for word, mark in marked)
    segment = parse_stm_line(f"{talk} 1 {speaker} {start} {end} {label} {text}{name}", "x.stm:1")
    assert segment == StmSegment(talk, speaker, start, end, " ".join(word for word, _ in marked))


@pytest.mark.parametrize(
    ("rest", "text", "simplified"),
    [
        ("<o,f0,female> yes it is", "yes it is", 0),
        ("yes it is", "yes it is", 0),
        ("\tyes\tit  is\r", "yes it is", 0),
        ("<sil> yes", "yes", 0),
        ("<O,F0,M> <sil> YES", "YES", 0),
        ("", "", 0),
        ("<NA>", "", 0),
        ("<o,f0,male> {NOISE} read(2) yes", "read yes", 0),
        ("i've { um / uh / @ } as far", "i've um as far", 1),
        ("<NA> { @ / uh } yes", "yes", 1),
        ("{ going to / gonna } be", "going to be", 1),
        ("{ it { is / 's } / its } so", "it is so", 2),
        ("{ km/h / kilometres } yes", "km/h yes", 1),
        ("i am a (farmer)", "i am a farmer", 1),
        ("(uh) yes (you know)", "uh yes you know", 2),
        ("yes (talk-0.00-1.00-<F0_F>-<sil>)", "yes", 0),
        ("(uh) yes (talk-0.00-1.00-<F0_F>)", "uh yes", 1),
        ("a { b", "a b", 1),
        ("a } b )", "a b", 2),
    ],
)
def test_stm_as_sclite_reads_it(rest: str, text: str, simplified: int) -> None:
    segment = parse_stm_line(f"talk 1 Al 0 1 {rest}", "x.stm:1")
    assert segment == StmSegment("talk", "Al", 0.0, 1.0, text, simplified)


@pytest.mark.parametrize(
    "line",
    [
        ";; yes",
        "  ;; yes",
        "a 1 b 0 1 <o> IGNORE_TIME_SEGMENT_IN_SCORING",
        "a 1 b 0 1 Ignore_Time_Segment_In_Scoring",
    ],
)
def test_stm_lines_that_are_not_scored(line: str) -> None:
    assert parse_stm_line(line, "x.stm:1") is None


@given(st.lists(st.sampled_from(["{", "}", "(", ")", "/", "@", "uh", "(uh)", "{A}", "<sil>", "no"])).map(" ".join))
def test_no_syntax_of_an_stm_counts_as_a_word(text: str) -> None:
    segment = parse_stm_line(f"a 1 Al 0 1 {text}", "x.stm:1")
    assert segment is not None
    assert not set("{}()@<>").intersection(segment.text)


@given(st.text())
def test_any_stm_line_parses_or_is_bad_input(line: str) -> None:
    try:
        segment = parse_stm_line(line, "x.stm:7")
    except InputError as error:
        assert str(error).startswith("x.stm:7: ")  # noqa: PT017 - the other outcomes are right too
    else:
        assert segment is None or segment.end_seconds > segment.start_seconds
