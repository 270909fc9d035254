"""Quantization-aware training, as hooks of the training loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import input_statistics
from memsim.asr.utterances import Utterance
from memsim.crossbar.statistics import InputStatistics
from memsim.nn.quantisation import Quantisation, TeacherConfig, mean_step, weights_of_quantised
from memsim.nn.quantised_product import QuantisedProduct
from memsim.nn.rounding import QUANTISERS, ActivationQuantiser
from memsim.nn.transfer import HardwareTransfer, Spread
from memsim.rng import derive_seed
from memsim.training.hooks import Moment, ParameterGroup
from memsim.training.recipe import TrainConfig
from memsim.training.teacher import Taught, Teacher

CALIBRATION_UTTERANCES = 32
"""Number of utterances that the hardware is calibrated from at the beginning of each epoch."""


@dataclass
class QuantisedTraining(Taught):
    """Quantization-aware training by a recipe's section `quantisation`."""

    quantisation: Quantisation
    config: TrainConfig
    given_teacher: Recogniser | None = None
    """The recogniser that teaches; None for the one that the training starts from."""
    _recogniser: Recogniser | None = field(default=None, init=False)
    _calibration: tuple[Sequence[Utterance], FeatureSource] | None = field(default=None, init=False)
    _searched: tuple[nn.Module, list[nn.Module]] | None = field(default=None, init=False)

    def prepare(self, recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource) -> nn.Module:
        """Quantise the recogniser's model; where the recipe has a teacher and none is given, a copy of it teaches."""
        model = recogniser.model
        recipe = self.quantisation.mapping
        needs_moments = recipe is not None and recipe.needs_moments
        statistics = input_statistics(recogniser, utterances, source, with_moments=needs_moments)
        if (config := self.teacher_config) is not None:
            teacher = self.given_teacher or replace(recogniser, model=copy.deepcopy(model))
            self._teacher = Teacher(config, teacher, self.config.precision, model)
        self._recogniser = recogniser
        self._calibration = utterances[:: -(-len(utterances) // CALIBRATION_UTTERANCES)], source
        self.quantisation.apply(model, statistics)
        return model

    def parameter_groups(self, model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
        """Return groups in which scales do not decay, and learn at a rate relative to their size.

        The size is the initial one; where data only give it later, the current one. Where the recipe has
        `weight_steps`, the weights of each layer learn at a rate relative to their initial step.
        """
        rates = self.quantisation.config
        rate = rates.scale_rate
        quantisers = [module for module in model.modules() if isinstance(module, QUANTISERS)]
        on_arrays = weights_of_quantised(model)
        known = {id(scale) for quantiser in quantisers for scale in quantiser.parameters()}
        groups: list[ParameterGroup] = []
        for group in super().parameter_groups(model, config):
            weights = [p for p in group.parameters if p in on_arrays]
            if rates.weight_steps is None:
                groups.append(replace(group, parameters=weights, rate_scale=rates.weight_rate))
            else:
                by_step = rates.weight_steps
                groups += [
                    replace(group, parameters=[p], rate_scale=by_step * mean_step(on_arrays[p])) for p in weights
                ]
            others = [p for p in group.parameters if p not in on_arrays and id(p) not in known]
            groups.append(replace(group, parameters=others, rate_scale=rates.rate_of_digital(others)))
        groups = [group for group in groups if group.parameters]
        for quantiser in quantisers:
            for scale in quantiser.parameters():
                learned = quantiser.learned_from_the_start()
                size = float(learned.mean()) if len(learned) else 1.0
                groups.append(ParameterGroup([scale], 0.0, rate * size, follows_size=not len(learned)))
        return groups

    def before_step(self, model: nn.Module, moment: Moment) -> None:
        """Draw the spread of the step, and calibrate the hardware at the beginning of each epoch.

        The weights on arrays learn from the recipe's `weights_begin` on.
        """
        if self.is_staged:
            learns = moment.fraction > self.quantisation.config.weights_begin
            for weight in weights_of_quantised(model):
                weight.requires_grad_(learns)
        hardware = self.quantisation.config.hardware
        if hardware is None or not hardware.transfer:
            return
        transfers = [module for module in self._modules_of(model) if isinstance(module, HardwareTransfer)]
        if any(int(transfer.epoch) != moment.epoch for transfer in transfers):
            self.quantisation.calibrate(model, self._statistics_without_hardware(model))
        ramp = 1.0 if hardware.spread_ramp == 0 else min(1.0, moment.fraction / hardware.spread_ramp)
        spread = Spread(derive_seed(moment.seed, "spread", moment.step), hardware.programming_spread * ramp)
        for transfer in transfers:
            transfer.epoch.fill_(moment.epoch)
            transfer.spread = spread

    def _statistics_without_hardware(self, model: nn.Module) -> dict[str, InputStatistics]:
        """Measure the inputs that layers have when products are exact, which is quick to compute."""
        assert self._recogniser is not None
        assert self._calibration is not None
        products = [module for module in model.modules() if isinstance(module, QuantisedProduct)]
        transfers = [(product, product.transfer) for product in products]
        for product, _ in transfers:
            product.transfer = None
        try:
            return input_statistics(replace(self._recogniser, model=model), *self._calibration)
        finally:
            for product, transfer in transfers:
                product.transfer = transfer

    @property
    def teacher_config(self) -> TeacherConfig | None:
        """The section `teacher` of the recipe."""
        return self.quantisation.config.teacher

    @property
    def is_staged(self) -> bool:
        """Whether the weights on arrays begin to learn after the other parameters."""
        return self.quantisation.config.weights_begin > 0

    def maxima(self, model: nn.Module) -> list[Tensor]:
        """Return the ranges that observe activations; scales that observe weights are alike in all processes."""
        quantisers = (module for module in self._modules_of(model) if isinstance(module, ActivationQuantiser))
        return [quantiser.range.detach() for quantiser in quantisers if quantiser.is_observed]

    def _modules_of(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules of `model`, which is searched once: training does not replace any."""
        if self._searched is None or self._searched[0] is not model:
            self._searched = model, list(model.modules())
        return self._searched[1]
