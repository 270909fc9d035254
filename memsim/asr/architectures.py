"""The architectures of recognisers, by the names that checkpoints and configs/models/*.yaml give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

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
    """How a recogniser is described, built, trained and decoded: `build` makes its network of a config.

    `encoder` makes the part of it, under the same names, that other architectures may have, too.
    """

    config: type[RecogniserConfig]
    build: Callable[[Any], nn.Module]
    kind: Kind
    encoder: Callable[[Any], nn.Module] | None = None


ARCHITECTURES: dict[str, Architecture] = {
    "conformer_ctc": Architecture(ConformerConfig, ConformerCTC, CTC(), ConformerEncoder),
    "lstm_ctc": Architecture(LSTMConfig, LSTMCTC, CTC(), LSTMEncoder),
    "conformer_transducer": Architecture(ConformerTransducerConfig, ConformerTransducer, RNNT(), ConformerEncoder),
    "lstm_transducer": Architecture(LSTMTransducerConfig, LSTMTransducer, RNNT(), LSTMEncoder),
    "wav2vec2_ctc": Architecture(Wav2Vec2Config, wav2vec2_ctc, CTC()),
}


def find_architecture(name: object) -> Architecture:
    """The architecture of that name. Raises InputError, listing those there are, for any other and for None."""
    if isinstance(name, str) and ":" in name and name not in ARCHITECTURES:
        raise InputError(f"made by {name}, which is code of somebody's own; to run it, say --architecture {name}")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        found = "missing" if name is None else f"unknown architecture {shown(name)}"
        raise InputError(f"{found} (known: {', '.join(sorted(ARCHITECTURES))})")
    return ARCHITECTURES[name]
