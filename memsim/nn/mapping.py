"""Putting the layers of any nn.Module on simulated arrays."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from memsim import rng
from memsim.crossbar.matrix import MappedMatrix, Reads
from memsim.crossbar.read import ClipCounts, add_clips
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.nn.attention import refuse_fused_kernels
from memsim.nn.collect import collecting
from memsim.nn.front_ends import (
    MappableLayer,
    mappable_layers,
    quantised_matrices,
    replace_modules,
    require_names,
)
from memsim.nn.plan import (
    DigitalLayer,
    MappedLayer,
    Plan,
    Selection,
    chosen_bits,
    plan_modules,
    unmatched_globs,
    usable_scale,
)
from memsim.nn.sources import effective_weight
from memsim.spec import HardwareSpec, load_hardware

Calibration = Mapping[str, InputStatistics] | Callable[[nn.Module], object] | Iterable[Any]


@dataclass(frozen=True)
class ClipRate:
    """The fraction of conversions of a layer that went beyond full scale; None where nothing was counted."""

    dac: float | None
    adc: float | None


@dataclass
class ChipMapping:
    """What of a network is on arrays. `begin_batch` keys the read noise of the forward passes that follow."""

    plan: Plan
    spec: HardwareSpec
    seed: int
    layers: dict[str, MappedMatrix]
    reads: Reads = field(default_factory=Reads)

    def __post_init__(self) -> None:
        for matrix in self.layers.values():
            matrix.reads = self.reads

    @property
    def mapped(self) -> tuple[MappedLayer, ...]:
        return self.plan.mapped

    @property
    def digital(self) -> tuple[DigitalLayer, ...]:
        return self.plan.digital

    @property
    def weights_on_arrays(self) -> int:
        """Weights of the matrices that are on arrays."""
        return self.plan.weights_on_arrays

    @property
    def weights(self) -> int:
        """Weights of all matrices of the network, its tables and what else has two or more dimensions, each once."""
        return self.plan.weights

    @property
    def fraction_on_arrays(self) -> float:
        """The fraction of `weights` that is on arrays."""
        return self.plan.fraction_on_arrays

    def begin_batch(self, key: str) -> None:
        """The forward pass to come reads the batch `key`: the same key repeats its noise."""
        self.reads.begin(key)

    def programming_errors(self) -> dict[str, float]:
        """By layer: ||programmed - intended|| / ||intended|| of its matrix (Frobenius)."""
        return {name: matrix.programming_error() for name, matrix in self.layers.items()}

    def release(self) -> None:
        """Free what the layers keep between reads; the next read makes it anew, with the same result."""
        for matrix in self.layers.values():
            matrix.release()

    def count_clips(self) -> None:
        """Count the clips of the reads to come, from 0."""
        self.reads.count_clips = True
        for matrix in self.layers.values():
            matrix.clips = ClipCounts()

    def clips(self) -> dict[str, ClipCounts]:
        """What was counted since `count_clips`, by layer, as plain numbers."""
        return {name: add_clips([matrix.clips]) for name, matrix in self.layers.items()}

    def clip_rates(self) -> dict[str, ClipRate]:
        """Clip rates by layer since `count_clips`."""
        return {name: clip_rate([clips]) for name, clips in self.clips().items()}


def clip_rate(counts: Iterable[ClipCounts]) -> ClipRate:
    """Over all conversions of `counts` together."""
    clips = add_clips(counts)

    def rate(clipped: Tensor | int, total: int) -> float | None:
        return float(clipped) / total if total else None

    return ClipRate(rate(clips.dac_clipped, clips.dac_total), rate(clips.adc_clipped, clips.adc_total))


def map_model(
    model: nn.Module,
    spec: HardwareSpec | str | Path | Mapping[str, Any],
    *,
    bits: int | None = None,
    seed: int = 0,
    trial: int = 0,
    calibration: Calibration | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> nn.Module:
    """A copy of `model` whose layers run on simulated arrays (see `FRONT_ENDS`); `model` itself is untouched.

    Args:
        spec: the hardware, as `load_hardware` takes it.
        bits: weight bits, in place of the spec's (where neither says, those a layer was trained for, else 8).
        seed: the chip; matrices draw their cells by (seed, name).
        trial: distinguishes repeated reads of one chip in their noise.
        calibration: what sets converter ranges: batches to run the model on (a tensor, a tuple of arguments, or a
            mapping of named ones each), a function that runs the network it is given (a copy), or statistics by matrix
            name. Without it a spec with converters cannot be run.
        include, exclude: globs over the names of matrices, which are those of their layers; where a layer has several,
            they are named like `encoder.lstm.weight_hh_l0` and `encoder.attention.q_proj`. A matrix in several places,
            or that several layers share, goes by all of its names, as it does for the globs of the spec.

    The copy has the attribute `mapping` (a `ChipMapping`): what was mapped, what stayed digital and why, clip rates.
    Globs of the spec that match no layer are warned of. Raises InputError for weights that hold NaN or Inf, `include`
    and `exclude` globs that match nothing, networks that cannot be mapped as they are, and a calibration that runs none
    of their layers; running a layer that the calibration never reached raises it, too, and so does computing with the
    weight of a layer on arrays past the layer.
    """
    if not isinstance(spec, HardwareSpec):
        spec = load_hardware(spec)
    if bits is not None:
        spec = spec.with_settings({"weights.bits": bits})
    with evaluating(model):
        _require_mappable(model)
        layers = mappable_layers(model)
        require_names(model, layers)
        plan = plan_modules(model, spec, Selection(include, exclude))
        for glob in unmatched_globs(plan, spec):
            warnings.warn(f"{spec.name}: {glob} matches no layer", stacklevel=2)
        statistics = plan.completed(_statistics(model, layers, calibration, seed))
        quantised = quantised_matrices(layers)
        matrices = {}
        for layer in plan.mapped:
            weight = layer.source.matrix(effective_weight(model, layer.source.tensor))
            if weight.is_meta or weight.is_complex():
                problem = "has no values yet (it is on the meta device)" if weight.is_meta else "is complex"
                raise InputError(f"{layer.name}: its weight {problem}; exclude=[{layer.name!r}] keeps it digital")
            if not torch.isfinite(weight).all():
                raise InputError(f"{layer.name}: its weight holds NaN or Inf")
            scale = usable_scale(layer, quantised[layer.name].trained_scale if layer.name in quantised else None)
            known, groups = statistics.get(layer.name), layer.source.groups
            matrices[layer.name] = MappedMatrix.from_weight(layer.name, weight, layer.spec, seed, known, groups, scale)
        # what a layer on arrays replaces is not copied: its weights may be large, or computed ones that cannot be
        replaced = _replacements(layers, matrices)
        memo: dict[int, Any] = {**replaced}
        chip = _copied(model, memo)
        for old in layers:
            if (new := replaced.get(id(old.module))) is not None:
                old.part_from(new, memo)
        return with_mapping(chip, ChipMapping(plan, chosen_bits(spec, plan), seed, matrices, Reads(seed, trial)))


def _statistics(
    model: nn.Module, layers: Sequence[MappableLayer], calibration: Calibration | None, seed: int
) -> dict[str, InputStatistics]:
    """Those that `calibration` stands for. What has to be run is run on a copy: a network may change as it runs."""
    if calibration is None or isinstance(calibration, Mapping):
        return {} if calibration is None else measure(model, calibration)
    # the weights of layers that can be mapped never change, and may be large, or computed ones that cannot be copied
    kept: dict[int, Any] = {}
    for module in (module for layer in layers for module in layer.module.modules()):
        tensors = (*module.parameters(False), *module.buffers(False), *vars(module).values())
        kept |= {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}
    found = measure(_copied(model, kept), calibration, seed=seed)
    if not found and any(not layer.is_lookup for layer in layers):
        raise InputError(
            "calibration: it ran none of the layers that can be mapped; give batches, or a function that runs the "
            "network it is given"
        )
    return found


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """copy.deepcopy with `memo`. Raises InputError that names what cannot be copied."""
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a network's attributes raise
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
    """Raise InputError for a network that would not run on arrays whatever they are."""
    for name, module in model.named_modules():
        where = name or "the model"
        # torch.compile(network) and network.compile()
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise InputError(f"{where}: is compiled by torch.compile, which cannot trace arrays; map what was compiled")
        if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(False)):
            raise InputError(f"{where}: is a {type(module).__name__} that has no weights yet; run the network once")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While open, all of `model` is in evaluation mode, and no fused kernel passes its layers by.

    In training, some weights change when they are looked at.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training


def _replacements(layers: Iterable[MappableLayer], matrices: Mapping[str, nn.Module]) -> dict[int, nn.Module]:
    """By the id of each layer with a matrix among `matrices`: the layer in its place."""
    replaced = {id(layer.module): layer.mapped(matrices) for layer in layers}
    return {key: layer for key, layer in replaced.items() if layer is not None}


def remap(
    chip: nn.Module,
    spec: HardwareSpec,
    *,
    seed: int,
    trial: int = 0,
    statistics: Mapping[str, InputStatistics] | None = None,
) -> nn.Module:
    """Another chip with the levels and scales of `chip`, programmed anew under `spec` from `seed`; `chip` is untouched.

    Each layer keeps its bits, and the layers on arrays stay those of `chip`.
    """

    known = mapping_of(chip).plan.completed(statistics or {})

    def program(old: MappedMatrix, layer: MappedLayer) -> MappedMatrix:
        own = known.get(layer.name)
        return MappedMatrix.from_levels(layer.name, old.levels, old.scale, layer.spec, seed, own, old.groups)

    return _with_matrices(chip, spec, seed, trial, program)


def under(chip: nn.Module, spec: HardwareSpec, statistics: Mapping[str, InputStatistics] | None = None) -> nn.Module:
    """A copy of `chip` under another spec: its levels, its seed, and its cells where `spec` programs them alike."""
    mapping = mapping_of(chip)
    known = mapping.plan.completed(statistics or {})

    def change(old: MappedMatrix, layer: MappedLayer) -> MappedMatrix:
        return old.under(layer.spec, mapping.seed, known.get(layer.name))

    return _with_matrices(chip, spec, mapping.seed, mapping.reads.trial, change)


def _with_matrices(
    chip: nn.Module,
    spec: HardwareSpec,
    seed: int,
    trial: int,
    make: Callable[[MappedMatrix, MappedLayer], MappedMatrix],
) -> nn.Module:
    """A copy of `chip` whose matrices are made from its own, each for its layer on the chip `spec`."""
    old = mapping_of(chip)
    layers = [layer.on(spec) for layer in old.mapped]
    matrices = {layer.name: make(old.layers[layer.name], layer) for layer in layers}
    mapping = ChipMapping(Plan(tuple(layers), old.digital), spec, seed, matrices, Reads(seed, trial))
    memo: dict[int, Any] = {id(old.layers[name]): matrix for name, matrix in matrices.items()}
    return copy.deepcopy(chip, memo | {id(old): mapping})


@contextmanager
def swapped(chip: nn.Module, matrix: MappedMatrix) -> Iterator[None]:
    """While open, `chip` has `matrix` in place of its own of that name, in every layer that shares it."""
    mapping = mapping_of(chip)
    own, reads = mapping.layers[matrix.name], matrix.reads
    places = [(parent, name) for parent in chip.modules() for name, child in parent.named_children() if child is own]
    for parent, name in places:
        setattr(parent, name, matrix)
    matrix.reads = mapping.reads
    try:
        yield
    finally:
        matrix.reads = reads
        for parent, name in places:
            setattr(parent, name, own)


def mapping_of(chip: nn.Module) -> ChipMapping:
    """The mapping that `map_model` left on its copy."""
    mapping = getattr(chip, "mapping", None)
    if not isinstance(mapping, ChipMapping):
        raise TypeError(f"{type(chip).__name__} is not a mapped model")
    return mapping


def with_mapping(chip: nn.Module, mapping: ChipMapping) -> nn.Module:
    """`chip`, in evaluation mode, carrying `mapping`."""
    if isinstance(getattr(chip, "mapping", None), ChipMapping):
        raise InputError("the model is mapped already; map the original, or use remap for other hardware")
    if hasattr(chip, "mapping"):
        raise InputError(f"{type(chip).__name__} has an attribute `mapping` of its own, where memsim keeps its report")
    refuse_fused_kernels(chip)
    for module in chip.modules():
        for way in _WITHOUT_ARRAYS:
            if callable(getattr(module, way, None)):
                setattr(module, way, functools.partial(_refuse_to_save, way))
    chip.mapping = mapping  # type: ignore[assignment]
    return chip.eval()


_WITHOUT_ARRAYS = ("save_pretrained", "push_to_hub", "save_to_hub", "save_to")
"""Methods by which networks of others write themselves, for libraries that know nothing of arrays."""


def _refuse_to_save(way: str, *args: object, **options: object) -> None:
    """What the method `way` of a network on arrays does: the file would be read as a network without weights."""
    raise InputError(
        f"{way}: the weights of a mapped network are on arrays, where no other library looks for them; "
        "memsim.save_checkpoint(path, chip.state_dict(), {}) keeps the chip, and the network that was mapped still has "
        f"its weights: {way} that one"
    )


def install(model: nn.Module, layers: Iterable[MappableLayer], matrices: Mapping[str, nn.Module]) -> None:
    """Put layers with `matrices` on arrays in the place of those of `model`, each under every name that shares it."""
    replace_modules(model, _replacements(layers, matrices))


def measure(model: nn.Module, calibration: Calibration, *, seed: int = 0) -> dict[str, InputStatistics]:
    """Statistics of the input of every matrix that can be mapped: those given, or those of running `model` on the data.

    Of a convolution that are the windows; of a recurrent layer, apart, the inputs and the hidden states of all steps.
    A matrix that the data never reach has none, nor has an embedding (see `Plan.completed`).
    """
    if isinstance(calibration, Mapping):
        if not all(isinstance(value, InputStatistics) for value in calibration.values()):
            raise InputError(
                "calibration: a mapping is of statistics by matrix; a batch of named arguments goes in a list"
            )
        return dict(calibration)
    layers = [layer for layer in mappable_layers(model) if not layer.is_lookup]  # of which all is known
    with (
        evaluating(model),
        torch.no_grad(),
        collecting(layers, lambda name: rng.generator(seed, name, "statistics")) as collectors,
    ):
        if callable(calibration):
            calibration(model)
        else:
            for batch in calibration:
                _run(model, batch)
    quantised = quantised_matrices(layers)
    results = {name: collector.result() for name, collector in collectors.items()}
    return {
        name: replace(result, full_scale=quantised[name].full_scale) if name in quantised else result
        for name, result in results.items()
        if result is not None
    }


def _run(model: nn.Module, batch: Any) -> None:
    """`model` on a batch: an argument, several, or named ones."""
    if isinstance(batch, Mapping):
        model(**batch)
    elif type(batch) in (tuple, list):  # but not a PackedSequence
        model(*batch)
    else:
        model(batch)
