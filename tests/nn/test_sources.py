"""Matrices in the tensors of layers, against the products that torch computes with them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.nn.sources import WeightSource

COUNTS = st.integers(1, 4)


def block_diagonal(matrix: torch.Tensor, groups: int) -> torch.Tensor:
    return torch.block_diag(*matrix.chunk(groups))


@settings(deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_a_convolutions_matrix(groups: int, ins: int, outs: int, taps: int) -> None:
    """Of an input as long as the kernel there is one window: all of it."""
    weight, x = torch.randn(groups * outs, ins, taps).double(), torch.randn(groups * ins, taps).double()
    source = WeightSource.of("w", tuple(weight.shape), groups)
    matrix = source.matrix(weight)
    assert source.shape == matrix.shape == (groups * outs, ins * taps)
    wanted = torch.nn.functional.conv1d(x, weight, groups=groups)
    torch.testing.assert_close(block_diagonal(matrix, groups) @ x.flatten(), wanted[:, 0])


@settings(deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_a_transposed_convolutions_matrix(groups: int, ins: int, outs: int, taps: int) -> None:
    """An input of one position becomes a kernel of each output."""
    weight, x = torch.randn(groups * ins, outs, taps).double(), torch.randn(groups * ins, 1).double()
    source = WeightSource.transposed("w", tuple(weight.shape), groups)
    matrix = source.matrix(weight)
    assert source.shape == matrix.shape == (groups * outs * taps, ins)
    wanted = torch.nn.functional.conv_transpose1d(x, weight, groups=groups)
    torch.testing.assert_close((block_diagonal(matrix, groups) @ x[:, 0]).view(-1, taps), wanted)


def test_rows_of_a_tensor() -> None:
    weight = torch.randn(12, 4)
    source = WeightSource.of("w", (12, 4), rows=(4, 8))
    assert source.shape == (4, 4)
    assert torch.equal(source.matrix(weight), weight[4:8])


def test_a_tensor_fits_the_matrix_that_it_holds() -> None:
    weight = WeightSource.of("w", (6, 4))
    transposed = WeightSource.transposed("w", (6, 2, 3), groups=2)  # [in, out / groups, kernel]
    expert = WeightSource("w", (6, 4), index=2)
    rows = WeightSource.of("w", (12, 4), rows=(8, 12))
    for source, fitting, others in (
        (weight, [(6, 4), (6, 2, 2)], [(6,), (24,), (4, 6), (6, 5)]),
        (transposed, [(6, 2, 3), (6, 6)], [(6,), (5, 2, 3), (2, 6, 3)]),
        (expert, [(3, 6, 4)], [(2, 6, 4), (3, 4, 6), (6, 4), (3, 24)]),
        (rows, [(12, 4), (16, 4)], [(11, 4), (4,), (12, 5)]),
    ):
        assert [source.fits(shape) for shape in fitting] == [True] * len(fitting)
        assert [source.fits(shape) for shape in others] == [False] * len(others)
