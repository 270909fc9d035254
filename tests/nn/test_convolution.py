"""Convolutions on arrays against torch's, and the placement of their groups on tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import memsim
from memsim.nn import convolution
from memsim.nn.chip import mapping_of, remap
from memsim.nn.mapping import measure_inputs
from tests.nn.layers import PHYSICAL, drawn, exact, is_close, normal

SMALL, MODES = st.integers(1, 3), st.sampled_from(["zeros", "reflect", "replicate", "circular"])
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, 3))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dimensions))  # noqa: E731
    groups, ins, outs = (data.draw(SMALL) for _ in range(3))
    kernel, stride, dilation = draw(1, 4), draw(1, 3), draw(1, 2)
    mode, padding = data.draw(MODES), draw(0, 2)
    size = tuple(
        max(d * (k - 1) + 1, p + 1) + e for d, k, p, e in zip(dilation, kernel, padding, draw(0, 5), strict=True)
    )
    if data.draw(st.booleans()):
        padding, stride = "same", (1,) * dimensions
        if mode != "zeros":
            size = tuple(n + d * (k - 1) for n, d, k in zip(size, dilation, kernel, strict=True))
    options = {"groups": groups, "padding_mode": mode, "bias": data.draw(st.booleans())}
    conv = CONVOLUTIONS[dimensions]
    net = drawn(lambda: conv(groups * ins, groups * outs, kernel, stride, padding, dilation, **options))
    batch = data.draw(st.sampled_from([(), (0,), (1,), (3,)]))
    x = normal(*batch, groups * ins, *size)
    is_close(exact(net)(x), net(x))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_transposed_convolutions(data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, 3))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dimensions))  # noqa: E731
    groups, ins, outs = (data.draw(SMALL) for _ in range(3))
    kernel, stride, dilation, padding = draw(1, 4), draw(1, 3), draw(1, 2), draw(0, 2)
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    size = tuple(2 * p + e for p, e in zip(padding, draw(1, 4), strict=True))
    options = {"groups": groups, "dilation": dilation, "bias": data.draw(st.booleans())}
    conv = TRANSPOSED[dimensions]
    net = drawn(lambda: conv(groups * ins, groups * outs, kernel, stride, padding, extra, **options))
    x = normal(*data.draw(st.sampled_from([(), (1,), (3,)])), groups * ins, *size)
    wanted = net(x)
    is_close(exact(net)(x), wanted)
    is_close(exact(net)[0](x, output_size=wanted.shape[-dimensions:]), wanted)


def test_convolutions_refuse_what_torch_refuses() -> None:
    chip = exact(drawn(lambda: nn.Conv1d(2, 3, 5)))
    with pytest.raises(ValueError, match=r"an input of \[4\], padding included, is smaller than the kernel's reach of"):
        chip(normal(1, 2, 4))
    with pytest.raises(ValueError, match=r"expected \[batch, channels\] and 1 more"):
        chip(normal(4))
    with pytest.raises(ValueError, match="0: its input has 15 features, the matrix has 10"):
        chip(normal(1, 3, 9))
    turned = exact(drawn(lambda: nn.ConvTranspose1d(2, 3, 5, stride=2)))
    with pytest.raises(ValueError, match=r"output_size \[19\] is not within a stride above \[11\]"):
        turned[0](normal(1, 2, 4), output_size=[19])


@pytest.mark.parametrize("shape", [(1, 3, 400), (40, 3, 11)])
def test_the_size_of_pieces_changes_nothing(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = drawn(lambda: nn.Conv1d(3, 5, 4, padding=2, dilation=2)), normal(*shape)
    chip = memsim.map_model(net, PHYSICAL, calibration=[x])

    def outputs() -> Tensor:
        mapping_of(chip).begin_batch("0")
        return chip(x)

    wanted, largest = outputs(), []
    rows = convolution._rows
    monkeypatch.setattr(convolution, "_rows", lambda *a: (largest.append(r.numel()) or r for r in rows(*a)))
    for values in (1, 100, 1000):
        monkeypatch.setattr(convolution, "PIECE_VALUES", values)
        largest.clear()
        assert torch.equal(outputs(), wanted)
        assert len(largest) > 1
        assert max(largest) <= max(values, 3 * 4)


def test_groups_are_packed_on_the_diagonal_of_tiles() -> None:
    """20 channels of 3 taps on tiles of 16 x 8: 5 blocks fit the rows of a tile, so 4 packs of 5 blocks."""
    net = drawn(lambda: nn.Conv1d(20, 20, 3, groups=20, bias=False))
    chip = memsim.map_model(net, PHYSICAL, calibration=[normal(2, 20, 30)])
    (layer,) = mapping_of(chip).mapped
    tiling = layer.tiling
    assert (tiling.packs, tiling.blocks_per_pack, tiling.row_tiles, tiling.col_tiles) == (4, 5, 1, 4)
    assert tiling.tiles == 4 * 2 * 2  # 3 bits: 2 slices in pairs
    assert tiling.cells == 16 * 16 * 8
    assert tiling.conversions == 2 * 20
    assert tiling.weights == 20 * 3
    assert tiling.utilisation == 20 * 3 / (4 * 16 * 8)
    matrix = chip[0].matrix
    assert matrix.states.shape == tiling.shape == (2, 2, 1, 15, 20)
    assert matrix.levels.shape == (20, 3)
    difference = (matrix.states[:, 0, 0] - matrix.states[:, 1, 0]).abs().amax(0)  # [in, out]
    block = torch.arange(15)[:, None] // 3 == torch.arange(20) % 5
    assert difference[~block].max() < 0.4  # both cells of a zero: about HRS
    assert difference[block].max() > 0.5


@pytest.mark.parametrize(
    ("groups", "ins", "outs", "expected"),
    [
        (6, 4, 1, (3, 2, 1, 2)),  # rows: 16 // 4 = 4 fit, balanced over two packs: 3
        (7, 4, 1, (4, 2, 1, 2)),  # the second pack holds 3
        (6, 1, 3, (2, 3, 1, 3)),  # columns: 8 // 3 = 2 fit
        (3, 20, 9, (1, 3, 2, 6)),  # larger than a tile: 2 x 2 tiles each
        (1, 40, 9, (1, 1, 3, 2)),
    ],
)
def test_tiles_of_groups(groups: int, ins: int, outs: int, expected: tuple[int, ...]) -> None:
    net = drawn(lambda: nn.Conv1d(groups * ins, groups * outs, 1, groups=groups))
    tiling = mapping_of(exact(net)).mapped[0].tiling
    assert (tiling.blocks_per_pack, tiling.packs, tiling.row_tiles, tiling.col_tiles) == expected
    _, inputs, outputs = zip(*(tiling.pack(index) for index in range(tiling.packs)), strict=True)
    assert [i for part in inputs for i in range(groups * ins)[part]] == list(range(groups * ins))
    assert [o for part in outputs for o in range(groups * outs)[part]] == list(range(groups * outs))
    assert tiling.weights == groups * ins * outs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adc": "none"},
        {"adc": {"granularity": "tile", "gain_error": 0.01, "offset_error_codes": 0.3}},
        {"dac": {"polarity": "two_phase"}},
        {
            "faults": {"stuck_lrs": 0.01, "dead_rows": 0.05, "dead_cols": 0.05},
            "retention": {"age_seconds": 1e5, "exponent": 0.005, "exponent_std": 0.001, "reference_seconds": 1.0},
        },
        {"wires": {"ohms": 1.0, "solve": "effective"}},
        {"weights": {"copies": 2}},
    ],
    ids=str,
)
def test_a_grouped_matrix_is_its_packs_on_their_own(changes: dict[str, Any]) -> None:
    """Each pack reads as a matrix of its own with the same cells would, whatever the hardware does."""
    spec = memsim.load_hardware({**PHYSICAL, **changes, "weights": {"bits": 3, **changes.get("weights", {})}})
    x = normal(50, 7 * 4)
    net = drawn(lambda: nn.Conv1d(28, 14, 1, groups=7))
    chip = memsim.map_model(net, spec, calibration=[x[:, :, None]])
    matrix = chip[0].matrix
    quiet = remap(
        chip, spec.with_settings({"read_noise": "none"}), seed=0, statistics=measure_inputs(net, [x[:, :, None]])
    )
    whole = quiet[0].matrix
    got = whole(x)
    tiling = whole.tiling
    assert torch.isfinite(matrix(x)).all()
    assert tiling.packs == 2
    for index in range(2):
        alone, inputs, outputs = tiling.pack(index)
        part = type(whole)("0", whole.spec, tiling.spread(whole.levels)[outputs], whole.scale[outputs], None)
        part.states = whole.states[..., outputs]
        for name in ("input_range", "gain_per_ampere", "adc_range"):
            setattr(part, name, getattr(whole, name))
        for name in ("adc_gain_error", "adc_offset_codes"):
            if getattr(whole, name) is not None:
                setattr(part, name, getattr(whole, name)[..., outputs])
        rows = torch.nn.functional.pad(x[:, inputs], (0, alone.in_features - (inputs.stop - inputs.start)))
        torch.testing.assert_close(got[:, outputs], part(rows), rtol=1e-5, atol=1e-5)


def test_groups_can_have_tiles_of_their_own() -> None:
    """Then nothing but a group's own cells is on its columns: it reads as a matrix of its own."""
    apart = {**PHYSICAL, "tile": {**PHYSICAL["tile"], "packing": "separate"}, "read_noise": None}
    net, x = drawn(lambda: nn.Conv1d(6, 9, 2, groups=3, bias=False)), normal(2, 6, 11)
    chip = memsim.map_model(net, apart, calibration=[x])
    matrix = chip[0].matrix
    tiling = matrix.tiling
    assert (tiling.packs, tiling.blocks_per_pack, tiling.row_tiles, tiling.col_tiles) == (3, 1, 1, 3)
    assert tiling.utilisation == 9 * 4 / (3 * 16 * 8)
    assert matrix.states.shape == (2, 2, 1, 4, 9)
    packed = mapping_of(memsim.map_model(net, PHYSICAL, calibration=[x])).mapped[0].tiling
    assert (packed.packs, packed.tiles, packed.weights) == (2, 2 * tiling.tiles // 3, tiling.weights)
    others = x.clone()
    others[:, 2:] = normal(2, 4, 11, seed=3)
    assert torch.equal(chip(others)[:, :3], chip(x)[:, :3])
    is_close(exact(net)(x), memsim.map_model(net, {**apart, "base": "ideal"}, bits=16)(x))


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(2, 4, 3, 2, 1, 2, 2), lambda: nn.ConvTranspose2d(2, 4, (3, 2))])
def test_networks_can_ask_for_sizes(make: Any) -> None:
    layer, chip = make(), exact(drawn(make))[0]
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(chip, name) == getattr(layer, name)
