"""Mapping the layers of any nn.Module onto simulated arrays."""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from memsim.arguments import require_types
from memsim.crossbar.input_transform import InputTransform
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.ranges import needs_inputs
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.hardware import HardwareSpec, Verify, load_hardware
from memsim.nn.allotment import allotted
from memsim.nn.batches import Progress
from memsim.nn.calibration import (
    Calibration,
    CalibrationData,
    calibrate,
    evaluating,
    given_statistics,
    silent_inputs,
    without_ranges,
)
from memsim.nn.chip import ChipMapping, trim, way_of_trims, with_mapping
from memsim.nn.deviation import Deviation, deviating, deviation, first_few, largest
from memsim.nn.layer_adapters import (
    MappableLayer,
    mappable_layers,
    quantised_matrices,
    replace_modules,
)
from memsim.nn.plan import (
    MappedLayer,
    Plan,
    Selection,
    chosen_bits,
    plan_modules,
    unmatched_globs,
    usable_scale,
)
from memsim.nn.rounding import TrainedScale
from memsim.nn.sources import effective_weight
from memsim.post_training.allotment import Allotment
from memsim.post_training.fitting import LayerFit, MappingReport, fitted
from memsim.post_training.inputs import InputFit, chosen_transform, describe
from memsim.post_training.moments import mean_of, moments_of
from memsim.post_training.read_back import cell_outcomes
from memsim.post_training.recipe import NEAREST, MappingRecipe, load_mapping, measurements


def map_model(
    model: nn.Module,
    spec: HardwareSpec | str | Path | Mapping[str, Any],
    *,
    bits: int | None = None,
    seed: int = 0,
    trial: int = 0,
    calibration: Calibration | None = None,
    mapping: MappingRecipe | str | Path | Mapping[str, Any] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress = lambda name, done: None,
) -> nn.Module:
    """Return a copy of `model` whose layers run on simulated arrays (see `ADAPTERS`); `model` itself is untouched.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> batches = [torch.randn(16, 64) for _ in range(4)]
    >>> chip = memsim.map_model(model, "physical", bits=4, seed=0, calibration=batches)
    >>> chip(batches[0]).shape
    torch.Size([16, 10])
    >>> [(layer.name, layer.tiling.cells) for layer in chip.mapping.mapped]
    [('0', 98304), ('2', 98304)]

    Args:
        model: the network, or a layer by itself.
        spec: the hardware, as `load_hardware` takes it.
        bits: weight bits, in place of the spec's (where neither says, those a layer was trained for, else 8).
        seed: the chip; matrices draw their cells by (seed, name).
        trial: distinguishes repeated reads of one chip in their noise.
        calibration: what sets converter ranges: batches to run the model on (a tensor, a tuple of arguments, or a
            mapping of named ones each; labels that a network of one argument does not take are left out), a function
            that runs the network it is given (a copy), or statistics by matrix name. Batches and functions are run
            twice: ADC ranges come from the noiseless read of all inputs through the cells of this chip. Statistics (see
            `measure_inputs`) hold a sample of the inputs, and no maximum of a signal. Without it a spec with converters
            cannot be run.
        mapping: the recipe by which weights become levels, as `load_mapping` takes it; None rounds to the nearest.
        include: globs over the names of matrices; only matrices that match one of them are mapped. A matrix has the
            name of its layer; where a layer has several, their names are like `encoder.lstm.weight_hh_l0` and
            `encoder.attention.q_proj`. A matrix in several places, or that several layers share, goes by all of its
            names, as it does for the globs of the spec. The matrix of a `model` that is itself a layer has the name of
            the layer's class: `linear`, `conv2d`.
        exclude: globs over the same names; matrices that match one of them stay digital.
        progress: called with "calibration" and the fraction of the batches that have run (where their number is known),
            then, for a recipe that allots bits, with "allotment" and the fraction of the measurements, then with
            "programming" and the fraction of the cells, then with "converter ranges" for the second run of
            the batches; `progress=print` shows it.

    The copy has the attribute `mapping` (a `ChipMapping`): what was mapped, what stayed digital and why, clip rates,
    and how far each product is from the digital one. Globs of the spec that match no layer are warned of, and so are
    matrices that saw only zeros in calibration, or whose products deviate so far that the network can hardly work.
    Raises InputError for weights that hold NaN or Inf, `include` and `exclude` globs that match nothing, networks that
    cannot be mapped as they are, and a calibration that runs none of their layers; running a layer that the calibration
    never reached raises it, too, and so does computing with the weight of a layer on arrays past the layer.
    """
    require_types(map_model, locals())
    seed = int(seed)  # of numpy's numbers
    spec = load_hardware(spec)
    if bits is not None:
        spec = spec.with_settings({"weights.bits": int(bits)})
    recipe = load_mapping(mapping)
    spec = recipe.on(spec, bits=bits)
    with evaluating(model):
        _require_mappable(model)
        layers = mappable_layers(model)
        plan = plan_modules(model, spec, Selection(include, exclude))
        for glob in unmatched_globs(plan, spec):
            warnings.warn(f"{spec.name}: {glob} matches no layer", stacklevel=2)
        data, statistics = None, dict[str, InputStatistics]()
        if isinstance(calibration, Mapping):
            statistics = given_statistics(calibration)
        elif calibration is not None:
            data = _calibration_data(model, layers, calibration, progress)
            statistics = data.statistics({layer.name for layer in plan.mapped}, **measurements([recipe]))
            _require_reached(statistics, (layer.source.is_lookup for layer in plan.mapped))
        statistics = plan.completed(statistics)
        doubts = [
            silent_inputs(plan, statistics),
            without_ranges(plan, statistics) if calibration is not None else None,
        ]
        if not plan.mapped:
            doubts.append("no layer is on arrays: the network has none that can be mapped, or all are kept digital")
        for doubt in filter(None, doubts):
            warnings.warn(doubt, stacklevel=2)
        weight_of, trained = functools.partial(_weight_of, model), _trained_scales(layers)
        allotment = None
        if recipe.allot is not None and plan.mapped:
            plan_on = functools.partial(plan_modules, model, selection=Selection(include, exclude))
            arguments = (recipe, weight_of, trained, seed, statistics, functools.partial(progress, "allotment"))
            spec, plan, allotment = allot(spec, plan_on, *arguments)
        matrices, deviations = {}, {}
        on_cells = functools.partial(progress, "programming")
        on_cells(0.0)
        fits: dict[str, tuple[LayerFit, float]] = {}
        for layer in program(plan, weight_of, trained, seed, statistics, data, on_cells, recipe):
            matrices[layer.name], fits[layer.name] = layer.matrix, (layer.fit, layer.fit_seconds)
            if layer.deviation is not None:
                deviations[layer.name] = layer.deviation
        if not plan.cells:
            on_cells(1.0)
        if (warning := deviating(deviations)) is not None:
            warnings.warn(warning, stacklevel=2)
        # replaced layers are not copied: their weights may be large, or computed ones that cannot be copied
        replaced = _replacements(layers, matrices)
        memo: dict[int, Any] = {**replaced}
        chip = _copied(model, memo)
        for old in layers:
            if (new := replaced.get(id(old.module))) is not None:
                old.part_from(new, memo)
        report = report_of(recipe, fits, seed, allotment)
        on_chip = ChipMapping(
            plan, chosen_bits(spec, plan), seed, matrices, ReadContext(seed, trial), deviations, report
        )
        return with_mapping(chip, on_chip)


@dataclass(frozen=True)
class ProgrammedLayer:
    """A layer of a plan with its matrix on arrays.

    Attributes:
        layer: the layer.
        matrix: the calibrated matrix.
        deviation: that of its product; None where its inputs are not known.
        fit: what the mapping recipe did.
        fit_seconds: the seconds that it took.
    """

    layer: MappedLayer
    matrix: MappedMatrix
    deviation: Deviation | None
    fit: LayerFit
    fit_seconds: float

    @property
    def name(self) -> str:
        """The name of the layer."""
        return self.layer.name


def _weight_of(model: nn.Module, layer: MappedLayer) -> Tensor:
    """Return the weight [out, in / groups] of a layer of `model`. Raises InputError where it cannot be mapped."""
    weight = layer.source.matrix(effective_weight(model, layer.source.tensor))
    if weight.is_meta or weight.is_complex():
        problem = "has no values yet (it is on the meta device)" if weight.is_meta else "is complex"
        raise InputError(f"{layer.name}: its weight {problem}; exclude=[{layer.name!r}] keeps it digital")
    if not torch.isfinite(weight).all():
        raise InputError(f"{layer.name}: its weight holds NaN or Inf")
    return weight


def _trained_scales(layers: Iterable[MappableLayer]) -> dict[str, TrainedScale | None]:
    """Return what matrices were trained for, by name, for those that were trained with quantisers."""
    return {name: product.trained_scale for name, product in quantised_matrices(list(layers)).items()}


def allot_model(
    model: nn.Module,
    spec: HardwareSpec,
    recipe: MappingRecipe,
    statistics: Mapping[str, InputStatistics],
    seed: int,
) -> HardwareSpec:
    """Return `spec` with the bits, copies and digital layers that `recipe` allots to the layers of `model`.

    `statistics` are the inputs of its matrices. Raises InputError as `memsim.nn.allotment.allotted` does.
    """
    with evaluating(model):
        plan_on = functools.partial(plan_modules, model, selection=Selection())
        trained = _trained_scales(mappable_layers(model))
        statistics = plan_on(spec).completed(statistics)
        weight_of = functools.partial(_weight_of, model)
        return allot(spec, plan_on, recipe, weight_of, trained, seed, statistics, lambda done: None)[0]


def allot(
    spec: HardwareSpec,
    plan_on: Callable[[HardwareSpec], Plan],
    recipe: MappingRecipe,
    weight_of: Callable[[MappedLayer], Tensor],
    trained: Mapping[str, TrainedScale | None],
    seed: int,
    statistics: Mapping[str, InputStatistics],
    progress: Callable[[float], None],
) -> tuple[HardwareSpec, Plan, Allotment]:
    """Return `spec` with the bits, copies and digital layers that `recipe` allots, the plan on it, and the choice.

    The arguments are those of `program` and `memsim.nn.allotment.allotted`, which raises InputError.
    """

    def errors_on(plan: Plan, progress: Callable[[float], None]) -> Iterator[tuple[str, float]]:
        for layer in program(plan, weight_of, trained, seed, statistics, None, progress, recipe):
            assert layer.deviation is not None  # the inputs of all layers in such a plan are known
            yield layer.name, largest(layer.deviation)

    if not statistics:
        names = [layer.name for layer in plan_on(spec).mapped]
        _require_inputs(f"mapping {recipe.name}", names, statistics, "use the mapping nearest")
    kept = {name for name, scale in trained.items() if scale is not None}
    spec, allotment = allotted(spec, plan_on, recipe, statistics, kept, errors_on, progress)
    return spec, plan_on(spec), allotment


def report_of(
    recipe: MappingRecipe,
    fits: Mapping[str, tuple[LayerFit, float]],
    seed: int,
    allotment: Allotment | None = None,
) -> MappingReport:
    """Return the report of what `recipe` did with each layer of the chip of `seed`, and in how many seconds."""
    seconds = sum(took for _, took in fits.values()) if recipe.needs_inputs or recipe.changes_inputs else None
    chip = seed if any(fit.cells_error is not None for fit, _ in fits.values()) else None
    return MappingReport(recipe, {name: fit for name, (fit, _) in fits.items()}, seconds, chip, allotment)


def program(
    plan: Plan,
    weight_of: Callable[[MappedLayer], Tensor],
    trained: Mapping[str, TrainedScale | None],
    seed: int,
    statistics: Mapping[str, InputStatistics],
    data: CalibrationData | None,
    progress: Callable[[float], None],
    recipe: MappingRecipe = NEAREST,
) -> Iterator[ProgrammedLayer]:
    """Fit the layers of `plan` as `recipe` says, program and calibrate them, and yield each.

    Each layer is finished and yielded before the next is programmed, and nothing of it is kept. Only where `data` run
    through the cells of all layers, to set ranges that depend on whole inputs (see `needs_inputs`), are all layers
    programmed first; each is let go when it is yielded.

    Args:
        plan: the layers.
        weight_of: gives the weight of a layer, [out, in / groups]; it is called again for the deviation.
        trained: what matrices were trained for, by name, for those that were trained with quantisers.
        seed: the seed of the chip.
        statistics: the inputs, by matrix; a matrix without them stays uncalibrated, and its deviation is None.
        data: the data that `statistics` were measured on, where the ranges are to be set by all inputs.
        progress: is called with the fraction of the cells that is programmed.
        recipe: the way in which weights become levels.

    Raises:
        InputError: where the recipe needs the inputs of layers, and nothing is known of them.
    """
    usable = {layer.name: usable_scale(layer, trained.get(layer.name)) for layer in plan.mapped}
    for name, own_training in trained.items():
        if name in statistics and own_training is not None and own_training.transform and usable.get(name) is None:
            # the range was trained for inputs that this transform gives
            statistics = {**statistics, name: replace(statistics[name], full_scale=None)}
    ways = {layer.name: way_of_trims(recipe.trim, layer.spec) for layer in plan.mapped}
    if compensated := [name for name, way in ways.items() if way is not None and recipe.trim is None]:
        _require_inputs("drift_compensation", compensated, statistics, "set it to none")
    if recipe.needs_inputs:
        fitted_ones = [layer.name for layer in plan.mapped if recipe.trim is not None or usable[layer.name] is None]
        _require_inputs(f"mapping {recipe.name}", fitted_ones, statistics, "use the mapping nearest")
    done, cells = 0, plan.cells
    are_held = data is not None and any(layer.name in statistics and needs_inputs(layer.spec) for layer in plan.mapped)
    for layers in [plan.mapped] if are_held else [(layer,) for layer in plan.mapped]:
        matrices, fits = dict[str, MappedMatrix](), dict[str, tuple[LayerFit, float]]()
        for layer in layers:
            name, own, started = layer.name, statistics.get(layer.name), time.perf_counter()
            matrix, fit = _fitted_matrix(layer, weight_of(layer), recipe, own, usable[name], seed)
            matrices[name], fits[name] = matrix, (fit, time.perf_counter() - started)
            del matrix
            done += layer.tiling.cells
            progress(done / cells)
        calibrate(matrices, statistics, data)
        for layer in layers:
            name, own, deviates = layer.name, statistics.get(layer.name), None
            fit, seconds = fits[name]
            if own is not None:
                exact = None if name in trained else weight_of(layer)
                if (way := ways[name]) is not None:
                    started = time.perf_counter()
                    fit = trim(matrices[name], own, way, seed, exact, fit)
                    seconds += time.perf_counter() - started
                deviates = deviation(matrices[name], own, exact, seed)
                del exact
            yield ProgrammedLayer(layer, matrices.pop(name), deviates, fit, seconds)


def _fitted_matrix(
    layer: MappedLayer,
    weight: Tensor,
    recipe: MappingRecipe,
    statistics: InputStatistics | None,
    trained: TrainedScale | None,
    seed: int,
) -> tuple[MappedMatrix, LayerFit]:
    """Fit the `weight` of a layer to its arrays as `recipe` says, and program it.

    `trained` is what it was trained with, which stays. Returns the matrix, without converter ranges, and what the
    recipe did.
    """
    name, groups, spec = layer.name, layer.source.groups, layer.spec
    moments, measured, mean = None, None, None
    if statistics is not None and recipe.needs_moments and trained is None:
        moments = moments_of(statistics, groups, centred=recipe.offsets, shrunk=True)
        measured = moments_of(statistics, groups, centred=recipe.offsets)
        mean = mean_of(statistics, groups) if recipe.offsets and moments is not None else None
    transform: InputTransform | None
    changed: InputFit | None
    if trained is not None and trained.transform is not None:
        transform = trained.transform.for_arrays(weight)
        changed, weight = describe(transform), trained.transform.weight(weight).detach()
    else:
        transform, changed = chosen_transform(
            name, weight, spec, recipe, statistics, groups=groups, is_trained=trained is not None
        )
        weight = weight if transform is None else transform.weight(weight)
    if transform is not None:
        moments, measured = (None if own is None else transform.moments(own) for own in (moments, measured))
        mean = None if mean is None else transform(mean.to(weight.device)).cpu()
    scale = None if trained is None else trained.scale
    outcomes = None
    if recipe.reads_back and moments is not None:
        outcomes = cell_outcomes(name, weight.shape, spec, seed, groups, weight.device)
    why = _why_without(statistics)
    found = fitted(weight, spec, recipe, moments, scale, groups, why, outcomes, mean, measured)
    own = found.levels, found.scale, spec, seed, None, groups, transform, found.offset
    matrix = MappedMatrix.from_levels(name, *own)
    if outcomes is not None and matrix.programming is not None:
        verify = spec.programming.verify or Verify()
        matrix.programming = matrix.programming.with_read_back(verify.read_seconds)
    return matrix, replace(found.fit, inputs=changed)


def _require_inputs(what: str, names: Sequence[str], statistics: Mapping[str, InputStatistics], remedy: str) -> None:
    """Raise InputError where `what` is to fit the layers `names`, and nothing is known of the inputs of any."""
    if names and not any(name in statistics for name in names):
        raise InputError(
            f"{what}: needs the inputs of {first_few(names)}, which are not known; calibrate "
            f"(--calibrate DATA; in Python, calibration=batches), or {remedy}"
        )


def _why_without(statistics: InputStatistics | None) -> str:
    """Return why there are no second moments of the inputs."""
    return "not reached by calibration" if statistics is None else "one-hot inputs"


def _calibration_data(
    model: nn.Module,
    layers: Sequence[MappableLayer],
    calibration: Callable[[nn.Module], object] | Iterable[Any],
    progress: Progress,
) -> CalibrationData:
    """Return data that run a copy of `model`, since a network may change as it runs."""
    # the weights of layers that can be mapped never change, and may be large, or computed ones that cannot be copied
    kept: dict[int, Any] = {}
    for module in (module for layer in layers for module in layer.module.modules()):
        tensors = (*module.parameters(False), *module.buffers(False), *vars(module).values())
        kept |= {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}
    return CalibrationData(_copied(model, kept), calibration, progress)


def _require_reached(statistics: Mapping[str, InputStatistics], are_lookups: Iterable[bool]) -> None:
    """Raise InputError where there are no statistics although there are layers that are no look-ups."""
    if not statistics and not all(are_lookups):
        raise InputError(
            "calibration: it ran none of the layers to be mapped; give batches, or a function that runs the network it "
            "is given"
        )


def measure_inputs(
    model: nn.Module,
    batches: Callable[[nn.Module], object] | Iterable[Any],
    *,
    with_moments: bool = False,
    with_sensitivity: bool = False,
    progress: Progress = lambda name, done: None,
) -> dict[str, InputStatistics]:
    """Measure the inputs of each layer of `model`, once for the calibration of any number of chips.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> statistics = memsim.measure_inputs(model, [torch.randn(16, 64) for _ in range(4)])
    >>> chips = [memsim.map_model(model, "physical", seed=seed, calibration=statistics) for seed in range(3)]

    The statistics are by the names of matrices, and hold for any hardware. `batches` are what `map_model` takes as
    `calibration`: batches to run `model` on, or a function that runs the network it is given. A copy runs, in
    evaluation mode. `progress` is called with "calibration" and the fraction of the batches that have run. With
    `with_moments`, the second moments of the inputs are measured in the same run, which mapping recipes other than
    `nearest` use; each takes the square of the number of inputs in memory. `with_sensitivity`, one more run measures
    how far the network's outputs depend on each matrix, which recipes with `allot` use. Raises InputError where no
    layer is reached that can be mapped.
    """
    require_types(measure_inputs, locals())
    if isinstance(batches, Mapping):
        raise InputError("batches: a mapping; a batch of named arguments goes in a list")
    with evaluating(model):
        _require_mappable(model)
        layers = mappable_layers(model)
        data = _calibration_data(model, layers, batches, progress)
        statistics = data.statistics(with_moments=with_moments, with_sensitivity=with_sensitivity)
        _require_reached(statistics, (layer.is_lookup for layer in layers))
        return statistics


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy `model` as copy.deepcopy does with `memo`. Raises InputError that names what cannot be copied."""
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a network's attributes may raise anything
        for name, module in model.named_modules():
            for attribute, value in vars(module).items():
                if attribute not in ("_modules", "_parameters", "_buffers"):
                    try:
                        copy.deepcopy(value, dict(memo))
                    except Exception:
                        where = f"{name}.{attribute}" if name else attribute
                        raise InputError(f"{where}: cannot be copied, so the network cannot: {error}") from error
        raise


def _require_mappable(model: nn.Module) -> None:
    """Raise InputError for a network that would not run on any arrays."""
    for name, module in model.named_modules():
        where = name or "the model"
        # torch.compile(network) and network.compile()
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise InputError(f"{where}: is compiled by torch.compile, which cannot trace arrays; map it uncompiled")
        if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(False)):
            raise InputError(f"{where}: is a {type(module).__name__} that has no weights yet; run the network once")


def _replacements(layers: Iterable[MappableLayer], matrices: Mapping[str, nn.Module]) -> dict[int, nn.Module]:
    """Return the layers on arrays for layers with a matrix among `matrices`, by the id of the layer they replace."""
    replaced = {id(layer.module): layer.mapped(matrices) for layer in layers}
    return {key: layer for key, layer in replaced.items() if layer is not None}


def install(model: nn.Module, layers: Iterable[MappableLayer], matrices: Mapping[str, nn.Module]) -> None:
    """Replace the layers of `model` by layers with `matrices` on arrays, under every name of a shared layer."""
    replace_modules(model, _replacements(layers, matrices))
