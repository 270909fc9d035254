"""Training of one programmed chip's digital parts ("chip in the loop"), as hooks of the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import Recogniser
from memsim.asr.utterances import Utterance
from memsim.networks.mapped_file import MATRIX
from memsim.nn.chip import mapping_of
from memsim.nn.quantisation import QuantisationConfig, TeacherConfig
from memsim.nn.trained_chip import train_digital_parts, trained_matrices, trained_tensors
from memsim.storage.checkpoint import Checkpoint
from memsim.training.hooks import Moment, ParameterGroup
from memsim.training.recipe import TrainConfig
from memsim.training.teacher import Taught, Teacher


@dataclass
class ChipTraining(Taught):
    """Training of the digital parts of the chip in the mapped file `checkpoint`.

    Biases, norms, layers that are not on arrays and the trims of each matrix learn, by the rates of
    `quantisation`. Without a `given_teacher`, the transcripts alone are learned.
    """

    quantisation: QuantisationConfig
    config: TrainConfig
    checkpoint: Checkpoint
    given_teacher: Recogniser | None

    def prepare(self, recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource) -> nn.Module:
        """Make the chip's digital parts learn."""
        model = recogniser.model
        if self.teacher_config is not None and self.given_teacher is not None:
            self._teacher = Teacher(self.teacher_config, self.given_teacher, self.config.precision, model)
        train_digital_parts(model)
        return model

    def parameter_groups(self, model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
        """Return groups in which the gains of trims, about 1, do not decay and learn at the rate of scales."""
        gains = [matrix.gain_trim for matrix in trained_matrices(model).values()]
        known = {id(gain) for gain in gains}
        groups = []
        for group in super().parameter_groups(model, config):
            others = [p for p in group.parameters if id(p) not in known]
            rate = self.quantisation.rate_of_digital(others)
            groups.append(replace(group, parameters=others, rate_scale=rate))
        return [*groups, ParameterGroup(gains, 0.0, self.quantisation.scale_rate)]

    def before_step(self, model: nn.Module, moment: Moment) -> None:
        """Key the read noise of the step by its number."""
        mapping_of(model).begin_batch(f"step {moment.step}")

    @property
    def teacher_config(self) -> TeacherConfig | None:
        """The section `teacher` of the recipe; None where no teacher is given."""
        return None if self.given_teacher is None else self.quantisation.teacher

    def contents(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the tensors of the mapped file with what its digital parts have learned."""
        return trained_tensors(model, self.checkpoint.tensors(), MATRIX)

    @property
    def is_calibrated(self) -> bool:
        """True: the mapped file holds the input statistics that calibrated its converters."""
        return True
