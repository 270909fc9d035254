"""Layers on arrays: exact arrays give the torch layer, and noisy ones are read as often as they should be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import memsim
from memsim.crossbar import read
from memsim.nn import convolution
from memsim.nn.mapping import mapping_of, measure, remap

EXACT = {"base": "ideal", "tile": {"rows": 16, "cols": 8}, "digital": []}
PHYSICAL = {"base": "physical", "weights": {"bits": 3}, "tile": {"rows": 16, "cols": 8}, "digital": []}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The layer that `make` makes, under the name "0", in evaluation mode; its weights are uniform in +-0.5."""
    net = nn.Sequential(make()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return net


def exact(net: nn.Module, **options: Any) -> nn.Module:
    return memsim.map_model(net, EXACT, bits=16, **options)


def is_close(got: Any, wanted: Any, tolerance: float = 2e-3) -> None:
    """16-bit weights round by 1.5e-5 of the largest of a row, so a sum of n products errs by some 1e-5 sqrt(n)."""
    if isinstance(wanted, tuple | list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            is_close(one, other, tolerance)
    elif isinstance(wanted, Tensor):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    else:
        assert got == wanted


SMALL, MODES = st.integers(1, 3), st.sampled_from(["zeros", "reflect", "replicate", "circular"])
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


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
    quiet = remap(chip, spec.with_settings({"read_noise": "none"}), seed=0, statistics=measure(net, [x[:, :, None]]))
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


LENGTHS = [4, 7, 1]
RECURRENT: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "projected lstm": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=2, **options),
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "relu rnn": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


def states(layer: nn.Module, batch: tuple[int, ...]) -> Any:
    """Initial states [layers * directions, *batch, size]."""
    count = layer.num_layers * (1 + layer.bidirectional)
    hidden = normal(count, *batch, layer.proj_size or layer.hidden_size, seed=8)
    return (hidden, normal(count, *batch, layer.hidden_size, seed=9)) if isinstance(layer, nn.LSTM) else hidden


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize(("layers", "bidirectional", "bias"), [(1, False, True), (2, True, False), (3, True, True)])
def test_recurrent_layers(kind: str, layers: int, bidirectional: bool, bias: bool) -> None:
    for batch_first in (False, True):
        options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
        net = drawn(lambda o=options: RECURRENT[kind](3, 5, **o))
        layer, chip = net[0], exact(net)[0]
        x = normal(4, 7, 3)
        batch = (4,) if batch_first else (7,)
        is_close(chip(x), layer(x))
        is_close(chip(x, states(layer, batch)), layer(x, states(layer, batch)))
        is_close(chip(x[0]), layer(x[0]))  # one sequence
        is_close(chip(x[0], states(layer, ())), layer(x[0], states(layer, ())))
        assert chip.flatten_parameters() is None


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences(kind: str, bidirectional: bool) -> None:
    net = drawn(lambda: RECURRENT[kind](3, 5, num_layers=2, bidirectional=bidirectional))
    layer, chip = net[0], exact(net)[0]
    packed = pack_sequence([normal(n, 3, seed=n) for n in LENGTHS], enforce_sorted=False)
    for more in ((), (states(layer, (3,)),)):
        (got, got_state), (wanted, wanted_state) = chip(packed, *more), layer(packed, *more)
        assert isinstance(got, PackedSequence)
        is_close(got_state, wanted_state)
        is_close(pad_packed_sequence(got), pad_packed_sequence(wanted))
    in_order = pack_padded_sequence(normal(5, 2, 3), torch.tensor([5, 2]))
    is_close(chip(in_order)[0].data, layer(in_order)[0].data)


@pytest.mark.parametrize(
    "make",
    [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda *sizes, **options: nn.RNNCell(*sizes, nonlinearity="relu", **options)],
)
def test_recurrent_cells(make: Callable[..., nn.Module]) -> None:
    for bias, batch in product((True, False), ((), (4,))):
        net = drawn(lambda b=bias: make(3, 5, bias=b))
        cell, chip = net[0], exact(net)[0]
        hidden = normal(*batch, 5, seed=3)
        given = (hidden, normal(*batch, 5, seed=4)) if make is nn.LSTMCell else hidden
        x = normal(*batch, 3)
        is_close(chip(x), cell(x))
        is_close(chip(x, given), cell(x, given))


def test_initial_states_that_do_not_fit_are_refused() -> None:
    chip = exact(drawn(lambda: nn.LSTM(3, 5)))[0]
    with pytest.raises(ValueError, match=r"an initial state of \[1, 2, 5\]; expected \[1, 4, 5\]"):
        chip(normal(7, 4, 3), (normal(1, 2, 5), normal(1, 2, 5)))
    with pytest.raises(ValueError, match="does not fit LSTM"):
        chip(normal(7, 4, 3), normal(1, 4, 5))


def test_each_time_step_reads_the_same_arrays_with_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net = drawn(lambda: nn.GRU(3, 5))
    x = normal(1, 4, 3).expand(6, 4, 3)
    loud = {**PHYSICAL, "adc": "none", "read_noise": {"shot_scale": 100.0}}
    chip = memsim.map_model(net, loud, calibration=[normal(6, 4, 3)])
    arrays = {name: matrix.states.clone() for name, matrix in mapping_of(chip).layers.items()}
    reads: dict[str, list[Tensor]] = {name: [] for name in arrays}
    for name, matrix in mapping_of(chip).layers.items():
        matrix.register_forward_hook(lambda _, __, y, name=name: reads[name].append(y))
    zero_step = lambda from_input, from_hidden, state: state  # noqa: E731 (every step then reads the same hidden state)
    monkeypatch.setitem(memsim.nn.recurrent.STEPS, "GRU", zero_step)
    chip[0](x, torch.ones(1, 4, 5))
    (inputs,), hidden = reads["0.weight_ih_l0"], reads["0.weight_hh_l0"]
    assert inputs.shape == (24, 15)
    assert len(hidden) == 6
    assert all(y.shape == (4, 15) for y in hidden)
    mean = torch.stack(hidden).mean(0)
    for one, other in pairwise(hidden):
        assert (one != other).all()
        assert (one - other).norm() < 0.5 * mean.norm()  # the same cells
    for name, matrix in mapping_of(chip).layers.items():
        assert torch.equal(matrix.states, arrays[name])


ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 3, "vdim": 5},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention(options: dict[str, Any]) -> None:
    net = drawn(lambda: nn.MultiheadAttention(6, 2, **options))
    layer, chip = net[0], exact(net)[0]
    first = options.get("batch_first", False)
    q, k, v = (
        normal(*((4, n) if first else (n, 4)), width, seed=width)
        for n, width in ((5, 6), (7, layer.kdim), (7, layer.vdim))
    )
    padding = torch.arange(7) >= torch.tensor([7, 3, 5, 1])[:, None]
    causal = torch.triu(torch.ones(5, 7, dtype=torch.bool), 1)
    by_head = torch.where(normal(8, 5, 7) > 1.5, -torch.inf, normal(8, 5, 7, seed=2))
    is_close(chip(q, k, v), layer(q, k, v))
    for asked in (
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        # where there are extra keys, torch masks them, too, in this case only
        *([] if layer.add_zero_attn else [{"attn_mask": causal, "is_causal": True, "need_weights": False}]),
        {"attn_mask": by_head, "average_attn_weights": False},
        {"attn_mask": by_head, "key_padding_mask": torch.zeros(4, 7).masked_fill(padding, -torch.inf)},
        {"need_weights": False},
    ):
        is_close(chip(q, k, v, **asked), layer(q, k, v, **asked))
    one = [x[0] if first else x[:, 0] for x in (q, k, v)]
    is_close(chip(*one, key_padding_mask=padding[1]), layer(*one, key_padding_mask=padding[1]))
    with pytest.raises(ValueError, match="is_causal"):
        chip(q, k, v, is_causal=True)


def test_a_masked_key_has_no_effect_whatever_it_holds() -> None:
    net = drawn(lambda: nn.MultiheadAttention(6, 2, batch_first=True))
    x = normal(2, 5, 6)
    chip = memsim.map_model(net, PHYSICAL, calibration=lambda n: n[0](x, x, x))
    padding = torch.tensor([[False] * 3 + [True] * 2] * 2)

    def outputs(key: Tensor) -> Tensor:
        mapping_of(chip).begin_batch("0")
        return chip[0](x, key, key, key_padding_mask=padding, need_weights=False)[0]

    other = torch.cat([x[:, :3], x[:, :2]], dim=1)
    assert torch.equal(outputs(x), outputs(other))
    assert not torch.equal(outputs(x), outputs(x.flip(1)))


class Speech(nn.Module):
    """One of everything: [batch, 3, 20] to [batch, steps, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.depth = nn.Conv1d(3, 6, 3, stride=2), nn.Conv1d(6, 6, 3, groups=6, padding="same")
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 1)
        self.lstm, self.up = nn.LSTM(6, 5, bidirectional=True, batch_first=True), nn.ConvTranspose1d(10, 4, 3, groups=2)
        self.memory = nn.MultiheadAttention(4, 2, kdim=6, vdim=6, batch_first=True)
        self.cell, self.last = nn.GRUCell(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.front(x)).transpose(1, 2)
        encoded = self.encoder(x, src_key_padding_mask=torch.zeros(x.shape[:2], dtype=torch.bool))
        up = self.up(self.lstm(encoded)[0].transpose(1, 2)).transpose(1, 2)
        mixed = self.memory(up, encoded, encoded)[0]
        return self.last(mixed + self.cell(mixed[:, 0])[:, None])


MATRICES = [
    *("front", "depth", "encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.k_proj"),
    *("encoder.layers.0.self_attn.v_proj", "encoder.layers.0.self_attn.out_proj"),
    *("encoder.layers.0.linear1", "encoder.layers.0.linear2"),
    *("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l0_reverse", "lstm.weight_hh_l0_reverse", "up"),
    *("memory.q_proj", "memory.k_proj", "memory.v_proj", "memory.out_proj", "cell.weight_ih", "cell.weight_hh", "last"),
]


def speech() -> nn.Module:
    return drawn(Speech)[0]


def test_a_network_of_every_layer() -> None:
    net, x = speech(), normal(3, 3, 20)
    chip = exact(net)
    assert [layer.name for layer in mapping_of(chip).mapped] == MATRICES
    reasons = {layer.name: layer.reason for layer in mapping_of(chip).digital}
    assert reasons == {f"encoder.layers.0.norm{i}": "LayerNorm stays digital" for i in (1, 2)}
    with torch.no_grad():
        is_close(chip(x), net(x), tolerance=1e-2)
        rough = memsim.map_model(net, EXACT, bits=2)
        assert (rough(x) - net(x)).abs().max() > 0.05


@pytest.mark.parametrize("name", MATRICES)
def test_any_matrix_can_stay_digital(name: str) -> None:
    net, x = speech(), normal(3, 3, 20)
    without, only = exact(net, exclude=[name]), exact(net, include=[name])
    assert [layer.name for layer in mapping_of(without).mapped] == [other for other in MATRICES if other != name]
    assert [layer.name for layer in mapping_of(only).mapped] == [name]
    reasons = {layer.name: layer.reason for layer in mapping_of(without).digital}
    assert reasons[name] == f"--exclude {name}"
    for chip in (without, only):
        is_close(chip(x), net(x), tolerance=1e-2)
        twin = pickle.loads(pickle.dumps(chip))
        twin.load_state_dict(chip.state_dict())
        assert torch.equal(twin(x), chip(x))


def test_what_the_matrices_see_is_measured() -> None:
    net, batches = speech(), [normal(3, 3, 20), normal(2, 3, 17, seed=1)]
    before = [net(x) for x in batches]
    seen: dict[str, list[Tensor]] = {name: [] for name in MATRICES}
    chip = exact(net)
    for name, matrix in mapping_of(chip).layers.items():
        matrix._read = lambda o, rows, *rest, n=name, r=matrix._read: (seen[n].append(rows), r(o, rows, *rest))[1]
    for x in batches:
        chip(x)
    statistics = measure(net, batches)
    assert statistics.keys() == set(MATRICES)
    for name, measured in statistics.items():
        rows = torch.cat(seen[name])
        assert measured.sample.shape[1] == rows.shape[1]
        assert measured.absmax == pytest.approx(float(rows.abs().max()), rel=1e-2)
        distance = torch.cdist(measured.sample, rows).min(dim=1).values
        assert distance.max() <= 1e-2 * rows.norm(dim=1).max()
    assert all(torch.equal(net(x), y) for x, y in zip(batches, before, strict=True))
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("way", ["batches", "callable"])
def test_a_chip_of_every_layer_survives_files_and_copies(way: str) -> None:
    net, x = speech(), normal(3, 3, 20)
    chip = memsim.map_model(net, PHYSICAL, calibration=[x] if way == "batches" else lambda n: n(x))

    def outputs(of: nn.Module) -> Tensor:
        mapping_of(of).begin_batch("0")
        return of(x)

    wanted = outputs(chip)
    assert torch.equal(outputs(chip), wanted)
    mapping_of(chip).begin_batch("1")
    assert not torch.equal(chip(x), wanted)
    again = memsim.map_model(speech(), PHYSICAL, seed=5)
    mapping_of(again).reads.seed = 0
    again.load_state_dict(chip.state_dict())
    statistics = measure(net, [x])
    same = remap(chip, mapping_of(chip).spec, seed=0, statistics=statistics)
    for other in (again, same, copy.deepcopy(chip), pickle.loads(pickle.dumps(chip))):
        assert torch.equal(outputs(other), wanted)
    fresh = remap(chip, mapping_of(chip).spec, seed=1, statistics=statistics)
    assert not torch.equal(outputs(fresh), wanted)
    assert set(mapping_of(fresh).layers) == set(MATRICES)
    wider = remap(chip, mapping_of(chip).spec.with_settings({"tile.rows": 5}), seed=1, statistics=statistics)
    depth = mapping_of(wider).layers["depth"]
    assert (depth.tiling.blocks_per_pack, depth.tiling.packs) == (1, 6)
    assert torch.equal(depth.levels, mapping_of(chip).layers["depth"].levels)
    assert torch.isfinite(outputs(wider)).all()


def test_errors_name_the_matrix() -> None:
    net, x = speech(), normal(3, 3, 20)
    with pytest.raises(memsim.errors.InputError, match=r"^front: an input holds NaN or Inf"):
        measure(net, [x * torch.nan])
    with torch.no_grad():
        net.lstm.weight_hh_l0_reverse[2, 1] = torch.inf
    with pytest.raises(memsim.errors.InputError, match=r"^lstm\.weight_hh_l0_reverse: its weight holds NaN or Inf"):
        exact(net)
    net = speech()
    chip = memsim.map_model(net, PHYSICAL, calibration=lambda n: n.front(x))
    with pytest.raises(memsim.errors.InputError, match=r"^depth: .*not calibrated"):
        chip(x)
    with pytest.raises(memsim.errors.InputError, match=r"Conv1d, which has no name; wrap it: nn\.Sequential\(model\)"):
        exact(nn.Conv1d(2, 2, 2))
    lstm = nn.LSTM(3, 4)
    is_close(exact(lstm)(x[:, :, :3]), lstm(x[:, :, :3]))  # its matrices have names


def test_layers_that_share_a_weight_share_its_array() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.first, self.second = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
            self.output = nn.Linear(5, 7, bias=False)
            self.second.weight, self.output.weight = self.first.weight, self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.second(self.first(self.embedding(x)).relu()))

    net = drawn(Tied)
    x = torch.tensor([[1, 2, 3]])
    chip = memsim.map_model(net, PHYSICAL, calibration=[x])[0]
    assert chip.second.matrix is chip.first.matrix
    assert chip.output.matrix.levels.shape == (7, 5)
    assert torch.equal(chip.embedding.weight, net[0].embedding.weight)
    statistics = measure(net, [x])
    assert statistics.keys() == {"0.first", "0.output"}
    hidden = net[0].first(net[0].embedding(x)).relu()
    largest = float(torch.cat([hidden, net[0].embedding(x)]).detach().abs().max())
    assert statistics["0.first"].absmax == pytest.approx(largest)
    is_close(exact(net)(x), net(x))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm])
def test_weight_norm(norm: Callable[..., nn.Module]) -> None:
    nets = [
        drawn(lambda: norm(nn.Conv1d(3, 4, 3, groups=1), dim=2)),
        drawn(lambda: norm(nn.ConvTranspose1d(3, 4, 3))),
        drawn(lambda: norm(nn.Linear(6, 4))),
    ]
    for net in nets:
        x = normal(2, 3, 6)
        chip = exact(net)
        assert set(chip.state_dict()) == {"0.bias", "0.matrix.levels", "0.matrix.scale"}
        is_close(chip(x), net(x))
    lstm = drawn(lambda: torch.nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"))
    is_close(exact(lstm)(normal(5, 2, 3)), lstm(normal(5, 2, 3)))


def test_gpt_2s_conv1d_is_known_by_its_looks() -> None:
    class Conv1D(nn.Module):
        """As in Hugging Face transformers."""

        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf, self.nx = nf, nx
            self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)

    for shape in ((4, 6), (5, 5)):
        net = drawn(lambda s=shape: Conv1D(*s))
        x = normal(2, 3, shape[1])
        is_close(exact(net)(x), net(x))
        assert mapping_of(exact(net)).mapped[0].tiling.out_features == shape[0]


def test_layers_on_arrays_take_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = speech(), normal(3, 3, 20)
    chip = memsim.map_model(net, PHYSICAL, calibration=[x])

    def outputs() -> Tensor:
        mapping_of(chip).begin_batch("0")
        return chip(x)

    wanted = outputs()
    monkeypatch.setattr(read, "CHUNK_VALUES", 1)
    assert torch.equal(outputs(), wanted)
