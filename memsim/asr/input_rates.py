"""The utterance on which the input vectors and the operations of a recogniser are counted."""

from __future__ import annotations

from functools import partial

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
from memsim.nn.sample_run import SampleRun

RATE_SECONDS = 10.0
"""The length of the utterance in which input vectors are counted."""


def sample_utterance(recogniser: Recogniser) -> SampleRun:
    """Return the run of `recogniser` on an utterance of RATE_SECONDS, front end and decoder included."""
    return SampleRun(recogniser.model, partial(_hear, recogniser), RATE_SECONDS, "audio_second")


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
