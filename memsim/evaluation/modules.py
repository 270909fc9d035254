"""The task of any `nn.Module`: batches, and a function that scores the network's outputs."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.evaluation.measure import Measure
from memsim.evaluation.module_batches import Batches, inputs_and_targets
from memsim.evaluation.target import Target, allotted_hardware, chip_fitter, digital_twin
from memsim.evaluation.task import CheckpointFacts, Score, Task
from memsim.hardware import HardwareSpec
from memsim.nn.batches import MISFITS, described, run_batch
from memsim.nn.calibration import Calibration, given_statistics
from memsim.nn.chip import ChipMapping
from memsim.nn.finite import first_not_finite
from memsim.nn.mapping import measure_inputs
from memsim.post_training.recipe import NEAREST, MappingRecipe, measurements
from memsim.units import counted, si

ScoreFunction = Callable[[Any, Any], Any]
"""A function score(outputs, targets) that returns a value for each example, or their mean."""

CALIBRATION_EXAMPLES = 1000
"""The number of examples, from the first on, that calibrate a module where no calibration data are given."""

MUCH_WORSE = 2.0
"""The factor between errors (or scores, if higher is better) from which a network is named in a warning."""


@dataclass(frozen=True)
class ModuleScore(Score):
    """The mean of a score over examples, with the amount and the weight of every item."""

    measure: Measure
    items: Sequence[tuple[float, float]]
    loss: float | None = None

    @property
    def rates(self) -> dict[str, float]:
        """See `Score`."""
        return {self.measure.key: math.fsum(self.amounts) / math.fsum(self.weights)}

    @property
    def contributions(self) -> Sequence[tuple[float, float]]:
        """See `Score`."""
        return self.items

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(self.rates)

    def to_detailed_dict(self) -> dict[str, Any]:
        """`to_dict`, and the value of each item."""
        return self.to_dict() | {"items": self.amounts if self._are_examples else [a / w for a, w in self.items]}

    @property
    def _are_examples(self) -> bool:
        return all(weight == 1 for weight in self.weights)


@dataclass(frozen=True)
class RunningModule:
    """A module that a `ModuleTask` runs."""

    model: nn.Module


@dataclass(frozen=True)
class ModuleTask(Task):
    """Batches on which a module is evaluated, by a function that scores its outputs.

    Items are examples where the function gives a value for each of them; they are batches where it gives their mean.
    """

    measure: Measure
    sizes: tuple[int, ...]
    """The number of examples in each batch."""
    by_example: bool
    data_sha256: str
    batches: Batches | None = field(default=None, compare=False, repr=False)
    score_function: ScoreFunction | None = field(default=None, compare=False, repr=False)
    """The score; it and `batches` are None where results are only merged."""

    kind = "module"
    outcome = "score"
    speed_key = "seconds_per_example"
    remedies = {  # noqa: RUF012 - a class attribute of a dataclass that is no field
        "full precision": "is the network trained, and does the score fit its outputs?",
        "digital, quantised": "more bits, or layers kept digital (set=['digital=[GLOB, ...]']), lose less",
        "mapped": "sensitivity=True shows which layers lose it: keep those digital (set=['digital=[GLOB, ...]']), or "
        "give them more bits or better programming (hardware='best')",
    }

    @classmethod
    def of(
        cls, model: nn.Module, batches: Batches, score: ScoreFunction, *, lower_is_better: bool = False
    ) -> ModuleTask:
        """Make the task, after trying `score` on the first batch of `model` to see what it returns.

        Raises InputError where `score` gives neither a number nor one for each example, or a negative or NaN one.
        """
        name = getattr(score, "__name__", type(score).__name__)
        name = "score" if name == "<lambda>" else name
        try:
            outputs, targets = _run(copy.deepcopy(model).eval(), batches[0], "cpu")
        except (*MISFITS, KeyError) as error:
            said = str(error).split("\n")[0]
            raise InputError(
                f"data: the network fails on batch 0, {described(batches[0])}: {said}; batches are (inputs, targets) "
                "pairs, (argument, ..., targets) tuples, or mappings with a label"
            ) from error
        values, by_example = _values(score, outputs, targets, batches.sizes[0], name)
        in_percent = "accuracy" in name or all(value in (0.0, 1.0) for value in values)
        found = Measure(name, name.replace("_", " "), lower_is_better, in_percent)
        return cls(found, tuple(batches.sizes), by_example, batches.sha256, batches, score)

    @property
    def measures(self) -> Sequence[Measure]:  # type: ignore[override]
        """See `Task`."""
        return (self.measure,)

    @property
    def item(self) -> str:  # type: ignore[override]
        """See `Task`."""
        return "example" if self.by_example else "batch"

    @cached_property
    def groups(self) -> Sequence[Sequence[int]]:  # type: ignore[override]
        """See `Task`."""
        if not self.by_example:
            return [[number] for number in range(len(self.sizes))]
        starts = [sum(self.sizes[:number]) for number in range(len(self.sizes))]
        return [list(range(start, start + size)) for start, size in zip(starts, self.sizes, strict=True)]

    @cached_property
    def _batch_of(self) -> dict[int, int]:
        """The number of each batch, by its first item."""
        return {group[0]: number for number, group in enumerate(self.groups)}

    def __len__(self) -> int:
        return sum(self.sizes) if self.by_example else len(self.sizes)

    @property
    def name(self) -> str:
        """See `Task`."""
        return counted(sum(self.sizes), "example")

    @property
    def extent(self) -> float:
        """The number of examples."""
        return float(sum(self.sizes))

    def run_batch(
        self, network: RunningModule, group: Sequence[int], device: str
    ) -> tuple[dict[int, tuple[float, float]], float]:
        """See `Task`. Raises FloatingPointError, naming the layer, where the outputs hold NaN."""
        assert self.batches is not None
        assert self.score_function is not None
        number = self._batch_of[group[0]]
        batch, size = self.batches[number], self.sizes[number]
        mapping = getattr(network.model, "mapping", None)

        def run() -> tuple[Any, Any]:
            if isinstance(mapping, ChipMapping):
                mapping.begin_batch(f"batch {number}")
            return _run(network.model, batch, device)

        started = time.perf_counter()
        outputs, targets = run()
        seconds = time.perf_counter() - started
        if isinstance(outputs, Tensor) and outputs.isnan().any():
            where = first_not_finite(network.model, run)
            raise FloatingPointError(f"{where or 'the data'}: the first place whose output holds NaN or Inf")
        values, by_example = _values(self.score_function, outputs, targets, size, self.measure.key)
        if by_example != self.by_example:
            raise InputError("score: gives a value for each example of some batches, and one value for others")
        if by_example:
            return {item: (value, 1.0) for item, value in zip(group, values, strict=True)}, seconds
        return {group[0]: (values[0] * size, float(size))}, seconds

    def first_inputs(self, device: str) -> Any:
        """Return the first batch without its targets, on `device`."""
        assert self.batches is not None
        inputs = inputs_and_targets(_to(self.batches[0], device))[0]
        return inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs

    def score(self, outcomes: Mapping[int, tuple[float, float]]) -> ModuleScore:
        """See `Task`."""
        return ModuleScore(self.measure, [outcomes[i] for i in sorted(outcomes)])

    def item_losses(self, outcomes: Mapping[int, tuple[float, float]]) -> list[float]:
        """See `Task`: the mean over an item's examples, or 1 minus it."""
        means = [amount / weight for _, (amount, weight) in sorted(outcomes.items())]
        return means if self.measure.lower_is_better else [max(0.0, 1 - mean) for mean in means]

    @classmethod
    def why_unusable(cls, scores: Sequence[ModuleScore]) -> str | None:
        """See `Task`: a score of 0 is unusable where higher is better."""
        found, value = scores[0].measure, max(score.value for score in scores)
        return None if found.lower_is_better or value > 0 else f"{found.name} {value:g}"

    @classmethod
    def problems(cls, found: ModuleScore, baseline: ModuleScore | None, baseline_name: str) -> Mapping[str, str]:
        """See `Task`: a score is a problem if it is worse than the baseline's by `MUCH_WORSE`."""
        if baseline is None:
            return {}
        own, other, by = found.value, baseline.value, found.measure
        is_worse = own > MUCH_WORSE * other if by.lower_is_better else own * MUCH_WORSE < other
        if not is_worse:
            return {}
        than = f"{by.show(other)}{' %' if by.in_percent else ''} of the {baseline_name} network"
        return {"lost": f"{by.name} {by.show(own)}{' %' if by.in_percent else ''}, for {than}"}

    def to_dict(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "data": {"examples": sum(self.sizes), "sizes": list(self.sizes), "sha256": self.data_sha256},
            "measure": self.measure.to_dict(),
            "by_example": self.by_example,
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> ModuleTask:
        """See `Task`."""
        written = _WRITTEN.validate_python(line)
        return cls(written.measure, written.data.sizes, written.by_example, written.data.sha256)

    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        return {"data": f"{self.data_sha256[:12]} ({self.name})", "score": self.measure.key}

    def outcomes_to_dict(self, outcomes: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
        """See `Task`."""
        return {"items": list(outcomes), "values": [amount / weight for amount, weight in outcomes.values()]}

    def outcomes_from_dict(self, values: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
        """See `Task`."""
        part = _OUTCOMES.validate_python(values)
        if not all(0 <= item < len(self) for item in part.items):
            raise ValueError("a score for an item that is not in the data")
        weights = [1.0 if self.by_example else float(self.sizes[item]) for item in part.items]
        return {i: (value * w, w) for i, value, w in zip(part.items, part.values, weights, strict=True)}

    def data_dict(self, score: ModuleScore) -> dict[str, Any]:
        """See `Task`."""
        count = {"items": len(self), "item": self.item}
        return {"name": self.name, **count, "examples": sum(self.sizes), "sha256": self.data_sha256}

    def describe(self) -> str:
        """See `Task`."""
        return f"{self.name} in {counted(len(self.sizes), 'batch')}"

    def speed_line(self, seconds: float) -> str:
        """See `Task`."""
        return f"the simulation takes {si(seconds, 's')} per example (not the speed of a chip)"


@dataclass(frozen=True)
class _WrittenData:
    sizes: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class _WrittenTask:
    """The entries of a results file's first line that identify the data."""

    data: _WrittenData
    measure: Measure
    by_example: bool


@dataclass(frozen=True)
class _WrittenOutcomes:
    """The entries of a part that are scores."""

    items: list[int]
    values: list[float]


_WRITTEN, _OUTCOMES = TypeAdapter(_WrittenTask), TypeAdapter(_WrittenOutcomes)


def _run(model: nn.Module, batch: Any, device: str) -> tuple[Any, Any]:
    """Return the network's outputs for a batch, and the targets, both on `device`."""
    inputs, targets = inputs_and_targets(_to(batch, device))
    with torch.inference_mode():
        if isinstance(inputs, Mapping):
            return model(**inputs), targets
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs), targets


def _to(value: Any, device: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _to(inner, device) for name, inner in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_to(inner, device) for inner in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _values(score: ScoreFunction, outputs: Any, targets: Any, size: int, name: str) -> tuple[list[float], bool]:
    """Return what `score` gives: a value for each example and True, or their mean and False."""
    try:
        found = torch.as_tensor(score(outputs, targets)).detach()
        values = found.double().flatten().tolist()
    except (*MISFITS, KeyError) as error:
        said = str(error).split("\n")[0]
        raise InputError(
            f"score: {name}(outputs, targets) fails: {said}; batches are (inputs, targets) pairs or mappings with a "
            "label, and it is given the network's outputs"
        ) from error
    if len(values) not in (1, size):
        raise InputError(
            f"score: {name} gives {counted(len(values), 'value')} for a batch of {counted(size, 'example')}; give one "
            "for each example, or their mean"
        )
    if not all(math.isfinite(value) and value >= 0 for value in values):
        wrong = next(value for value in values if not (math.isfinite(value) and value >= 0))
        raise InputError(f"score: {name} gives {wrong:g}; scores must be finite and not negative (ratios are taken)")
    return values, len(values) == size and found.ndim > 0


def calibration_of(batches: Batches) -> Callable[[nn.Module], None]:
    """Return a function that runs a network on the first batches, without their targets, as calibration."""

    def run(model: nn.Module) -> None:
        done = 0
        for number, size in enumerate(batches.sizes):
            if done >= CALIBRATION_EXAMPLES:
                return
            run_batch(model, inputs_and_targets(batches[number])[0])
            done += size

    return run


@dataclass(frozen=True)
class ModuleNetworks:
    """A module on hardware, for evaluation; the module itself is untouched."""

    model: nn.Module
    calibration: Calibration
    """Batches, a function that runs the network, or the statistics that `measure_inputs` gives."""
    label: str
    recipe: MappingRecipe = NEAREST
    """The way in which weights become levels."""
    swept: tuple[MappingRecipe, ...] = ()
    """All recipes of a sweep over recipes, for which calibration measures, too."""

    def with_recipe(self, recipe: MappingRecipe) -> ModuleNetworks:
        """See `Networks`."""
        return replace(self, calibration=self.statistics, recipe=recipe)

    @cached_property
    def facts(self) -> CheckpointFacts:
        """See `Networks`."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return CheckpointFacts(Path(self.label), "module", digest.hexdigest())

    def __getstate__(self) -> dict[str, Any]:
        # statistics are measured once, here; other processes are sent them
        return self.__dict__ | {"calibration": self.statistics}

    reference_sha256 = None
    calibrated_on = None
    has_full_precision = True
    stored_seed = 0

    @property
    def stored_spec(self) -> HardwareSpec:
        """See `Networks`."""
        raise InputError("a module is mapped on some hardware; name it: hardware='physical'")

    @cached_property
    def statistics(self) -> Mapping[str, InputStatistics]:
        """The statistics of the inputs of all matrices, measured once for all chips."""
        given = self.calibration
        if isinstance(given, Mapping):
            return given_statistics(given)
        return measure_inputs(self.model, given, **measurements([self.recipe, *self.swept]))

    def target(self, spec: HardwareSpec | None, seed: int | None) -> Target:
        """See `Networks`. Raises InputError as `map_model` does."""
        given = spec or self.stored_spec
        given, recipe = allotted_hardware(self.model, given, self.statistics, seed or 0, self.recipe)
        digital, chosen, statistics = digital_twin(self.model, given, self.statistics, seed or 0, recipe)
        network = RunningModule(copy.deepcopy(self.model).eval())
        remedy = "use calibration data that reach them"
        fit_chip = chip_fitter(self.model, chosen, statistics, recipe)
        networks = (digital, network, network, remedy, None, fit_chip)
        return Target(self.facts.path, chosen, seed or 0, statistics, *networks)
