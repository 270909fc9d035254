"""The input vectors that the layers of a recogniser read in a second of audio, and its operations beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from memsim import rng
from memsim.asr.audio import read_audio
from memsim.asr.corpora import load_corpus
from memsim.asr.data import Batch, pad
from memsim.asr.features import Features, extractor
from memsim.asr.hugging_face.features import HuggingFaceFeatures
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import transcribe
from memsim.nn.chip import ChipMapping
from memsim.nn.collect import RowCounter, collecting
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.nn.operations import Step, counting_operations

RATE_SECONDS = 10.0
"""The length of the utterance in which input vectors are counted."""


def vectors_per_audio_second(recogniser: Recogniser) -> dict[str, float]:
    """Count the input vectors of every matrix in a second of audio, on an utterance of RATE_SECONDS.

    Matrices of the recogniser that are on arrays are counted, too.
    """
    layers = mappable_layers(recogniser.model)
    counters = {name: RowCounter() for name in matrix_sources(layers)}
    mapping = getattr(recogniser.model, "mapping", None)
    on_arrays = mapping.layers if isinstance(mapping, ChipMapping) else {}
    before = {name: matrix.work.vectors for name, matrix in on_arrays.items()}
    with collecting(layers, counters), _counting_work(mapping):
        _hear(recogniser)
    rows = {name: counter.rows for name, counter in counters.items()}
    rows |= {name: matrix.work.vectors - before[name] for name, matrix in on_arrays.items()}
    return {name: count / RATE_SECONDS for name, count in rows.items()}


@contextmanager
def _counting_work(mapping: object) -> Iterator[None]:
    if not isinstance(mapping, ChipMapping):
        yield
        return
    counted, mapping.reads.count_work = mapping.reads.count_work, True
    try:
        yield
    finally:
        mapping.reads.count_work = counted


def operations_of(recogniser: Recogniser) -> list[Step]:
    """Count the operations beside the layers' matrices, front end included, on the same utterance."""
    with counting_operations(recogniser.model) as steps:
        _hear(recogniser)
    return steps


def _hear(recogniser: Recogniser) -> None:
    features, lengths = pad([extractor(recogniser.features)(_utterance(recogniser.features))])
    transcribe(recogniser, [Batch("noise", (0,), features, lengths)])


def _utterance(config: Features) -> Tensor:
    """Return RATE_SECONDS of noise [samples]; of the demo's speech where a decoder may read what it wrote before."""
    samples = round(RATE_SECONDS * config.sample_rate_hz)
    if not isinstance(config, HuggingFaceFeatures):
        return torch.randn(samples, generator=rng.generator("cost"))
    utterances = load_corpus("demo").utterances
    return torch.cat([read_audio(utterance, config.sample_rate_hz) for utterance in utterances])[:samples]
