"""The one mapped matrix product: every layer that runs on arrays is a front end of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from memsim import rng
from memsim.crossbar import encode
from memsim.crossbar.calibrator import Calibrator
from memsim.crossbar.cell import IdealCell, MemristorCell
from memsim.crossbar.convert import AdcErrors
from memsim.crossbar.disturb import read_pulses
from memsim.crossbar.drive import Drive
from memsim.crossbar.faults import age, break_cells
from memsim.crossbar.ir_drop import WiredColumns
from memsim.crossbar.power import RowLoads, Work
from memsim.crossbar.program import mean_window as mean_current_window
from memsim.crossbar.program import program, relax
from memsim.crossbar.programming_report import ProgrammingReport
from memsim.crossbar.read import ClipCounts, Operator, PackedOperator, packed, split_planes, whole_blocks
from memsim.crossbar.statistics import InputStatistics
from memsim.crossbar.tiling import Tiling
from memsim.crossbar.uncompiled import uncompiled
from memsim.device import DeviceModel, load_device
from memsim.errors import InputError
from memsim.spec import HardwareSpec
from memsim.units import counted

CALIBRATED = ("input_range", "gain_per_ampere", "adc_range")
"""The tensors that calibration sets."""
ADC_ERRORS = ("adc_gain_error", "adc_offset_codes")
"""The tensors of converters with such errors."""


@dataclass
class ReadContext:
    """Which reads of which chip are under way: the key of their noise. One object is shared by a chip's matrices."""

    seed: int = 0
    trial: int = 0
    batch: str = ""
    count_clips: bool = False
    count_work: bool = False
    has_masked_rows: bool = False
    """Whether attention gave NaN for queries that see no key: from then on NaN gives NaN, and is no error."""
    _calls: Counter[str] = field(default_factory=Counter)

    def begin(self, batch: str) -> None:
        """The reads to come are of `batch`; beginning it again repeats its noise."""
        self.batch, self.has_masked_rows = batch, False
        self._calls.clear()

    @contextmanager
    def within(self, batch: str) -> Iterator[None]:
        """While open, the reads are of `batch`, begun anew; after it those from before go on as if it had not been."""
        before = self.batch, self.has_masked_rows, self._calls
        self.batch, self.has_masked_rows, self._calls = batch, False, Counter()
        try:
            yield
        finally:
            self.batch, self.has_masked_rows, self._calls = before

    def noise_key(self, name: str) -> int:
        """The key of the noise of the next read of matrix `name`."""
        self._calls[name] += 1
        return rng.derive_seed(self.seed, self.trial, name, "read", self.batch, self._calls[name])


class MappedMatrix(nn.Module):
    """A [out, in] matrix on simulated arrays: ``matrix(x)`` is x @ W.T as the chip computes it.

    A matrix of `groups` equal blocks on its diagonal, each [out / groups, in / groups], is given by them alone, one
    below the other: [out, in / groups]. See `Tiling` for how it lies on tiles.

    Tensors (those of a mapped checkpoint): `levels` [out, in / groups], `scale` [out] or [1]; `states` of the cells
    (none for ideal cells), float16, those of the positive array first, [slices, 2, copies, in, out] (for groups see
    `Tiling.shape`); `input_range` [], the input that drives full scale; `gain_per_ampere` []; `adc_range`
    [row_tiles or 1, slices or 1], full scale in units of (weight 1 x full-scale input). The last three are None until
    `calibrate` has set them, and where the spec has no use for them. `adc_gain_error` (relative) and `adc_offset_codes`
    [row_tiles, slices, out] are there where the spec's converters have such errors.

    `programming` says what programming took; None for ideal cells and for a matrix that was loaded.
    """

    levels: Tensor
    scale: Tensor
    states: Tensor | None
    input_range: Tensor | None
    gain_per_ampere: Tensor | None
    adc_range: Tensor | None
    adc_gain_error: Tensor | None
    adc_offset_codes: Tensor | None

    def __init__(
        self, name: str, spec: HardwareSpec, levels: Tensor, scale: Tensor, states: Tensor | None, groups: int = 1
    ) -> None:
        """`spec` is that of this layer: its bits set, no overrides left."""
        super().__init__()
        self.name = name
        self.spec = spec
        self.groups = groups
        self.reads = ReadContext()
        self.clips = ClipCounts()
        self.work = Work()
        self.programming: ProgrammingReport | None = None
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)
        self.register_buffer("states", states)
        for optional in (*CALIBRATED, *ADC_ERRORS):
            self.register_buffer(optional, None)
        self._operator: Operator | PackedOperator | None = None
        self._wired_columns: tuple[WiredColumns, ...] | None = None
        self._row_loads: RowLoads | None = None

    @classmethod
    def from_weight(
        cls,
        name: str,
        weight: Tensor,
        spec: HardwareSpec,
        seed: int,
        statistics: InputStatistics | None = None,
        groups: int = 1,
        scale: Tensor | None = None,
    ) -> MappedMatrix:
        """Quantise `weight` [out, in / groups] to the spec's bits and program it.

        `scale` ([out] or [1]) is fitted if None.
        """
        bits = bits_of(spec)
        if scale is None:
            scale = encode.fit_scale(weight, bits, spec.weights)
        levels = encode.quantise(weight, scale, bits)
        used = encode.without_idle_channels(scale, levels)
        return cls.from_levels(name, levels, used, spec, seed, statistics, groups)

    @classmethod
    def from_levels(
        cls,
        name: str,
        levels: Tensor,
        scale: Tensor,
        spec: HardwareSpec,
        seed: int,
        statistics: InputStatistics | None = None,
        groups: int = 1,
    ) -> MappedMatrix:
        """Program `levels` [out, in / groups] on fresh cells, drawn by (seed, name).

        Calibrates it if there are statistics.
        """
        states, report = _programmed(name, levels, spec, seed, groups)
        matrix = cls(name, spec, levels, scale, states, groups)
        matrix.programming = report
        matrix._set_converters(seed, statistics)
        return matrix

    def under(self, spec: HardwareSpec, seed: int, statistics: InputStatistics | None = None) -> MappedMatrix:
        """The levels of this matrix under another spec, on the same cells if that programs them alike.

        Everything else is drawn by (seed, name); `seed` is the one that this matrix has been programmed from.
        """
        if statistics is not None and getattr(spec.adc, "method", None) == "max":
            statistics = statistics.taken_as_all()  # to be compared on these rows
        if _cells(spec) != _cells(self.spec):
            return self.from_levels(self.name, self.levels, self.scale, spec, seed, statistics, self.groups)
        matrix = MappedMatrix(self.name, spec, self.levels, self.scale, self.states, self.groups)
        matrix.programming = self.programming
        if (spec.wires, spec.dac) == (self.spec.wires, self.spec.dac):
            matrix._wired_columns = self._wired_columns
            if (spec.adc, spec.gain_per_ampere) == (self.spec.adc, self.spec.gain_per_ampere) and self.is_calibrated:
                for name in CALIBRATED:
                    setattr(matrix, name, getattr(self, name))
                statistics = None
        matrix._set_converters(seed, statistics)
        return matrix

    def _set_converters(self, seed: int, statistics: InputStatistics | None) -> None:
        shape = (self.tiling.row_tiles, self.tiling.slices, len(self.levels))
        generator = rng.generator(seed, self.name, "converters", device=self.levels.device)
        errors = AdcErrors.draw(self.spec.adc, shape, generator)
        if errors is not None:
            self.adc_gain_error, self.adc_offset_codes = errors.gain, errors.offset_codes
        if statistics is not None:
            self.calibrate(statistics)

    @classmethod
    def from_tensors(cls, name: str, spec: HardwareSpec, tensors: dict[str, Tensor], groups: int = 1) -> MappedMatrix:
        """The matrix that a mapped checkpoint holds. Raises InputError when its tensors do not fit `spec`."""
        try:
            levels, scale = tensors["levels"], tensors["scale"].float()
            matrix = cls(name, spec, levels, scale, tensors.get("states"), groups)
        except KeyError as error:
            raise InputError(f"{name}: the mapped file lacks the tensor {error}; map the checkpoint again") from None
        tiling = matrix.tiling
        found = None if matrix.states is None else list(matrix.states.shape)
        expected = None if spec.cell == "ideal" else list(tiling.shape)
        if found != expected:
            raise InputError(f"{name}: states are {found}, but {tiling.bits} bits need {expected}; map it again")
        if matrix.scale.shape not in ((1,), (tiling.out_features,)):
            wanted = f"[{tiling.out_features}] or [1]"
            raise InputError(f"{name}: scale is {list(matrix.scale.shape)}, but it must be {wanted}; map it again")
        if misfit := _misfit(levels, spec):
            raise InputError(f"{name}: levels are {misfit}; map it again")
        lines, slices = tiling.row_tiles, tiling.slices
        shapes: dict[str, set[tuple[int, ...]]] = {
            "input_range": {()},
            "gain_per_ampere": {()},
            "adc_range": {(rows, digits) for rows in (1, lines) for digits in (1, slices)},
        }
        shapes |= {error: {(lines, slices, tiling.out_features)} for error in ADC_ERRORS}
        for optional in (*CALIBRATED, *ADC_ERRORS):
            if optional not in tensors:
                continue
            value = tensors[optional].float()
            if value.shape not in shapes[optional] or (optional in CALIBRATED and not (value > 0).all()):
                raise InputError(f"{name}: {optional} is {list(value.shape)}, or not above 0; map it again")
            setattr(matrix, optional, value)
        return matrix

    @property
    def tiling(self) -> Tiling:
        return tiling_of(self.levels, self.spec, self.groups)

    @property
    def in_features(self) -> int:
        return self.groups * self.levels.shape[1]

    @property
    def out_features(self) -> int:
        return self.levels.shape[0]

    @property
    def is_calibrated(self) -> bool:
        """Whether every range that the spec's converters and cells need is set."""
        return not (
            (self.has_input_range and self.input_range is None)
            or (self.spec.cell != "ideal" and self.gain_per_ampere is None)
            or (self.spec.adc is not None and self.adc_range is None)
        )

    def calibrate(self, statistics: InputStatistics) -> None:
        """Set input range, gain and ADC range from `statistics` alone; see `Calibrator` for doing so from the data."""
        Calibrator(self, statistics).finish()

    def signal_reader(self, gain_per_ampere: float) -> Callable[[Tensor], Tensor]:
        """What gives the noiseless column signals [row_tiles, phases * n, slices, out] of inputs [n, in]."""
        drive, tile_rows, tiling = self.drive(gain_per_ampere), self.spec.tile.rows, self.tiling
        difference = self.difference()
        packs = [tiling.pack(index)[1:] for index in range(tiling.packs)]
        wired = [self._wired(index) for index in range(tiling.packs)]
        columns = [split_planes(difference[..., outputs], tile_rows) for _, outputs in packs]

        def read(rows: Tensor) -> Tensor:
            by_pack = []
            for (inputs, _), arrays, cells in zip(packs, wired, columns, strict=True):
                signals = []
                for phase in drive.phases:
                    driven, _, _ = drive(phase, rows[:, inputs], tile_rows)
                    if arrays is None:
                        signals.append(torch.bmm(driven, cells.flatten(2)))
                    else:
                        signals.append(arrays.amperes(driven) * gain_per_ampere)
                by_pack.append(torch.cat(signals, dim=1).unflatten(2, cells.shape[2:]))
            return torch.cat(by_pack, dim=3)

        return read

    def largest_signals(self) -> Tensor:
        """[row_tiles, slices]: what the signals of a column, without line resistance, can be at most at any input."""
        ends = self.drive(gives_volts=False).cell.signal(torch.tensor([-1.0, 1.0], device=self.levels.device))
        columns = [
            split_planes(self.difference()[..., outputs], self.spec.tile.rows).abs().sum(dim=1).amax(dim=2)
            for outputs in (self.tiling.pack(index)[2] for index in range(self.tiling.packs))
        ]
        return torch.stack(columns).amax(dim=0) * ends.abs().max()

    def _wired(self, pack: int) -> WiredColumns | None:
        """The arrays of a pack between their wires, solved for once; None without wires."""
        if self.spec.wires is None:
            return None
        if self._wired_columns is None:
            cell = self.drive(gain_per_ampere=1.0).cell
            assert self.states is not None
            assert isinstance(cell, MemristorCell)
            packs = [self.tiling.pack(index) for index in range(self.tiling.packs)]
            self._wired_columns = tuple(
                WiredColumns.make(cell, self.states[..., outputs], tiling, self.spec.wires)
                for tiling, _, outputs in packs
            )
        return self._wired_columns[pack]

    def programming_error(self) -> float:
        """||programmed - intended|| / ||intended|| of the matrix (Frobenius), where the mean step between levels is 1.

        0 for ideal cells, and for a matrix of zeros, where there is nothing to relate the error to.
        """
        if self.states is None:
            return 0.0
        worths = self.slice_worths() / self.mean_window()
        programmed = torch.einsum("s,sio->io", worths, self.difference())
        intended = self.tiling.spread(self.levels).T.float()
        size = float(intended.norm())
        return float((programmed - intended).norm()) / size if size else 0.0

    def extra_repr(self) -> str:
        """Return the size, the bits, the arrays and the programming error of the matrix, for `print`."""
        tiling = self.tiling
        error = "ideal cells" if self.states is None else f"programming error {self.programming_error():.1%}"
        return (
            f"{self.in_features} -> {self.out_features}, {tiling.bits} bits, {counted(tiling.tiles, 'array')}, "
            f"{counted(tiling.cells, 'cell')}, {error}"
        )

    @property
    def has_input_range(self) -> bool:
        """Whether one input, the same for all vectors, drives full scale."""
        return has_input_range(self.spec)

    def in_range(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inputs [n, in] as the DAC takes them, and the range of each [n, 1] where every vector has its own."""
        if self.spec.dac is None or self.has_input_range:
            return rows, None
        largest = rows.abs().amax(dim=1, keepdim=True)
        ranges = torch.where(largest > 0, largest, torch.ones_like(largest))
        return rows / ranges, ranges

    def mean_window(self) -> float:
        spec = self.spec
        return mean_current_window(spec.programming, _device(spec, self.levels), spec.weights.cell_bits)

    def slice_worths(self) -> Tensor:
        """[slices]: what a digit of each slice counts."""
        spec = self.spec
        return encode.slice_worths(bits_of(spec), spec.weights.cell_bits).to(self.levels.device)

    @uncompiled
    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]: the product as the chip computes it, in the units of x @ W.T and the dtype of `x`.

        Raises InputError where the matrix is not calibrated, ValueError where `x` has another width, TypeError where it
        holds no floating-point numbers, FloatingPointError where they are NaN or Inf. Rows that hold any give NaN
        instead on other devices than a CPU, which are not waited for, and behind attention that gave NaN itself, for
        queries that see no key. No gradient flows through a read.
        """
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return self.stream([rows]).view(*x.shape[:-1], self.out_features)

    @uncompiled
    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """As `forward` of all rows [n, in] of `parts`, one or more, together, of which it holds one part at a time."""
        if not self.is_calibrated:
            raise InputError(
                f"{self.name}: the ranges of its converters are not calibrated; map the checkpoint with "
                "--calibrate DATA (in Python: map_model(..., calibration=batches))"
            )
        if self._operator is None:
            self._require_finite_states()
            self._operator = self._make_operator()
        noisy = self._operator.noise_columns is not None
        noise_key = self.reads.noise_key(self.name) if noisy else 0
        products: list[Tensor] = []
        first_frame = 0
        for rows in whole_blocks(parts):
            products.append(self._read(self._operator, rows.detach(), noise_key, first_frame))
            first_frame += len(rows)
        return products[0] if len(products) == 1 else torch.cat(products)

    def _read(self, operator: Operator | PackedOperator, x: Tensor, noise_key: int, first_frame: int) -> Tensor:
        """[n, in] -> [n, out], frames `first_frame` and on of a read."""
        if x.shape[1] != self.in_features:
            raise ValueError(
                f"{self.name}: its input has {counted(x.shape[1], 'feature')}, the matrix has {self.in_features}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{self.name}: its input is {x.dtype}; it must hold floating-point numbers")
        rows = x.float()
        # one sum tells, at a quarter of the price of looking at every value; a sum of huge values may overflow
        masked: Tensor | None = None
        if x.device.type != "cpu":  # to raise would be to wait for the device
            masked = ~torch.isfinite(rows).all(dim=1, keepdim=True)
        elif not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
            if not self.reads.has_masked_rows:
                raise FloatingPointError(f"{self.name}: its input holds NaN or Inf")
            masked = ~torch.isfinite(rows).all(dim=1, keepdim=True)
            rows = rows.masked_fill(masked, 0)
        clips = self.clips if self.reads.count_clips else None
        # arrays compute as they do, whatever the network's precision
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rows_in_range, ranges = self.in_range(rows)
            product = operator.read(rows_in_range, noise_key, clips, first_frame)
            if self.reads.count_work:
                self.work.vectors += len(rows)
                self.work.cell_watts = self.work.cell_watts + self._cell_watts(rows_in_range)
        if masked is not None:
            product.masked_fill_(masked, torch.nan)
        if ranges is not None:
            product.mul_(ranges)
        scale = self.scale if self.input_range is None else self.scale * self.input_range
        return product.mul_(scale).to(x.dtype)

    def cell_watts(self, rows: Tensor) -> float:
        """The power that its arrays take (U I), summed over inputs [n, in] and the phases of reading them; 0 where they
        are ideal. Needs a calibrated matrix."""
        return float(self._cell_watts(self.in_range(rows.float())[0]))

    def _cell_watts(self, rows_in_range: Tensor) -> Tensor | float:
        if self.states is None:
            return 0.0
        if self._row_loads is None:
            packs = [self.tiling.pack(index)[1:] for index in range(self.tiling.packs)]
            by_pack = [(inputs, self.states[..., : inputs.stop - inputs.start, outputs]) for inputs, outputs in packs]
            drive = self.drive(gain_per_ampere=1.0, gives_volts=True)
            wired = tuple(arrays for index in range(len(packs)) if (arrays := self._wired(index)) is not None)
            self._row_loads = RowLoads.make(drive, _device(self.spec, self.levels), by_pack, wired)
        return self._row_loads.watts(rows_in_range)

    def _make_operator(self) -> Operator | PackedOperator:
        drive, difference = self.drive(), self.difference()
        return packed(self.tiling, lambda pack, outputs: self._pack_operator(pack, drive, difference, outputs))

    def _pack_operator(self, pack: int, drive: Drive, difference: Tensor, outputs: slice) -> Operator:
        below_dark = None
        if drive.noise is not None and isinstance(drive.cell, MemristorCell):
            assert self.states is not None
            below_dark = drive.cell.dark_total - self.states[..., outputs].float().mean(dim=2).sum(dim=1)
        spec = self.spec
        errors = None
        if self.adc_gain_error is not None and self.adc_offset_codes is not None:
            errors = AdcErrors(self.adc_gain_error[..., outputs], self.adc_offset_codes[..., outputs])
        if (wired := self._wired(pack)) is not None:
            return Operator.through_wires(drive, wired, self.slice_worths(), spec.adc, self.adc_range, errors)
        cells = (difference[..., outputs], below_dark, self.slice_worths())
        return Operator.make(drive, *cells, spec.tile.rows, spec.adc, self.adc_range, errors)

    def drive(self, gain_per_ampere: float | None = None, gives_volts: bool | None = None) -> Drive:
        """What drives its rows; `gain_per_ampere` in place of the calibrated one. With wires it `gives_volts`."""
        spec = self.spec
        input_range = 1.0 if self.input_range is None else float(self.input_range)
        cell: IdealCell | MemristorCell = IdealCell()
        if spec.cell != "ideal":
            assert spec.dac is not None
            if gain_per_ampere is None:
                assert self.gain_per_ampere is not None
                gain_per_ampere = float(self.gain_per_ampere)
            device = _device(spec, self.levels)
            cell = MemristorCell(device, spec.dac.vmax_volts, gain_per_ampere, spec.weights.copies)
        if gives_volts is None:
            gives_volts = spec.wires is not None
        return Drive.make(spec.dac, input_range, cell, spec.read_noise, self.levels.device, gives_volts)

    def difference(self) -> Tensor:
        """[slices, in, out]: r_pos - r_neg, the mean over copies, or the digits themselves where cells are ideal."""
        if self.states is not None:
            return (self.states[:, 0].float() - self.states[:, 1].float()).mean(dim=1)
        levels = self.tiling.spread(self.levels)
        return encode.to_slices(levels, bits_of(self.spec), self.spec.weights.cell_bits).transpose(1, 2).float()

    def expect_masked_rows(self) -> None:
        """Take NaN from now on: attention gave it for queries that see no key."""
        self.reads.has_masked_rows = True

    def drop_operator(self) -> None:
        """Have the next read take the converters' ranges as they are then."""
        self._operator = self._row_loads = None

    def release(self) -> None:
        """Free what is kept between reads; the next read makes it anew, with the same result."""
        self._operator = self._wired_columns = self._row_loads = None

    def _require_finite_states(self) -> None:
        """Those of a mapped file were not looked at when it was loaded."""
        if self.states is not None and not torch.isfinite(self.states.sum(dtype=torch.float32)):
            raise InputError(f"{self.name}: its cell states hold NaN or Inf; the file is damaged, map it again")

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:  # type: ignore[no-untyped-def]
        self.release()  # it is made from the tensors that are replaced
        levels = state_dict.get(prefix + "levels")
        if levels is not None and (misfit := _misfit(levels, self.spec)):
            errors.append(f"{prefix}levels are {misfit}")
        for name in (*CALIBRATED, *ADC_ERRORS):
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(stored, device=self.levels.device))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def _apply(self, fn, recurse: bool = True) -> MappedMatrix:  # type: ignore[no-untyped-def]
        """Move to another device; a dtype that the network is cast to is for its digital part, cells keep theirs."""
        self.release()  # it lives where the tensors did

        def moved(tensor: Tensor) -> Tensor:
            there: Tensor = fn(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


def _misfit(levels: Tensor, spec: HardwareSpec) -> str | None:
    """What is wrong with `levels` as those of a matrix under `spec`; None where nothing is."""
    if levels.is_floating_point() or levels.dtype == torch.bool:
        return f"{levels.dtype}, not whole numbers"
    if levels.is_meta or not levels.numel():
        return None
    bits, largest = bits_of(spec), encode.max_level(bits_of(spec))
    low, high = (int(value) for value in levels.aminmax())
    return None if -largest <= low and high <= largest else f"{low} to {high}, beyond the {largest} of {bits} bits"


def _programmed(
    name: str, levels: Tensor, spec: HardwareSpec, seed: int, groups: int
) -> tuple[Tensor | None, ProgrammingReport | None]:
    """States of cells that `levels` have been programmed to, as they are when they are read; None for ideal cells."""
    if spec.cell == "ideal":
        return None, None
    config, device = spec.programming, _device(spec, levels)
    generator = rng.generator(seed, name, "programming", device=levels.device)
    tiling = tiling_of(levels, spec, groups)
    states, report = program(tiling.spread(levels), tiling, config, device, generator, read_pulses(spec))
    if config.relaxation is not None:
        relax(states, config.relaxation, device, rng.generator(seed, name, "relaxation", device=levels.device))
    if spec.retention is not None:
        states = age(states, spec.retention, rng.generator(seed, name, "retention", device=levels.device))
    if spec.faults is not None:
        faults = rng.generator(seed, name, "faults", device=levels.device)
        states = break_cells(states, spec.faults, tiling, device, faults)
    return states, report


def _cells(spec: HardwareSpec) -> tuple[object, ...]:
    """What of a layer's resolved spec decides on the states of its cells."""
    return spec.cell, spec.tile, spec.weights, spec.programming, read_pulses(spec), spec.retention, spec.faults


def needs_calibration(spec: HardwareSpec) -> bool:
    """Whether a layer's resolved spec has ranges that only its input can set."""
    return spec.dac is not None or spec.adc is not None or spec.cell != "ideal"


def has_input_range(spec: HardwareSpec) -> bool:
    """Whether one input, the same for all vectors, drives full scale."""
    return spec.dac is not None and spec.dac.range == "per_layer"


def bits_of(spec: HardwareSpec) -> int:
    """The weight bits of a layer's resolved spec."""
    if spec.weights.bits is None:
        raise ValueError(f"hardware {spec.name} leaves weights.bits open; choose them before mapping")
    return spec.weights.bits


def tiling_of(levels: Tensor, spec: HardwareSpec, groups: int = 1) -> Tiling:
    """How `levels` [out, in / groups] lie on the tiles of `spec`."""
    return tiling_for((levels.shape[0], levels.shape[1]), spec, groups)


def tiling_for(shape: tuple[int, int], spec: HardwareSpec, groups: int = 1) -> Tiling:
    """How a matrix of `shape` (out, in / groups) with `groups` blocks on its diagonal lies on the tiles of `spec`."""
    tile, weights = spec.tile, spec.weights
    out_features, block_inputs = shape
    fitting = 1
    if tile.packing == "diagonal":
        fitting = max(1, min(tile.rows // block_inputs, tile.cols * groups // out_features))
    packs = -(-groups // fitting)
    blocks = -(-groups // packs)  # as many in each, as far as possible
    in_features = blocks * block_inputs
    lines = (tile.rows, tile.cols, out_features, in_features)
    return Tiling(*lines, bits_of(spec), weights.cell_bits, weights.copies, groups, blocks)


def _device(spec: HardwareSpec, like: Tensor) -> DeviceModel:
    return _load_device(spec.cell, str(like.device))


@lru_cache(maxsize=16)
def _load_device(cell: str, where: str) -> DeviceModel:
    return load_device(cell).to(where)
