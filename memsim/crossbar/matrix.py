"""The mapped matrix product, which every layer that runs on arrays computes through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from memsim import rng
from memsim.crossbar import encode
from memsim.crossbar.arrays import ProgrammedArrays
from memsim.crossbar.calibrator import RANGES, Calibrator, ConverterRanges
from memsim.crossbar.cell import MemristorCell
from memsim.crossbar.convert import AdcErrors
from memsim.crossbar.input_transform import InputTransform
from memsim.crossbar.ir_drop import IrDropColumns
from memsim.crossbar.power import RowLoads, Work
from memsim.crossbar.products import ProductColumns
from memsim.crossbar.program import program_matrix, settings_of_states
from memsim.crossbar.programming_report import ProgrammingReport
from memsim.crossbar.ranges import has_input_range, in_range
from memsim.crossbar.read import ClipCounts, Operator, PackedOperator, packed, whole_blocks
from memsim.crossbar.read_context import ReadContext, full_precision
from memsim.crossbar.statistics import InputStatistics
from memsim.crossbar.tiling import Tiling
from memsim.crossbar.uncompiled import uncompiled
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.units import counted

ADC_ERRORS = ("adc_gain_error", "adc_offset_codes")
"""Names of the tensors of converters with errors of gain or offset."""

TRIMS = ("gain_trim", "offset_trim")
"""Names of the tensors that correct the results of one chip."""

_OPTIONAL = (*RANGES, *ADC_ERRORS, "offset", *TRIMS)
_TRANSFORM = "input_transform."


class MappedMatrix(nn.Module):
    """A [out, in] matrix on simulated arrays: ``matrix(x)`` is x @ W.T as the chip computes it.

    A matrix of `groups` equal blocks on its diagonal, each [out / groups, in / groups], is given as the blocks alone,
    one below the other: [out, in / groups]. `Tiling` says how it lies on tiles.

    Attributes:
        levels: [out, in / groups], whole numbers.
        scale: [out], [1] or [row_tiles, out], the step between levels. With scales for each row tile, the results of
            its ADCs are multiplied by them before tiles are added.
        states: [slices, 2, copies, in, out] (see `Tiling.shape`), float16: the states r of the cells, those of the
            positive array first; None for ideal cells.
        input_range, gain_per_ampere, adc_range: those of `ConverterRanges`; None until `calibrate` has set them, and
            where the spec has no use for them.
        adc_gain_error: [row_tiles, slices, out], relative; None where the spec has no such errors.
        adc_offset_codes: [row_tiles, slices, out]; None where the spec has no such errors.
        gain_trim: [row_tiles, out], a factor of the results of each row tile beside the scale; None for 1. See
            `set_trims`.
        offset_trim: [out], a number that is added to each output, in units of the output; None for 0.
        offset: [out], what the levels leave out of the mean of each output, which is added to it digitally on any
            chip, in units of the output; None for 0.
        input_transform: the digital transform of the inputs before the DAC, for which levels and scale are those of the
            transformed weight; None where inputs reach the DAC as they are.
        programming: the report of the programming; None for ideal cells and for a matrix that was loaded.
        trim_vectors: the number of input vectors that were read to fit its trims; 0 for a matrix that was loaded.

    The tensors are those of a mapped checkpoint.
    """

    levels: Tensor
    scale: Tensor
    states: Tensor | None
    input_range: Tensor | None
    gain_per_ampere: Tensor | None
    adc_range: Tensor | None
    adc_gain_error: Tensor | None
    adc_offset_codes: Tensor | None
    offset: Tensor | None
    gain_trim: Tensor | None
    offset_trim: Tensor | None

    def __init__(
        self,
        name: str,
        spec: HardwareSpec,
        levels: Tensor,
        scale: Tensor,
        states: Tensor | None,
        groups: int = 1,
        input_transform: InputTransform | None = None,
    ) -> None:
        """Take programmed cells; `spec` is resolved for this layer: its bits are set and no overrides are left."""
        super().__init__()
        self.name = name
        self.spec = spec
        self.groups = groups
        self.reads = ReadContext()
        self.clips = ClipCounts()
        self.work = Work()
        self.programming: ProgrammingReport | None = None
        self.trim_vectors = 0
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)
        self.register_buffer("states", states)
        for optional in _OPTIONAL:
            self.register_buffer(optional, None)
        self.input_transform = None if input_transform is None else input_transform.sharing_tensors()
        self._operator: Operator | PackedOperator | None = None
        self._factor: Tensor | None = None
        self._ir_drop: list[IrDropColumns | ProductColumns] = []
        self._row_loads: RowLoads | None = None

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
        input_transform: InputTransform | None = None,
        offset: Tensor | None = None,
    ) -> MappedMatrix:
        """Program `levels` [out, in / groups] on fresh cells, drawn by (seed, name).

        They are those of the weight as `input_transform` transforms it, and `offset` [out] is added to the product. The
        matrix is calibrated where `statistics` are given, which are those of the inputs before `input_transform`.
        Raises InputError where the spec's pulses do not switch every cell that a closed loop programs, or where
        `statistics` do not fit.
        """
        states, report = program_matrix(name, levels, spec, seed, groups)
        matrix = cls(name, spec, levels, scale, states, groups, input_transform)
        matrix.programming = report
        matrix.offset = offset
        matrix._set_converters(seed, statistics)
        return matrix

    def under(self, spec: HardwareSpec, seed: int, statistics: InputStatistics | None = None) -> MappedMatrix:
        """Return the levels of this matrix under another spec, on the same cells where that programs them alike.

        Trims stay with the cells. Everything else is drawn by (seed, name); `seed` is the one that this matrix was
        programmed from. Raises InputError as `programmed_again` does.
        """
        if statistics is not None and getattr(spec.adc, "method", None) == "max":
            statistics = statistics.taken_as_all()  # so that both are compared on these rows
        if settings_of_states(spec) != settings_of_states(self.spec):
            return self.programmed_again(spec, seed, statistics)
        transform = self.input_transform
        matrix = MappedMatrix(self.name, spec, self.levels, self.scale, self.states, self.groups, transform)
        matrix.programming = self.programming
        matrix.offset = self.offset
        matrix.set_trims(self.gain_trim, self.offset_trim)
        matrix.trim_vectors = self.trim_vectors
        if (spec.wires, spec.dac) == (self.spec.wires, self.spec.dac):
            if spec.wires is not None or spec.read_noise == self.spec.read_noise:
                matrix._ir_drop = self._ir_drop
            if (spec.adc, spec.gain_per_ampere) == (self.spec.adc, self.spec.gain_per_ampere) and self.is_calibrated:
                matrix.set_ranges(ConverterRanges(*(getattr(self, name) for name in RANGES)))
                statistics = None
        matrix._set_converters(seed, statistics)
        return matrix

    def programmed_again(
        self, spec: HardwareSpec, seed: int, statistics: InputStatistics | None = None
    ) -> MappedMatrix:
        """Program the levels of this matrix on fresh cells, without its trims: see `from_levels`.

        Raises InputError where the matrix has scales for each row tile and the tiles of `spec` have other rows.
        """
        scale, rows = self.scale, self.spec.tile.rows
        if scale.ndim == 2 and spec.tile.rows != rows:
            if len(scale) > 1:
                raise InputError(
                    f"{self.name}: its scales are those of tiles of {rows} rows, not of {spec.tile.rows}; keep them "
                    f"(--set tile.rows={rows}), or map the unmapped checkpoint"
                )
            scale = scale[0]  # one tile holds whole columns
        own = self.groups, self.input_transform, self.offset
        return self.from_levels(self.name, self.levels, scale, spec, seed, statistics, *own)

    def _set_converters(self, seed: int, statistics: InputStatistics | None) -> None:
        shape = (self.tiling.row_tiles, self.tiling.slices, len(self.levels))
        key = rng.derive_seed(seed, self.name, "converters")
        errors = AdcErrors.draw(self.spec.adc, shape, key, self.levels.device)
        if errors is not None:
            self.adc_gain_error, self.adc_offset_codes = errors.gain, errors.offset_codes
        if statistics is not None:
            self.calibrate(statistics)

    @classmethod
    def from_tensors(cls, name: str, spec: HardwareSpec, tensors: dict[str, Tensor], groups: int = 1) -> MappedMatrix:
        """Return the matrix that a mapped checkpoint holds. Raises InputError where its tensors do not fit `spec`."""
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
        of_tiles = (tiling.row_tiles, tiling.out_features)
        if matrix.scale.shape not in ((1,), (tiling.out_features,), of_tiles):
            wanted = f"[{tiling.out_features}], [1] or {list(of_tiles)}"
            raise InputError(f"{name}: scale is {list(matrix.scale.shape)}, but it must be {wanted}; map it again")
        if misfit := _misfit(levels, spec):
            raise InputError(f"{name}: levels are {misfit}; map it again")
        lines, slices = tiling.row_tiles, tiling.slices
        shapes: dict[str, set[tuple[int, ...]]] = {
            "input_range": {()},
            "gain_per_ampere": {()},
            "adc_range": {(rows, digits) for rows in (1, lines) for digits in (1, slices)},
            "gain_trim": {of_tiles},
            "offset_trim": {(tiling.out_features,)},
            "offset": {(tiling.out_features,)},
        }
        shapes |= {error: {(lines, slices, tiling.out_features)} for error in ADC_ERRORS}
        for optional in _OPTIONAL:
            if optional not in tensors:
                continue
            value = tensors[optional].float()
            if value.shape not in shapes[optional] or (optional in RANGES and not (value > 0).all()):
                raise InputError(f"{name}: {optional} is {list(value.shape)}, or not above 0; map it again")
            setattr(matrix, optional, value)
        matrix._take_input_transform(tensors)
        return matrix

    def _take_input_transform(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the transform among the `tensors` of a matrix; raise InputError where it does not fit this one."""
        found = {key.removeprefix(_TRANSFORM): tensor for key, tensor in tensors.items() if key.startswith(_TRANSFORM)}
        if not found:
            self.input_transform = None
            return
        if self.groups != 1:
            raise InputError(f"{self.name}: a matrix of groups has no input_transform; map it again")
        try:
            transform = InputTransform.from_tensors(found, self.out_features, self.in_features)
        except InputError as error:
            raise InputError(f"{self.name}: {error}; map it again") from None
        self.input_transform = transform.to(self.levels.device)

    @property
    def arrays(self) -> ProgrammedArrays:
        """The programmed cells, without the converter ranges."""
        own = self.groups, self._ir_drop, self.input_transform
        return ProgrammedArrays(self.name, self.spec, self.levels, self.states, *own)

    @property
    def tiling(self) -> Tiling:
        """The layout of the matrix on tiles."""
        return self.arrays.tiling

    @property
    def in_features(self) -> int:
        """The number of inputs."""
        return self.groups * self.levels.shape[1]

    @property
    def out_features(self) -> int:
        """The number of outputs."""
        return self.levels.shape[0]

    @property
    def is_calibrated(self) -> bool:
        """Whether every range that the spec's converters and cells need is set."""
        return not (
            (has_input_range(self.spec) and self.input_range is None)
            or (self.spec.cell != "ideal" and self.gain_per_ampere is None)
            or (self.spec.adc is not None and self.adc_range is None)
        )

    def calibrate(self, statistics: InputStatistics) -> None:
        """Set input range, gain and ADC range from `statistics` alone; `Calibrator` takes the inputs themselves.

        Raises InputError as `Calibrator` does.
        """
        self.set_ranges(Calibrator(self.arrays, statistics).finish())

    def set_ranges(self, ranges: ConverterRanges) -> None:
        """Set input range, gain and ADC range, which the next read then takes."""
        for name in RANGES:
            setattr(self, name, getattr(ranges, name))
        self._operator = self._factor = self._row_loads = None

    def set_trims(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Set what corrects the results of this chip digitally, from the next read on; None takes a trim away.

        The results of each row tile are multiplied by `gain` [row_tiles, out], a part of their scale, and `offset`
        [out], in units of the output, is added to the outputs. Copies and mapped files keep both. Raises ValueError
        where a shape is another, or a number is not finite.
        """
        shapes = ((self.tiling.row_tiles, self.out_features), (self.out_features,))
        for name, value, shape in zip(TRIMS, (gain, offset), shapes, strict=True):
            if value is not None and (value.shape != shape or not torch.isfinite(value).all()):
                raise ValueError(
                    f"{self.name}: {name} is {list(value.shape)}; it must be {list(shape)} and hold finite numbers"
                )
            setattr(self, name, None if value is None else value.detach().to(self.levels.device, torch.float32))
        self._operator = self._factor = None

    def quantised_weight(self) -> Tensor:
        """Return the weight [out, in / groups], float64, of plain inputs that levels and scales stand for."""
        scale = encode.scale_of_weights(self.scale.double(), self.levels.shape[1], self.spec.tile.rows)
        weight = self.levels.double() * scale
        return weight if self.input_transform is None else self.input_transform.plain_weight(weight)

    def programming_error(self) -> float:
        """Return the relative error of the programmed matrix: see `ProgrammedArrays.programming_error`."""
        return self.arrays.programming_error()

    def extra_repr(self) -> str:
        """Return the size, the bits, the arrays and the programming error of the matrix, for `print`."""
        tiling = self.tiling
        error = "ideal cells" if self.states is None else f"programming error {self.programming_error():.1%}"
        return (
            f"{self.in_features} -> {self.out_features}, {tiling.bits} bits, {counted(tiling.tiles, 'array')}, "
            f"{counted(tiling.cells, 'cell')}, {error}"
        )

    @uncompiled
    def forward(self, x: Tensor) -> Tensor:
        """Multiply inputs [..., in] as the chip does, to [..., out] in the units of x @ W.T and the dtype of `x`.

        No gradient flows through a read. A row that holds NaN or Inf gives NaN on devices other than a CPU, which are
        not waited for, and behind attention that gave NaN for queries that see no key; elsewhere it is an error.

        Raises:
            InputError: the matrix is not calibrated.
            ValueError: `x` has another width than the matrix.
            TypeError: `x` holds no floating-point numbers.
            FloatingPointError: `x` holds NaN or Inf.
        """
        if x.ndim == 2:
            product: Tensor = self.stream([x])
            return product
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return self.stream([rows]).view(*x.shape[:-1], self.out_features)

    @uncompiled
    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """Multiply the rows [n, in] of all `parts` (at least one) as one read, holding one part at a time.

        The errors are those of `forward`.
        """
        operator = self._operator or self._prepare()
        noise_key = 0 if operator.noise_columns is None else self.reads.noise_key(self.name)
        products: list[Tensor] = []
        first_frame = 0
        for rows in whole_blocks(parts):
            products.append(self._read(operator, rows.detach(), noise_key, first_frame))
            first_frame += len(rows)
        return products[0] if len(products) == 1 else torch.cat(products)

    def _prepare(self) -> Operator | PackedOperator:
        """Return the operator of the next reads, and keep it."""
        if not self.is_calibrated:
            raise InputError(
                f"{self.name}: the ranges of its converters are not calibrated; map the checkpoint with "
                "--calibrate DATA (in Python: map_model(..., calibration=batches))"
            )
        # loading a mapped file does not look at the states
        # slice by slice, as the sum makes a copy of its summands in float32
        if self.states is not None and not all(torch.isfinite(own.sum(dtype=torch.float32)) for own in self.states):
            raise InputError(f"{self.name}: its cell states hold NaN or Inf; the file is damaged, map it again")
        self._operator = self._make_operator()
        return self._operator

    def _read(self, operator: Operator | PackedOperator, x: Tensor, noise_key: int, first_frame: int) -> Tensor:
        """Multiply inputs [n, in], the frames of a read from `first_frame` on, to [n, out].

        A decoder reads one frame at a time, so every operation here counts: it takes a microsecond or two.
        """
        if x.shape[1] != self.in_features:
            raise ValueError(
                f"{self.name}: its input has {counted(x.shape[1], 'feature')}, the matrix has {self.in_features}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{self.name}: its input is {x.dtype}; it must hold floating-point numbers")
        rows = x.float()
        masked: Tensor | None = None
        if not x.is_cpu:  # raising an error would require waiting for the device
            masked = ~torch.isfinite(rows).all(dim=1, keepdim=True)
        # a sum costs a quarter of a look at every value, but overflows where values are huge
        elif not math.isfinite(rows.sum()) and not torch.isfinite(rows).all():
            if not self.reads.has_masked_rows:
                raise FloatingPointError(f"{self.name}: its input holds NaN or Inf")
            masked = ~torch.isfinite(rows).all(dim=1, keepdim=True)
            rows = rows.masked_fill(masked, 0)
        clips = self.clips if self.reads.count_clips else None
        transform = self.input_transform
        with full_precision(x.device.type):
            rows_in_range, ranges = in_range(self.spec.dac, rows if transform is None else transform(rows))
            product = operator.read(rows_in_range, noise_key, clips, first_frame)
            if self.reads.count_work:
                self.work.vectors += len(rows)
                self.work.cell_watts = self.work.cell_watts + self._cell_watts(rows_in_range)
        if masked is not None:
            product.masked_fill_(masked, torch.nan)
        if ranges is not None:
            product.mul_(ranges)
        if self._factor is None:
            _, scale = self._scales()
            self._factor = scale if self.input_range is None else scale * self.input_range
        product.mul_(self._factor)
        for offset in (self.offset, self.offset_trim):
            if offset is not None:
                product.add_(offset)
        if transform is not None and (digital := transform.digital_product(rows)) is not None:
            product.add_(digital)
        return product if x.dtype == torch.float32 else product.to(x.dtype)

    def digital_product(self, rows: Tensor) -> Tensor | None:
        """Return the part of the product [n, out] of inputs [n, in] that is computed digitally; None without any."""
        return None if self.input_transform is None else self.input_transform.digital_product(rows.float())

    def _scales(self) -> tuple[Tensor | None, Tensor]:
        """Return the factors [row_tiles, out] of the results of tiles, None where all are 1, and those of their sum."""
        of_tiles, of_sum = self.gain_trim, self.scale
        if of_sum.ndim == 2:
            of_tiles, of_sum = (of_sum if of_tiles is None else of_sum * of_tiles), of_sum.new_ones(1)
        if of_tiles is not None and len(of_tiles) == 1:
            return None, of_sum * of_tiles[0]
        return of_tiles, of_sum

    def cell_watts(self, rows: Tensor) -> float:
        """Return the power of the cells in watts, summed over inputs [n, in] and over the phases of reading them.

        It is 0 for ideal cells. The matrix must be calibrated.
        """
        rows = rows.float()
        if self.input_transform is not None:
            rows = self.input_transform(rows)
        return float(self._cell_watts(in_range(self.spec.dac, rows)[0]))

    def _cell_watts(self, rows_in_range: Tensor) -> Tensor | float:
        if self.states is None:
            return 0.0
        if self._row_loads is None:
            self._row_loads = self.arrays.row_loads(self._full_scale_input())
        return self._row_loads.watts(rows_in_range)

    def _full_scale_input(self) -> float:
        return 1.0 if self.input_range is None else float(self.input_range)

    def _make_operator(self) -> Operator | PackedOperator:
        arrays, spec = self.arrays, self.spec
        gain = 1.0 if self.gain_per_ampere is None else float(self.gain_per_ampere)
        drive = arrays.drive(self._full_scale_input(), gain)
        difference, significances, ir_drop = arrays.difference(), arrays.significances(), arrays.ir_drop_columns()
        factors, _ = self._scales()

        def operator(pack: int, outputs: slice) -> Operator:
            errors = None
            if self.adc_gain_error is not None and self.adc_offset_codes is not None:
                errors = AdcErrors(self.adc_gain_error[..., outputs], self.adc_offset_codes[..., outputs])
            own_factors = None if factors is None else factors[:, outputs]
            adc = (significances, spec.adc, self.adc_range, errors, own_factors)
            if ir_drop:
                return Operator.with_ir_drop(drive, ir_drop[pack], *adc)
            below_zero_current = None
            if drive.noise is not None and isinstance(drive.cell, MemristorCell):
                assert self.states is not None
                pairs = self.states[..., outputs].float().mean(dim=2).sum(dim=1)
                below_zero_current = drive.cell.zero_current_total - pairs
            return Operator.make(drive, difference[..., outputs], below_zero_current, spec.tile.rows, *adc)

        return packed(arrays.tiling, operator)

    def expect_masked_rows(self) -> None:
        """Give NaN for rows that hold NaN from now on, because attention gave it for queries that see no key."""
        self.reads.has_masked_rows = True

    def release(self) -> None:
        """Free cached values; the next read computes them again, with the same result."""
        self._operator = self._factor = self._row_loads = None
        self._ir_drop = []

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:  # type: ignore[no-untyped-def]
        self.release()  # cached values were made from the tensors that are replaced
        levels = state_dict.get(prefix + "levels")
        if levels is not None and (misfit := _misfit(levels, self.spec)):
            errors.append(f"{prefix}levels are {misfit}")
        for name in _OPTIONAL:
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(stored, device=self.levels.device))
        if levels is not None:  # a state without levels leaves the weight, and so its transform
            start = prefix + _TRANSFORM
            own = {key.removeprefix(prefix): state_dict[key].clone() for key in state_dict if key.startswith(start)}
            try:
                self._take_input_transform(own)
            except InputError as error:
                errors.append(str(error))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def _apply(self, fn, recurse: bool = True) -> MappedMatrix:  # type: ignore[no-untyped-def]
        """Move to another device. Cells keep their dtype where the network, its digital part, is cast to another."""
        self.release()  # cached values are on the old device of the tensors

        def moved(tensor: Tensor) -> Tensor:
            there: Tensor = fn(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


def _misfit(levels: Tensor, spec: HardwareSpec) -> str | None:
    """Return the problem of `levels` for a matrix under `spec`; None without one."""
    if levels.is_floating_point() or levels.dtype == torch.bool:
        return f"{levels.dtype}, not whole numbers"
    if levels.is_meta or not levels.numel():
        return None
    bits = encode.bits_of(spec)
    largest = encode.max_level(bits)
    low, high = (int(value) for value in levels.aminmax())
    return None if -largest <= low and high <= largest else f"{low} to {high}, beyond the {largest} of {bits} bits"
