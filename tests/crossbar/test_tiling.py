"""Cutting a matrix into tiles, and counting them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.crossbar.read import split_planes
from memsim.crossbar.tiling import Tiling, split_rows

SIZES = st.integers(1, 7)
TILINGS = st.builds(Tiling, SIZES, SIZES, st.integers(1, 15), st.integers(1, 15), st.integers(2, 5))


@settings(deadline=None)
@given(TILINGS)
def test_cut_puts_every_cell_in_its_tile_and_join_brings_it_back(tiling: Tiling) -> None:
    shape = (tiling.planes, 2, tiling.in_features, tiling.out_features)
    cells = torch.arange(1, math.prod(shape) + 1, dtype=torch.int32).view(shape)
    tiles = tiling.cut(cells)
    assert tiles.shape == (tiling.tiles, tiling.rows * tiling.cols)
    assert torch.equal(tiling.join(tiles), cells)
    expected = []
    for array in cells.flatten(0, 1):  # planes, polarities
        for top in range(0, tiling.in_features, tiling.rows):
            for left in range(0, tiling.out_features, tiling.cols):
                tile = torch.zeros(tiling.rows, tiling.cols, dtype=torch.int32)
                part = array[top : top + tiling.rows, left : left + tiling.cols]
                tile[: part.shape[0], : part.shape[1]] = part
                expected.append(tile.flatten())
    assert torch.equal(tiles, torch.stack(expected))
    assert tiling.tiles == len(expected)
    assert tiling.cells == sum(tile.numel() for tile in expected)
    assert tiling.tiles_per_plane == len(expected) / 2 / tiling.planes
    assert tiling.utilisation == pytest.approx(sum((tile > 0).sum().item() for tile in expected) / tiling.cells)


def test_cut_leaves_unused_cells_unset() -> None:
    tiles = Tiling(2, 2, 3, 3, 2).cut(torch.ones(1, 2, 3, 3, dtype=torch.bool))
    assert tiles.dtype == torch.bool
    assert tiles.sum() == 18


@settings(deadline=None)
@given(st.integers(1, 15), st.integers(1, 7), st.integers(0, 4), st.integers(1, 3), st.integers(1, 4))
def test_split_rows_and_planes_pair_inputs_with_their_cells(
    width: int, rows: int, n: int, planes: int, out: int
) -> None:
    x = torch.randn(n, width, dtype=torch.float64)
    cells = torch.randn(planes, width, out, dtype=torch.float64)
    inputs, columns = split_rows(x, rows), split_planes(cells, rows)
    tiles = math.ceil(width / rows)
    assert inputs.shape == (tiles, n, rows)
    assert columns.shape == (tiles, rows, planes, out)
    for tile in range(tiles):
        part = slice(tile * rows, min((tile + 1) * rows, width))
        used = part.stop - part.start
        assert torch.equal(inputs[tile, :, :used], x[:, part])
        assert not inputs[tile, :, used:].any()
        assert torch.equal(columns[tile, :used], cells[:, part].transpose(0, 1))
        assert not columns[tile, used:].any()
    product = torch.einsum("tnr,trpo->pno", inputs, columns)
    torch.testing.assert_close(product, torch.einsum("ni,pio->pno", x, cells))


def test_the_papers_conformer_takes_2484_tiles_a_plane() -> None:
    """Table of arXiv 2505.24721: 12 blocks of width 384, feed-forward 1536: 163 / 244 / 570 million cells."""
    block = [(1536, 384), (384, 1536)] * 2 + [(384, 384)] * 4 + [(768, 384), (384, 384)]
    for bits, millions in ((3, 163), (4, 244), (8, 570)):
        tilings = [Tiling(128, 128, out, width, bits) for out, width in block * 12]
        assert sum(tiling.tiles_per_plane for tiling in tilings) == 2484
        assert round(sum(tiling.cells for tiling in tilings) / 1e6) == millions
        assert {tiling.utilisation for tiling in tilings} == {1.0}
