"""The normals of read noise, and equal draws in compiled code."""

from __future__ import annotations

import dataclasses
import math

import pytest
import scipy.stats
import torch

from memsim.crossbar import compiled, elementwise
from memsim.crossbar.convert import Conversion
from memsim.crossbar.read_noise import standard_normals

CPU = torch.device("cpu")


def test_any_part_of_a_read_draws_the_same_numbers() -> None:
    whole = standard_normals(5, 0, (3, 40, 16), CPU)
    assert torch.equal(standard_normals(5, 7, (3, 20, 16), CPU), whole[:, 7:27])
    assert torch.equal(standard_normals(5, 0, (1, 40, 16), CPU), whole[:1])


def test_compiled_code_draws_the_same_numbers() -> None:
    key, shape = 0x0123456789ABCDEF, (3, 500, 512)
    signals, ones = torch.zeros(shape), torch.ones(shape)
    for tile in range(shape[0]):
        only = torch.zeros(shape[0], 1)
        only[tile] = 1
        product = torch.zeros(500, 512)
        compiled.digitise(signals, ones, key, 1000, Conversion(only), 1.0, product)
        expected = standard_normals(key, 1000, shape, CPU)[tile]
        assert expected.abs().max() > 4.3
        assert torch.equal(product, expected)


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    """[row_tiles, n, columns], 8.4 million numbers."""
    return standard_normals(11, 0, (4, 4096, 512), CPU)


def test_moments_and_tails_are_those_of_normals(drawn: torch.Tensor) -> None:
    z = drawn.double().flatten()
    n = z.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(float(z.pow(power).mean()) - mean) < 5 * math.sqrt(variance / n)
    for edge in (2.0, 3.0, 4.0, 4.5, 5.0):
        for side in (z, -z):
            expected = n * scipy.stats.norm.sf(edge)
            assert abs(int((side > edge).sum()) - expected) < 5 * math.sqrt(expected) + 1
    assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 1e-3


@pytest.mark.slow
def test_no_number_tells_of_another(drawn: torch.Tensor) -> None:
    """Neither do their squares: between frames, tiles and columns, near and a quarter of the columns apart."""
    pairs = {
        **{f"frames {lag}": (drawn[:, lag:], drawn[:, :-lag]) for lag in (1, 2, 32)},
        **{f"tiles {lag}": (drawn[lag:], drawn[:-lag]) for lag in (1, 2)},
        **{f"columns {lag}": (drawn[..., lag:], drawn[..., :-lag]) for lag in (1, 2, 127, 128, 129, 256, 384)},
        "frames and columns": (drawn[:, 1:, 1:], drawn[:, :-1, :-1]),
        "keys": (drawn[:1], standard_normals(12, 0, (1, 4096, 512), CPU)),
    }
    for name, (one, other) in pairs.items():
        one, other = one.double(), other.double()
        limit = 5 / math.sqrt(one.numel())
        assert abs(float((one * other).mean())) < limit, name
        assert abs(float(((one.square() - 1) * (other.square() - 1)).mean())) < 2 * limit, name


# What is compiled, against torch operations


@pytest.mark.parametrize("tables", [1, 3])
@pytest.mark.parametrize(("width", "rows"), [(5, 2), (128, 128), (130, 64)])
def test_looking_up(width: int, rows: int, tables: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = 40 * torch.randn(70, width, generator=generator)
    x[3, 2], x[4, 1], x[5, 0], x[6, 1] = torch.inf, -torch.inf, 3e30, torch.nan
    laws = tuple(torch.randn(255, generator=generator) for _ in range(tables))
    signals, terms, clipped = compiled.look_up(x, 1.7, laws, rows)
    expected_signals, expected_terms, expected_clipped = elementwise.look_up(x, 1.7, laws, rows)
    assert torch.equal(signals, expected_signals)
    assert clipped == int(expected_clipped) == int(((x * 1.7).abs() > 127.5).sum()) > 10
    assert (terms is None) == (expected_terms is None) == (tables == 1)
    if terms is not None and expected_terms is not None:
        torch.testing.assert_close(terms, expected_terms)


@pytest.mark.parametrize("max_code", [None, 7, 127])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("erring", [False, True])
@pytest.mark.parametrize("with_factors", [False, True])
def test_digitising(with_factors: bool, erring: bool, noisy: bool, max_code: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    signals = 30 * torch.randn(2, 96, 32, generator=generator)
    variances = torch.rand(2, 96, 32, generator=generator) if noisy else None
    if variances is not None:
        variances[0, :, 3] = -1e-9  # rounding may leave it there: no noise, and no NaN
    conversion = Conversion(torch.tensor([[1.0, 2.0], [0.5, 1.25]]), max_code)
    if erring and max_code is not None:
        offsets = torch.randn(2, 32, generator=generator)
        conversion = dataclasses.replace(conversion, offsets=offsets, nonlinearity_codes=-1.5)
    if with_factors:
        conversion = dataclasses.replace(conversion, tile_factors=torch.randn(2, 15, generator=generator))
    products = [torch.ones(90, 15), torch.ones(90, 15)]
    clipped = compiled.digitise(signals, variances, 9, 64, conversion, -0.5, products[0])
    expected_clipped = elementwise.digitise(signals, variances, 9, 64, conversion, -0.5, products[1])
    torch.testing.assert_close(products[0], products[1])
    assert clipped == int(expected_clipped)
    assert (clipped > 0) == (max_code is not None and max_code < 100)


def test_rounding_is_to_even() -> None:
    """As the torch operations do; a converter that rounds halves away from zero would be biased by offsets of one."""
    halves = torch.arange(-8, 8).add(0.5).view(1, 1, 16)
    product = torch.zeros(1, 16)
    compiled.digitise(halves, None, 0, 0, Conversion(torch.ones(1, 1), 100), 1.0, product)
    assert torch.equal(product, halves[0].round())


def test_nan_is_no_code() -> None:
    """It neither reads outside the table nor waits for a device; callers see to it before or after."""
    x = torch.tensor([[torch.nan, 1.0]])
    table = torch.arange(255.0)
    assert elementwise.look_up(x, 1.0, (table,), 2)[0].flatten().tolist() == [127.0, 128.0]
