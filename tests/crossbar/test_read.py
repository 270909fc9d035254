"""The read against sums over single cells: signals, converters and noise."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim.crossbar import drive, elementwise, many_frames, read
from memsim.crossbar.cell import MemristorCell
from memsim.crossbar.matrix import MappedMatrix
from memsim.nn.linear import MappedLinear
from tests.crossbar.by_hand import column_signals, columns_of, in_weights_and_inputs, shift_add, small_matrix, spec_of

FIXED = {"range": "fixed", "precision_bits": 4, "range_bits": 3}
CALIBRATED = {"range": "calibrated", "bits": 6}
FINE = {"range": "calibrated", "bits": 16, "method": "max"}
ERRING = {**CALIBRATED, "gain_error": 0.02, "offset_error_codes": 0.5, "nonlinearity_codes": 0.5}
TWO_PHASE = {"bits": 8, "polarity": "two_phase", "slice_bits": 4}


def inputs(n: int, features: int = 5, seed: int = 7) -> Tensor:
    """Random inputs, some beyond full scale, and a row of zeros (code 0)."""
    x = 1.5 * torch.randn(n, features, generator=torch.Generator().manual_seed(seed))
    x[0] = 0
    return x


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 128])
@pytest.mark.parametrize("dac", [{"bits": 8}, {"bits": 3}, {"bits": None}], ids=["8 bits", "3 bits", "voltages"])
@pytest.mark.parametrize("adc", [None, FIXED, CALIBRATED], ids=["none", "fixed", "calibrated"])
def test_a_read_is_the_sum_over_its_cells(adc: dict[str, Any] | None, dac: dict[str, Any], rows: int) -> None:
    matrix = small_matrix(spec_of(4, rows, adc=adc, dac={"vmax_volts": 0.6, **dac}, read_noise=None))
    x = inputs(40)
    by_hand = in_weights_and_inputs(matrix, shift_add(matrix, column_signals(matrix, x)[0]))
    # sums of some ten float32 terms; no code happens to lie so near a tie that it rounds the other way
    torch.testing.assert_close(matrix(x).double(), by_hand, rtol=0, atol=2e-6 * float(by_hand.abs().max()))
    assert by_hand[0].abs().max() == 0


ENCODINGS: dict[str, dict[str, Any]] = {
    "copies": {"weights": {"bits": 4, "copies": 3}},
    "2 bits a cell": {"weights": {"bits": 4, "encoding": "multilevel", "cell_bits": 2}},
    "3 bits a cell, copies": {"weights": {"bits": 5, "encoding": "multilevel", "cell_bits": 3, "copies": 2}},
}


@pytest.mark.parametrize("adc", [None, FIXED, CALIBRATED], ids=["none", "fixed", "calibrated"])
@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_every_encoding_is_the_sum_over_its_cells(encoding: dict[str, Any], adc: dict[str, Any] | None) -> None:
    """The mean over copies; a digit of slice k counts (2^cell_bits)^k."""
    programming = {"scheme": "incremental_reset"}
    matrix = small_matrix(spec_of(rows=3, adc=adc, read_noise=None, programming=programming, **encoding))
    x = inputs(40)
    by_hand = in_weights_and_inputs(matrix, shift_add(matrix, column_signals(matrix, x)[0]))
    torch.testing.assert_close(matrix(x).double(), by_hand, rtol=0, atol=2e-6 * float(by_hand.abs().max()))
    if adc is None:  # and it is the product with the weights, but for what hardware errs
        exact = x.clamp(-matrix.input_range, matrix.input_range) @ (matrix.levels * matrix.scale[:, None]).T
        assert (by_hand - exact).norm() < 0.04 * exact.norm()


def test_the_fixed_adc_takes_effect_and_clips() -> None:
    """Otherwise the comparison above would not see it."""
    matrix = small_matrix(spec_of(4, 3, adc={**FIXED, "range_bits": 1}, read_noise=None))
    x = inputs(40)
    signal, _ = column_signals(matrix, x)
    matrix.reads.count_clips = True
    by_hand = in_weights_and_inputs(matrix, shift_add(matrix, signal))
    torch.testing.assert_close(matrix(x).double(), by_hand, rtol=0, atol=2e-6 * float(by_hand.abs().max()))
    clipped = int(((signal * 16).round().abs() > 16).sum())
    assert int(matrix.clips.adc_clipped) == clipped > 10
    assert matrix.clips.adc_total == signal.numel()
    assert matrix.input_range is not None
    assert int(matrix.clips.dac_clipped) == int((x.abs() > matrix.input_range * (1 + 0.5 / 127)).sum()) > 0
    assert matrix.clips.dac_total == x.numel()


def test_every_plane_has_its_own_adc_range() -> None:
    matrix = small_matrix(spec_of(4, 3, adc=CALIBRATED, read_noise=None))
    assert matrix.adc_range is not None
    assert matrix.adc_range.shape == (1, 3)
    ranges = torch.tensor([[0.5, 1.0, 2.0], [1.5, 0.7, 0.3]])  # and every row tile could have one
    matrix.adc_range = ranges
    x = inputs(40)
    signal, _ = column_signals(matrix, x)
    total = torch.zeros(40, 3, dtype=torch.float64)
    for tile in range(2):
        for plane in range(3):
            step = float(ranges[tile, plane]) / 31
            total += (signal[tile, :, plane] / step).round().clamp(-31, 31) * step * 2**plane
    torch.testing.assert_close(matrix(x).double(), in_weights_and_inputs(matrix, total), rtol=0, atol=1e-5)


@pytest.mark.parametrize("adc", [None, FIXED, CALIBRATED], ids=["none", "fixed", "calibrated"])
@pytest.mark.parametrize("dac", [None, {"bits": 8}, {"bits": None}], ids=["none", "8 bits", "voltages"])
def test_ideal_cells_compute_levels_times_inputs(dac: dict[str, Any] | None, adc: dict[str, Any] | None) -> None:
    matrix = small_matrix(spec_of(4, 2, cell="ideal", dac=dac, adc=adc, read_noise=None))
    x = inputs(40)
    u = x.double()
    if dac is not None:
        assert matrix.input_range is not None
        u = u / float(matrix.input_range)
        u = u.clamp(-1, 1) if dac["bits"] is None else (u * 127).round().clamp(-127, 127) / 127
    signal = torch.zeros(3, 40, 3, 3, dtype=torch.float64)
    for (o, i), q in zip(torch.cartesian_prod(torch.arange(3), torch.arange(5)), matrix.levels.view(-1), strict=True):
        for plane in range(3):
            bit = (abs(int(q)) >> plane) & 1
            signal[i // 2, :, plane, o] += bit * int(q.sign()) * u[:, i]
    by_hand = in_weights_and_inputs(matrix, shift_add(matrix, signal))
    torch.testing.assert_close(matrix(x).double(), by_hand, rtol=0, atol=2e-6 * float(by_hand.abs().max()))


# Noise

FRAMES = 40_000


def noisy_reads(adc: dict[str, Any] | None, row: Tensor, **changes: Any) -> tuple[MappedMatrix, Tensor, Tensor]:
    """(matrix, deviations of FRAMES reads of one input from the noiseless signal, the std by hand [out]).

    With an ADC it is a wide one of 16 bits, and the noise ten times as large, some ten of its steps.
    """
    if adc is not None:
        changes["read_noise"] = {"shot_scale": 10.0, "johnson_scale": 10.0}
    matrix = small_matrix(spec_of(3, 2, adc=adc, **changes))
    signal, variance = column_signals(matrix, row[None])
    if adc is not None:
        matrix.adc_range = 1.1 * signal.abs().amax((0, 1, 3)).float()[None] + 0.1
        variance += (matrix.adc_range.double() / 32767).square().view(1, 1, 2, 1) / 12
    mean = in_weights_and_inputs(matrix, torch.einsum("tnpo,p->no", signal, torch.tensor([1.0, 2.0]).double()))[0]
    std = in_weights_and_inputs(matrix, torch.einsum("tnpo,p->no", variance, torch.tensor([1.0, 4.0]).double()).sqrt())[
        0
    ]
    return matrix, matrix(row.expand(FRAMES, -1)).double() - mean, std


ROWS = {
    "mixed": torch.tensor([0.9, -1.4, 0.3, 0.05, -0.7]),
    "zero": torch.zeros(5),
    "negative": torch.full((5,), -2.0),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("adc", [None, FINE], ids=["none", "16 bits"])
def test_noise_is_the_sum_of_the_cells_variances(adc: dict[str, Any] | None, row: str) -> None:
    """Five standard errors of a mean (std / sqrt(N)) and of a standard deviation (std / sqrt(2 N)): 1.8 %."""
    _, deviations, std = noisy_reads(adc, ROWS[row])
    assert (deviations.mean(0).abs() < 5 * std / math.sqrt(FRAMES)).all()
    assert ((deviations.std(0) / std - 1).abs() < 5 / math.sqrt(2 * FRAMES)).all()


@pytest.mark.parametrize("adc", [None, FINE], ids=["none", "16 bits"])
def test_noise_is_gaussian_and_independent(adc: dict[str, Any] | None) -> None:
    _, deviations, std = noisy_reads(adc, ROWS["mixed"])
    z = deviations / std
    for column in z.T:
        assert scipy.stats.kstest(column.numpy(), "norm").pvalue > 1e-3
        assert column.pow(4).mean().item() == pytest.approx(3, abs=5 * math.sqrt(96 / FRAMES))
        for lag in (1, 2, 16, 31, 32, 64):  # whatever is repeated within a block or between blocks
            assert abs(float((column[lag:] * column[:-lag]).mean())) < 5 / math.sqrt(FRAMES - lag)
    between = torch.corrcoef(z.T) - torch.eye(3, dtype=torch.float64)
    assert between.abs().max() < 5 / math.sqrt(FRAMES)


def test_noise_is_drawn_for_every_tile_and_plane() -> None:
    """The codes before the shift-add: shared draws would correlate them."""
    matrix, _, _ = noisy_reads(FINE, ROWS["mixed"])
    operator = matrix._make_operator()
    x = ROWS["mixed"].expand(FRAMES, -1)
    expected, variance = column_signals(matrix, x[:1])
    tiles, _, planes, out_features = variance.shape
    codes = torch.zeros(tiles, FRAMES, planes, out_features, dtype=torch.float64)
    for tile, plane in itertools.product(range(tiles), range(planes)):
        only = torch.zeros(tiles, planes)
        only[tile, plane] = 1
        conversion = dataclasses.replace(operator.conversion, weights=only)
        codes[tile, :, plane] = dataclasses.replace(operator, conversion=conversion).read(x, 3)
    assert matrix.adc_range is not None
    step = matrix.adc_range.double() / 32767
    deviations = codes * step.view(1, 1, 2, 1) - expected
    ratio = deviations.std(1) / variance[:, 0].sqrt()
    assert ((ratio - 1).abs() < 5 / math.sqrt(2 * FRAMES)).all()
    channels = deviations.permute(0, 2, 3, 1).flatten(0, 2)
    between = torch.corrcoef(channels) - torch.eye(len(channels), dtype=torch.float64)
    assert between.abs().max() < 5.5 / math.sqrt(FRAMES)  # 153 pairs


def test_the_noise_of_copies_is_that_of_their_mean() -> None:
    """With an n-th of the variance, as `column_signals` counts it cell by cell."""
    for adc in (None, FINE):
        _, deviations, std = noisy_reads(adc, ROWS["mixed"], weights={"bits": 3, "copies": 4})
        assert (deviations.mean(0).abs() < 5 * std / math.sqrt(FRAMES)).all()
        assert ((deviations.std(0) / std - 1).abs() < 5 / math.sqrt(2 * FRAMES)).all()
    _, _, single = noisy_reads(None, ROWS["mixed"])
    _, _, copied = noisy_reads(None, ROWS["mixed"], weights={"bits": 3, "copies": 4})
    assert (copied / single).tolist() == pytest.approx([0.5] * 3, rel=0.1)  # other cells


def test_noise_follows_each_frames_own_input() -> None:
    matrix = small_matrix(spec_of(3, 2, adc=None))
    rows = torch.stack([ROWS["mixed"], ROWS["zero"]])
    signal, variance = column_signals(matrix, rows)
    assert variance[:, 0].sum() > 2 * variance[:, 1].sum()
    matrix.reads.begin("alternating")
    got = matrix(rows.repeat(FRAMES // 2, 1)).double().unflatten(0, (-1, 2))
    std = in_weights_and_inputs(matrix, torch.einsum("tnpo,p->no", variance, torch.tensor([1.0, 4.0]).double()).sqrt())
    mean = in_weights_and_inputs(matrix, shift_add(matrix, signal))
    assert (((got - mean).std(0) / std - 1).abs() < 5 / math.sqrt(FRAMES)).all()


def test_noise_scales() -> None:
    """Johnson noise alone goes with the root of the temperature, shot noise is gone at 0 V."""
    johnson = {"shot_scale": 0.0}
    _, cold, cold_std = noisy_reads(None, ROWS["zero"], read_noise=johnson)
    _, hot, hot_std = noisy_reads(None, ROWS["zero"], read_noise={**johnson, "temperature_kelvin": 1200})
    torch.testing.assert_close(hot_std, 2 * cold_std)
    torch.testing.assert_close(hot.std(0) / cold.std(0), torch.full((3,), 2.0).double(), rtol=1e-5, atol=0)
    _, none, _ = noisy_reads(None, ROWS["zero"], read_noise={"johnson_scale": 0.0})
    assert not none.any()


@pytest.mark.parametrize(
    ("product", "rms", "most", "bias"), [("float32", 1e-6, 5e-6, 1e-6), ("bfloat16", 3e-3, 1e-2, 5e-4)]
)
def test_the_deviation_of_every_column_is_that_of_its_cells(product: str, rms: float, most: float, bias: float) -> None:
    """float32 by default: exact to rounding; bfloat16 as documented."""
    noise = {"shot_scale": 30.0, "johnson_scale": 30.0, "variance_product": product}  # many steps of the ADC
    matrix = small_matrix(spec_of(3, 32, adc=FINE, read_noise=noise), 20, 60)
    x = inputs(64, 60)
    _, variances = columns_of(matrix, x)
    assert variances is not None
    deviation = variances[:, :, :40].double().sqrt().unflatten(2, (2, 20))
    _, variance = column_signals(matrix, x)
    assert matrix.adc_range is not None
    ratio = deviation * (matrix.adc_range.double() / 32767).view(1, 1, 2, 1) / variance.sqrt()
    assert (ratio - 1).square().mean().sqrt() < rms
    assert (ratio - 1).abs().max() < most
    assert abs(float(ratio.mean()) - 1) < bias


def test_without_read_noise_there_is_none() -> None:
    matrix = small_matrix(spec_of(3, 2, read_noise=None))
    y = matrix(ROWS["mixed"].expand(1000, -1))
    assert torch.equal(y, y[:1].expand_as(y))
    assert torch.equal(matrix(ROWS["mixed"]), y[0])


# Chunks


@pytest.mark.parametrize("shape", [(3, 5), (35, 5), (66, 128), (73, 16), (200, 33), (384, 128), (40, 500)])
@pytest.mark.parametrize("adc", [None, CALIBRATED], ids=["none", "calibrated"])
@pytest.mark.parametrize("noise", [None, {}], ids=["noiseless", "noisy"])
def test_chunks_and_threads_change_nothing(
    noise: dict[str, Any] | None, adc: dict[str, Any] | None, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: 201 frames make a last chunk of 9, and 35 columns dealt out to threads odd parts, which on their own
    round differently. So does a product of more than 256 rows with one more row, that of the constant variance."""
    matrix = small_matrix(spec_of(3, 256 if shape[1] > 128 else 128, adc=adc, read_noise=noise), *shape)
    x = inputs(201, shape[1])
    matrix.reads.begin("batch")
    whole = matrix(x)
    sizes = ((1, 1), (1, 3), (50_000, 1), (1 << 20, 2), (1 << 20, 4))
    for (chunk_values, threads), in_threads in itertools.product(sizes, (True, False)):
        monkeypatch.setattr(read, "CHUNK_VALUES", chunk_values)
        monkeypatch.setattr(many_frames, "PIECE_VALUES", chunk_values)
        if not in_threads:  # in chunks, as where torch's threads cannot be used
            monkeypatch.setattr(many_frames, "has_torch_threads", lambda: False)
        torch.set_num_threads(threads)
        matrix.reads.begin("batch")
        again = matrix(x)
        torch.set_num_threads(1)
        monkeypatch.undo()
        assert torch.equal(again, whole)


def test_memory_that_threads_keep_is_bounded_and_leaves_no_trace() -> None:
    matrices = [small_matrix(spec_of(3, 16), outputs, 40) for outputs in (20, 70, 90)]
    batches = [inputs(frames, 40) for frames in (64, 128, 300)]

    def reads() -> list[Tensor]:
        for matrix in matrices:
            matrix.reads.begin("0")
        return [matrix(x) for matrix in matrices for x in batches]

    torch.set_num_threads(2)
    many_frames._spare_memories.cache_clear()
    first, again = reads(), reads()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert 0 < many_frames._spare_memories.cache_info().currsize <= 2

    x, operator = inputs(64, 40), matrices[0]._operator
    assert isinstance(operator, read.Operator)
    products = [torch.full((60, 20), value) for value in (0.0, torch.nan)]
    for product in products:
        many_frames.read(operator, x, [5], 0, read.BLOCK_FRAMES, product)
    assert torch.equal(*products)


@pytest.mark.parametrize("adc", [None, FIXED, CALIBRATED], ids=["none", "fixed", "calibrated"])
def test_a_frame_alone_reads_as_in_company(adc: dict[str, Any] | None) -> None:
    matrix = small_matrix(spec_of(3, 16, adc=adc, read_noise=None), 70, 40)
    x = inputs(100, 40)
    together = matrix(x)
    for frame in (0, 1, 31, 32, 99):
        assert torch.equal(matrix(x[frame]), together[frame])
    assert torch.equal(matrix(x[30:37]), together[30:37])


def test_reads_at_the_same_time_do_not_disturb_each_other() -> None:
    matrices = [small_matrix(spec_of(3, 16), outputs, 40) for outputs in (70, 90)]
    x = inputs(300, 40)
    for matrix in matrices:
        matrix.reads.begin("0")
    wanted = [matrix(x) for matrix in matrices]

    def read_again(index: int) -> list[Tensor]:
        products = []
        with torch.inference_mode(index == 0):
            for _ in range(20):
                matrices[index].reads.begin("0")
                products.append(matrices[index](x))
        return products

    torch.set_num_threads(2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(read_again, (0, 1)))
    torch.set_num_threads(1)
    for products, expected in zip(found, wanted, strict=True):
        assert all(torch.equal(product, expected) for product in products)


@pytest.mark.parametrize("dac", [{"bits": 8}, TWO_PHASE], ids=["one phase", "phases"])
def test_clips_are_counted_whatever_the_threads(dac: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = small_matrix(spec_of(3, 16, adc={**FIXED, "range_bits": 1}, dac=dac), 70, 40)
    matrix.reads.count_clips = True
    counted = []
    for threads, in_threads in ((1, True), (2, True), (2, False)):
        matrix.clips = read.ClipCounts()
        torch.set_num_threads(threads)
        with monkeypatch.context() as patch:
            if not in_threads:
                patch.setattr(many_frames, "has_torch_threads", lambda: False)
            matrix.reads.begin("0")
            matrix(inputs(201, 40))
        torch.set_num_threads(1)
        counted.append(read.add_clips([matrix.clips]))
    assert counted[1:] == counted[:1] * 2
    assert min(counted[0].dac_clipped, counted[0].adc_clipped) > 10


def test_memory_of_a_read_does_not_grow_with_the_batch() -> None:
    """Beyond inputs and outputs: a process that reads 8 times as many frames may take 16 MB more (allocator's slack).

    A [batch, in, out] tensor of the larger batch would take 8 GB, column signals of all its frames 0.25 GB.
    """
    code = """
import resource, sys, torch
from memsim.nn.mapping import map_model
torch.set_num_threads(1)
frames = int(sys.argv[1])
model = torch.nn.Sequential(torch.nn.Linear(256, 256))
chip = map_model(model, "physical", bits=3, calibration=[torch.randn(64, 256)])
x = torch.randn(16384, 256)
with torch.inference_mode():
    chip(x[:2048])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chip(x[:frames])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown_kilobytes = [
        int(subprocess.run([sys.executable, "-c", code, str(frames)], check=True, capture_output=True).stdout)
        for frames in (2048, 16384)
    ]
    # outputs, and the scaled copy of them: 2 x 16 MB; what else there is stays
    assert grown_kilobytes[1] - grown_kilobytes[0] < (2 * 16 + 16) * 1024


def test_reads_leave_their_input_alone() -> None:
    for changes in ({}, {"dac": {"bits": None}}, {"cell": "ideal", "dac": None, "adc": None}, {"cell": "ideal"}):
        matrix = small_matrix(spec_of(3, 2, **changes))
        x = inputs(10)
        before = x.clone()
        matrix(x)
        assert torch.equal(x, before)


# Devices


@pytest.mark.parametrize("adc", [None, CALIBRATED, ERRING], ids=["none", "calibrated", "erring"])
@pytest.mark.parametrize("dac", [{"bits": 8}, {"bits": None}, TWO_PHASE], ids=["8 bits", "voltages", "two phases"])
@pytest.mark.parametrize("noise", [None, {}], ids=["noiseless", "noisy"])
def test_a_layer_never_waits_for_its_device(
    noise: dict[str, Any] | None, dac: dict[str, Any], adc: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meta tensors have no values: whatever asked for one, moved one to the CPU or made one there would fail."""
    matrix = small_matrix(spec_of(3, 16, adc=adc, dac=dac, read_noise=noise), 20, 40)
    operator = _on_meta(matrix._make_operator())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta tensors
    layer = MappedLinear(matrix, torch.zeros(20, 40), torch.zeros(20)).to("meta")
    matrix._operator = operator
    matrix.reads.count_clips = True
    y = layer(torch.empty(7, 33, 40, device="meta", dtype=torch.bfloat16))
    assert (y.shape, y.device.type, y.dtype) == ((7, 33, 20), "meta", torch.bfloat16)
    for clipped in (matrix.clips.dac_clipped, matrix.clips.adc_clipped):
        assert isinstance(clipped, Tensor)
        assert clipped.device.type == "meta"


def _on_meta(operator: read.Operator) -> read.Operator:
    driven, noise = operator.drive, operator.noise_columns
    assert isinstance(driven.cell, MemristorCell)
    cell = dataclasses.replace(driven.cell, device=driven.cell.device.to("meta"))
    phases = ()
    for phase in driven.phases:
        tables = None if phase.tables is None else tuple(table.to("meta") for table in phase.tables)
        phases += (dataclasses.replace(phase, tables=tables),)
    offsets = operator.conversion.offsets
    conversion = dataclasses.replace(
        operator.conversion,
        weights=operator.conversion.weights.to("meta"),
        offsets=None if offsets is None else offsets.to("meta"),
    )
    return dataclasses.replace(
        operator,
        drive=dataclasses.replace(driven, cell=cell, phases=phases),
        columns=operator.columns.to("meta"),
        noise_columns=None if noise is None else noise.to("meta"),
        conversion=conversion,
    )


@pytest.mark.parametrize("adc", [None, FIXED, CALIBRATED], ids=["none", "fixed", "calibrated"])
def test_other_devices_read_what_the_cpu_reads(adc: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps in torch operations, which other devices take, here on the CPU; an ADC code may round otherwise."""
    matrix = small_matrix(spec_of(3, 16, adc=adc), 20, 40)
    x = inputs(500, 40)
    matrix.reads.begin("batch")
    compiled = matrix(x)
    for module in (drive, read):
        monkeypatch.setattr(module, "steps", lambda x: elementwise)
    matrix.reads.begin("batch")
    differs = (matrix(x) - compiled).abs() > 1e-5 * compiled.abs().max()
    assert int(differs.sum()) <= (0 if adc is None else 5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_pieces_become_whole_blocks(sizes: list[int]) -> None:
    rows = torch.arange(2 * sum(sizes)).view(-1, 2)
    pieces = list(read.whole_blocks(rows.split(sizes)))
    assert torch.equal(torch.cat(pieces), rows)
    assert all(len(piece) and len(piece) % read.BLOCK_FRAMES == 0 for piece in pieces[:-1])


def test_a_stream_is_read_as_its_rows_together() -> None:
    matrix = small_matrix(spec_of(4, 3, adc=CALIBRATED, dac={"vmax_volts": 0.4}))
    x = inputs(150)

    def reads(*sizes: int) -> Tensor:
        matrix.reads.begin("0")
        return matrix.stream(x.split(sizes))

    wanted = reads(150)
    assert torch.equal(reads(1, 31, 32, 0, 50, 36), wanted)
    matrix.reads.begin("0")
    assert torch.equal(matrix(x.view(3, 50, -1)).flatten(0, 1), wanted)
    matrix.reads.begin("0")
    parts = torch.cat([matrix(part) for part in x.split(75)])
    assert not torch.equal(parts, wanted)  # two reads have noise of their own
