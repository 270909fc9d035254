"""The layout of a matrix on cells: its slices, pairs, copies and tiles, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memsim.crossbar import compiled_cells
from memsim.crossbar.encode import bits_of, slices_of
from memsim.hardware import HardwareSpec
from memsim.portable.kernels import is_compiled

ALIGNED_COLUMNS = 16
"""Columns that are read are padded to a multiple of this, because torch divides them among threads in such vectors: a
product would round differently with their number."""


@dataclass(frozen=True)
class Tiling:
    """A [out, in] matrix of `bits`-bit weights on tiles of `rows` word lines (inputs) by `cols` bit lines (outputs).

    A cell holds `cell_bits` bits of a magnitude, and `copies` cells hold the same bits.

    A matrix of `groups` equal blocks on its diagonal is packed: as many blocks as fit, `blocks_per_pack`, share the
    rows and columns of a tile, and `in_features` is the number of rows of such a pack. Within a pack, the rows of one
    block cross the columns of the others in cells of weight 0. A block that is larger than a tile has its own tiles.
    """

    rows: int
    cols: int
    out_features: int
    in_features: int
    bits: int
    cell_bits: int = 1
    copies: int = 1
    groups: int = 1
    blocks_per_pack: int = 1

    @property
    def packs(self) -> int:
        """The number of packs of blocks."""
        return -(-self.groups // self.blocks_per_pack)

    @property
    def pack_outputs(self) -> int:
        """The outputs of a pack; the last pack may have fewer."""
        return self.out_features // self.groups * self.blocks_per_pack

    @property
    def block_inputs(self) -> int:
        """The inputs of a block; a matrix without groups is one block."""
        return self.in_features // self.blocks_per_pack

    @property
    def weights(self) -> int:
        """The number of weights, without the zeros beside the blocks."""
        return self.out_features * self.block_inputs

    @property
    def row_tiles(self) -> int:
        """The number of tiles along the inputs of a pack."""
        return -(-self.in_features // self.rows)

    @property
    def col_tiles(self) -> int:
        """The number of tiles along the outputs of the matrix."""
        return self.packs * self._col_tiles_per_pack

    @property
    def _col_tiles_per_pack(self) -> int:
        return -(-self.pack_outputs // self.cols)

    @property
    def slices(self) -> int:
        """The number of slices of a magnitude, of `cell_bits` bits each."""
        return slices_of(self.bits, self.cell_bits)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The shape [slices, 2, copies, in, out] of the cells that hold weights; polarity 0 is the positive array."""
        return self.slices, 2, self.copies, self.in_features, self.out_features

    @property
    def tiles_per_slice(self) -> int:
        """The number of tiles of one slice, polarity and copy."""
        return self.row_tiles * self.col_tiles

    @property
    def tiles(self) -> int:
        """The number of physical arrays: slices, polarities and copies each have their own."""
        return self.tiles_per_slice * self.slices * 2 * self.copies

    @property
    def cells(self) -> int:
        """The number of physical cells, unused rows and columns included."""
        return self.tiles * self.rows * self.cols

    @property
    def conversions(self) -> int:
        """The conversions for one input: one for each row tile, slice and output, which pairs and copies share."""
        return self.row_tiles * self.slices * self.out_features

    @property
    def utilisation(self) -> float:
        """The fraction of the cells that hold a weight."""
        return self.weights / (self.tiles_per_slice * self.rows * self.cols)

    def col_tile_of(self, outputs: Tensor) -> Tensor:
        """Return the column tile of each of `outputs`."""
        pack = outputs // self.pack_outputs
        return pack * self._col_tiles_per_pack + outputs % self.pack_outputs // self.cols

    def spread(self, levels: Tensor) -> Tensor:
        """Put the blocks of `levels` [out, in / groups] on the diagonals of their packs: [out, in_features]."""
        if self.blocks_per_pack == 1:
            return levels
        output = torch.arange(self.out_features, device=levels.device)
        place = output // (self.out_features // self.groups) % self.blocks_per_pack
        packed = levels.new_zeros(self.out_features, self.blocks_per_pack, self.block_inputs)
        packed[output, place] = levels
        return packed.flatten(1)

    def pack(self, index: int) -> tuple[Tiling, slice, slice]:
        """Return pack `index` as a matrix: its tiling, with the rows that it uses, its inputs and its outputs."""
        first, last = (min(i * self.blocks_per_pack, self.groups) for i in (index, index + 1))
        inputs = slice(first * self.block_inputs, last * self.block_inputs)
        block_outputs = self.out_features // self.groups
        outputs = slice(first * block_outputs, last * block_outputs)
        tiling = replace(self, out_features=outputs.stop - outputs.start, groups=1, blocks_per_pack=1)
        return tiling, inputs, outputs

    def all_packs(self) -> list[tuple[Tiling, slice, slice]]:
        """Return every `pack`."""
        return [self.pack(index) for index in range(self.packs)]

    def digits(self, levels: Tensor, part: slice | None = None) -> Tensor:
        """Return the digits, int32 [n], of the cells `part` (default: all) of the flat `shape`, for `levels` [out, in].

        On a CPU it is fast where the levels of an input are neighbours in memory, as those of `by_input` are.
        """
        part = slice(0, math.prod(self.shape)) if part is None else part
        if is_compiled(levels):
            return compiled_cells.digits(levels, part, self.copies, self.cell_bits)
        return self.digits_by_definition(levels, part)

    def digits_by_definition(self, levels: Tensor, part: slice) -> Tensor:
        """Return what `digits` does, in torch operations for any device."""
        size = self.in_features * self.out_features
        pieces = []
        for array in range(part.start // size, -(-part.stop // size)):
            start, stop = (min(max(end - array * size, 0), size) for end in (part.start, part.stop))
            first_row = start // self.out_features
            rows = levels[:, first_row : -(-stop // self.out_features)].T.reshape(-1)
            here = rows[start - first_row * self.out_features : stop - first_row * self.out_features]
            slice_, negative = divmod(array // self.copies, 2)
            magnitude = (-here if negative else here).clamp(min=0)
            pieces.append((magnitude >> (slice_ * self.cell_bits)) & self._max_digit)
        return torch.cat(pieces).int()

    def tile_of(self, cells: Tensor) -> Tensor:
        """Return the tile [n] of each of `cells` [n], places in the flat `shape`.

        Tiles are numbered by slice, polarity, copy, row tile and column tile.
        """
        row = cells // self.out_features
        array, row = row // self.in_features, row % self.in_features
        return (array * self.row_tiles + row // self.rows) * self.col_tiles + self.col_tile_of(
            cells % self.out_features
        )

    @property
    def _max_digit(self) -> int:
        return (1 << self.cell_bits) - 1


def tiling_for(shape: Sequence[int], spec: HardwareSpec, groups: int = 1) -> Tiling:
    """Lay a matrix of `shape` (out, in / groups), with `groups` blocks on its diagonal, on the tiles of `spec`.

    Raises ValueError where the spec leaves the weight bits open.
    """
    tile, weights = spec.tile, spec.weights
    out_features, block_inputs = shape
    fitting = 1
    if tile.packing == "diagonal":
        fitting = max(1, min(tile.rows // block_inputs, tile.cols * groups // out_features))
    packs = -(-groups // fitting)
    blocks = -(-groups // packs)  # spread evenly over the packs
    in_features = blocks * block_inputs
    lines = (tile.rows, tile.cols, out_features, in_features)
    return Tiling(*lines, bits_of(spec), weights.cell_bits, weights.copies, groups, blocks)


def by_input(levels: Tensor) -> Tensor:
    """Return `levels` [out, in] with the levels of an input as neighbours in memory."""
    return levels.T.contiguous().T


def split_rows(x: Tensor, rows: int) -> Tensor:
    """Cut inputs [n, in] into those of each row tile, [row_tiles, n, rows], with zeros (0 V) beyond the matrix."""
    n, width = x.shape
    tiles = -(-width // rows)
    padded = torch.nn.functional.pad(x, (0, tiles * rows - width)) if width % rows else x
    return padded.view(n, tiles, rows).transpose(0, 1).contiguous()
