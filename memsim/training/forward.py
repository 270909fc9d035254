"""Forward pass of a training: from a batch to the distributions that its losses are computed from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from memsim.asr.kinds import Kind, Outputs


class TrainingPass(nn.Module):
    """A network whose outputs are those that losses need: a Transducer's lattice is computed from the targets, too."""

    def __init__(self, model: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.model = model
        self.kind = kind

    def forward(self, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Outputs:
        """Return the distributions of a batch, from its features [batch, frames, mel_bins] and lengths [batch]."""
        encoded, frames = self.model(features, lengths)
        return self.kind.outputs(self.model, encoded, frames, targets)
