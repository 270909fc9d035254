"""No corpus is held in memory: data of a batch are freed after it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from memsim.asr.corpora import load_corpus
from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import load_recogniser
from memsim.evaluation.partial_results import run_network
from memsim.evaluation.speech import SpeechTask
from memsim.storage.checkpoint import load_checkpoint

UTTERANCES, SECONDS = 1500, 2.0
STATUS = Path("/proc/self/status")


@pytest.fixture
def manifest(tmp_path):
    """Very many stretches of one recording: 192 MB as samples, 48 MB as features."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=16000 * 8).astype(np.float32)
    soundfile.write(tmp_path / "long.flac", noise, 16000)
    rows = [f"long.flac\tyes no\t{i % 5}\t{i % 5 + SECONDS}\t{i:06d}" for i in range(UTTERANCES)]
    path = tmp_path / "many.tsv"
    path.write_text("\n".join(["audio\ttext\tstart\tend\tid", *rows]) + "\n")
    return str(path)


def megabytes(key):
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not STATUS.exists(), reason="measures memory by /proc")
def test_memory_does_not_grow_with_the_corpus(manifest, tiny_recogniser):
    corpus = load_corpus(manifest)
    recogniser = load_recogniser(load_checkpoint(tiny_recogniser))
    task = SpeechTask.of(recogniser, corpus)
    # a cache that is full before the measurement
    task.__dict__["source"] = FeatureSource(recogniser.features, cache_bytes=2e6)
    done, resident = 0, 0.0

    def on_batch(texts):
        nonlocal done, resident
        before, done = done, done + len(texts)
        if before < UTTERANCES // 10 <= done:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
            resident = megabytes("VmRSS")
        return False

    part = run_network(task, recogniser, task.groups, "cpu", on_batch)
    assert resident > 0
    assert megabytes("VmHWM") - resident < 24
    assert done == len(part.outcomes) == UTTERANCES
    assert task.score(part.outcomes).words == 2 * UTTERANCES


def test_what_is_known_of_an_utterance_is_small(manifest):
    """So that the 100,000 of 200 hours take some tens of megabytes."""
    tracemalloc.start()
    corpus = load_corpus(manifest)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.utterances) == UTTERANCES
    assert kept / UTTERANCES < 1500
