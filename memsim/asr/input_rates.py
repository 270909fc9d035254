"""The number of input vectors that the layers of a recogniser read in a second of audio."""

from __future__ import annotations

import torch

from memsim import rng
from memsim.asr.data import Batch, pad
from memsim.asr.features import extractor
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import transcribe
from memsim.nn.collect import RowCounter, collecting
from memsim.nn.layer_adapters import mappable_layers, matrix_sources

RATE_SECONDS = 10.0
"""The length of the utterance of noise in which input vectors are counted."""


def vectors_per_audio_second(recogniser: Recogniser) -> dict[str, float]:
    """Count the input vectors of every matrix in a second of audio, on an utterance of RATE_SECONDS of noise."""
    config = recogniser.features
    noise = torch.randn(round(RATE_SECONDS * config.sample_rate_hz), generator=rng.generator("cost"))
    features, lengths = pad([extractor(config)(noise)])
    utterance = Batch("noise", (0,), features, lengths)
    layers = mappable_layers(recogniser.model)
    counters = {name: RowCounter() for name in matrix_sources(layers)}
    with collecting(layers, counters):
        transcribe(recogniser, [utterance])
    return {name: counter.rows / RATE_SECONDS for name, counter in counters.items()}
