"""A network on arrays: its mapping, the reads of it, and the same network on other chips."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import RenderableType
from torch import Tensor, nn

from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.program import settings_of_states
from memsim.crossbar.read import ClipCounts, add_clips
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.nn.attention import refuse_fused_kernels
from memsim.nn.deviation import Deviation, exact_product
from memsim.nn.mapping_table import mapping_parts, summary_lines
from memsim.nn.plan import DigitalLayer, MappedLayer, Plan
from memsim.post_training.fitting import NEAREST, LayerFit, MappingReport
from memsim.post_training.trims import can_trim, fit_trims
from memsim.report.text import as_html, as_text
from memsim.units import counted


@dataclass(frozen=True)
class ClipRate:
    """The fraction of a layer's conversions that went beyond full scale; None where nothing was counted."""

    dac: float | None
    adc: float | None


@dataclass(repr=False)
class ChipMapping:
    """The part of a network that is on arrays, and the reads of them that are under way.

    `print` shows it as the table that `memsim map` prints, and so does a notebook.

    Every forward pass draws read noise of its own. `batch` and `begin_batch` key it, so that it can be repeated:

        with chip.mapping.batch("utterance 7"):
            tokens = chip.generate(speech)      # the same in every such block, whatever was read before
    """

    plan: Plan
    spec: HardwareSpec
    seed: int
    layers: dict[str, MappedMatrix]
    reads: ReadContext = field(default_factory=ReadContext)
    deviations: Mapping[str, Deviation] = field(default_factory=dict)
    """The deviation of each product from the exact one on calibration inputs; empty without calibration."""
    report: MappingReport | None = None
    """The record of what the mapping recipe did; None for a mapped file of memsim 0.1."""

    def __post_init__(self) -> None:
        for matrix in self.layers.values():
            matrix.reads = self.reads

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"ChipMapping({self.spec.title}, seed {self.seed}: {counted(len(plan.mapped), 'layer')} on "
            f"{counted(plan.cells, 'cell')} in {counted(plan.arrays, 'array')}, {len(plan.digital)} digital)"
        )

    def __str__(self) -> str:
        return as_text(*self._parts())

    def _repr_html_(self) -> str:
        return as_html(*self._parts())

    def _parts(self) -> list[RenderableType]:
        reports = {name: matrix.programming for name, matrix in self.layers.items() if matrix.programming is not None}
        parts = mapping_parts(self.plan, self.programming_errors(), reports, self.deviations)
        report = [] if self.report is None else [str(self.report)]
        return [f"{self.spec.title}, seed {self.seed}", *parts, *summary_lines(self.plan), *report]

    @property
    def mapped(self) -> tuple[MappedLayer, ...]:
        """The layers on arrays."""
        return self.plan.mapped

    @property
    def digital(self) -> tuple[DigitalLayer, ...]:
        """The layers and other tensors that stay digital, with the reasons."""
        return self.plan.digital

    @property
    def weights_on_arrays(self) -> int:
        """The number of weights in matrices on arrays."""
        return self.plan.weights_on_arrays

    @property
    def weights(self) -> int:
        """The number of weights in matrices, tables and other tensors of two or more dimensions, each counted once."""
        return self.plan.weights

    @property
    def fraction_on_arrays(self) -> float:
        """The fraction of the weights that is on arrays: see `Plan.weights`."""
        return self.plan.fraction_on_arrays

    def begin_batch(self, key: str) -> None:
        """Key the noise of the forward passes to come by `key`, until the next call.

        Passes after a call with the same key see the same noise, as they do in `batch`.
        """
        self.reads.begin(key)

    def batch(self, key: str) -> AbstractContextManager[None]:
        """Return a context that keys noise by `key`: the same forward passes, in the same order, see the same noise.

        When a context ends, the noise continues as if there had been no context. Contexts may be nested.
        """
        return self.reads.within(key)

    def programming_errors(self) -> dict[str, float]:
        """Return ||programmed - intended|| / ||intended|| of each matrix (Frobenius), by layer."""
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
        """Return the clips since `count_clips`, by layer, as plain numbers."""
        return {name: add_clips([matrix.clips]) for name, matrix in self.layers.items()}

    def clip_rates(self) -> dict[str, ClipRate]:
        """Return the clip rates since `count_clips`, by layer."""
        return {name: clip_rate([clips]) for name, clips in self.clips().items()}


def clip_rate(counts: Iterable[ClipCounts]) -> ClipRate:
    """Return the clip rate over all conversions of `counts` together."""
    clips = add_clips(counts)

    def rate(clipped: Tensor | int, total: int) -> float | None:
        return float(clipped) / total if total else None

    return ClipRate(rate(clips.dac_clipped, clips.dac_total), rate(clips.adc_clipped, clips.adc_total))


def remap(
    chip: nn.Module,
    spec: HardwareSpec,
    *,
    seed: int,
    trial: int = 0,
    statistics: Mapping[str, InputStatistics] | None = None,
) -> nn.Module:
    """Program another chip with the levels and scales of `chip` under `spec` from `seed`; `chip` is untouched.

    Each layer keeps its bits, and the layers on arrays stay those of `chip`. Trims belong to the cells of one chip:
    those of the new one are fitted to the products of levels and scales on the rows that `statistics` keep; layers
    without statistics get none. Raises InputError where the levels of `chip` correct cells that the new chip does not
    have (see `require_cells`), and where `chip` has scales for each row tile and the tiles of `spec` have other rows.
    """
    require_cells(chip, spec, seed)
    old_mapping = mapping_of(chip)
    known = old_mapping.plan.completed(statistics or {})
    report = old_mapping.report
    recipe_trim = None if report is None or spec.cell == "ideal" else report.recipe.trim
    fits = {} if report is None else dict(report.layers)

    def program(old: MappedMatrix, layer: MappedLayer) -> MappedMatrix:
        own = known.get(layer.name)
        matrix = old.programmed_again(layer.spec, seed, own)
        way = way_of_trims(recipe_trim, layer.spec)
        if way is not None and own is not None:
            fits[layer.name] = trim(matrix, own, way, seed, None, fits.get(layer.name, LayerFit(NEAREST)))
        return matrix

    remapped = _with_matrices(chip, spec, seed, trial, program)
    if report is not None and fits != report.layers:
        mapping_of(remapped).report = replace(report, layers=fits)
    return remapped


def way_of_trims(recipe_trim: str | None, spec: HardwareSpec) -> str | None:
    """Return the way in which a chip's results are trimmed: the recipe's, else that of drift compensation, else None.

    Both take out all that is static in a chip's reads, so the finer one does for both.
    """
    return recipe_trim if recipe_trim is not None or spec.cell == "ideal" else spec.drift_compensation


def trim(
    matrix: MappedMatrix, statistics: InputStatistics, way: str, seed: int, weight: Tensor | None, fit: LayerFit
) -> LayerFit:
    """Trim a calibrated `matrix` of the chip of `seed`, and return its `fit` with what that did.

    `way` is `column`, `tile`, or `layer` for one gain of the matrix. The products of the full-precision `weight` [out,
    in / groups] are wanted or, where it is None, those of levels and scales.
    """
    if not can_trim(matrix, statistics):
        return fit
    wanted = exact_product(matrix, statistics.sample, weight)
    found = fit_trims(matrix, statistics, wanted, way == "tile", seed, one_gain=way == "layer")
    matrix.trim_vectors = len(statistics.sample)
    if found.outputs:
        matrix.set_trims(found.gain, found.offset)
    errors = found.untrimmed_error, found.trimmed_error
    return replace(fit, trimmed=found.outputs, untrimmed_error=errors[0], trimmed_error=errors[1])


def require_cells(chip: nn.Module, spec: HardwareSpec, seed: int) -> None:
    """Raise InputError where the levels of `chip` correct the cells of a chip that `spec` and `seed` do not give.

    Cells are not those where a spec programs others than that of `chip`, unless one of both has ideal cells.
    """
    mapping = mapping_of(chip)
    report = mapping.report
    if report is None or report.chip is None or spec.cell == "ideal":
        return
    changed = mapping.spec.cell != "ideal" and any(
        settings_of_states(layer.spec) != settings_of_states(layer.on(spec).spec) for layer in mapping.mapped
    )
    if report.chip != seed or changed:
        other = f"seed {seed}" if report.chip != seed else f"hardware {spec.title}"
        raise InputError(
            f"mapping {report.recipe.name}: its levels correct the cells of one chip (seed {report.chip}), which were "
            f"read back as they were programmed, and are wrong on the cells of {other}; map or evaluate the unmapped "
            "checkpoint, which fits each chip for itself"
        )


def under(chip: nn.Module, spec: HardwareSpec, statistics: Mapping[str, InputStatistics] | None = None) -> nn.Module:
    """Return `chip` under another spec, with its levels, its seed, and its cells where `spec` programs them alike."""
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
    """Return a copy of `chip` on the chip `spec`, with matrices that `make` makes from its own."""
    old = mapping_of(chip)
    layers = [layer.on(spec) for layer in old.mapped]
    matrices = {layer.name: make(old.layers[layer.name], layer) for layer in layers}
    plan, reads = Plan(tuple(layers), old.digital), ReadContext(seed, trial)
    mapping = ChipMapping(plan, spec, seed, matrices, reads, report=old.report)
    memo: dict[int, Any] = {id(old.layers[name]): matrix for name, matrix in matrices.items()}
    return copy.deepcopy(chip, memo | {id(old): mapping})


@contextmanager
def swapped(chip: nn.Module, matrix: MappedMatrix) -> Iterator[None]:
    """Return a context in which `chip` has `matrix` in place of its own of that name, in every layer that shares it."""
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
    """Return the mapping of a chip. Raises TypeError for a network that is not on arrays."""
    mapping = getattr(chip, "mapping", None)
    if not isinstance(mapping, ChipMapping):
        raise TypeError(f"{type(chip).__name__} is not a mapped model")
    return mapping


def with_mapping(chip: nn.Module, mapping: ChipMapping) -> nn.Module:
    """Return `chip` in evaluation mode with `mapping` as its attribute."""
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
"""Methods by which networks of other libraries write themselves to files."""


def _refuse_to_save(way: str, *args: object, **options: object) -> None:
    """Refuse the call of method `way` of a network on arrays, whose file would be read as a network without weights."""
    raise InputError(
        f"{way}: the weights of a mapped network are on arrays, where other libraries do not find them; "
        "memsim.save_checkpoint(path, chip.state_dict(), {}) saves the chip, and the network that was mapped still has "
        f"its weights: use its {way}"
    )
