"""The read: inputs through DAC, cells and ADC to numbers, as matrix products.

x -> DAC codes -> f(U) of the row voltages -> columns, per row tile and plane (+ read noise) -> ADC codes -> shift-add

Row tiles are the batch of a `bmm` and planes lie side by side on its output axis, so no [batch, in, out] tensor ever
exists. Where there is no ADC nothing needs tiles and planes apart, and they are summed before the read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from memsim.crossbar import compiled, convert, elementwise
from memsim.crossbar.cell import IdealCell, MemristorCell
from memsim.crossbar.tiling import split_rows
from memsim.spec import CalibratedAdc, Dac, FixedAdc, ReadNoise

CHUNK_VALUES = 1 << 20
"""About how many column values are in flight at a time on a CPU: changes speed and memory, never a result."""
DEVICE_CHUNK_VALUES = 1 << 26
"""The same for other devices, where every chunk costs launches and memory is faster."""
BLOCK_FRAMES = 32
"""Frames are multiplied in whole blocks of this many, whatever the chunk: a matrix product of a few rows rounds
differently from one of many, and a last bit can move an ADC code."""
ALIGNED_COLUMNS = 16
"""Columns are padded to a multiple of this for the same reason: torch deals them out to threads in such vectors."""


LookedUp = tuple[Tensor, Tensor | None, Tensor | int]
"""Signals, noise terms and how many inputs were clipped: see `elementwise.look_up`."""


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
        if dac is None or dac.bits is None:
            return untabulated
        largest = convert.dac_max_code(dac.bits)
        u = torch.arange(-largest, largest + 1, dtype=torch.float64, device=like.device) / largest
        return cls(dac, input_range, cell, noise, tuple(t.float() for t in untabulated._evaluate(u)))

    def __call__(self, x: Tensor, rows: int) -> LookedUp:
        """Signals [row_tiles, n, rows] of inputs [n, in], noise terms, clipped inputs: see `elementwise.look_up`."""
        if self.tables is not None:
            assert self.dac is not None
            assert self.dac.bits is not None
            codes_per_input = convert.dac_max_code(self.dac.bits) / self.input_range
            looked_up: LookedUp = _steps(x).look_up(x, codes_per_input, self.tables, rows)
            return looked_up
        clipped: Tensor | int = 0
        if self.dac is not None:
            clipped = (x.abs() > self.input_range).sum()
            x = (x / self.input_range).clamp_(-1, 1)
        signals, *variances = self._evaluate(split_rows(x, rows))
        return signals, elementwise.noise_terms(*variances) if variances else None, clipped

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
        rows: int,
        adc: CalibratedAdc | FixedAdc | None,
        adc_range: Tensor | None,
    ) -> Operator:
        """From `difference` r_pos - r_neg and (for read noise) `below_dark`, dark_total - r_pos - r_neg.

        Each is [planes, in, out].

        `adc_range` [row_tiles or 1, planes or 1] is full scale in units of (weight 1 x full-scale input).
        """
        _keep_freed_memory()
        planes, _, out_features = difference.shape
        worth = 2.0 ** torch.arange(planes, device=difference.device)  # of a plane
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

    def read(self, x: Tensor, noise_key: int = 0, clips: ClipCounts | None = None) -> Tensor:
        """[n, in] -> [n, out] in units of (weight 1 x full-scale input), in chunks of whole blocks.

        `noise_key` (64 bits) is the key of the read noise, where there is any.
        """
        tiles, _, width = self.columns.shape
        values = CHUNK_VALUES if x.device.type == "cpu" else DEVICE_CHUNK_VALUES
        chunk = BLOCK_FRAMES * max(1, values // (tiles * width * BLOCK_FRAMES))
        product = x.new_zeros(len(x), self.out_features)
        for first in range(0, len(x), chunk):
            part = product[first : first + chunk]
            signals, variances, dac_clipped = self._columns(x[first : first + chunk])
            adc_clipped = _steps(x).digitise(signals, variances, noise_key, first, self.weights, self.max_code, part)
            if clips is not None:
                clips.dac_clipped = clips.dac_clipped + dac_clipped
                clips.adc_clipped = clips.adc_clipped + adc_clipped
        if clips is not None:
            clips.dac_total += x.numel() if self.drive.dac is not None else 0
            clips.adc_total += product.numel() * sum(map(len, self.weights)) if self.max_code is not None else 0
        return product

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | int]:
        """Column signals [row_tiles, n in whole blocks, columns] of inputs [n, in], variances of their noise; clips."""
        # Rows and frames that are added read 0 V: no signal, and (see dark_total) no noise without a cell.
        signals, noise_terms, clipped = self.drive(_whole_blocks(x), self.columns.shape[1])
        variances = None
        if self.noise_columns is not None:
            assert noise_terms is not None  # the drive has the noise of the columns
            variances = torch.bmm(noise_terms.to(self.noise_columns.dtype), self.noise_columns)
        return torch.bmm(signals, self.columns), variances, clipped


def _steps(x: Tensor) -> ModuleType:
    """The module that does the steps around the matrix products where `x` is."""
    return compiled if x.device.type == "cpu" else elementwise


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep the megabytes that a chunk frees for the next, in place of faulting them in anew: a third faster.

    Its allocator holds on to freed memory by the size of the largest block (up to 32 MB) that it saw freed; this one is
    never touched. Other allocators take no notice.
    """
    torch.empty(30 << 20, dtype=torch.uint8)


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
