"""Functions by which a training method, such as quantization-aware training, extends the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def matrices_decay(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """Return the default groups, in which only matrices have weight decay (decoupled from the gradient)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        ParameterGroup([p for p in trained if p.ndim > 1], config.weight_decay),
        ParameterGroup([p for p in trained if p.ndim <= 1], 0.0),
    ]


def _as_it_is(recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource) -> nn.Module:
    return recogniser.model


def _nothing(model: nn.Module, moment: Moment) -> None:
    pass


def _none(model: nn.Module) -> Sequence[Tensor]:
    return ()


@dataclass(frozen=True)
class Hooks:
    """Functions that the loop calls; the defaults train the model as it is.

    Each of several processes calls them; random draws are to be keyed by their arguments, so that all draw alike.
    """

    prepare: Callable[[Recogniser, Sequence[Utterance], FeatureSource], nn.Module] = _as_it_is
    """Makes the model to train from the recogniser's, which may be calibrated with the utterances and their features.
    Parameters and buffers that it adds are trained, averaged (buffers: copied), saved and resumed. It is called on
    resuming, too, and its values are then overwritten. torch's generator is seeded before."""

    parameter_groups: Callable[[nn.Module, TrainConfig], Sequence[ParameterGroup]] = matrices_decay
    """Returns groups that hold every parameter with a gradient once."""

    before_step: Callable[[nn.Module, Moment], None] = _nothing
    """Prepares the model before each step. The evaluated model gets changes of buffers and parameters only. torch's
    generator is seeded before."""

    extra_losses: Callable[[TrainingBatch, Outputs, Moment], Tensor] | None = None
    """Returns an addition to each utterance's loss, [batch], from the batch and the model's distributions. A batch may
    come in parts."""

    maxima: Callable[[nn.Module], Sequence[Tensor]] = _none
    """Returns tensors of the model that observe the data. After each step, every process gets the largest values of
    any."""
