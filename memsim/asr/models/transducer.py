"""Transducers (Graves, 2012, arXiv 1211.3711): an encoder, a prediction network and a joiner.

The encoder reads the speech, the prediction network the tokens so far; the joiner combines both, and its output layer
gives the next token or, with the blank, moves on by a frame. A network's `forward` maps features to the joiner's
projections of the frames; `memsim.asr.transducer_decoding` calls the prediction network and the joiner from there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memsim.asr.models.conformer import ConformerConfig, ConformerEncoder
from memsim.asr.models.frontend import Count, Depth
from memsim.asr.models.lstm import LSTMConfig, LSTMEncoder
from memsim.config.schema import Section

State = tuple[Tensor, Tensor]
"""State of the prediction network's LSTM: hidden and cell, each [layers, batch, hidden]."""


class PredictionConfig(Section):
    """The shape of a prediction network: an embedding of the last token, and LSTM layers."""

    embedding: Count
    hidden: Count
    layers: Depth = 1


class TransducerShape(Section):
    """The shape of a Transducer besides its encoder; `joiner_width` is the width of the joiner's hidden layer."""

    prediction: PredictionConfig
    joiner_width: Count


class ConformerTransducerConfig(ConformerConfig, TransducerShape):
    """The shape of a Transducer with a Conformer encoder."""


class LSTMTransducerConfig(LSTMConfig, TransducerShape):
    """The shape of a Transducer with a bidirectional LSTM encoder."""


class PredictionNetwork(nn.Module):
    """A network of the tokens so far: ([batch, steps], state) -> ([batch, steps, hidden], state).

    Without a state it begins anew; the first token is the blank, which stands for the beginning.
    """

    def __init__(self, config: PredictionConfig, tokens: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, config.embedding)
        between = dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.embedding, config.hidden, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the hidden vectors after each token, and the state after the last one."""
        hidden, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return self.dropout(hidden), state


class Joiner(nn.Module):
    """Projections of the encoder and the prediction network onto one width, and their sum.

    The projections are modules of their own, as each frame and each step is projected once and joined with many.
    """

    def __init__(self, encoded: int, predicted: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(encoded, width)
        self.prediction = nn.Linear(predicted, width, bias=False)

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return the tanh of the sum of both projections [..., joiner_width], which broadcast."""
        return torch.tanh(encoded + predicted)


class Transducer(nn.Module):
    """Mixin of encoders: a prediction network, a joiner and an output layer to the tokens."""

    encoded_width: int

    def __init__(self, config: ConformerTransducerConfig | LSTMTransducerConfig) -> None:
        super().__init__(config)
        self.prediction = PredictionNetwork(config.prediction, config.tokens, config.dropout)
        self.joiner = Joiner(self.encoded_width, config.prediction.hidden, config.joiner_width)
        self.output = nn.Linear(config.joiner_width, config.tokens)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map [batch, frames, mel_bins], [batch] to the projected frames [batch, frames', joiner_width], [batch]."""
        hidden, lengths = super().forward(features, lengths)
        return self.joiner.encoder(hidden), lengths

    def predict(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the projected prediction network: ([batch, steps], state) -> ([batch, steps, joiner_width], state)."""
        hidden, state = self.prediction(tokens, state)
        return self.joiner.prediction(hidden), state

    def log_probs(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return the log-probabilities of the next token [..., tokens], float32.

        `encoded` and `predicted` are projections [..., joiner_width] that broadcast.
        """
        logits: Tensor = self.output(self.joiner(encoded, predicted))
        return logits.float().log_softmax(dim=-1)


class ConformerTransducer(Transducer, ConformerEncoder):
    """A Transducer with a Conformer encoder."""


class LSTMTransducer(Transducer, LSTMEncoder):
    """A Transducer with a bidirectional LSTM encoder."""
