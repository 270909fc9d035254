"""`memsim lm`, on the bundled transcripts."""

from __future__ import annotations

import pytest

from memsim.asr.corpora import load_corpus
from memsim.asr.lexicon import load_lexicon
from memsim.asr.ngram import read_arpa_words, witten_bell

TEXTS = [utterance.text for utterance in load_corpus("demo").utterances]
WORDS = {word for text in TEXTS for word in text.split()}


@pytest.mark.parametrize("split", ["dev", "train", "all"])
@pytest.mark.parametrize("data", [["demo"], ["demo", "demo"], ["mine.tsv"], ["mine.jsonl", "demo"]])
def test_a_split_of_what_has_none(memsim, tmp_path, data, split):
    named = [word for name in data for word in ("--data", name)]
    refused = memsim("lm", *named, "--split", split, "-o", "x.arpa")
    said = f"--split {split}: {', '.join(data)} is not divided into splits; leave --split out"
    assert refused == (2, "", f"memsim: {said}\n")
    assert not (tmp_path / "x.arpa").exists()


def test_a_model_a_list_of_words_and_texts(memsim, tmp_path):
    done = memsim(
        "lm", "--data", "demo", "-o", "x.arpa", "--order", "2", "--write-lexicon", "w.txt", "--write-texts", "t.txt"
    )
    assert done.status == 0, done.err
    assert "x.arpa" in done.said
    assert f"({len(WORDS)} different)" in done.said
    assert set(read_arpa_words(tmp_path / "x.arpa")) == WORDS
    assert (tmp_path / "x.arpa").read_text() == witten_bell([text.split() for text in TEXTS], 2).to_arpa()
    assert load_lexicon(tmp_path / "w.txt").pronunciations == dict.fromkeys(WORDS, ())
    assert (tmp_path / "t.txt").read_text().splitlines() == TEXTS
    again = memsim("lm", "--data", "demo", "-o", "x.arpa")
    assert (again.status, "exists already; --force overwrites it" in again.err) == (2, True)
    assert memsim("lm", "--data", "demo", "-o", "x.arpa", "--force", "--quiet") == (0, "", "")


def test_pronunciations_come_from_a_lexicon(memsim, tmp_path):
    entries = "".join(f"{word} AH\n{word}(2) EY B\n" for word in sorted({*WORDS, "unspoken"}))
    (tmp_path / "all.dic").write_text(entries)
    done = memsim("lm", "--data", "demo", "--write-lexicon", "some.dic", "--lexicon", "all.dic")
    assert done.status == 0, done.err
    found = load_lexicon(tmp_path / "some.dic").pronunciations
    assert found == dict.fromkeys(WORDS, (("AH",), ("EY", "B")))
    (tmp_path / "few.dic").write_text("yes Y EH S\n")
    refused = memsim("lm", "--data", "demo", "--write-lexicon", "none.dic", "--lexicon", "few.dic")
    assert refused.status == 2
    assert "demo: the lexicon has no pronunciation of" in refused.err
    assert not (tmp_path / "none.dic").exists()


def test_texts_to_standard_output(memsim):
    done = memsim("lm", "--data", "demo", "--write-texts", "-")
    assert done.out.splitlines() == TEXTS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "demo"], "nothing to write"),
        (["--data", "demo", "-o", "x.arpa", "--lexicon", "cmudict"], "add --write-lexicon FILE"),
        (["--data", "demo", "-o", "nowhere/x.arpa"], "the folder nowhere does not exist"),
        (["--data", "nosuch", "-o", "x.arpa"], "no such corpus"),
        (["--data", "demo", "-o", "x.arpa", "--order", "1"], "greater than or equal to 2"),
    ],
)
def test_bad_input(memsim, arguments, said):
    done = memsim("lm", *arguments)
    assert done.status == 2
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err
