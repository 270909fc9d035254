"""Keyed blocks of normal numbers."""

from __future__ import annotations

import scipy.stats
import torch

from memsim.crossbar.noise import BlockNormals

CPU = torch.device("cpu")


def test_blocks_are_the_same_however_many_are_drawn_at_once() -> None:
    together = BlockNormals(5).draw(0, 6, (2, 32, 16), CPU)
    for first, blocks in ((0, 1), (2, 3), (5, 1)):
        assert torch.equal(BlockNormals(5).draw(first, blocks, (2, 32, 16), CPU), together[first : first + blocks])


def test_threads_change_nothing() -> None:
    threads = torch.get_num_threads()
    drawn = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        drawn.append(BlockNormals(5).draw(3, 7, (40, 8), CPU))
    torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_seeds_and_blocks_differ_and_are_independent() -> None:
    drawn = torch.stack([BlockNormals(seed).draw(0, 3, (20_000,), CPU) for seed in (1, 2)]).flatten(0, 1)
    between = torch.corrcoef(drawn) - torch.eye(6)
    assert between.abs().max() < 5 / 20_000**0.5
    assert scipy.stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
