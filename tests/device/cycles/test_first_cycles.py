"""Features over several cycles, against the exact covariance and against cells that are cycled pulse by pulse."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from memsim.device import Cells, DeviceModel
from memsim.device.cycles.features import History, stationary_covariance
from memsim.device.cycles.first_cycles import CycleFeatures, cycle_covariance
from memsim.device.cycles.model import HRS, LRS, UR, US

N = 100_000
ROUND = ((LRS, 0), (UR, 0), (HRS, 1))
TRIES = 3


def features_of(device: DeviceModel, history: History = "stationary") -> CycleFeatures:
    return CycleFeatures(device, ROUND, TRIES, torch.arange(N), 2, history)


def cycled(device: DeviceModel, generator: torch.Generator, history: History, cycles: int) -> torch.Tensor:
    """[cycles, 4, N] the features of fresh cells in their first cycles, by full SETs and RESETs."""
    cells = Cells(device, torch.arange(N), 1, history)
    features = [cells.features.clone()]
    for _ in range(cycles - 1):
        cells.apply(-5.0)
        cells.apply(5.0)
        features.append(cells.features.clone())
    return torch.stack(features)


@pytest.mark.parametrize("order", [1, 4, 10])
def test_stationary_cycles_have_the_covariance_of_a_history(order: int, device: DeviceModel) -> None:
    torch.testing.assert_close(
        cycle_covariance(device, order, "stationary", order), stationary_covariance(device, order)
    )
    longer = cycle_covariance(device, order + 3, "stationary", order)
    size = 4 * order
    for shift in (4, 8, 12):  # whenever one starts to count
        torch.testing.assert_close(longer[shift : shift + size, shift : shift + size], longer[:size, :size])


def test_zero_history_starts_from_one_draw(device: DeviceModel) -> None:
    covariance = cycle_covariance(device, 2, "zero")
    var = device.var_matrix()
    drawn, latest = var[:, :4] @ var[:, :4].T, var[:, -4:]
    torch.testing.assert_close(covariance[:4, :4], drawn)
    torch.testing.assert_close(covariance[4:, :4], latest @ drawn)
    torch.testing.assert_close(covariance[4:, 4:], drawn + latest @ drawn @ latest.T)


@pytest.mark.parametrize("history", ["stationary", "zero"])
def test_rounds_are_distributed_as_cycled_cells(
    history: History, device: DeviceModel, generator: torch.Generator
) -> None:
    """Every feature by itself (Kolmogorov-Smirnov, once in 10 000), and the rank correlation of every pair.

    Rank correlations of N independent pairs have a standard error of 1 / sqrt(N); five of the difference of two.
    """
    features = features_of(device, history)
    draws = [features.draw() for _ in range(TRIES)]
    ours = torch.cat([drawn for drawn, _ in draws])
    reference = cycled(device, generator, history, 4)
    theirs = torch.stack([reference[cycle + attempt, feature] for attempt in range(TRIES) for feature, cycle in ROUND])
    for mine, other in zip(ours, theirs, strict=True):
        assert scipy.stats.ks_2samp(mine.numpy(), other.numpy()).statistic < 2.2 * math.sqrt(2 / N)
    ranks = [torch.corrcoef(rows.argsort(1).argsort(1).double()) for rows in (ours, theirs)]
    assert (ranks[0] - ranks[1]).abs().max() < 5 * math.sqrt(2 / N)
    assert ranks[0][0, 3] > 0.5  # of the LRS of two cycles, by device and by history
    for normals in (normals for _, normals in draws):  # for verify reads: independent of the features
        assert scipy.stats.kstest(normals.numpy(), "norm").statistic < 2.2 / math.sqrt(N)
        rows = torch.cat([normals[None], ours]).argsort(1).argsort(1).double()
        assert torch.corrcoef(rows)[0, 1:].abs().max() < 5 / math.sqrt(N)


def test_normals_of_further_reads_are_independent_of_all_else(device: DeviceModel) -> None:
    features = features_of(device)
    rows = []
    for _ in range(2):
        drawn, normals = features.draw()
        rows += [*drawn, normals, *(row for draw in range(2) for row in features.read_normals(torch.arange(N), draw))]
    for normals in rows[3:12]:
        assert scipy.stats.kstest(normals.numpy(), "norm").statistic < 2.2 / math.sqrt(N)
    ranks = torch.corrcoef(torch.stack(rows).argsort(1).argsort(1).double())
    reads = [*range(3, 12), *range(15, 24)]
    ranks[range(len(rows)), range(len(rows))] = 0
    assert ranks[reads].abs().max() < 5 / math.sqrt(N)
    some = torch.arange(0, N, 7)
    assert torch.equal(features.read_normals(some, 1)[2], rows[-2][some])


def test_kept_cells_go_on_with_what_they_are(device: DeviceModel, generator: torch.Generator) -> None:
    """Cells of low LRS stay low; if the normals or the offsets went to other cells, they would not."""
    features = features_of(device)
    first, _ = features.draw()
    low = (first[0] < first[0].quantile(0.1)).nonzero().squeeze(1)
    features.keep(low)
    second, normals = features.draw()
    assert second.shape == (3, len(normals)) == (3, low.numel())
    features.keep(torch.arange(0, low.numel(), 2))
    third, _ = features.draw()
    reference = cycled(device, generator, "stationary", 4)
    theirs = reference[:, :, reference[0, LRS] < reference[0, LRS].quantile(0.1)]
    for mine, cycle in ((second, 1), (third, 2)):
        for row, feature, at in ((0, LRS, cycle), (1, UR, cycle), (2, HRS, cycle + 1)):
            distance = scipy.stats.ks_2samp(mine[row].numpy(), theirs[at, feature].numpy()).statistic
            assert distance < 2.2 * math.sqrt(1 / mine.shape[1] + 1 / theirs.shape[2])
    assert second[0].mean() < first[0].mean() - 2 * first[0].std() / math.sqrt(low.numel())


def test_features_may_come_in_any_order(device: DeviceModel) -> None:
    ((us, hrs), _), ((lrs,), _) = (
        CycleFeatures(device, round_, 1, torch.arange(1000), 1).draw() for round_ in (((US, 0), (HRS, 2)), ((LRS, 5),))
    )
    assert (us < 0).all()
    assert 50e3 < hrs.median() < 100e3
    assert 4e3 < lrs.median() < 5e3
