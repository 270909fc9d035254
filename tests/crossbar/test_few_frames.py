"""Reads of a few frames without padding: the bits of a padded read, or a padded read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memsim.crossbar import few_frames
from memsim.crossbar.few_frames import FewFrames, multiply, rows_of_sum
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.read import ClipCounts, add_clips
from tests.crossbar.by_hand import small_matrix, spec_of

CALIBRATED = {"range": "calibrated", "bits": 6}
SPECS: dict[str, dict[str, Any]] = {
    "calibrated ADC": {"adc": CALIBRATED},
    "fixed ADC": {"adc": {"range": "fixed", "precision_bits": 4, "range_bits": 3}},
    "no ADC": {"adc": None},
    "ADC with errors": {
        "adc": {**CALIBRATED, "gain_error": 0.02, "offset_error_codes": 0.5, "nonlinearity_codes": 0.5}
    },
    "several phases": {"dac": {"bits": 8, "polarity": "two_phase", "slice_bits": 4}},
    "range of each vector": {"dac": {"bits": 8, "range": "per_vector"}},
    "voltages": {"dac": {"bits": None}},
    "ideal cells": {"cell": "ideal", "dac": {"bits": 8}, "read_noise": None},
}
NOISES: dict[str, dict[str, Any]] = {
    "noiseless": {"read_noise": None},
    "noisy": {},
    "bfloat16": {"read_noise": {"variance_product": "bfloat16"}},
}


@pytest.fixture(autouse=True)
def _forget_orders() -> Iterator[None]:
    rows_of_sum.cache_clear()
    yield
    rows_of_sum.cache_clear()


def read(matrix: MappedMatrix, x: Tensor) -> tuple[Tensor, ClipCounts]:
    """Read the batch `x`, and count what clips."""
    matrix.reads.begin("batch")
    matrix.reads.count_clips, matrix.clips = True, ClipCounts()
    return matrix(x), add_clips([matrix.clips])


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("shape", [(20, 5), (35, 300)])
def test_a_few_frames_read_as_in_a_batch(
    spec: dict[str, Any], noise: dict[str, Any], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = small_matrix(spec_of(3, 128, **noise | spec), *shape)
    x = 1.5 * torch.randn(100, shape[1], generator=torch.Generator().manual_seed(7))
    batch, _ = read(matrix, x)
    for frames in (1, 2, 3, 5, 18, 31):
        few, clips = read(matrix, x[:frames])
        assert torch.equal(few, batch[:frames])
        with monkeypatch.context() as context:
            context.setattr(FewFrames, "read", lambda *_: None)
            padded, clips_of_padded = read(matrix, x[:frames])
        assert torch.equal(few, padded)
        assert clips == clips_of_padded


def test_frames_are_not_padded_where_the_bits_agree() -> None:
    """One frame at any number of threads, and as many as one thread reads in less time than a padded block."""
    matrix = small_matrix(spec_of(3, 128), 35, 300)
    operator = matrix._make_operator()
    few = FewFrames.of(operator)
    assert few is not None
    agrees = bool(rows_of_sum(*few.columns.shape, "highest"))
    for threads, frames, is_few in ((1, 1, True), (1, 31, True), (2, 20, True), (2, 21, False), (64, 1, True)):
        torch.set_num_threads(threads)
        clipped = few.read(torch.randn(frames, 300), [0], 0, torch.zeros(frames, 35))
        torch.set_num_threads(1)
        assert (clipped is not None) == (is_few and agrees)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("tiles", "rows", "width", "part"), [(2, 7, 16, 7), (1, 130, 1040, 32), (3, 129, 2064, 50)])
def test_products_are_those_of_float64(frames: int, tiles: int, rows: int, width: int, part: int) -> None:
    generator = np.random.default_rng(0)
    signals = generator.standard_normal((tiles, frames, rows)).astype(np.float32)
    columns = generator.standard_normal((tiles, rows, width)).astype(np.float32)
    wanted = signals.astype(np.float64) @ columns.astype(np.float64)
    bound = np.abs(signals).astype(np.float64) @ np.abs(columns).astype(np.float64)
    assert (np.abs(multiply(signals, columns, rows, part) - wanted) <= 2.0**-23 * rows / 2 * bound).all()


def _in_parts_of(rows_of_part: int) -> Any:
    def product(signals: Tensor, columns: Tensor) -> Tensor:
        return torch.from_numpy(multiply(signals.numpy(), columns.contiguous().numpy(), signals.shape[2], rows_of_part))

    return product


@pytest.mark.parametrize("part", [300, 150, 100, 64])
def test_the_rows_of_a_sum_are_found(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "bmm", _in_parts_of(part))
    assert rows_of_sum(2, 300, 48, "highest") == part


def test_another_order_is_not_taken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that adds rows in descending order: a frame is padded, and reads as in the batch."""
    in_order = _in_parts_of(300)

    def descending(signals: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
        product: Tensor = in_order(signals.flip(2).contiguous(), columns.flip(1))
        return product if out is None else out.copy_(product)

    monkeypatch.setattr(torch, "bmm", descending)
    assert rows_of_sum(2, 300, 48, "highest") == 0
    matrix = small_matrix(spec_of(3, 128), 20, 40)
    x = torch.randn(40, 40, generator=torch.Generator().manual_seed(7))
    batch, _ = read(matrix, x)
    assert torch.equal(read(matrix, x[:1])[0], batch[:1])


def test_the_order_is_found_anew_where_products_have_another_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(few_frames, "rows_of_sum", lambda *shape_and_precision: asked.append(shape_and_precision[3]))
    matrix = small_matrix(spec_of(3, 128, read_noise=None), 20, 40)
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            matrix(torch.zeros(1, 40))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert asked == ["highest", "medium"]
