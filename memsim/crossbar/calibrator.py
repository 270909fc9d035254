"""Gain and converter ranges of a matrix, from its inputs: what a laboratory does once a chip is programmed.

The ADC's range comes from the noiseless read of the chip's own cells, of all inputs where they are at hand: they are
added in parts, in any order, and counted in a histogram of bounded size. No draw of rows decides, and no seed but that
of the cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memsim.crossbar import convert
from memsim.crossbar.cell import GainFit
from memsim.crossbar.drive import phase_count
from memsim.crossbar.histogram import MagnitudeHistogram
from memsim.crossbar.ranges import calibrated_adc_range, dac_range
from memsim.crossbar.read import split_planes
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.spec import CalibratedAdc, FixedAdc
from memsim.units import counted

if TYPE_CHECKING:
    from memsim.crossbar.matrix import MappedMatrix

MANTISSA_BITS = 9
"""Bins of signals are at most 0.2 % of their values wide, so an ADC's range is that much above the least possible."""
_CHUNK_VALUES = 1 << 21  # signals at a time


class Calibrator:
    """Calibrates a programmed matrix: what `statistics` decide at once, and the rest from its inputs.

    `add` takes the inputs, `finish` sets what they decide. Where `needs_inputs` is False none need be added.
    """

    def __init__(self, matrix: MappedMatrix, statistics: InputStatistics) -> None:
        """Set the range of the DAC, and the gain where it needs no whole inputs.

        Raises InputError for statistics of another number of features than the matrix has.
        """
        if statistics.sample.shape[1] != matrix.in_features:
            raise InputError(
                f"{matrix.name}: the input statistics are of {counted(statistics.sample.shape[1], 'feature')}, "
                f"the matrix has {matrix.in_features}; calibrate again"
            )
        spec = matrix.spec
        self._matrix = matrix
        self._statistics = statistics
        matrix.drop_operator()
        if spec.dac is not None and matrix.has_input_range:
            matrix.input_range = torch.tensor(dac_range(spec.dac, statistics), device=matrix.levels.device)
        self._gain: float | None = None
        self._fit: GainFit | None = None
        if spec.cell != "ideal":
            if spec.gain_per_ampere != "calibrated":
                self._gain = spec.gain_per_ampere
            elif spec.wires is None and matrix.has_input_range:
                self._gain = self._gain_of(*statistics.values())
            else:
                self._fit = GainFit()
        self._adc = spec.adc if isinstance(spec.adc, CalibratedAdc) else None
        self._signals = matrix.signal_reader(gain_per_ampere=1.0) if self.needs_inputs else None
        self._histogram: MagnitudeHistogram | None = None

    @property
    def needs_inputs(self) -> bool:
        """Whether whole inputs decide on the gain or on the range of the ADC."""
        return self._fit is not None or self._adc is not None

    def add(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Read inputs `x` [..., in] without noise; each counts `weights` [n] times (default: once)."""
        matrix = self._matrix
        rows = x.detach().reshape(-1, x.shape[-1]).float().to(matrix.levels.device)
        tiling = matrix.tiling
        values = tiling.row_tiles * tiling.slices * tiling.out_features * phase_count(matrix.spec.dac)
        chunk = max(1, _CHUNK_VALUES // values)
        weights = None if weights is None else weights.to(rows.device)
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            self._add(rows[part], None if weights is None else weights[part])

    @torch.no_grad()
    def _add_one_hot(self) -> None:
        """Read all inputs with a single 1: each drives one row of one tile, so its signals are those of its cells."""
        matrix = self._matrix
        drive = matrix.drive(gain_per_ampere=1.0, gives_volts=False)
        one = torch.ones(1, 1, device=matrix.levels.device)
        if self._fit is not None:
            self._fit_elements(self._fit, one.flatten(), None)
        if self._adc is None:
            return
        cells = split_planes(matrix.difference(), matrix.spec.tile.rows)  # [row_tiles, rows, slices, out]
        for phase in drive.phases:
            signals = cells * drive(phase, one, 1)[0].flatten()
            if self._adc.granularity == "layer":
                values = signals.reshape(1, -1)
            elif self._adc.granularity == "plane":
                values = signals.permute(2, 0, 1, 3).flatten(1)
            else:
                values = signals.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
            if self._histogram is None:
                self._histogram = MagnitudeHistogram(len(values), MANTISSA_BITS, one.device)
            self._histogram.add(values.contiguous())
            total = matrix.in_features * cells.shape[0] * cells.shape[2] * cells.shape[3] // len(values)
            self._histogram.rest += max(0, total - values.shape[1])  # the other tiles, whose rows are at 0

    @torch.no_grad()
    def _add(self, rows: Tensor, weights: Tensor | None) -> None:
        assert self._signals is not None
        matrix = self._matrix
        scaled, _ = matrix.in_range(rows)
        signals = self._signals(scaled).unflatten(1, (-1, len(rows)))  # [row_tiles, phases, n, slices, out]
        if self._fit is not None:
            self._fit_gain(self._fit, scaled, signals, weights)
        if self._adc is None:
            return
        by_input = signals.permute(2, 0, 3, 1, 4)  # [n, row_tiles, slices, phases, out]
        if self._adc.granularity == "layer":
            values = by_input.reshape(1, len(rows), -1)
        elif self._adc.granularity == "plane":
            values = by_input.permute(2, 0, 1, 3, 4).flatten(2)
        else:
            values = by_input.permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(2)
        each = None if weights is None else weights.repeat_interleave(values.shape[2])
        if self._histogram is None:
            self._histogram = MagnitudeHistogram(len(values), MANTISSA_BITS, rows.device)
        self._histogram.add(values.flatten(1), each)

    def _fit_gain(self, fit: GainFit, rows: Tensor, signals: Tensor, weights: Tensor | None) -> None:
        """Count what the inputs `rows` [n, in], in range, should give and what they give."""
        matrix = self._matrix
        if matrix.spec.wires is None:
            inputs = rows.flatten()
            each = None if weights is None else weights.repeat_interleave(rows.shape[1])
            self._fit_elements(fit, inputs, each)
            return
        # what line resistance takes depends on all cells of the matrix
        drive = matrix.drive(gain_per_ampere=1.0)
        worth = torch.tensor([phase.worth for phase in drive.phases], device=rows.device)
        got = torch.einsum("h,thnso,s->no", worth, signals, matrix.slice_worths()).double()
        inputs = (rows / drive.input_range).clamp(-1, 1).double().unflatten(1, (matrix.groups, -1))
        blocks = matrix.levels.double().unflatten(0, (matrix.groups, -1))
        wanted = torch.einsum("ngi,goi->ngo", inputs, blocks).flatten(1)
        each = torch.ones_like(wanted) if weights is None else weights.double()[:, None].expand_as(wanted)
        fit.add(wanted, got, each)

    def _fit_elements(self, fit: GainFit, inputs: Tensor, weights: Tensor | None) -> None:
        """Count what single cells at `inputs` [n] should give and what they give."""
        matrix = self._matrix
        drive = matrix.drive(gain_per_ampere=1.0, gives_volts=False)
        products = drive.response(inputs.to(matrix.levels.device)).double() * matrix.mean_window()
        wanted = (inputs.double() / drive.input_range).clamp(-1, 1)
        fit.add(wanted, products.to(wanted.device), torch.ones_like(wanted) if weights is None else weights.double())

    def _gain_of(self, inputs: Tensor, weights: Tensor | None = None) -> float | None:
        fit = GainFit()
        self._fit_elements(fit, inputs, weights)
        return fit.gain

    def finish(self) -> None:
        """Set gain and ADC range from the inputs that were added.

        Without any, the rows of the statistics are read, which are all inputs or a sample of them. Raises InputError
        where only a sample is at hand and the range is to hold the largest signal of all.
        """
        matrix, spec = self._matrix, self._matrix.spec
        if self.needs_inputs and self._histogram is None and (self._fit is None or self._fit.is_empty):
            if self._adc is not None and self._adc.method == "max" and not self._statistics.is_complete:
                raise InputError(
                    f"{matrix.name}: adc.method: max needs all calibration inputs, and there are only statistics of "
                    "them. Calibrate each chip with data (`memsim map --calibrate DATA --seed N`; in Python, "
                    "calibration=batches), which then runs as it is, or choose adc.method=percentile"
                )
            if self._statistics.is_one_hot and spec.wires is None:
                self._add_one_hot()
            else:
                for rows, weights in self._statistics.rows():
                    self.add(rows, weights)
        where = matrix.levels.device
        if spec.cell != "ideal":
            gain = self._gain if self._fit is None else self._fit.gain
            if not gain:  # no input ever drove a row, or no cell was to answer: the gain for all inputs that could be
                inputs = torch.linspace(-1, 1, 257, dtype=torch.float64)
                gain = self._gain_of(inputs * matrix.drive(gain_per_ampere=1.0).input_range)
            assert gain
            matrix.gain_per_ampere = torch.tensor(gain, device=where)
        if isinstance(spec.adc, FixedAdc):
            matrix.adc_range = torch.tensor([[convert.fixed_adc_range(spec.adc)]], device=where)
        elif self._adc is not None:
            matrix.adc_range = self._calibrated_range(self._adc)

    def _calibrated_range(self, config: CalibratedAdc) -> Tensor:
        """[row_tiles or 1, planes or 1], in units of (weight 1 x full-scale input)."""
        matrix, histogram = self._matrix, self._histogram
        tiling = matrix.tiling
        rows, slices = (tiling.row_tiles if config.granularity == "tile" else 1), tiling.slices
        assert histogram is not None
        chosen = calibrated_adc_range(config, histogram).view(rows, -1)
        chosen = chosen * (1.0 if matrix.gain_per_ampere is None else matrix.gain_per_ampere)
        if not (chosen > 0).all():  # no input made a signal: those that could be
            possible = matrix.largest_signals()
            possible = possible if rows > 1 else possible.amax(dim=0, keepdim=True)
            possible = possible if chosen.shape[1] == slices else possible.amax(dim=1, keepdim=True)
            chosen = torch.where(chosen > 0, chosen, possible)
        return chosen.clamp_min(convert.LEAST_RANGE)
