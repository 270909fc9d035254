"""The read: inputs through DAC, cells and ADC to numbers, as matrix products.

x -> DAC codes -> f(U) of the row voltages -> columns, per row tile and plane (+ read noise) -> ADC codes -> shift-add

Row tiles are the batch of a `bmm`, and planes lie side by side on its output axis, so there is no [batch, in, out]
tensor. Without an ADC, tiles and planes need not be read separately, and they are summed before the read. Digital
factors of the tiles are multiplied in after the ADC; without one, they are factors of the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType

import torch
from torch import Tensor

from memsim import rng
from memsim.crossbar import convert, many_frames
from memsim.crossbar.cell import MemristorCell
from memsim.crossbar.convert import AdcErrors, Conversion
from memsim.crossbar.drive import Drive, steps
from memsim.crossbar.few_frames import FewFrames
from memsim.crossbar.ir_drop import IrDropColumns
from memsim.crossbar.memory import keep_freed_memory
from memsim.crossbar.products import ProductColumns
from memsim.crossbar.tiling import ALIGNED_COLUMNS, Tiling
from memsim.hardware import Adc, ReadNoise

CHUNK_VALUES = 1 << 20
"""Approximate number of column values at a time on a CPU; changes speed and memory, never a result.

`many_frames` has its own."""
DEVICE_CHUNK_VALUES = 1 << 26
"""Approximate number of column values at a time on other devices, where chunks cost launches and memory is faster."""
BLOCK_FRAMES = 32
"""Frames of a block. Matrix products are of whole blocks, whatever the chunk, because a product of a few rows rounds
differently from one of many, and the last bit can change an ADC code."""


@dataclass
class ClipCounts:
    """The numbers of conversions beyond full scale and of all conversions."""

    dac_clipped: Tensor | int = 0
    dac_total: int = 0
    adc_clipped: Tensor | int = 0
    adc_total: int = 0


def add_clips(counts: Iterable[ClipCounts]) -> ClipCounts:
    """Return the sums of `counts` as plain numbers."""
    known = list(counts)
    return ClipCounts(
        sum(int(clips.dac_clipped) for clips in known),
        sum(clips.dac_total for clips in known),
        sum(int(clips.adc_clipped) for clips in known),
        sum(clips.adc_total for clips in known),
    )


@dataclass(frozen=True)
class Operator:
    """A programmed matrix with its converters, ready to be read.

    With an ADC, column signals are in units of its codes.

    Attributes:
        drive: the drive of the rows; it gives volts where `ir_drop` is set.
        rows: the number of rows of a tile.
        out_features: the number of outputs.
        columns: [row_tiles, rows, planes * out, aligned], the cells; with `ir_drop`, [row_tiles, 1, planes * out,
            aligned], the factors of the column currents.
        noise_columns: [row_tiles, rows + 1, planes * out, aligned], the distance of each pair below
            `MemristorCell.zero_current_total` and, in the last row, the factor of the constant variance; with
            `ir_drop`, those of `IrDropColumns`; None without noise.
        conversion: the conversion of column signals to numbers.
        ir_drop: the columns with line resistance, or of cells with several terms; None for all others.
    """

    drive: Drive
    rows: int
    out_features: int
    columns: Tensor
    noise_columns: Tensor | None
    conversion: Conversion
    ir_drop: IrDropColumns | ProductColumns | None = None

    @classmethod
    def make(
        cls,
        drive: Drive,
        difference: Tensor,
        below_zero_current: Tensor | None,
        rows: int,
        significances: Tensor,
        adc: Adc | None,
        adc_range: Tensor | None,
        errors: AdcErrors | None = None,
        tile_factors: Tensor | None = None,
    ) -> Operator:
        """Prepare the read of `difference`, r_pos - r_neg, with read noise where `below_zero_current` is given.

        `below_zero_current` is zero_current_total - r_pos - r_neg; both are [planes, in, out]. `significances` [planes]
        are the factors of the planes in the sum, and `tile_factors` [row_tiles, out] those of the tiles. `adc_range`
        [row_tiles or 1, planes or 1] is full scale in units of (weight 1 x full-scale input), and `errors` are those of
        the converters.
        """
        keep_freed_memory()
        out_features = difference.shape[2]
        if adc is None:
            columns = torch.einsum("p,pio->io", significances, difference)[None]
            noise = None
            if below_zero_current is not None:
                noise = torch.einsum("p,pio->io", significances.square(), below_zero_current)[None]
            constant = significances.square().sum().expand(1, 1, out_features)
            if tile_factors is not None:
                factors = tile_factors.repeat_interleave(rows, dim=0)[: columns.shape[1]]
                columns = columns * factors
                if noise is not None:  # the noise of a tile has its factor, so that tiles are read separately
                    columns, noise = (split_planes(part, rows)[:, :, 0] for part in (columns, noise * factors.square()))
                    constant = constant * tile_factors.square()[:, None]
            noise_columns = _with_constant(noise, constant, drive.noise)
            conversion = Conversion(columns.new_ones(len(columns), 1))
            return cls(drive, columns.shape[1], out_features, _aligned(columns), noise_columns, conversion)
        columns = split_planes(difference, rows)
        shape = (len(columns), len(significances), out_features)
        codes_per_signal, conversion = _conversion(shape, significances, adc, adc_range, errors, tile_factors)
        columns = columns.flatten(2) * codes_per_signal
        noise = None
        if below_zero_current is not None:
            noise = split_planes(below_zero_current, rows).flatten(2) * codes_per_signal.square()
        noise_columns = _with_constant(noise, codes_per_signal.square(), drive.noise)
        return cls(drive, rows, out_features, _aligned(columns), noise_columns, conversion)

    @classmethod
    def of_columns(
        cls,
        drive: Drive,
        rows: int,
        cells: tuple[int, int, int],
        write: Callable[[Tensor, Tensor], None],
        significances: Tensor,
        adc: Adc,
        adc_range: Tensor | None,
        tile_factors: Tensor | None = None,
    ) -> Operator:
        """Prepare the read without noise of `cells` (planes, in, out) whose columns `write` writes.

        `write` gets factors [row_tiles, planes * out] and zeros [row_tiles, rows, planes * out, aligned], and writes
        r_pos - r_neg times the factors. The other arguments are those of `make`.
        """
        keep_freed_memory()
        planes, in_features, out_features = cells
        shape = (-(-in_features // rows), planes, out_features)
        codes_per_signal, conversion = _conversion(shape, significances, adc, adc_range, None, tile_factors)
        width = planes * out_features
        padded = width + -width % ALIGNED_COLUMNS
        columns = torch.zeros(shape[0], rows, padded, device=codes_per_signal.device)
        write(codes_per_signal[:, 0], columns)
        return cls(drive, rows, out_features, columns, None, conversion)

    @classmethod
    def with_ir_drop(
        cls,
        drive: Drive,
        ir_drop: IrDropColumns | ProductColumns,
        significances: Tensor,
        adc: Adc | None,
        adc_range: Tensor | None,
        errors: AdcErrors | None = None,
        tile_factors: Tensor | None = None,
    ) -> Operator:
        """Prepare the read of columns with line resistance; the other arguments are those of `make`."""
        assert isinstance(drive.cell, MemristorCell)  # specs with ideal cells have no line resistance
        shape = (ir_drop.tiling.row_tiles, len(significances), ir_drop.tiling.out_features)
        codes_per_signal, conversion = _conversion(shape, significances, adc, adc_range, errors, tile_factors)
        columns = _aligned(codes_per_signal * drive.cell.gain_per_ampere)
        noise_columns = None
        if drive.noise is not None:
            noise_columns = _aligned(ir_drop.noise_columns()) * columns.square()
        rows, out_features = ir_drop.tiling.rows, ir_drop.tiling.out_features
        return cls(drive, rows, out_features, columns, noise_columns, conversion, ir_drop)

    @cached_property
    def prepared(self) -> many_frames.Prepared:
        """This operator in the form that `many_frames` takes; made by its first read of many frames."""
        return many_frames.Prepared.make(self)

    def read(self, x: Tensor, noise_key: int = 0, clips: ClipCounts | None = None, first_frame: int = 0) -> Tensor:
        """Read inputs [n, in] in chunks of whole blocks, to [n, out] in units of (weight 1 x full-scale input).

        `noise_key` (64 bits) is the key of the read noise. The first row of `x` is frame `first_frame`, a multiple of
        BLOCK_FRAMES, of the read with that key.
        """
        keys = [noise_key, *(rng.derive_seed(noise_key, index) for index in range(1, len(self.drive.phases)))]
        product = x.new_empty(len(x), self.out_features)
        clipped: tuple[Tensor | int, Tensor | int] | None = None
        if _fused(x) is None:
            if len(x) < BLOCK_FRAMES and self._few_frames is not None:
                clipped = self._few_frames.read(x, keys, first_frame, product.zero_())
            if clipped is None and many_frames.can_read(self, -(-len(x) // BLOCK_FRAMES)):
                clipped = many_frames.read(self, _whole_blocks(x), keys, first_frame, BLOCK_FRAMES, product)
        if clipped is None:
            clipped = self._read_in_chunks(x, keys, first_frame, product.zero_())
        if clips is not None:
            dac_clipped, adc_clipped = clipped
            phases = len(self.drive.phases)
            clips.dac_clipped = clips.dac_clipped + dac_clipped
            clips.adc_clipped = clips.adc_clipped + adc_clipped
            clips.dac_total += phases * x.numel() if self.drive.dac is not None else 0
            clips.adc_total += phases * self.conversion.per_output * product.numel()
        return product

    @cached_property
    def _few_frames(self) -> FewFrames | None:
        return FewFrames.of(self)

    def _read_in_chunks(
        self, x: Tensor, noise_keys: list[int], first_frame: int, product: Tensor
    ) -> tuple[Tensor | int, Tensor | int]:
        """Read [n, in] in whole blocks into `product` [n, out]; return the clipped inputs and clipped conversions."""
        tiles, _, width = self.columns.shape
        values = CHUNK_VALUES if x.device.type == "cpu" else DEVICE_CHUNK_VALUES
        chunk = BLOCK_FRAMES * max(1, values // (tiles * width * BLOCK_FRAMES))
        dac_clipped: Tensor | int = 0
        adc_clipped: Tensor | int = 0
        for first in range(0, len(x), chunk):
            part, out = x[first : first + chunk], product[first : first + chunk]
            for phase, key in zip(self.drive.phases, noise_keys, strict=True):
                # padding rows and frames are at 0 V, without signal and (see zero_current_total) without noise
                signals, noise_terms, beyond = self.drive(phase, _whole_blocks(part), self.rows)
                dac_clipped = dac_clipped + beyond
                adc_clipped = adc_clipped + self._add(
                    signals, noise_terms, key, first_frame + first, phase.significance, out
                )
        return dac_clipped, adc_clipped

    def _add(
        self,
        signals: Tensor,
        noise_terms: Tensor | None,
        noise_key: int,
        first_frame: int,
        significance: float,
        product: Tensor,
    ) -> Tensor | int:
        """Multiply the rows' signals, convert them and add them to `product` [n, out]; return the number clipped."""
        rest = (noise_key, first_frame, self.conversion, significance, product)
        clipped: Tensor | int | None = None
        is_bare = self.noise_columns is None and self.conversion.max_code is None  # a product with nothing to fuse
        if not is_bare and self.ir_drop is None and (fused := _fused(signals)) is not None:
            clipped = fused.multiply_and_digitise(signals, noise_terms, self.columns, self.noise_columns, *rest)
        if clipped is None:
            clipped = steps(signals).digitise(*self._columns(signals, noise_terms), *rest)
        assert clipped is not None
        return clipped

    def _columns(self, signals: Tensor, noise_terms: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the column signals [row_tiles, n, columns] of the rows' signals, and the variances of their noise."""
        if self.ir_drop is not None:
            currents = self.ir_drop.signals(signals, self.columns)
            if self.noise_columns is None or self.drive.noise is None:
                return currents, None
            assert isinstance(self.drive.cell, MemristorCell)
            terms = self.ir_drop.noise_terms(self.drive.cell, signals, self.drive.noise)
            return currents, torch.bmm(terms, self.noise_columns)
        variances = None
        if self.noise_columns is not None:
            assert noise_terms is not None  # the drive has the noise of the columns
            variances = steps(signals).variances(noise_terms, self.noise_columns)
        return torch.bmm(signals, self.columns), variances


@dataclass(frozen=True)
class PackedOperator:
    """The operators of a block-diagonal matrix's packs, each of which reads its inputs and gives its outputs."""

    operators: tuple[Operator, ...]
    inputs: tuple[slice, ...]

    @property
    def noise_columns(self) -> Tensor | None:
        """The noise columns of the first pack; None without noise."""
        return self.operators[0].noise_columns

    def read(self, x: Tensor, noise_key: int = 0, clips: ClipCounts | None = None, first_frame: int = 0) -> Tensor:
        """Read inputs [n, in] as `Operator.read` does, with separate noise for each pack."""
        keys = [rng.derive_seed(noise_key, "pack", index) for index in range(len(self.operators))]
        reads = zip(self.operators, self.inputs, keys, strict=True)
        return torch.cat([o.read(x[:, part], key, clips, first_frame) for o, part, key in reads], dim=1)


def packed(tiling: Tiling, make: Callable[[int, slice], Operator]) -> Operator | PackedOperator:
    """Return the operator of a matrix on `tiling`; `make` makes a pack's from its index and its outputs."""
    packs = tiling.all_packs()
    operators = tuple(make(index, outputs) for index, (_, _, outputs) in enumerate(packs))
    return operators[0] if len(operators) == 1 else PackedOperator(operators, tuple(inputs for _, inputs, _ in packs))


def whole_blocks(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the rows [n, in] of `parts` in pieces of whole blocks of BLOCK_FRAMES; the last may be partial or empty."""
    rows: Tensor | None = None
    for part in parts:
        if rows is not None:
            whole = len(rows) - len(rows) % BLOCK_FRAMES
            if whole:
                yield rows[:whole]
            part = torch.cat([rows[whole:], part]) if whole < len(rows) else part
        rows = part
    if rows is not None:
        yield rows


def _conversion(
    shape: tuple[int, int, int],
    significances: Tensor,
    adc: Adc | None,
    adc_range: Tensor | None,
    errors: AdcErrors | None,
    tile_factors: Tensor | None,
) -> tuple[Tensor, Conversion]:
    """Return the codes per unit of signal [row_tiles, 1, planes * out] and the conversion.

    `shape` is (row_tiles, planes, out). Without an ADC, a code is a unit of signal times the factor of the tile.
    """
    row_tiles, planes, _ = shape
    if adc is None:
        units = significances.new_ones(shape)
        units = units if tile_factors is None else units * tile_factors[:, None]
        return units.flatten(1)[:, None], Conversion(significances.expand(row_tiles, planes))
    assert adc_range is not None  # a calibrated matrix has one for its ADC
    code, max_code = convert.adc_steps(adc, adc_range.expand(row_tiles, planes))
    codes_per_signal = (1 / code)[:, :, None].expand(shape)
    offsets = None
    if errors is not None:
        codes_per_signal = codes_per_signal * (1 + errors.gain)
        offsets = _aligned(errors.offset_codes.flatten(1)[:, None])[:, 0]
    conversion = Conversion(code * significances, max_code, offsets, adc.nonlinearity_codes, tile_factors)
    return codes_per_signal.flatten(1)[:, None], conversion


def _fused(x: Tensor) -> ModuleType | None:
    """Return the module that fuses the matrix products with the steps after them; None where `x` has none."""
    return _triton() if x.device.type == "cuda" else None


@cache
def _triton() -> ModuleType | None:
    try:
        from memsim.crossbar import fused
    except ImportError:
        return None
    return fused


def split_planes(cells: Tensor, rows: int) -> Tensor:
    """Cut [planes, in, out] into [row_tiles, rows, planes, out], with zeros beyond the matrix."""
    planes, in_features, out_features = cells.shape
    tiles = -(-in_features // rows)
    padded = torch.nn.functional.pad(cells, (0, 0, 0, tiles * rows - in_features))
    return padded.view(planes, tiles, rows, out_features).permute(1, 2, 0, 3).contiguous()


def _whole_blocks(rows: Tensor) -> Tensor:
    """Pad [n, in] with rows of zeros to a multiple of BLOCK_FRAMES; return `rows` where it is one."""
    missing = -len(rows) % BLOCK_FRAMES
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _aligned(columns: Tensor) -> Tensor:
    """Pad [row_tiles, rows, n] with columns of zeros to a multiple of ALIGNED_COLUMNS."""
    return torch.nn.functional.pad(columns, (0, -columns.shape[2] % ALIGNED_COLUMNS))


def _with_constant(noise: Tensor | None, constant: Tensor, config: ReadNoise | None) -> Tensor | None:
    """Append `constant` [row_tiles, 1, planes * out] to `noise` [row_tiles, rows, planes * out], and align the columns.

    In bfloat16, where the spec asks for it, the product rounds the deviation of a column's noise by about 0.2 %, at
    random. All terms of the sum are positive, so the rounding is not magnified.
    """
    if noise is None or config is None:
        return None
    whole = _aligned(torch.cat([noise, constant], dim=1))
    return whole.to(torch.bfloat16 if config.variance_product == "bfloat16" else torch.float32)
