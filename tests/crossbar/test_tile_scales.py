"""Scales for each row tile and output, and the trims of a chip: what becomes of the results of the ADCs."""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim import load_hardware
from memsim.crossbar import encode, read
from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.hardware import BinaryPlanes, HardwareSpec
from memsim.nn.budget import layer_budget
from tests.crossbar.by_hand import (
    column_signals,
    in_weights_and_inputs,
    shift_add,
    small_matrix,
    spec_of,
    statistics_of,
    tile_factors,
)
from tests.crossbar.matrices import from_weight

FIXED = {"range": "fixed", "precision_bits": 4, "range_bits": 3}
CALIBRATED = {"range": "calibrated", "bits": 6}
ADCS = pytest.mark.parametrize("adc", [None, FIXED, CALIBRATED], ids=["none", "fixed", "calibrated"])
PER_TILE = {"bits": 4, "scale": "per_tile"}


def inputs(n: int, features: int = 5) -> Tensor:
    return 1.5 * torch.randn(n, features, generator=torch.Generator().manual_seed(7))


def trimmed(matrix: MappedMatrix) -> MappedMatrix:
    generator = torch.Generator().manual_seed(5)
    gain = 1 + 0.3 * torch.randn(matrix.tiling.row_tiles, matrix.out_features, generator=generator)
    matrix.set_trims(gain, torch.randn(matrix.out_features, generator=generator))
    return matrix


def agree(got: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


# Scales and levels


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 45),
    st.integers(2, 9),
    st.sampled_from(["mse", "minmax"]),
)
def test_each_tile_is_quantised_by_itself(out: int, width: int, rows: int, bits: int, method: str) -> None:
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(out * width + bits))
    weight[0, :rows] = 0
    per_tile = BinaryPlanes(scale="per_tile", scale_method=method)
    scale = encode.fit_scale(weight, bits, per_tile, rows)
    levels = encode.quantise(weight, scale, bits, rows)
    used = encode.without_idle_channels(scale, levels, rows)
    assert scale.shape == used.shape == (-(-width // rows), out)
    for tile in range(len(scale)):
        part = weight[:, tile * rows : (tile + 1) * rows]
        alone = encode.fit_scale(part, bits, BinaryPlanes(scale_method=method))
        torch.testing.assert_close(scale[tile], alone, rtol=1e-5, atol=0)
        own = levels[:, tile * rows : (tile + 1) * rows]
        assert torch.equal(own, encode.quantise(part, scale[tile], bits))
        assert torch.equal(used[tile], encode.without_idle_channels(scale[tile], own))
    assert used[0, 0] == 0


def test_scales_per_tile_need_the_rows_of_a_tile() -> None:
    with pytest.raises(ValueError, match="rows of a tile"):
        encode.fit_scale(torch.ones(2, 2), 3, BinaryPlanes(scale="per_tile"))


def by_loops(matrix: MappedMatrix) -> Tensor:
    """[out, in] float64: the weights that levels and scales mean, with zeros beside the blocks of groups."""
    outputs, width, rows = matrix.out_features, matrix.levels.shape[1], matrix.spec.tile.rows
    weight = torch.zeros(outputs, matrix.in_features, dtype=torch.float64)
    for out, column in product(range(outputs), range(width)):
        first = out // (outputs // matrix.groups) * width
        weight[out, first + column] = float(matrix.levels[out, column]) * float(matrix.scale[column // rows, out])
    return weight


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 17),
    st.integers(0, 40),
    st.integers(2, 8),
    st.integers(1, 20),
    st.sampled_from(["diagonal", "separate"]),
    st.booleans(),
)
def test_ideal_hardware_multiplies_by_the_quantised_weights(
    groups: int, out: int, width: int, n: int, bits: int, rows: int, packing: str, has_trims: bool
) -> None:
    generator = torch.Generator().manual_seed(out * width + bits)
    tile = {"rows": rows, "cols": 8, "packing": packing}
    spec = load_hardware({"base": "ideal", "weights": {"bits": bits, "scale": "per_tile"}, "tile": tile})
    weight = torch.randn(groups * out, width, generator=generator)
    x = torch.randn(n, groups * width, generator=generator)
    matrix = from_weight("layer", weight, spec, 0, groups=groups)
    assert matrix.scale.shape == (matrix.tiling.row_tiles, groups * out)
    meant = by_loops(matrix)
    blocks = meant.unflatten(0, (groups, out)).unflatten(2, (groups, width))
    diagonal = torch.cat([blocks[group, :, group] for group in range(groups)])
    assert torch.allclose(matrix.quantised_weight(), diagonal, rtol=1e-12)
    offset = torch.zeros(groups * out, dtype=torch.float64)
    if has_trims:
        trimmed(matrix)
        assert matrix.gain_trim is not None
        assert matrix.offset_trim is not None
        offset = matrix.offset_trim.double()
        tile_of = torch.arange(groups * width) % width // rows
        meant = meant * matrix.gain_trim.double()[tile_of].T
    bound = 2e-6 * (x.abs().double() @ meant.abs().T + offset.abs())  # float32 rounding of the sum, term by term
    assert ((matrix(x) - x.double() @ meant.T - offset).abs() <= bound + 1e-12).all()


# Reads


@ADCS
@pytest.mark.parametrize("dac", [{"bits": 8}, {"bits": None}, {"bits": 8, "range": "per_vector"}], ids=str)
@pytest.mark.parametrize("rows", [2, 3, 128])
@pytest.mark.parametrize("scale", ["per_tile", "per_channel", "per_tensor"])
@pytest.mark.parametrize("has_trims", [False, True], ids=["", "trims"])
def test_a_read_is_the_sum_over_its_cells(
    has_trims: bool, scale: str, rows: int, dac: dict[str, Any], adc: dict[str, Any] | None
) -> None:
    spec = spec_of(
        rows=rows, adc=adc, dac={"vmax_volts": 0.6, **dac}, read_noise=None, weights=PER_TILE | {"scale": scale}
    )
    matrix = small_matrix(spec)
    matrix = trimmed(matrix) if has_trims else matrix
    x = inputs(40)
    each = x.abs().amax(dim=1, keepdim=True) if dac.get("range") == "per_vector" else torch.ones(40, 1)
    scaled = x / each
    total = shift_add(matrix, column_signals(with_range(matrix), scaled)[0])
    offset = 0.0 if matrix.offset_trim is None else matrix.offset_trim.double()
    by_hand = (in_weights_and_inputs(matrix, total) - offset) * each.double() + offset
    agree(matrix(x), by_hand, 4e-6)


def with_range(matrix: MappedMatrix) -> MappedMatrix:
    """`matrix`, or a copy whose input range is 1 where every vector has its own."""
    if matrix.input_range is not None:
        return matrix
    other = copy.copy(matrix)
    other._buffers = dict(matrix._buffers) | {"input_range": torch.tensor(1.0)}
    return other


@ADCS
@pytest.mark.parametrize("noise", [True, False], ids=["noise", ""])
@pytest.mark.parametrize("groups", [1, 3])
def test_frames_and_chunks_and_threads_change_nothing(
    groups: int, noise: bool, adc: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"adc": adc} if noise else {"adc": adc, "read_noise": None}
    matrix = trimmed(grouped(groups, spec_of(rows=4, weights=PER_TILE, **changes)))
    x = inputs(130, 7 * groups)

    def product_of(rows: Tensor) -> Tensor:
        matrix.reads.begin("same")
        return matrix(rows)

    whole = product_of(x)
    for n in (1, 3, 31):
        assert torch.equal(product_of(x[:n]), whole[:n])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(product_of(x), whole)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(read.many_frames, "can_read", lambda *_: False)
    monkeypatch.setattr(read, "CHUNK_VALUES", 1)
    assert torch.equal(product_of(x), whole)


def grouped(groups: int, spec: HardwareSpec) -> MappedMatrix:
    """A calibrated matrix of blocks [2, 7]."""
    weight = torch.randn(2 * groups, 7, generator=torch.Generator().manual_seed(1))
    return from_weight("layer", weight, spec, 1, statistics_of(inputs(300, 7 * groups)), groups)


@ADCS
@pytest.mark.parametrize(("rows", "packing"), [(4, "diagonal"), (16, "diagonal"), (16, "separate"), (128, "diagonal")])
def test_blocks_of_groups_have_scales_of_their_own(rows: int, packing: str, adc: dict[str, Any] | None) -> None:
    tile = {"tile": {"rows": rows, "cols": 8, "packing": packing}}
    matrix = trimmed(grouped(3, spec_of(weights=PER_TILE, adc=adc, read_noise=None, **tile)))
    agree(matrix(inputs(40, 21)), of_signals(matrix, inputs(40, 21)), 4e-6)


@pytest.mark.parametrize("adc", [None, CALIBRATED], ids=["none", "calibrated"])
@pytest.mark.parametrize("solve", ["effective", "nodal"])
@pytest.mark.parametrize("noise", [True, False], ids=["noise", ""])
def test_ir_drop_leaves_the_scales_to_the_digital_side(noise: bool, solve: str, adc: dict[str, Any] | None) -> None:
    scales = None if not noise else {"shot_scale": 1e-3, "johnson_scale": 1e-3}
    wires = {"ohms": 5.0, "solve": solve}
    matrix = trimmed(small_matrix(spec_of(rows=4, weights=PER_TILE, adc=adc, read_noise=scales, wires=wires), 5, 7))
    x = inputs(12, 7)
    agree(matrix(x), of_signals(matrix, x), 2e-2 if noise else 1e-5)


def of_signals(matrix: MappedMatrix, x: Tensor) -> Tensor:
    """The product from the column signals of every row tile, converted and added by hand."""
    assert matrix.input_range is not None
    assert matrix.gain_per_ampere is not None
    signals = matrix.arrays.signal_reader(float(matrix.input_range), float(matrix.gain_per_ampere))(x)
    return in_weights_and_inputs(matrix, shift_add(matrix, signals.double()))


@pytest.mark.parametrize("adc", [None, {"range": "calibrated", "bits": 16, "method": "max"}], ids=["none", "16 bits"])
@pytest.mark.parametrize("product_of", ["float32", "bfloat16"])
def test_the_noise_of_a_tile_has_its_scale(product_of: str, adc: dict[str, Any] | None) -> None:
    """Five standard errors of a standard deviation (std / sqrt(2 N)); bfloat16 rounds by up to 0.4 % more."""
    noise = {"shot_scale": 10.0, "johnson_scale": 10.0, "variance_product": product_of}
    matrix = trimmed(small_matrix(spec_of(rows=2, weights={"bits": 3, "scale": "per_tile"}, adc=adc, read_noise=noise)))
    factors, frames = tile_factors(matrix), 20_000
    assert (factors.amax(0) / factors.amin(0)).abs().max() > 2  # tiles that count differently
    row = torch.tensor([[0.9, -1.4, 0.3, 0.05, -0.7]])
    signal, variance = column_signals(matrix, row)
    if adc is not None:
        matrix.adc_range = 1.1 * signal.abs().amax((0, 1, 3)).float()[None] + 0.1
    assert matrix.input_range is not None
    planes = torch.tensor([1.0, 4.0]).double()
    std = torch.einsum("tnpo,p,to->o", variance, planes, factors.square()).sqrt() * float(matrix.input_range)
    found = matrix(row.expand(frames, -1)).double().std(0)
    assert ((found / std - 1).abs() < 5 / math.sqrt(2 * frames) + (0.004 if product_of == "bfloat16" else 0)).all()


def test_rows_without_values_stay_so_under_an_offset() -> None:
    matrix = trimmed(small_matrix(spec_of(weights=PER_TILE)))
    matrix.expect_masked_rows()
    x = inputs(4)
    x[1, 2] = torch.nan
    product = matrix(x)
    assert product[1].isnan().all()
    assert product[[0, 2, 3]].isfinite().all()


# Files, copies and other chips


def test_scales_and_trims_survive_files_copies_and_loading() -> None:
    spec = spec_of(rows=2, weights=PER_TILE)
    matrix, x = trimmed(small_matrix(spec)), inputs(20)

    def same(other: MappedMatrix) -> None:
        matrix.reads.begin("again")
        other.reads.begin("again")
        assert torch.equal(matrix(x), other(x))

    stored = safetensors.torch.load(safetensors.torch.save(matrix.state_dict()))
    assert stored["scale"].shape == stored["gain_trim"].shape == (3, 3)
    same(MappedMatrix.from_tensors("layer", spec, stored))
    same(copy.deepcopy(matrix))
    other = small_matrix(spec, seed=2)
    other(x)
    other.load_state_dict(stored)
    same(other)
    for name, shape in {"scale": (2, 3), "gain_trim": (3,), "offset_trim": (1,)}.items():
        with pytest.raises(InputError, match=f"layer: {name} is "):
            MappedMatrix.from_tensors("layer", spec, stored | {name: torch.ones(shape)})


def test_trims_take_effect_at_once_and_can_be_taken_away() -> None:
    matrix = small_matrix(spec_of(weights=PER_TILE, read_noise=None))
    x = inputs(8)
    before = matrix(x)
    assert not torch.allclose(trimmed(matrix)(x), before)
    matrix.set_trims(None, None)
    assert torch.equal(matrix(x), before)
    assert "gain_trim" not in matrix.state_dict()
    for gain, offset in ((torch.ones(3), None), (None, torch.ones(4)), (torch.full((3, 3), math.nan), None)):
        with pytest.raises(ValueError, match="finite numbers"):
            matrix.set_trims(gain, offset)
    assert torch.equal(matrix(x), before)


def test_trims_stay_with_the_cells_and_scales_with_the_tiles() -> None:
    spec = spec_of(rows=2, weights=PER_TILE)
    matrix = trimmed(small_matrix(spec))
    quiet = matrix.under(spec.with_settings({"read_noise": "none"}), 1)
    for trim in ("gain_trim", "offset_trim"):
        assert torch.equal(getattr(quiet, trim), getattr(matrix, trim))
    for again in (matrix.programmed_again(spec, 2), matrix.under(spec.digital_twin(), 1, statistics_of(inputs(9)))):
        assert again.gain_trim is None
        assert again.offset_trim is None
        assert torch.equal(again.scale, matrix.scale)
    with pytest.raises(InputError, match=r"layer: its scales are those of tiles of 2 rows.*tile\.rows=2"):
        matrix.programmed_again(spec.with_settings({"tile.rows": 3}), 1)
    whole = small_matrix(spec_of(rows=5, weights=PER_TILE))  # one tile holds whole columns, for tiles of any rows
    assert whole.programmed_again(spec_of(rows=2, weights=PER_TILE), 1).scale.shape == (3,)


def test_the_budget_of_a_chip_is_against_the_weights_of_its_tiles() -> None:
    spec = spec_of(rows=2, weights={"bits": 8, "scale": "per_tile"}, cell="ideal", adc=None, read_noise=None)
    matrix, statistics = small_matrix(spec), statistics_of(inputs(200))
    budget = layer_budget(matrix, spec.steps(), 1, statistics)
    assert budget.total < 0.05  # the DAC's alone; products with other scales would be far away
