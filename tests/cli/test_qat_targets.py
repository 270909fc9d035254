"""Training on phonemes and on word pieces, with lexicon and prior, up to beam search on a chip."""

from __future__ import annotations

import json
import math

import pytest

from memsim.asr.corpora import load_corpus
from memsim.asr.tokens import PhonemeTokens, tokens_from_json
from memsim.storage.checkpoint import load_checkpoint
from tests.cli.speech import TINY_MODEL, tedlium_of_demo

pytest.importorskip("flashlight.lib.text", reason="the extra lm is not installed")

RECIPE = """
model: model.yaml
epochs: 1
batch_seconds: 10
learning_rate: [[0, 1.0e-3], [1, 1.0e-3]]
targets: {kind: KIND, pieces: 30}
"""
WORDS = sorted({word for utterance in load_corpus("demo", limit=18).utterances for word in utterance.text.split()})
DIC = "".join(f"{word} {' '.join(word.upper())}\n{word}(2) A{' O' * len(word)}\n" for word in WORDS)
TRAIN = ("qat", "--bits", "float", "--data", "tedlium2", "--data-root", ".", "--config", "recipe.yaml")


@pytest.fixture
def folder(tmp_path):
    tedlium_of_demo(tmp_path)
    (tmp_path / "model.yaml").write_text(TINY_MODEL)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("KIND", "phonemes"))
    (tmp_path / "TEDLIUM_release2" / "TEDLIUM.152k.dic").write_text(DIC)
    return tmp_path


def test_phonemes_from_the_corpus_s_lexicon_to_beam_search_on_a_chip(memsim, folder):
    done = memsim(*TRAIN, "-o", "out.safetensors")
    assert done.status == 0, done.err
    metadata = load_checkpoint(folder / "out.safetensors").metadata
    tokens = tokens_from_json(metadata["tokens"])
    assert isinstance(tokens, PhonemeTokens)
    assert len(tokens) == 2 * len({*"".join(WORDS).upper()} | {"A", "O"}) + 1
    assert set(tokens.lexicon.words) == set(WORDS)
    assert f"{len(tokens)} tokens (phonemes)" in done.said
    log_prior = json.loads(metadata["log_prior"])
    assert len(log_prior) == len(tokens)
    assert sum(map(math.exp, log_prior)) == pytest.approx(1, abs=1e-3)

    assert memsim("map", "out.safetensors", "--bits", "4", "--quiet") == (0, "", "")
    lm = ("lm", "--data", "tedlium2", "--data-root", ".", "-o", "lm.arpa", "--quiet")
    assert memsim(*lm).status == 0
    evaluate = ("eval", "out.mapped.safetensors", "--data", "tedlium2", "--data-root", ".", "--limit", "2")
    beam = memsim(*evaluate, "--decoder", "beam", "--lm", "lm.arpa", "--hypotheses", "h.jsonl", "--json", "-")
    decoding = json.loads(beam.out)["decoding"]
    assert decoding["prior"] == "checkpoint"
    assert decoding["words"] == len(WORDS)  # those of the checkpoint's lexicon
    rows = [json.loads(line) for line in (folder / "h.jsonl").read_text().splitlines()]
    assert {word for row in rows for word in row["hypothesis"].split()} <= set(WORDS)


def test_pieces_of_words(memsim, folder):
    (folder / "recipe.yaml").write_text(RECIPE.replace("KIND", "pieces"))
    done = memsim(*TRAIN, "-o", "out.safetensors")
    assert done.status == 0, done.err
    assert "30 tokens (pieces)" in done.said
    (folder / "words.txt").write_text("\n".join(WORDS))
    evaluate = ("eval", "out.safetensors", "--data", "tedlium2", "--data-root", ".", "--limit", "2", "--bits", "4")
    done = memsim(*evaluate, "--decoder", "beam", "--lexicon", "words.txt", "--json", "-")
    assert done.status == 0, done.err
    # words with a letter that no transcript of the train split has cannot be written
    letters = {letter for utterance in load_corpus("demo", limit=6).utterances for letter in utterance.text}
    assert json.loads(done.out)["decoding"]["words"] == sum(set(word) <= letters for word in WORDS)


def test_another_lexicon(memsim, folder):
    (folder / "TEDLIUM_release2" / "TEDLIUM.152k.dic").rename(folder / "mine.dic")
    refused = memsim(*TRAIN, "-o", "out.safetensors")
    assert (refused.status, "no such file, where tedlium2 has" in refused.err) == (2, True)
    assert memsim(*TRAIN, "-o", "out.safetensors", "--lexicon", "mine.dic", "--quiet").status == 0
    (folder / "few.dic").write_text("yes Y EH S\n")
    refused = memsim(*TRAIN, "-o", "few.safetensors", "--lexicon", "few.dic")
    assert (refused.status, "tedlium2 train: the lexicon lacks words of" in refused.err) == (2, True)
    lines = DIC.splitlines(keepends=True)
    lost = load_corpus("demo", limit=1).utterances[0].text.split()[0]
    (folder / "most.dic").write_text("".join(line for line in lines if line.split("(")[0].split()[0] != lost))
    done = memsim(*TRAIN, "-o", "most.safetensors", "--lexicon", "most.dic")
    spoilt = sum(lost in utterance.text.split() for utterance in load_corpus("demo", limit=6).utterances)
    said = f"tedlium2 train: {spoilt} of 6 utterances have words that the lexicon lacks ({lost}) and are left out"
    assert (done.status, said in done.said) == (0, True)
    assert f"{6 - spoilt} utterances an epoch" in done.said
    refused = memsim(*TRAIN, "-o", "two.safetensors", "--init", "out.safetensors", "--lexicon", "mine.dic")
    assert (refused.status, "are those of --init; leave it out" in refused.err) == (2, True)
    (folder / "recipe.yaml").write_text(RECIPE.replace("KIND", "characters"))
    refused = memsim(*TRAIN, "-o", "two.safetensors", "--lexicon", "mine.dic")
    assert (refused.status, "the targets of --config recipe are characters" in refused.err) == (2, True)
