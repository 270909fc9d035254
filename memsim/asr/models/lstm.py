"""LSTM recognisers: the front end of the Conformer, bidirectional LSTM layers, and an output layer to the tokens.

Sequences are packed, so that padding never changes a result.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from memsim.asr.models.frontend import Count, CTCOutput, Depth, EncoderConfig, Frontend, PaddedNetwork


class LSTMConfig(EncoderConfig):
    """The shape of a bidirectional LSTM: `layers` of `hidden` units in each direction."""

    layers: Depth
    hidden: Count


class LSTMEncoder(PaddedNetwork, nn.Module):
    """An encoder of features: ([batch, frames, mel_bins], [batch]) -> ([batch, frames', 2 * hidden], [batch])."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoded_width = 2 * config.hidden
        self.frontend = Frontend(config)
        dropout = config.dropout if config.layers > 1 else 0.0  # dropout between layers needs two
        self.lstm = nn.LSTM(
            config.width, config.hidden, config.layers, batch_first=True, dropout=dropout, bidirectional=True
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden vectors of each frame, and the number of frames of each utterance."""
        hidden, lengths = self.frontend(features, lengths)
        # An utterance without frames is packed with one frame of padding.
        packed = pack_padded_sequence(hidden, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=hidden.shape[1])
        return self.dropout(outputs), lengths


class LSTMCTC(CTCOutput, LSTMEncoder):
    """An LSTM with a CTC output."""
