"""The teacher of a training: a recogniser whose probabilities, and whose texts in place of transcripts, are learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.asr.kinds import Outputs, TrainingPass
from memsim.asr.recogniser import Recogniser
from memsim.errors import InputError
from memsim.networks.open_checkpoint import open_network
from memsim.networks.opened_network import OpenedNetwork
from memsim.nn.quantisation import TeacherConfig
from memsim.precision import autocast
from memsim.storage.checkpoint import Checkpoint
from memsim.training.epoch_batches import TrainingBatch
from memsim.training.hooks import Hooks, Moment


class Teacher:
    """A recogniser that teaches another by its probabilities, as the section `teacher` of a recipe says."""

    def __init__(self, config: TeacherConfig, recogniser: Recogniser, precision: str, learner: nn.Module) -> None:
        """Take `recogniser`, whose parameters never change, to where `learner` is; `precision` is the recipe's."""
        model = recogniser.model.to(next(learner.parameters()).device).requires_grad_(False).eval()
        self.config = config
        self.recogniser = replace(recogniser, model=model)
        self._pass = TrainingPass(model, recogniser.kind).eval()
        self._precision = precision

    def losses(self, batch: TrainingBatch, outputs: Outputs) -> Tensor:
        """Return the mean Kullback-Leibler divergence from the teacher at a temperature, [batch], times its weight.

        With CTC, the mean is over the frames; with a Transducer, over all places of the lattice of frames and tokens,
        with equal weights (the full-lattice loss of Panchapagesan et al., 2021, arXiv 2011.06110).
        """
        device, temperature = outputs.log_probs.device, self.config.temperature
        with torch.no_grad(), autocast(self._precision, device):
            taught: Outputs = self._pass(batch.features, batch.lengths, batch.targets)
        wanted = (taught.log_probs / temperature).log_softmax(dim=-1)
        given = (outputs.log_probs / temperature).log_softmax(dim=-1)
        divergence = F.kl_div(given, wanted, reduction="none", log_target=True).sum(dim=-1)
        valid = outputs.valid.flatten(1)
        mean = (divergence.flatten(1) * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)
        return mean * (self.config.weight * temperature**2)


class Taught(Hooks):
    """Hooks of a training with a teacher, which `prepare` makes where there is a `teacher_config`."""

    _teacher: Teacher | None = None

    @property
    def teacher_config(self) -> TeacherConfig | None:
        """The section `teacher` of the recipe; None where nothing teaches."""
        raise NotImplementedError

    @property
    def transcripts_weight(self) -> float:
        """The weight of the transcripts' loss beside the teacher's."""
        return 1.0 if self.teacher_config is None else self.teacher_config.transcripts

    @property
    def teaching(self) -> Recogniser | None:
        """The teacher; None without one."""
        return None if self._teacher is None else self._teacher.recogniser

    def extra_losses(self, batch: TrainingBatch, outputs: Outputs, moment: Moment) -> Tensor:
        """Return the losses of `Teacher.losses`, [batch]; 0 without a teacher."""
        if self._teacher is None:
            return super().extra_losses(batch, outputs, moment)
        return self._teacher.losses(batch, outputs)


def load_teacher(name: str | Path, learner: Recogniser, option: str) -> tuple[Recogniser, Checkpoint]:
    """Load the unmapped checkpoint that `option` names as the teacher of `learner`, and return it with its file.

    Raises InputError where it cannot be read, or is of another kind or with other tokens than the learner.
    """
    checkpoint = open_network(str(name), option)
    teacher = OpenedNetwork(checkpoint).recogniser
    if teacher.architecture != learner.architecture:
        found = f"is of architecture {teacher.architecture}, the network that learns of {learner.architecture}"
        raise InputError(f"{option} {name}: {found}; name the checkpoint that was mapped")
    if teacher.tokens.to_json() != learner.tokens.to_json():
        raise InputError(
            f"{option} {name}: has other tokens than the network that learns; name the checkpoint that was mapped"
        )
    return teacher, checkpoint
