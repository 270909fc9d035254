"""Cutting a matrix into tiles, and counting them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.crossbar.read import split_planes
from memsim.crossbar.tiling import Tiling, by_input, split_rows, tiling_for
from memsim.hardware import load_hardware

SIZES, SHAPES = st.integers(1, 7), st.integers(1, 15)
TILINGS = st.builds(
    Tiling, SIZES, SIZES, SHAPES, SHAPES, bits=st.integers(2, 16), cell_bits=st.integers(1, 4), copies=st.integers(1, 3)
)


@st.composite
def packed_tilings(draw: st.DrawFn) -> Tiling:
    """Tilings of a block-diagonal matrix, as `tiling_for` makes them: some that fill their tiles, some that do not."""
    rows, cols, groups = (draw(st.integers(1, 9)) for _ in range(3))
    block_out, block_in = (draw(st.integers(1, 11)) for _ in range(2))
    spec = {"base": "ideal", "tile": {"rows": rows, "cols": cols}, "weights": {"bits": 3}}
    return tiling_for((groups * block_out, block_in), load_hardware(spec), groups)


def levels_for(tiling: Tiling) -> torch.Tensor:
    largest = 2 ** (tiling.bits - 1) - 1
    shape = (tiling.out_features, tiling.in_features)
    levels = torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(0))
    return levels.to(torch.int8 if tiling.bits <= 8 else torch.int16)


@settings(deadline=None)
@given(TILINGS)
def test_the_digits_of_pairs_make_up_the_levels(tiling: Tiling) -> None:
    levels = levels_for(tiling)
    digits = tiling.digits(levels).view(tiling.shape)
    assert digits.dtype == torch.int32
    assert digits.min() >= 0
    assert digits.max() < 2**tiling.cell_bits
    assert tiling.shape == (tiling.slices, 2, tiling.copies, tiling.in_features, tiling.out_features)
    assert (digits == digits[:, :, :1]).all()  # copies are copies
    assert not ((digits[:, 0] > 0) & (digits[:, 1] > 0)).any()  # never both cells of a pair
    significances = (2**tiling.cell_bits) ** torch.arange(tiling.slices)
    difference = (digits[:, 0, 0] - digits[:, 1, 0]) * significances[:, None, None]
    assert torch.equal(difference.sum(0).T, levels.long())


@settings(deadline=None)
@given(TILINGS, st.integers(0, 10_000), st.integers(0, 10_000))
def test_the_digits_of_a_part_are_those_of_the_whole(tiling: Tiling, start: int, more: int) -> None:
    levels = levels_for(tiling)
    whole = tiling.digits(levels)
    start %= len(whole)
    stop = start + 1 + more % (len(whole) - start)
    assert torch.equal(tiling.digits(levels, slice(start, stop)), whole[start:stop])
    assert torch.equal(tiling.digits(by_input(levels), slice(start, stop)), whole[start:stop])
    assert torch.equal(tiling.digits_by_definition(levels, slice(start, stop)), whole[start:stop])


@settings(deadline=None)
@given(TILINGS)
def test_every_cell_lies_in_its_tile(tiling: Tiling) -> None:
    """Cut by hand: arrays (slices, polarities, copies), row tiles, column tiles, and the cells of each tile by rows."""
    places = torch.arange(math.prod(tiling.shape)).view(-1, tiling.in_features, tiling.out_features)
    expected = []
    for array in places:
        for top in range(0, tiling.in_features, tiling.rows):
            for left in range(0, tiling.out_features, tiling.cols):
                tile = torch.full((tiling.rows, tiling.cols), -1)
                part = array[top : top + tiling.rows, left : left + tiling.cols]
                tile[: part.shape[0], : part.shape[1]] = part
                expected.append(tile.flatten())
    tile_of = tiling.tile_of(places.flatten())
    assert len(tile_of) == math.prod(tiling.shape)
    for number, tile in enumerate(expected):
        assert (tile_of[tile[tile >= 0]] == number).all()
    assert tiling.tiles == len(expected)
    assert tiling.cells == sum(tile.numel() for tile in expected)
    assert tiling.tiles_per_slice == len(expected) / 2 / tiling.slices / tiling.copies
    assert tiling.utilisation == pytest.approx(sum((tile >= 0).sum().item() for tile in expected) / tiling.cells)


@settings(deadline=None)
@given(packed_tilings())
def test_blocks_are_packed_on_the_diagonal_of_tiles(tiling: Tiling) -> None:
    """Cut by hand: each pack is a matrix of its own, on tiles of its own, with its blocks on the diagonal."""
    block_out, block_in = tiling.out_features // tiling.groups, tiling.block_inputs
    if tiling.blocks_per_pack > 1:
        assert tiling.blocks_per_pack * block_out <= tiling.cols
        assert tiling.blocks_per_pack * block_in <= tiling.rows
    if tiling.packs > 1:  # no pack less would do
        room = min(tiling.rows // block_in, tiling.cols // block_out)
        assert (tiling.packs - 1) * max(room, 1) < tiling.groups
    cells = torch.arange(tiling.in_features * tiling.out_features)
    tiles = [cells[tiling.tile_of(cells) == number] for number in range(tiling.tiles_per_slice)]
    assert sum(map(len, tiles)) == len(cells)
    levels = 1 + torch.arange(tiling.out_features * block_in).view(tiling.out_features, block_in)
    stored = tiling.spread(levels)
    assert stored.shape == (tiling.out_features, tiling.in_features)
    assert torch.equal(stored[stored > 0].sort().values, levels.flatten())
    outputs_of_tiles = [set((part % tiling.out_features).tolist()) for part in tiles]
    for index in range(tiling.packs):
        pack, inputs, outputs = tiling.pack(index)
        wanted = torch.block_diag(*levels[outputs].split(block_out))
        assert wanted.shape == (outputs.stop - outputs.start, inputs.stop - inputs.start)
        assert torch.equal(stored[outputs, : wanted.shape[1]], wanted)
        assert not stored[outputs, wanted.shape[1] :].any()
        assert (pack.out_features, pack.in_features) == (wanted.shape[0], tiling.in_features)
        own = set(range(outputs.start, outputs.stop))
        assert all(here <= own or not here & own for here in outputs_of_tiles)  # no tile is shared with another pack
    for number, here in enumerate(outputs_of_tiles):
        columns = tiling.col_tile_of(torch.tensor(sorted(here)))
        assert (columns == number % tiling.col_tiles).all()
    assert tiling.weights == levels.numel()
    assert tiling.utilisation == pytest.approx(levels.numel() / (len(tiles) * tiling.rows * tiling.cols))


def test_more_bits_a_cell_take_fewer_cells_and_conversions() -> None:
    """8 bits on a 300 x 200 matrix: 7 planes, 4 slices of 2 bits, 2 of 4; 2 row tiles of 128, 300 columns each."""
    tilings = [Tiling(128, 128, 300, 200, 8, cell_bits) for cell_bits in (1, 2, 4)]
    assert [tiling.conversions for tiling in tilings] == [2 * 300 * slices for slices in (7, 4, 2)]
    assert [tiling.tiles for tiling in tilings] == [2 * 3 * 2 * slices for slices in (7, 4, 2)]
    copied = Tiling(128, 128, 300, 200, 8, 4, copies=3)
    assert copied.cells == 3 * tilings[2].cells
    assert copied.conversions == tilings[2].conversions


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
        assert sum(tiling.tiles_per_slice for tiling in tilings) == 2484
        assert round(sum(tiling.cells for tiling in tilings) / 1e6) == millions
        assert {tiling.utilisation for tiling in tilings} == {1.0}
