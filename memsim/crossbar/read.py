"""The read: inputs through DAC, cells and ADC to numbers, as matrix products.

x -> DAC codes -> f(U) of the row voltages -> columns, per row tile and plane (+ read noise) -> ADC codes -> shift-add

Row tiles are the batch of a `bmm` and planes lie side by side on its output axis, so no [batch, in, out] tensor ever
exists. Where there is no ADC nothing needs tiles and planes apart, and they are summed before the read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar import convert
from memsim.crossbar.cell import IdealCell, MemristorCell
from memsim.crossbar.noise import BlockNormals
from memsim.crossbar.tiling import split_rows
from memsim.memory import keep_freed_memory
from memsim.spec import CalibratedAdc, Dac, FixedAdc, ReadNoise

CHUNK_VALUES = 1 << 20
"""About how many column values are in flight at a time: changes speed and memory, never a result."""
BLOCK_FRAMES = 32
"""Frames are multiplied, and read noise is drawn, in whole blocks of this many, whatever the chunk: a matrix product of
a few rows rounds differently from one of many, and a last bit can move an ADC code."""
ALIGNED_COLUMNS = 16
"""Columns are padded to a multiple of this for the same reason: torch deals them out to threads in such vectors."""


@dataclass
class ClipCounts:
    """How many conversions went beyond full scale, of how many."""

    dac_clipped: Tensor | int = 0
    dac_total: int = 0
    adc_clipped: Tensor | int = 0
    adc_total: int = 0


@dataclass(frozen=True)
class Drive:
    """From inputs to what the rows contribute: the DAC and the cells' voltage law, tabulated by code where it can be.

    `tables` holds, by DAC code, the signal f(U) and (with read noise) the two noise variances of MemristorCell.
    """

    dac: Dac | None
    input_range: float
    cell: IdealCell | MemristorCell
    noise: ReadNoise | None
    tables: tuple[Tensor, ...] | None

    @classmethod
    def make(
        cls, dac: Dac | None, input_range: float, cell: IdealCell | MemristorCell, noise: ReadNoise | None, like: Tensor
    ) -> Drive:
        """`noise` None reads without noise, as ideal cells always do."""
        noise = noise if isinstance(cell, MemristorCell) else None
        untabulated = cls(dac, input_range, cell, noise, None)
        if dac is None or dac.bits is None or isinstance(cell, IdealCell):
            return untabulated
        largest = convert.dac_max_code(dac.bits)
        u = torch.arange(-largest, largest + 1, dtype=torch.float64, device=like.device) / largest
        return cls(dac, input_range, cell, noise, tuple(t.float() for t in untabulated._evaluate(u)))

    def count_clips(self, x: Tensor, clips: ClipCounts) -> None:
        """Count the inputs [n, in] that the DAC clips."""
        if self.dac is not None:
            clips.dac_clipped = clips.dac_clipped + convert.dac_clipped(x, self.input_range, self.dac.bits)
            clips.dac_total += x.numel()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The signals (and the two noise variances) of inputs of any shape, each of that shape."""
        if self.dac is None:
            return self._evaluate(x)
        if self.dac.bits is None:
            return self._evaluate((x / self.input_range).clamp_(-1, 1))
        codes = convert.dac_codes(x, self.input_range, self.dac.bits)
        largest = convert.dac_max_code(self.dac.bits)
        if self.tables is None:
            return self._evaluate(codes.div_(largest))
        index = codes.add_(largest).int().reshape(-1)
        return tuple(table.index_select(0, index).view(x.shape) for table in self.tables)

    def _evaluate(self, u: Tensor) -> tuple[Tensor, ...]:
        signal = self.cell.signal(u)
        if self.noise is None or isinstance(self.cell, IdealCell):
            return (signal,)
        return (signal, *self.cell.noise_variances(u, self.noise))


@dataclass(frozen=True)
class Operator:
    """A programmed matrix, ready to be read. With an ADC, column signals are in units of its codes.

    `columns` [row_tiles, rows, planes * out, aligned]; `noise_columns` [row_tiles, rows + 1, same], how far each pair
    is below MemristorCell.dark_total and, in the last row, the variance that no state changes; `weights`
    [row_tiles][planes]: what one code is worth in the sum, in units of (weight 1 x full-scale input); `max_code` None
    without an ADC.
    """

    drive: Drive
    out_features: int
    columns: Tensor
    noise_columns: Tensor | None
    weights: list[list[float]]
    max_code: int | None

    @classmethod
    def make(
        cls,
        drive: Drive,
        difference: Tensor,
        below_dark: Tensor | None,
        worth: Tensor,
        rows: int,
        adc: CalibratedAdc | FixedAdc | None,
        adc_range: Tensor | None,
    ) -> Operator:
        """From `difference` r_pos - r_neg and (for read noise) `below_dark`, dark_total - r_pos - r_neg.

        Each is [planes, in, out]; `worth` [planes] is what a plane counts in the sum.

        `adc_range` [row_tiles or 1, planes or 1] is full scale in units of (weight 1 x full-scale input).
        """
        keep_freed_memory()
        planes, _, out_features = difference.shape
        if adc is None:
            columns = torch.einsum("p,pio->io", worth, difference)[None]
            noise = None if below_dark is None else torch.einsum("p,pio->io", worth.square(), below_dark)[None]
            constant = worth.square().sum()[None, None]
            noise_columns = _with_constant(noise, constant, out_features, drive.noise)
            return cls(drive, out_features, _aligned(columns), noise_columns, [[1.0]], None)
        assert adc_range is not None  # a calibrated matrix has one for its ADC
        columns = split_planes(difference, rows)
        steps, max_code = convert.adc_steps(adc, adc_range.expand(len(columns), planes))
        per_step = (1 / steps)[:, None, :, None]
        columns = (columns * per_step).flatten(2)
        noise = None if below_dark is None else (split_planes(below_dark, rows) * per_step.square()).flatten(2)
        noise_columns = _with_constant(noise, 1 / steps.square(), out_features, drive.noise)
        return cls(drive, out_features, _aligned(columns), noise_columns, (steps * worth).tolist(), max_code)

    def read(self, x: Tensor, normals: BlockNormals | None = None, clips: ClipCounts | None = None) -> Tensor:
        """[n, in] -> [n, out] in units of (weight 1 x full-scale input), in chunks of whole blocks.

        `normals` are needed where there is read noise.
        """
        tiles, _, width = self.columns.shape
        blocks = max(1, CHUNK_VALUES // (tiles * width * BLOCK_FRAMES))
        product = x.new_zeros(len(x), self.out_features)
        for first_block in range(0, -(-len(x) // BLOCK_FRAMES), blocks):
            part = slice(first_block * BLOCK_FRAMES, (first_block + blocks) * BLOCK_FRAMES)
            if clips is not None:
                self.drive.count_clips(x[part], clips)
                if self.max_code is not None:
                    clips.adc_total += len(x[part]) * self.out_features * sum(map(len, self.weights))
            self._shift_add(self._convert(self._columns(x[part], normals, first_block), clips), product[part])
        return product

    def _columns(self, x: Tensor, normals: BlockNormals | None, first_block: int) -> Tensor:
        """Column signals [row_tiles, n in whole blocks, columns] of inputs [n, in], with read noise."""
        # Rows and frames that are added read 0 V: no signal, and (see dark_total) no noise without a cell.
        signal, *variances = self.drive(split_rows(_whole_blocks(x), self.columns.shape[1]))
        signals = torch.bmm(signal, self.columns)
        if self.noise_columns is not None:
            assert normals is not None
            dark, below_dark = variances
            dtype = self.noise_columns.dtype
            by_row = torch.cat([below_dark.to(dtype), dark.sum(dim=2, keepdim=True).to(dtype)], dim=2)
            deviation = torch.bmm(by_row, self.noise_columns).clamp_(min=0).sqrt_()
            tiles, frames, width = signals.shape
            blocks = frames // BLOCK_FRAMES
            drawn = normals.draw(first_block, blocks, (tiles, BLOCK_FRAMES, width), x.device)
            blocked = (tiles, blocks, BLOCK_FRAMES, width)
            signals.view(blocked).addcmul_(deviation.view(blocked), drawn.transpose(0, 1))
        return signals

    def _convert(self, signals: Tensor, clips: ClipCounts | None) -> Tensor:
        """ADC codes, in place."""
        if self.max_code is None:
            return signals
        codes = signals.round_()
        if clips is not None:
            clips.adc_clipped = clips.adc_clipped + (codes.abs() > self.max_code).sum()
        return codes.clamp_(-self.max_code, self.max_code)

    def _shift_add(self, codes: Tensor, product: Tensor) -> None:
        """Add codes [row_tiles, n in whole blocks, columns], weighted, to `product` [n, out]."""
        for tile_codes, weights in zip(codes, self.weights, strict=True):
            for plane, weight in enumerate(weights):
                columns = slice(plane * self.out_features, (plane + 1) * self.out_features)
                product.add_(tile_codes[: len(product), columns], alpha=weight)


def split_planes(cells: Tensor, rows: int) -> Tensor:
    """[planes, in, out] -> [row_tiles, rows, planes, out], zeros beyond the matrix."""
    planes, in_features, out_features = cells.shape
    tiles = -(-in_features // rows)
    padded = torch.nn.functional.pad(cells, (0, 0, 0, tiles * rows - in_features))
    return padded.view(planes, tiles, rows, out_features).permute(1, 2, 0, 3).contiguous()


def _whole_blocks(rows: Tensor) -> Tensor:
    """[n, in] with rows of zeros up to a multiple of BLOCK_FRAMES."""
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % BLOCK_FRAMES))


def _aligned(columns: Tensor) -> Tensor:
    """[row_tiles, rows, n] with columns of zeros up to a multiple of ALIGNED_COLUMNS."""
    return torch.nn.functional.pad(columns, (0, -columns.shape[2] % ALIGNED_COLUMNS))


def _with_constant(
    noise: Tensor | None, constant: Tensor, out_features: int, config: ReadNoise | None
) -> Tensor | None:
    """`noise` [row_tiles, rows, planes * out] with a last row of `constant` [row_tiles, planes], aligned.

    In bfloat16, where the spec asks for it, the product rounds the deviation of a column's noise by some 0.2 %, at
    random: as all terms of the sum are positive, nothing is magnified.
    """
    if noise is None or config is None:
        return None
    whole = _aligned(torch.cat([noise, constant.repeat_interleave(out_features, dim=1)[:, None, :]], dim=1))
    return whole.to(torch.bfloat16 if config.variance_product == "bfloat16" else torch.float32)
