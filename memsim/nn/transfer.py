"""What a layer's hardware computes on average, fast enough to train through it: everything but programming spread and
read noise, and, to train against them, the spread as it would be on another chip at every step.
"""

from __future__ import annotations

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
from memsim.errors import InputError
from memsim.spec import CalibratedAdc, HardwareSpec

BANK_ROWS, BANK_COLUMNS = 128, 256  # 2^15 pairs of cells of each digit
CALIBRATION_ROWS = 64  # of a step, where a layer comes alive between two calibrations


@dataclass(frozen=True)
class Spread:
    """How far the cells of a step are from their mean: `size` times what programming does, drawn by `key`."""

    key: int
    size: float


class HardwareTransfer(nn.Module):
    """x -> the product with a matrix of levels, through DAC, cells in their mean states, tiles and ADC.

    `spec` is the layer's own, its bits set. With `spread` (set for a step by who trains) cells are in states drawn from
    a bank of programmed ones instead. `calibrate` sets the tensors; `epoch` [] says in which of a training's.
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
        shape = _adc_range_shape(spec, row_tiles, slices)
        self.register_buffer("epoch", torch.tensor(1))
        self.register_buffer("gain_per_ampere", torch.ones(()))
        self.register_buffer("adc_range", torch.ones(shape))
        self._drive: Drive | None = None
        self._is_silent: bool | None = None

    def calibrate(self, levels: Tensor, scale: Tensor, statistics: InputStatistics) -> None:
        """Set gain and ADC range as mapping `levels` [out, in / groups] would."""
        levels = levels.to(torch.int8 if bits_of(self.spec) <= 8 else torch.int16)
        if getattr(self.spec.adc, "method", None) == "max":  # the largest of the sample has to do
            statistics = statistics.taken_as_all()
        matrix = MappedMatrix.from_levels(self.name, levels, scale, _exact(self.spec), 0, statistics, self.groups)
        if matrix.gain_per_ampere is not None:
            self.gain_per_ampere.copy_(matrix.gain_per_ampere)
        if matrix.adc_range is not None:
            self.adc_range.copy_(matrix.adc_range)
        if isinstance(self.spec.adc, CalibratedAdc) and not statistics.absmax:
            self.adc_range.fill_(convert.LEAST_RANGE)  # until there are inputs
        self._drive = self._is_silent = None

    def forward(self, x: Tensor, levels: Tensor, scale: Tensor, full_scale: float) -> Tensor:
        """[..., in] -> [..., out], float32, in the units of x @ W.T; `levels` [out, in / groups] are whole numbers."""
        product = self.programmed(levels, scale, full_scale)([x.reshape(-1, x.shape[-1])])
        return product.view(*x.shape[:-1], len(levels))

    @torch.no_grad()
    def programmed(self, levels: Tensor, scale: Tensor, full_scale: float) -> Callable[[Iterable[Tensor]], Tensor]:
        """What reads cells that hold `levels`: parts of the rows [n, in] to their product [n, out], as `forward`.

        In training, a transfer that was calibrated when no column had a signal is calibrated to the first rows that
        give one.
        """
        spec, where = self.spec, levels.device

        def operators() -> Operator | PackedOperator:
            significances = encode.slice_significances(bits_of(spec), spec.weights.cell_bits).to(where)
            drive = replace(self._base_drive(), input_range=full_scale)
            tiling = tiling_for(levels.shape, spec, self.groups)
            difference = self._difference(tiling.spread(levels))

            def operator(_: int, outputs: slice) -> Operator:
                adc = (significances, spec.adc, self.adc_range)
                return Operator.make(drive, difference[..., outputs], None, spec.tile.rows, *adc)

            return packed(tiling, operator)

        with torch.autocast(where.type, enabled=False):
            whole = operators()

        @torch.no_grad()
        def read(parts: Iterable[Tensor]) -> Tensor:
            nonlocal whole
            with torch.autocast(where.type, enabled=False):
                products = []
                for rows in parts:
                    if self._comes_alive(rows.float(), levels, scale, full_scale):
                        whole = operators()
                    products.append(whole.read(rows.float()))
                product = products[0] if len(products) == 1 else torch.cat(products)
                return product.mul_(scale * full_scale)

        return read

    def _comes_alive(self, rows: Tensor, levels: Tensor, scale: Tensor, full_scale: float) -> bool:
        """Whether this was calibrated when no column had a signal and now is anew, to rows [n, in] that give one."""
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
        """For a full-scale input of 1: its tables hold for any."""
        if self._drive is None:
            one = torch.ones(1, 1, dtype=torch.int8, device=self.adc_range.device)
            arrays = ProgrammedArrays(self.name, _exact(self.spec), one, None)
            self._drive = arrays.drive(1.0, float(self.gain_per_ampere))
        return self._drive

    def _difference(self, levels: Tensor) -> Tensor:
        """[slices, in, out]: r_pos - r_neg."""
        spec = self.spec
        digits = encode.to_slices(levels, bits_of(spec), spec.weights.cell_bits).transpose(1, 2).contiguous()
        if spec.cell == "ideal":
            return digits.float()
        magnitudes = digits.abs().int()
        bank = pair_bank(spec, str(levels.device))
        difference = bank.means[magnitudes]
        if self.spread is not None and self.spread.size > 0:
            draws = rng.generator(self.spread.key, self.name, device=levels.device)
            pairs = bank.deviations.shape[1]
            chosen = torch.randint(pairs, digits.shape, generator=draws, dtype=torch.int32, device=levels.device).add_(
                magnitudes, alpha=pairs
            )
            deviation = bank.deviations.view(-1).index_select(0, chosen.view(-1)).view_as(difference)
            difference.add_(deviation, alpha=self.spread.size)
        return torch.where(digits < 0, -difference, difference)

    def _load_from_state_dict(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        self._drive = self._is_silent = None  # they are made from the tensors that are replaced
        super()._load_from_state_dict(*arguments)

    def _apply(self, fn, recurse: bool = True) -> HardwareTransfer:  # type: ignore[no-untyped-def]
        self._drive = None  # it lives where the tensors did
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"hardware={self.spec.name}"


@dataclass(frozen=True)
class PairBank:
    """Programmed pairs of cells, the positive one holding a digit and the negative one none.

    `means` [digits]: r_pos - r_neg of cells that are all in their mean states; `deviations` [digits, pairs]: how far
    pairs are from it.
    """

    means: Tensor
    deviations: Tensor


@lru_cache(maxsize=16)
def pair_bank(spec: HardwareSpec, where: str) -> PairBank:
    """Of each digit, as the spec's scheme programs it (and as relaxation, drift and faults leave it)."""
    cell_bits = spec.weights.cell_bits
    one_slice = spec.with_settings({"weights.bits": cell_bits + 1})

    def difference(digit: int, spec: HardwareSpec, shape: tuple[int, int]) -> Tensor:
        levels = torch.full(shape, digit, dtype=torch.int8, device=where)
        scale = torch.ones(1, device=where)
        return MappedMatrix.from_levels(f"bank/{digit}", levels, scale, spec, 0).arrays.difference().flatten()

    digits = range(1 << cell_bits)
    exact = _exact(one_slice)
    means = torch.cat([difference(digit, exact, (1, 1)) for digit in digits])
    pairs = torch.stack([difference(digit, one_slice, (BANK_COLUMNS, BANK_ROWS)) for digit in digits])
    return PairBank(means, pairs - means[:, None])


def _statistics_of(rows: Tensor, full_scale: float) -> InputStatistics:
    """Those of input rows [n, features], all of which are the sample."""
    flat = rows.flatten().cpu()
    histogram = MagnitudeHistogram(2, mantissa_bits=4)
    histogram.add(torch.stack([-flat, flat]).clamp_min(0))
    counts = (histogram.counts / len(flat)).float()
    absmax = float(histogram.largest.max())
    return InputStatistics(absmax, histogram.edges, counts, rows, torch.ones(len(rows)), full_scale)


def require_trainable(spec: HardwareSpec, layer: str) -> None:
    """Raise InputError where a layer's spec has what training cannot go through."""
    if spec.wires is not None:
        raise InputError(f"{layer}: training does not go through wires; --set wires=none")
    if spec.dac is not None and spec.dac.range == "per_vector":
        raise InputError(f"{layer}: training needs one full-scale input a layer; --set dac.range=per_layer")
    if spec.dac is not None and spec.dac.bits is None:
        raise InputError(f"{layer}: training goes through the codes of a DAC; --set dac.bits=12 has fine ones")


@lru_cache(maxsize=64)
def _exact(spec: HardwareSpec) -> HardwareSpec:
    """`spec` with every cell in the mean state of its level, and reads without noise."""
    effects = dict.fromkeys(("read_noise", "read_disturb", "faults", "retention"), "none")
    if spec.cell == "ideal":
        return spec.with_settings(effects)
    return spec.with_settings(effects | {"programming.exact": True, "programming.relaxation": "none"})


def _adc_range_shape(spec: HardwareSpec, row_tiles: int, slices: int) -> tuple[int, int]:
    granularity = getattr(spec.adc, "granularity", "layer")
    return row_tiles if granularity == "tile" else 1, 1 if granularity == "layer" else slices
