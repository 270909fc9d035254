"""Methods by which a training method, such as quantization-aware training, extends the plain loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memsim.asr.data import FeatureSource
from memsim.asr.kinds import Outputs
from memsim.asr.recogniser import Recogniser
from memsim.asr.utterances import Utterance
from memsim.training.epoch_batches import TrainingBatch
from memsim.training.recipe import TrainConfig


@dataclass(frozen=True)
class Moment:
    """A step of a training, as schedules and the keys of random draws need it."""

    seed: int
    epoch: int  # from 1
    step: int  # from 0, over all epochs
    fraction: float  # of the training that is done with this step, up to 1


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike: at the recipe's learning rate times `rate_scale`.

    With `follows_size`, the rate is multiplied by the current mean of the group's only parameter, too.
    """

    parameters: Sequence[nn.Parameter]
    weight_decay: float
    rate_scale: float = 1.0
    follows_size: bool = False


class Hooks:
    """Methods that the loop calls, which a training method overrides; these train the model as it is.

    Each of several processes calls them; random draws are to be keyed by their arguments, so that all draw alike.
    """

    def prepare(self, recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource) -> nn.Module:
        """Make the model to train from the recogniser's, which may be calibrated with the utterances and features.

        Parameters and buffers that it adds are trained, averaged (buffers: copied), saved and resumed. It is called on
        resuming, too, and its values are then overwritten. torch's generator is seeded before.
        """
        return recogniser.model

    def parameter_groups(self, model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
        """Return groups that hold every parameter with a gradient once.

        Only matrices have weight decay, decoupled from the gradient.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [
            ParameterGroup([p for p in trained if p.ndim > 1], config.weight_decay),
            ParameterGroup([p for p in trained if p.ndim <= 1], 0.0),
        ]

    def before_step(self, model: nn.Module, moment: Moment) -> None:
        """Prepare the model before a step; the evaluated model gets changes of buffers and parameters only.

        torch's generator is seeded before.
        """

    def extra_losses(self, batch: TrainingBatch, outputs: Outputs, moment: Moment) -> Tensor:
        """Return an addition to each utterance's loss, [batch]; a batch may come in parts."""
        return torch.zeros(len(batch.utterances), device=outputs.log_probs.device)

    @property
    def transcripts_weight(self) -> float:
        """The weight of the loss of the transcripts; at 0, `teaching` gives texts in their place."""
        return 1.0

    @property
    def teaching(self) -> Recogniser | None:
        """The recogniser that teaches, once `prepare` has been called; None without one."""
        return None

    @property
    def is_staged(self) -> bool:
        """Whether parameters have no gradient in some steps, although they are trained."""
        return False

    @property
    def is_calibrated(self) -> bool:
        """Whether `contents` has the input statistics that else are measured when the training is done."""
        return False

    def contents(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the tensors of the checkpoint of the trained `model`."""
        return model.state_dict()

    def maxima(self, model: nn.Module) -> Sequence[Tensor]:
        """Return tensors that observe the data; after each step, every process gets the largest values of any."""
        return ()
