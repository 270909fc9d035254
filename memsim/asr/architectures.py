"""The architectures of recognisers, by the names that checkpoints and configs/models/*.yaml give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from memsim.asr.hugging_face.kinds import HuggingFaceCTC, HuggingFaceSeq2Seq
from memsim.asr.hugging_face.network import HuggingFaceConfig, hugging_face_network
from memsim.asr.kinds import CTC, RNNT, Kind
from memsim.asr.models.conformer import ConformerConfig, ConformerCTC, ConformerEncoder
from memsim.asr.models.frontend import RecogniserConfig
from memsim.asr.models.lstm import LSTMCTC, LSTMConfig, LSTMEncoder
from memsim.asr.models.transducer import (
    ConformerTransducer,
    ConformerTransducerConfig,
    LSTMTransducer,
    LSTMTransducerConfig,
)
from memsim.asr.models.wav2vec2 import Wav2Vec2Config, wav2vec2_ctc
from memsim.config.yaml_file import shown
from memsim.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """An architecture: the class of its config, its network, and how this is trained and decoded."""

    config: type[RecogniserConfig]
    build: Callable[[Any], nn.Module]
    """Makes the network from a config."""
    kind: Kind
    encoder: Callable[[Any], nn.Module] | None = None
    """Makes the network's encoder alone, under the same names; other architectures may share it."""


ARCHITECTURES: dict[str, Architecture] = {
    "conformer_ctc": Architecture(ConformerConfig, ConformerCTC, CTC(), ConformerEncoder),
    "lstm_ctc": Architecture(LSTMConfig, LSTMCTC, CTC(), LSTMEncoder),
    "conformer_transducer": Architecture(ConformerTransducerConfig, ConformerTransducer, RNNT(), ConformerEncoder),
    "lstm_transducer": Architecture(LSTMTransducerConfig, LSTMTransducer, RNNT(), LSTMEncoder),
    "wav2vec2_ctc": Architecture(Wav2Vec2Config, wav2vec2_ctc, CTC()),
    "hugging_face_ctc": Architecture(HuggingFaceConfig, hugging_face_network, HuggingFaceCTC()),
    "hugging_face_seq2seq": Architecture(HuggingFaceConfig, hugging_face_network, HuggingFaceSeq2Seq()),
}


def find_architecture(name: object) -> Architecture:
    """Return the architecture called `name`. Raises InputError, which lists the known ones, for any other value."""
    if isinstance(name, str) and ":" in name and name not in ARCHITECTURES:
        raise InputError(f"made by {name}, a factory that is not in the file; to run it, say --architecture {name}")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        found = "missing" if name is None else f"unknown architecture {shown(name)}"
        raise InputError(f"{found} (known: {', '.join(sorted(ARCHITECTURES))})")
    return ARCHITECTURES[name]
