"""Gain and converter ranges of programmed arrays, found from inputs as a laboratory would calibrate a chip.

The ADC's range comes from noiseless reads of the chip's own cells, of all inputs where they are at hand. Inputs are
added in parts, in any order, and counted in a histogram of bounded size. The result depends on the cells and on the
inputs, and on no draw of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from memsim.crossbar import convert
from memsim.crossbar.arrays import ProgrammedArrays
from memsim.crossbar.cell import GainFit
from memsim.crossbar.drive import phase_count
from memsim.crossbar.histogram import MagnitudeHistogram
from memsim.crossbar.ranges import (
    calibrated_adc_range,
    dac_range,
    fits_gain,
    has_input_range,
    in_range,
    needs_inputs,
)
from memsim.crossbar.read import split_planes
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.hardware import CalibratedAdc
from memsim.units import counted

MANTISSA_BITS = 9
"""Bins of signals are at most 0.2 % of their values wide, and so is the excess of an ADC's range over the least one."""
_CHUNK_VALUES = 1 << 21  # signals at a time


@dataclass(frozen=True)
class ConverterRanges:
    """The tensors that calibration finds; None where the spec has no use for one.

    Attributes:
        input_range: [], the input that drives full scale.
        gain_per_ampere: [], from currents to signals in units of (weight 1 x full-scale input).
        adc_range: [row_tiles or 1, slices or 1], full scale of the ADC in those units.
    """

    input_range: Tensor | None = None
    gain_per_ampere: Tensor | None = None
    adc_range: Tensor | None = None


RANGES = tuple(field.name for field in fields(ConverterRanges))
"""Names of the tensors that calibration finds."""


class Calibrator:
    """Finds the converter ranges of programmed arrays from statistics of their input and, where needed, from inputs.

    `add` takes inputs and `finish` returns the ranges. Where `needs_inputs` is False, the statistics suffice.
    """

    def __init__(self, arrays: ProgrammedArrays, statistics: InputStatistics) -> None:
        """Find the range of the DAC, and the gain where it depends on single input values alone.

        Raises InputError for statistics of another number of features than the matrix has.
        """
        self._features = arrays.groups * arrays.levels.shape[1]
        if statistics.sample.shape[1] != self._features:
            raise InputError(
                f"{arrays.name}: the input statistics are of {counted(statistics.sample.shape[1], 'feature')}, "
                f"the matrix has {self._features}; calibrate again"
            )
        spec = arrays.spec
        transform = arrays.input_transform
        at_dac = statistics if transform is None else transform.statistics(statistics)
        self._arrays = arrays
        self._statistics = statistics
        self._dac_range: Tensor | None = None
        if spec.dac is not None and has_input_range(spec):
            self._dac_range = torch.tensor(dac_range(spec.dac, at_dac), device=arrays.device)
        self._input_range = 1.0 if self._dac_range is None else float(self._dac_range)
        self._gain: float | None = None
        self._fit: GainFit | None = None
        if spec.cell != "ideal":
            if spec.gain_per_ampere != "calibrated":
                self._gain = spec.gain_per_ampere
            elif fits_gain(spec):
                self._fit = GainFit()
            else:
                self._gain = self._gain_of(*at_dac.values())
        self._adc = spec.adc if isinstance(spec.adc, CalibratedAdc) else None
        self._signals = arrays.signal_reader(self._input_range, 1.0) if self.needs_inputs else None
        self._histogram: MagnitudeHistogram | None = None

    @property
    def needs_inputs(self) -> bool:
        """Whether the gain or the range of the ADC depends on whole inputs."""
        return needs_inputs(self._arrays.spec)

    def add(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Read inputs `x` [..., in] without noise; each counts `weights` [n] times (default: once)."""
        arrays = self._arrays
        rows = x.detach().reshape(-1, x.shape[-1]).float().to(arrays.device)
        if arrays.input_transform is not None:
            rows = arrays.input_transform(rows)
        tiling = arrays.tiling
        values = tiling.row_tiles * tiling.slices * tiling.out_features * phase_count(arrays.spec.dac)
        chunk = max(1, _CHUNK_VALUES // values)
        weights = None if weights is None else weights.to(rows.device)
        for first in range(0, len(rows), chunk):
            part = slice(first, first + chunk)
            self._add(rows[part], None if weights is None else weights[part])

    @torch.no_grad()
    def _add_one_hot(self) -> None:
        """Read all inputs with a single 1, each of which drives one row: its signals are those of single cells."""
        arrays = self._arrays
        drive = arrays.drive(self._input_range, 1.0, gives_volts=False)
        one = torch.ones(1, 1, device=arrays.device)
        if self._fit is not None:
            self._fit_elements(self._fit, one.flatten(), None)
        if self._adc is None:
            return
        cells = split_planes(arrays.difference(), arrays.spec.tile.rows)  # [row_tiles, rows, slices, out]
        for phase in drive.phases:
            signals = cells * drive(phase, one, 1)[0].flatten()
            histogram = self._count(self._adc, signals)
            # the other tiles, whose rows are at 0 V
            total = self._features * cells.shape[0] * cells.shape[2] * cells.shape[3]
            histogram.rest.add_(max(0, total - signals.numel()) // len(histogram.rest))

    @torch.no_grad()
    def _add(self, rows: Tensor, weights: Tensor | None) -> None:
        assert self._signals is not None
        scaled, _ = in_range(self._arrays.spec.dac, rows)
        signals = self._signals(scaled)  # [row_tiles, phases * n, slices, out]
        if self._fit is not None:
            self._fit_gain(self._fit, scaled, signals.unflatten(1, (-1, len(rows))), weights)
        if self._adc is not None:
            phases = signals.shape[1] // len(rows)
            self._count(self._adc, signals, None if weights is None else weights.repeat(phases))

    def _count(self, config: CalibratedAdc, signals: Tensor, weights: Tensor | None = None) -> MagnitudeHistogram:
        """Count signals [row_tiles, n, slices, out], each `weights` [n] times, by the full scale that they share."""
        tiles, n, slices, _ = signals.shape
        groups = torch.arange(tiles * slices, dtype=torch.int32, device=signals.device).view(tiles, slices)
        if config.granularity != "tile":
            groups = (groups if config.granularity == "plane" else torch.zeros_like(groups))[:1].expand(tiles, slices)
        if self._histogram is None:
            self._histogram = MagnitudeHistogram(int(groups.max()) + 1, MANTISSA_BITS, signals.device)
        of_rows = groups[:, None].expand(tiles, n, slices).flatten()
        each = None if weights is None else weights[:, None].expand(tiles, n, slices).flatten()
        self._histogram.add(signals.flatten(0, 2), of_rows, each)
        return self._histogram

    def _fit_gain(self, fit: GainFit, rows: Tensor, signals: Tensor, weights: Tensor | None) -> None:
        """Count the wanted and the actual products of inputs `rows` [n, in], scaled into range."""
        arrays = self._arrays
        if arrays.spec.wires is None:
            inputs = rows.flatten()
            each = None if weights is None else weights.repeat_interleave(rows.shape[1])
            self._fit_elements(fit, inputs, each)
            return
        # the IR drop of a column depends on all cells of the matrix, so whole products are compared
        drive = arrays.drive(self._input_range, 1.0)
        significances = torch.tensor([phase.significance for phase in drive.phases], device=rows.device)
        got = torch.einsum("h,thnso,s->no", significances, signals, arrays.significances()).double()
        inputs = (rows / drive.input_range).clamp(-1, 1).double().unflatten(1, (arrays.groups, -1))
        blocks = arrays.levels.double().unflatten(0, (arrays.groups, -1))
        wanted = torch.einsum("ngi,goi->ngo", inputs, blocks).flatten(1)
        each = torch.ones_like(wanted) if weights is None else weights.double()[:, None].expand_as(wanted)
        fit.add(wanted, got, each)

    def _fit_elements(self, fit: GainFit, inputs: Tensor, weights: Tensor | None) -> None:
        """Count the wanted and the actual products of single cells at `inputs` [n]."""
        arrays = self._arrays
        drive = arrays.drive(self._input_range, 1.0, gives_volts=False)
        products = drive.response(inputs.to(arrays.device)).double() * arrays.mean_window()
        wanted = (inputs.double() / drive.input_range).clamp(-1, 1)
        fit.add(wanted, products.to(wanted.device), torch.ones_like(wanted) if weights is None else weights.double())

    def _gain_of(self, inputs: Tensor, weights: Tensor | None = None) -> float | None:
        fit = GainFit()
        self._fit_elements(fit, inputs, weights)
        return fit.gain

    def finish(self) -> ConverterRanges:
        """Return the ranges of the inputs that were added.

        Where none were added, the rows of the statistics are read, which are all inputs or a sample of them. Raises
        InputError where they are a sample and the range is to hold the largest signal of all inputs.
        """
        arrays, spec = self._arrays, self._arrays.spec
        if self.needs_inputs and self._histogram is None and (self._fit is None or self._fit.is_empty):
            if self._adc is not None and self._adc.method == "max" and not self._statistics.is_complete:
                raise InputError(
                    f"{arrays.name}: adc.method: max needs all calibration inputs, but only their statistics are "
                    "stored. Calibrate each chip with data (`memsim map --calibrate DATA --seed N`; in Python, "
                    "calibration=batches) or choose adc.method=percentile"
                )
            if self._statistics.is_one_hot and spec.wires is None:
                self._add_one_hot()
            else:
                for rows, weights in self._statistics.rows():
                    self.add(rows, weights)
        gain_per_ampere: Tensor | None = None
        if spec.cell != "ideal":
            gain = self._gain if self._fit is None else self._fit.gain
            if not gain:  # no input drove a row, or all levels are 0: take the gain over all possible inputs
                gain = self._gain_of(torch.linspace(-1, 1, 257, dtype=torch.float64) * self._input_range)
            assert gain
            gain_per_ampere = torch.tensor(gain, device=arrays.device)
        adc_range: Tensor | None = None
        if (given := convert.adc_range_of_spec(spec.adc)) is not None:
            adc_range = torch.tensor([[given]], device=arrays.device)
        elif self._adc is not None:
            adc_range = self._calibrated_range(self._adc, gain_per_ampere)
        return ConverterRanges(self._dac_range, gain_per_ampere, adc_range)

    def _calibrated_range(self, config: CalibratedAdc, gain_per_ampere: Tensor | None) -> Tensor:
        """Return the full scale [row_tiles or 1, slices or 1], in units of (weight 1 x full-scale input)."""
        arrays, histogram = self._arrays, self._histogram
        tiling = arrays.tiling
        rows, slices = (tiling.row_tiles if config.granularity == "tile" else 1), tiling.slices
        assert histogram is not None
        chosen = calibrated_adc_range(config, histogram).view(rows, -1)
        chosen = chosen * (1.0 if gain_per_ampere is None else gain_per_ampere)
        if not (chosen > 0).all():  # no input made a signal there: take the largest signal that one could make
            possible = arrays.largest_signals(1.0 if gain_per_ampere is None else float(gain_per_ampere))
            possible = possible if rows > 1 else possible.amax(dim=0, keepdim=True)
            possible = possible if chosen.shape[1] == slices else possible.amax(dim=1, keepdim=True)
            chosen = torch.where(chosen > 0, chosen, possible)
        return chosen.clamp_min(convert.LEAST_RANGE)
