"""The transfer of a layer's hardware, fast enough to train through it.

It is the mean over chips and reads: all non-idealities but programming spread and read noise. For training against the
spread, every step can have cells as on another chip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from memsim import rng
from memsim.crossbar import convert, encode
from memsim.crossbar.arrays import ProgrammedArrays
from memsim.crossbar.drive import Drive
from memsim.crossbar.encode import bits_of
from memsim.crossbar.histogram import MagnitudeHistogram
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.read import Operator, PackedOperator, packed
from memsim.crossbar.statistics import InputStatistics
from memsim.crossbar.tiling import tiling_for
from memsim.device import Device, load_device_on
from memsim.errors import InputError
from memsim.hardware import CalibratedAdc, HardwareSpec
from memsim.nn import compiled_cells
from memsim.portable.kernels import is_compiled

BANK_ROWS, BANK_COLUMNS = 128, 256  # 2^15 pairs of cells for each digit; a power of 2
MOST_CELL_BITS = 8
"""The most bits of a cell in training, whose bank holds 2^15 pairs for each of its digits."""
CALIBRATION_ROWS = 64  # the rows of a step that calibrate a layer whose signal has become other than 0


@dataclass(frozen=True)
class Spread:
    """The deviation of the cells of a step from their mean: `size` times that of programming, drawn with `key`."""

    key: int
    size: float


class HardwareTransfer(nn.Module):
    """The product with a matrix of levels through DAC, cells in their mean states, tiles and ADC.

    `spec` is the layer's own, with its bits. With `spread`, which the training loop sets for each step, the cells'
    states are drawn from a bank of programmed cells instead. `calibrate` sets the tensors; `epoch` [] is the epoch of
    training to which they belong.
    """

    epoch: Tensor
    gain_per_ampere: Tensor
    adc_range: Tensor

    def __init__(self, name: str, spec: HardwareSpec, row_tiles: int, groups: int = 1) -> None:
        super().__init__()
        self.name = name
        self.spec = spec
        self.groups = groups
        self.spread: Spread | None = None
        slices = encode.slices_of(bits_of(spec), spec.weights.cell_bits)
        granularity = getattr(spec.adc, "granularity", "layer")
        shape = (row_tiles if granularity == "tile" else 1, 1 if granularity == "layer" else slices)
        self.register_buffer("epoch", torch.tensor(1))
        self.register_buffer("gain_per_ampere", torch.ones(()))
        self.register_buffer("adc_range", torch.ones(shape))
        self._drive: Drive | None = None
        self._bank: PairBank | None = None
        self._is_silent: bool | None = None

    def calibrate(self, levels: Tensor, scale: Tensor, statistics: InputStatistics) -> None:
        """Set gain and ADC range as mapping the `levels` [out, in / groups] would."""
        levels = levels.to(torch.int8 if bits_of(self.spec) <= 8 else torch.int16)
        if (
            getattr(self.spec.adc, "method", None) == "max"
        ):  # the maximum over all inputs is not known, only that of the sample
            statistics = statistics.taken_as_all()
        matrix = MappedMatrix.from_levels(self.name, levels, scale, _exact(self.spec), 0, statistics, self.groups)
        if matrix.gain_per_ampere is not None:
            self.gain_per_ampere.copy_(matrix.gain_per_ampere)
        if matrix.adc_range is not None:
            self.adc_range.copy_(matrix.adc_range)
        if isinstance(self.spec.adc, CalibratedAdc) and not statistics.absmax:
            self.adc_range.fill_(convert.LEAST_RANGE)  # until there are inputs other than 0
        self._drive = self._is_silent = None

    @torch.no_grad()
    def programmed(self, levels: Tensor, scale: Tensor, full_scale: float) -> Callable[[Iterable[Tensor]], Tensor]:
        """Return a function that multiplies rows [n, in], given in parts, giving [n, out] in float32.

        The product is in the units of x @ W.T. `levels` [out, in / groups] are whole numbers, `scale` is [out], [1] or
        [row_tiles, out], and `full_scale` is the input at the DAC's full scale. In training, a transfer that was
        calibrated when no column had a signal is calibrated again, to the first rows that give one.
        """
        spec, where = self.spec, levels.device
        of_tiles, of_sum = (scale.float(), full_scale) if scale.ndim == 2 else (None, scale * full_scale)

        def operators() -> Operator | PackedOperator:
            significances = encode.slice_significances(bits_of(spec), spec.weights.cell_bits).to(where)
            drive = replace(self._base_drive(), input_range=full_scale)
            tiling = tiling_for(levels.shape, spec, self.groups)
            cells = self._cells(tiling.spread(levels))
            rows = min(spec.tile.rows, tiling.in_features)  # nothing is added by the rows that a matrix does not use

            def operator(_: int, outputs: slice) -> Operator:
                part, adc, range_ = cells.of_outputs(outputs), spec.adc, self.adc_range
                factors = None if of_tiles is None else of_tiles[:, outputs]
                if adc is None or not is_compiled(levels):
                    planes = (part.difference(), None, rows, significances)
                    return Operator.make(drive, *planes, adc, range_, tile_factors=factors)
                planes_of = (part.shape, part.columns, significances)
                return Operator.of_columns(drive, rows, *planes_of, adc, range_, factors)

            return packed(tiling, operator)

        with torch.autocast(where.type, enabled=False):
            whole = operators()

        @torch.no_grad()
        def read(parts: Iterable[Tensor]) -> Tensor:
            nonlocal whole
            with torch.autocast(where.type, enabled=False):
                products = []
                for rows in parts:
                    if self._recalibrate_if_silent(rows.float(), levels, scale, full_scale):
                        whole = operators()
                    products.append(whole.read(rows.float()))
                product = products[0] if len(products) == 1 else torch.cat(products)
                return product.mul_(of_sum)

        return read

    def _recalibrate_if_silent(self, rows: Tensor, levels: Tensor, scale: Tensor, full_scale: float) -> bool:
        """Calibrate to `rows` [n, in] if no column has had a signal so far and they give one; return whether it did."""
        if self._is_silent is None:
            self._is_silent = bool(self.adc_range.max() <= convert.LEAST_RANGE)
        if not (self.training and self._is_silent and levels.any()):
            return False
        driven = rows[rows.any(dim=1)]
        if len(driven):
            sample = driven[:: -(-len(driven) // CALIBRATION_ROWS)]
            self.calibrate(levels, scale, _statistics_of(sample, full_scale))
        return not self._is_silent

    def _base_drive(self) -> Drive:
        """Return the drive for a full-scale input of 1, whose tables hold for any."""
        if self._drive is None:
            one = torch.ones(1, 1, dtype=torch.int8, device=self.adc_range.device)
            arrays = ProgrammedArrays(self.name, _exact(self.spec), one, None)
            self._drive = arrays.drive(1.0, float(self.gain_per_ampere))
        return self._drive

    def _cells(self, levels: Tensor) -> _Cells:
        """Return the cells of the step that hold `levels` [out, in]."""
        spec, where = self.spec, levels.device
        rows_of_states = _rows_of_states(bits_of(spec), spec.weights.cell_bits, where)
        size = 0.0 if self.spread is None else self.spread.size
        if spec.cell == "ideal":
            size, largest_digit = 0.0, (1 << spec.weights.cell_bits) - 1
            states = torch.arange(-largest_digit, largest_digit + 1.0, device=where)[:, None]
        else:
            self._bank = self._bank or pair_bank(spec, str(where))
            states = self._bank.states(size)
        draws = None
        if self.spread is not None and size > 0:
            shape = (len(rows_of_states), levels.shape[1], levels.shape[0])
            draws = _drawn(math.prod(shape), rng.generator(self.spread.key, self.name, device=where)).view(shape)
        return _Cells(levels, rows_of_states, draws, states)

    def _load_from_state_dict(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        self._drive = self._is_silent = None  # both are computed from the tensors that are replaced
        super()._load_from_state_dict(*arguments)

    def _apply(self, fn, recurse: bool = True) -> HardwareTransfer:  # type: ignore[no-untyped-def]
        self._drive = self._bank = None  # they are on the device where the tensors were
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """Return the name of the hardware."""
        return f"hardware={self.spec.name}"


@dataclass(frozen=True)
class _Cells:
    """The pairs of cells that hold `levels` [out, in] in a step of training.

    `rows_of_states` [slices, levels] are the rows of `states` [signed digits, pairs] for each level, from the most
    negative one; the last bits of `draws` [slices, in, out], int16, are the pairs, and None is the first pair.
    """

    levels: Tensor
    rows_of_states: Tensor
    draws: Tensor | None
    states: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of slices, inputs and outputs."""
        return len(self.rows_of_states), self.levels.shape[1], self.levels.shape[0]

    def of_outputs(self, outputs: slice) -> _Cells:
        """Return the cells of some outputs."""
        draws = None if self.draws is None else self.draws[..., outputs]
        return replace(self, levels=self.levels[outputs], draws=draws)

    def difference(self) -> Tensor:
        """Return r_pos - r_neg [slices, in, out]."""
        pairs = self.states.shape[1]
        places = (self.levels.T + self.rows_of_states.shape[1] // 2).int().flatten()
        chosen = torch.stack([row.index_select(0, places) for row in pairs * self.rows_of_states]).view(self.shape)
        if self.draws is not None:
            chosen += self.draws.int().bitwise_and_(pairs - 1)
        return self.states.view(-1).index_select(0, chosen.view(-1)).view(self.shape)

    def columns(self, factors: Tensor, result: Tensor) -> None:
        """Write r_pos - r_neg times `factors` [row_tiles, slices * out] to `result`: see `compiled_cells.columns`."""
        compiled_cells.columns(self.levels, self.rows_of_states, self.draws, self.states, factors, result)


@lru_cache(maxsize=64)
def _rows_of_states(bits: int, cell_bits: int, where: torch.device) -> Tensor:
    """Return the row [slices, levels], int32, of each level's digit in a table of the signed digits in their order."""
    largest = encode.max_level(bits)
    levels = torch.arange(-largest, largest + 1, device=where)[:, None]
    return encode.to_slices(levels, bits, cell_bits)[..., 0].int() + ((1 << cell_bits) - 1)


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """Draw 16 random bits [count], int16: four from each word of 64 bits."""
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(1 << 63), None, generator=generator)
    return words.view(torch.int16)[:count]


@dataclass(frozen=True, eq=False)
class PairBank:
    """Programmed pairs of cells, of which the positive one holds a digit and the negative one holds 0.

    `means` [digits] is r_pos - r_neg with both cells in their mean states; `deviations` [digits, pairs] are the pairs'
    deviations from it.
    """

    means: Tensor
    deviations: Tensor

    @lru_cache(maxsize=2)  # noqa: B019  # the banks are kept, too
    def states(self, size: float) -> Tensor:
        """Return r_pos - r_neg [2 * digits - 1, pairs], or of one pair in the mean state where `size` is 0.

        The rows are those of the digits from the largest negative one, whose cells are exchanged, to the largest.
        `size` is the factor on the deviations.
        """
        states = self.means[:, None]
        if size > 0:
            states = states.expand_as(self.deviations).add(self.deviations, alpha=size)
        return torch.cat([-states[1:].flip(0), states])


def pair_bank(spec: HardwareSpec, where: str) -> PairBank:
    """Return pairs for each digit, programmed by the spec's scheme, with its relaxation, drift and faults.

    Drift is compensated by one gain where the spec does, by layer or by column. `where` is the name of the device that
    holds the tensors.
    """
    return _bank(spec, where, load_device_on(spec.cell, torch.device(where)))


@lru_cache(maxsize=16)
def _bank(spec: HardwareSpec, where: str, _: Device) -> PairBank:
    """Return what `pair_bank` does, for the cells that the spec's file has now."""
    cell_bits = spec.weights.cell_bits
    one_slice = spec.with_settings({"weights.bits": cell_bits + 1})

    def difference(digit: int, spec: HardwareSpec, shape: tuple[int, int]) -> Tensor:
        levels = torch.full(shape, digit, dtype=torch.int8 if digit < 128 else torch.int16, device=where)
        scale = torch.ones(1, device=where)
        return MappedMatrix.from_levels(f"bank/{digit}", levels, scale, spec, 0).arrays.difference().flatten()

    digits = range(1 << cell_bits)
    exact = _exact(one_slice)
    means = torch.cat([difference(digit, exact, (1, 1)) for digit in digits])
    pairs = torch.stack([difference(digit, one_slice, (BANK_COLUMNS, BANK_ROWS)) for digit in digits])
    if spec.drift_compensation is not None:  # by the gain that all pairs have in common
        became = pairs.mean(dim=1)
        pairs *= (means @ became) / (became @ became)
    return PairBank(means, pairs - means[:, None])


def _statistics_of(rows: Tensor, full_scale: float) -> InputStatistics:
    """Return the statistics of input rows [n, features], all of which are in the sample."""
    histogram = MagnitudeHistogram(2, mantissa_bits=4)
    histogram.add_by_sign(rows.cpu())
    counts = (histogram.counts / rows.numel()).float()
    absmax = float(histogram.largest.max())
    return InputStatistics(absmax, histogram.edges, counts, rows, torch.ones(len(rows)), full_scale)


def require_trainable(spec: HardwareSpec, layer: str) -> None:
    """Raise InputError where a layer's spec has a non-ideality or a DAC that training does not model."""
    if spec.wires is not None:
        raise InputError(f"{layer}: training does not model line resistance; --set wires=none")
    if spec.dac is not None and spec.dac.range == "per_vector":
        raise InputError(f"{layer}: training needs one full-scale input for a layer; --set dac.range=per_layer")
    if spec.cell != "ideal" and spec.weights.cell_bits > MOST_CELL_BITS:
        raise InputError(
            f"{layer}: training draws cells of at most {MOST_CELL_BITS} bits, and analog weights of "
            f"{spec.weights.bits} bits have {spec.weights.cell_bits}; --bits {MOST_CELL_BITS + 1}"
        )
    if spec.dac is not None and spec.dac.bits is None:
        raise InputError(f"{layer}: training needs the codes of a DAC; --set dac.bits=12 gives fine ones")


@lru_cache(maxsize=64)
def _exact(spec: HardwareSpec) -> HardwareSpec:
    """Return `spec` with every cell in the mean state of its level, and without read noise."""
    none = dict.fromkeys(("read_noise", "read_disturb", "faults", "retention", "read_at_seconds"), "none")
    if spec.cell == "ideal":
        return spec.with_settings(none)
    return spec.with_settings(none | {"programming.exact": True, "programming.relaxation": "none"})
