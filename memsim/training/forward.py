"""The forward pass of a training: from a batch to the distributions that its losses are computed from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from memsim.asr.kinds import Kind, Outputs


class TrainingPass(nn.Module):
    """`model` and what its kind adds to it, as one module: a Transducer's lattice needs the targets."""

    def __init__(self, model: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.model = model
        self.kind = kind

    def forward(self, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Outputs:
        encoded, frames = self.model(features, lengths)
        return self.kind.outputs(self.model, encoded, frames, targets)
