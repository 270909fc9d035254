"""The number of input vectors that the layers of a recogniser read in a second of audio."""

from __future__ import annotations

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
from memsim.nn.collect import RowCounter, collecting
from memsim.nn.layer_adapters import mappable_layers, matrix_sources

RATE_SECONDS = 10.0
"""The length of the utterance in which input vectors are counted."""


def vectors_per_audio_second(recogniser: Recogniser) -> dict[str, float]:
    """Count the input vectors of every matrix in a second of audio, on an utterance of RATE_SECONDS."""
    features, lengths = pad([extractor(recogniser.features)(_utterance(recogniser.features))])
    layers = mappable_layers(recogniser.model)
    counters = {name: RowCounter() for name in matrix_sources(layers)}
    with collecting(layers, counters):
        transcribe(recogniser, [Batch("noise", (0,), features, lengths)])
    return {name: counter.rows / RATE_SECONDS for name, counter in counters.items()}


def _utterance(config: Features) -> Tensor:
    """Return RATE_SECONDS of noise [samples]; of the demo's speech where a decoder may read what it wrote before."""
    samples = round(RATE_SECONDS * config.sample_rate_hz)
    if not isinstance(config, HuggingFaceFeatures):
        return torch.randn(samples, generator=rng.generator("cost"))
    utterances = load_corpus("demo").utterances
    return torch.cat([read_audio(utterance, config.sample_rate_hz) for utterance in utterances])[:samples]
