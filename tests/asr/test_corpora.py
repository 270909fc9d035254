from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memsim.asr import corpora
from memsim.asr.corpora import (
    Unwritable,
    chosen_split,
    corpus_lexicon,
    load_corpus,
    with_unwritable,
)
from memsim.asr.lexicon import Lexicon
from memsim.asr.tokens import CharacterTokens, PhonemeTokens
from memsim.asr.utterances import Utterance
from memsim.errors import InputError
from tests.calls import growth_beyond_linear


def write(path: Path, text: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# ---- TED-LIUM 2 ----

TALK_B = """\
;; a comment
b 1 inter_segment_gap 0 1.5 <o,,unknown> ignore_time_segment_in_scoring
b 1 Bea 4.00 5.25 <o,f0,female> it 's {NOISE} read(2) <sil> twice (b-4.00-5.25-<F0_F>)
b 1 Bea 1.50 4.00 <o,f0,female> And SO it begins

b 1 Bea 6.00 7.00 <o,f0,female> {NOISE} <sil>
"""
TALK_A = "a 1 Al 0.29 2 <F0_M> yes\n"


@pytest.fixture
def tedlium(tmp_path: Path) -> Path:
    """A TED-LIUM of one split, whose talks have their audio in three formats and places."""
    split = tmp_path / "TEDLIUM_release2" / "dev"
    write(split / "stm" / "b.stm", TALK_B)
    write(split / "stm" / "a.stm", TALK_A)
    write(split / "sph" / "b.sph")
    write(split / "stm" / "a.flac")
    return tmp_path


def test_tedlium2(tedlium: Path) -> None:
    corpus = load_corpus("tedlium2", root=tedlium)
    assert (corpus.name, corpus.split, corpus.synthetic, corpus.text_style) == ("tedlium2", "dev", False, "kaldi")
    assert [u.id for u in corpus.utterances] == ["a-0000029-0000200", "b-0000150-0000400", "b-0000400-0000525"]
    assert [u.text for u in corpus.utterances] == ["yes", "and so it begins", "it's read twice"]
    assert [u.speaker for u in corpus.utterances] == ["Al", "Bea", "Bea"]
    assert [u.audio.name for u in corpus.utterances] == ["a.flac", "b.sph", "b.sph"]
    assert [(u.start_seconds, u.end_seconds) for u in corpus.utterances] == [(0.29, 2.0), (1.5, 4.0), (4.0, 5.25)]
    assert corpus.skipped == 1
    assert corpus.words == 8


def test_text_style(tedlium: Path) -> None:
    corpus = load_corpus("tedlium2", root=tedlium, text_style="rwth")
    assert corpus.utterances[2].text == "it 's read twice"
    assert corpus.text_style == "rwth"
    with pytest.raises(InputError, match="text style 'x' is unknown"):
        load_corpus("tedlium2", root=tedlium, text_style="x")


def test_limit_keeps_the_first(tedlium: Path) -> None:
    everything = load_corpus("tedlium2", root=tedlium)
    assert load_corpus("tedlium2", root=tedlium, limit=2).utterances == everything.utterances[:2]
    assert load_corpus("tedlium2", root=tedlium, limit=99) == everything
    with pytest.raises(InputError, match="limit is 0"):
        load_corpus("tedlium2", root=tedlium, limit=0)


def test_root_is_the_folder_or_its_parent_or_from_the_environment(
    tedlium: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_corpus("tedlium2", root=tedlium)
    assert load_corpus("tedlium2", root=tedlium / "TEDLIUM_release2") == expected
    monkeypatch.setenv("MEMSIM_DATA", str(tedlium.parent))
    tedlium.rename(tedlium.parent / "tedlium2")
    assert [u.id for u in load_corpus("tedlium2").utterances] == [u.id for u in expected.utterances]


def test_repeated_segments_get_ids_of_their_own(tedlium: Path) -> None:
    write(tedlium / "TEDLIUM_release2/dev/stm/a.stm", TALK_A + TALK_A.replace("yes", "no"))
    first, second, *_ = load_corpus("tedlium2", root=tedlium).utterances
    assert (first.id, second.id) == ("a-0000029-0000200", "a-0000029-0000200-2")


def test_missing_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMSIM_DATA", raising=False)
    with pytest.raises(InputError, match=r"--data-root .*TEDLIUM_release2/.*MEMSIM_DATA.*openslr\.org/19") as raised:
        load_corpus("tedlium2")
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"holds no TEDLIUM_release2/.*openslr\.org/19"):
        load_corpus("tedlium2", root=tmp_path)
    monkeypatch.setenv("MEMSIM_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"tedlium2: is not a folder; it should hold TEDLIUM_release2/"):
        load_corpus("tedlium2")
    with pytest.raises(InputError, match=r"librispeech: is not a folder.*LibriSpeech/.*openslr\.org/12"):
        load_corpus("librispeech")


def test_a_split_in_place_of_the_corpus_is_answered_with_the_folder_above(librispeech: Path) -> None:
    folder = librispeech / "LibriSpeech"
    with pytest.raises(InputError, match=f"is a split of librispeech; name the folder above it, {folder}$"):
        load_corpus("librispeech:dev-clean", root=folder / "dev-clean")


def test_unknown_split_names_those_there_are(tedlium: Path) -> None:
    write(tedlium / "TEDLIUM_release2/test/stm/c.stm")
    with pytest.raises(InputError, match=r"tedlium2 has no split 'train' here; available: dev, test"):
        load_corpus("tedlium2", split="train", root=tedlium)
    with pytest.raises(InputError, match="tedlium2: split test has no utterances"):
        load_corpus("tedlium2", split="test", root=tedlium)


def test_missing_talk(tedlium: Path) -> None:
    (tedlium / "TEDLIUM_release2/dev/sph/b.sph").unlink()
    with pytest.raises(InputError, match=r"b\.stm:4: no audio: there is no .*dev/sph/b\.sph, nor a \.flac"):
        load_corpus("tedlium2", root=tedlium)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a 1 Al 0", "expected `talk channel speaker start end <label> words...`, found 'a 1 Al 0'"),
        ("a 1 0.00 0.29 yes", "end must be a time in seconds, not 'yes'"),  # a line of a CTM file
        ("a 1 Al zero 1 <NA> yes", "start must be a time in seconds, not 'zero'"),
        ("a 1 Al 0 nan <NA> yes", "end must be a time in seconds, not 'nan'"),
        ("a 1 Al -1 1 <NA> yes", "start must be a time in seconds, not '-1'"),
        ("a 1 Al 2 2 <NA> yes", "ends at 2 s, not after its start at 2 s"),
    ],
)
def test_malformed_stm(tedlium: Path, line: str, message: str) -> None:
    path = write(tedlium / "TEDLIUM_release2/dev/stm/a.stm", f";;\n{line}\n")
    with pytest.raises(InputError) as raised:
        load_corpus("tedlium2", root=tedlium)
    assert str(raised.value).startswith(f"{path}:2: {message}")


def test_stm_that_is_not_utf8(tedlium: Path) -> None:
    write(tedlium / "TEDLIUM_release2/dev/stm/a.stm", b";;\na 1 Al 0 1 <NA> caf\xe9\n")
    with pytest.raises(InputError, match=r"a\.stm:2: not UTF-8 text \(byte 0xe9\)"):
        load_corpus("tedlium2", root=tedlium)


def test_an_stm_without_labels_with_a_bom_and_crlf(tedlium: Path) -> None:
    stm = "\ufeff;; a comment\r\na 1 Al 0 1 { it is / it's } yes\r\na 1 Al 1 2\r\na\t1\tAl\t2\t3\tCAFE\u0301\r\n"
    write(tedlium / "TEDLIUM_release2/dev/stm/a.stm", stm)
    corpus = load_corpus("tedlium2", root=tedlium)
    assert [u.text for u in corpus.utterances if u.id.startswith("a-")] == ["it is yes", "caf\u00e9"]
    assert (corpus.simplified, corpus.skipped) == (1, 2)


def test_what_a_recogniser_cannot_write(tmp_path: Path) -> None:
    texts = ["the q. of forty-one", "it\u2019s so", "caf\u00e9 q. \u2018so\u2019", "cafe\u0301"]
    for number in range(len(texts)):
        write(tmp_path / f"{number}.wav")
    rows = "".join(f"{number}.wav\t{text}\n" for number, text in enumerate(texts))
    corpus = load_corpus(str(write(tmp_path / "m.tsv", "audio\ttext\n" + rows)))
    letters = CharacterTokens(tuple("abcdefghijklmnopqrstuvwxyz' "))
    found = with_unwritable(corpus, letters).unwritable
    assert found == Unwritable({".": 2, "\u00e9": 2, "-": 1, "\u2018": 1}, words=6, utterances=3)
    assert str(found).startswith("the recogniser cannot write '.', '\u00e9', '-', '\u2018': 6 words in 3 utterances of")
    assert with_unwritable(corpus, CharacterTokens((*letters.characters, *".-\u2018\u0301"))).unwritable is None
    lexicon = Lexicon.from_text("the DH AH\nof AH V\ncafe\u0301 K AE F EY\nso S OW\nit\u2019s IH T S\n", "x")
    spoken = PhonemeTokens.from_lexicon(lexicon, [])
    assert with_unwritable(corpus, spoken).unwritable == Unwritable({"q.": 2, "forty-one": 1, "\u2018so'": 1}, 4, 2)


@pytest.mark.parametrize(("split", "segments", "words"), [("train", 743, 4235), ("dev", 101, 617), ("test", 104, 590)])
def test_an4(an4_root: Path, split: str, segments: int, words: int) -> None:
    corpus = load_corpus("tedlium2", split=split, root=an4_root)
    assert (len(corpus.utterances), corpus.words, corpus.skipped) == (segments, words, 0)
    assert len({utterance.id for utterance in corpus.utterances}) == segments


# ---- LibriSpeech ----


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    for split, chapter in [("dev-clean", "84/12"), ("dev-clean", "84/9"), ("test-other", "7/1")]:
        name = chapter.replace("/", "-")
        write(root / split / chapter / f"{name}.trans.txt", f"{name}-0000 IT'S ONE\n{name}-0001 TWO\n")
        for number in ("0000", "0001"):
            write(root / split / chapter / f"{name}-{number}.flac")
    return tmp_path


def test_librispeech(librispeech: Path) -> None:
    corpus = load_corpus("librispeech", root=librispeech)
    assert (corpus.name, corpus.split) == ("librispeech", "dev-clean")
    assert [u.id for u in corpus.utterances] == ["84-12-0000", "84-12-0001", "84-9-0000", "84-9-0001"]
    assert [u.text for u in corpus.utterances] == ["it's one", "two", "it's one", "two"]
    first = corpus.utterances[0]
    assert first.audio == librispeech / "LibriSpeech/dev-clean/84/12/84-12-0000.flac"
    assert (first.speaker, first.start_seconds, first.end_seconds) == ("84", None, None)


def test_data_may_name_a_split(librispeech: Path) -> None:
    assert load_corpus("librispeech:test-other", root=librispeech).split == "test-other"
    assert load_corpus("librispeech:dev", split="test", root=librispeech).split == "dev-clean"
    with pytest.raises(InputError, match="demo:dev: demo is not divided into splits; leave the split out"):
        load_corpus("demo:dev")
    assert chosen_split("librispeech", "dev") == chosen_split("librispeech:dev", None) == ("librispeech", "dev")
    assert chosen_split("a.tsv", None) == ("a.tsv", None)
    with pytest.raises(InputError, match="--split dev: librispeech:test names a split already; leave one of the two"):
        chosen_split("librispeech:test", "dev")
    with pytest.raises(InputError, match="--split dev: demo is not divided into splits; leave --split out"):
        chosen_split("demo", "dev")


def test_librispeech_splits_by_their_own_names(librispeech: Path) -> None:
    inner = librispeech / "LibriSpeech"
    assert load_corpus("librispeech", split="test-other", root=inner).split == "test-other"
    with pytest.raises(InputError, match="no split 'train-clean-100' here; available: dev-clean, test-other"):
        load_corpus("librispeech", split="train", root=inner)


def test_librispeech_errors(librispeech: Path) -> None:
    chapter = librispeech / "LibriSpeech/dev-clean/84/12"
    (chapter / "84-12-0001.flac").unlink()
    with pytest.raises(InputError, match=r"84-12\.trans\.txt:2: no audio: there is no .*84-12-0001"):
        load_corpus("librispeech", root=librispeech)
    write(chapter / "84-12.trans.txt", "YES AND NO\n")
    with pytest.raises(InputError, match=r"84-12\.trans\.txt:1: expected `SPEAKER-CHAPTER-NUMBER WORDS"):
        load_corpus("librispeech", root=librispeech)


# ---- the demo ----


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "ASSETS", tmp_path)
    write(tmp_path / "demo/one.flac")
    write(tmp_path / "demo/manifest.tsv", "audio\ttext\none.flac\tone\n")
    corpus = load_corpus("demo", split="ignored")
    assert (corpus.name, corpus.split, corpus.synthetic) == ("demo", "all", True)
    assert [u.text for u in corpus.utterances] == ["one"]
    with pytest.raises(InputError, match="leave --data-root out"):
        load_corpus("demo", root=tmp_path)


def test_corpora_need_no_torch() -> None:
    program = "import sys, memsim.asr.corpora; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_lexicon_of_tedlium2(tedlium: Path) -> None:
    path = tedlium / "TEDLIUM_release2/TEDLIUM.152k.dic"
    with pytest.raises(InputError, match=r"152k\.dic: no such file, .*; name a lexicon file, or cmudict"):
        corpus_lexicon("tedlium2", tedlium)
    write(path, "yes Y EH S\n")
    assert corpus_lexicon("tedlium2", tedlium) == path
    with pytest.raises(InputError, match="librispeech: comes without a pronunciation lexicon"):
        corpus_lexicon("librispeech", tedlium)


def test_many_equal_ids_take_no_longer(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    rows = "a.wav\tone\n" * 3
    write(tmp_path / "m.tsv", f"audio\ttext\tid\na.wav\tone\ta-2\n{rows.replace('one', 'one' + chr(9))}")
    assert [u.id for u in load_corpus(str(tmp_path / "m.tsv")).utterances] == ["a-2", "a", "a-3", "a-4"]

    def make(size: int) -> Callable[[], object]:
        utterances = [Utterance("a", tmp_path, "one")] * size
        return lambda: list(corpora._with_unique_ids(utterances))

    assert growth_beyond_linear(make, 200) < 0.05
