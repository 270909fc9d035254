"""What a training method adds to the plain loop: the seams that quantization-aware training fills."""

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
    """Where a training is, at a step: what schedules are functions of, and what draws are keyed by."""

    seed: int
    epoch: int  # from 1
    step: int  # from 0, over all epochs
    fraction: float  # of the training that is done with this step, up to 1


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike: at the recipe's learning rate times `rate_scale`.

    With `follows_size` the rate is that times the mean of the one parameter as it is at the time.
    """

    parameters: Sequence[nn.Parameter]
    weight_decay: float
    rate_scale: float = 1.0
    follows_size: bool = False


def matrices_decay(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """The default groups: decoupled weight decay on matrices only."""
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

    With several processes, each calls them; what they draw is to be keyed by their arguments, so that all draw alike.
    """

    prepare: Callable[[Recogniser, Sequence[Utterance], FeatureSource], nn.Module] = _as_it_is
    """The model to train, made of the recogniser's, with the training's utterances and their features to calibrate
    from. Whatever it adds as parameters or buffers is trained, averaged (buffers: copied), checkpointed and resumed;
    it is called on resuming, too, and its values are then overwritten. torch's generator is seeded before."""

    parameter_groups: Callable[[nn.Module, TrainConfig], Sequence[ParameterGroup]] = matrices_decay
    """Every parameter that requires a gradient, once."""

    before_step: Callable[[nn.Module, Moment], None] = _nothing
    """Called with the model before each step; the evaluated model gets what this changes only in buffers and
    parameters. torch's generator is seeded before."""

    extra_losses: Callable[[TrainingBatch, Outputs, Moment], Tensor] | None = None
    """What is added to each utterance's loss, [batch], from the batch and the model's distributions. A batch may come
    in parts."""

    maxima: Callable[[nn.Module], Sequence[Tensor]] = _none
    """Tensors of the model that training sets to what its data are. After each step, those of all processes are the
    largest of any."""
