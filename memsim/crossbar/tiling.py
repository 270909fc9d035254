"""How a matrix is cut into tiles, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.encode import planes_of


@dataclass(frozen=True)
class Tiling:
    """A [out, in] matrix of `bits`-bit weights on tiles of `rows` word lines (inputs) by `cols` bit lines (outputs)."""

    rows: int
    cols: int
    out_features: int
    in_features: int
    bits: int

    @property
    def row_tiles(self) -> int:
        return -(-self.in_features // self.rows)

    @property
    def col_tiles(self) -> int:
        return -(-self.out_features // self.cols)

    @property
    def planes(self) -> int:
        return planes_of(self.bits)

    @property
    def tiles_per_plane(self) -> int:
        return self.row_tiles * self.col_tiles

    @property
    def tiles(self) -> int:
        """Physical arrays: planes and polarities each have their own."""
        return self.tiles_per_plane * self.planes * 2

    @property
    def cells(self) -> int:
        """Physical cells, those of unused rows and columns included."""
        return self.tiles * self.rows * self.cols

    @property
    def utilisation(self) -> float:
        """The fraction of the cells that hold a weight."""
        return self.out_features * self.in_features / (self.tiles_per_plane * self.rows * self.cols)

    def cut(self, cells: Tensor) -> Tensor:
        """[planes, 2, in, out] -> [tiles, rows * cols], unused cells zero (False)."""
        planes, polarities = cells.shape[:2]
        padded = cells.new_zeros(planes, polarities, self.row_tiles * self.rows, self.col_tiles * self.cols)
        padded[:, :, : self.in_features, : self.out_features] = cells
        tiles = padded.view(planes, polarities, self.row_tiles, self.rows, self.col_tiles, self.cols)
        return tiles.transpose(3, 4).reshape(-1, self.rows * self.cols)

    def join(self, tiles: Tensor) -> Tensor:
        """[tiles, rows * cols] -> [planes, 2, in, out]: the inverse of `cut`."""
        shape = (self.planes, 2, self.row_tiles, self.col_tiles, self.rows, self.cols)
        padded = tiles.reshape(shape).transpose(3, 4)
        whole = padded.reshape(self.planes, 2, self.row_tiles * self.rows, self.col_tiles * self.cols)
        return whole[:, :, : self.in_features, : self.out_features].contiguous()


def split_rows(x: Tensor, rows: int) -> Tensor:
    """[n, in] -> [row_tiles, n, rows]: each row tile's share of the inputs, zeros (0 V) beyond the matrix."""
    n, width = x.shape
    tiles = -(-width // rows)
    padded = torch.nn.functional.pad(x, (0, tiles * rows - width)) if width % rows else x
    return padded.view(n, tiles, rows).transpose(0, 1).contiguous()
