"""Networks of many kinds of layers on arrays: matrices, their inputs, sharing, files and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn.utils import prune

import memsim
from memsim.crossbar import read
from memsim.errors import InputError
from memsim.nn.chip import mapping_of, remap
from memsim.nn.mapping import measure_inputs
from tests.nn.layers import EXACT, PHYSICAL, drawn, exact, is_close, normal


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


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
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
    statistics = measure_inputs(net, batches)
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
    statistics = measure_inputs(net, [x])
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
    with pytest.raises(InputError, match=r"^front: an input holds NaN or Inf"):
        measure_inputs(net, [x * torch.nan])
    with torch.no_grad():
        net.lstm.weight_hh_l0_reverse[2, 1] = torch.inf
    with pytest.raises(InputError, match=r"^lstm\.weight_hh_l0_reverse: its weight holds NaN or Inf"):
        exact(net)
    net = speech()
    chip = memsim.map_model(net, PHYSICAL, calibration=lambda n: n.front(x))
    with pytest.raises(InputError, match=r"^depth: .*not calibrated"):
        chip(x)
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
    statistics = measure_inputs(net, [x])
    assert statistics.keys() == {"0.first", "0.output"}
    hidden = net[0].first(net[0].embedding(x)).relu()
    largest = float(torch.cat([hidden, net[0].embedding(x)]).detach().abs().max())
    assert statistics["0.first"].absmax == pytest.approx(largest)
    is_close(exact(net)(x), net(x))


def test_a_chip_with_shared_arrays_goes_through_a_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    net[2].weight = net[0].weight
    x = normal(4, 5)
    chip, other = (memsim.map_model(net, PHYSICAL, seed=seed, calibration=[x]) for seed in (0, 1))
    path = tmp_path / "chip.safetensors"
    memsim.save_checkpoint(path, chip.state_dict(), {"kind": "chip of one's own"})
    mapping_of(other).reads.seed = 0
    other.load_state_dict(memsim.load_checkpoint(path).tensors())
    assert other[2].matrix is other[0].matrix
    for one in (chip, other):
        mapping_of(one).begin_batch("0")
    assert torch.equal(other(x), chip(x))


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


def small_wav2vec2() -> nn.Module:
    sizes = {"encoder_embed_dim": 16, "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 4}
    layers = {"encoder_num_layers": 2, "encoder_num_heads": 2, "encoder_ff_interm_features": 32, "aux_num_out": 5}
    names = ("projection_dropout", "attention_dropout", "ff_interm_dropout", "dropout", "layer_drop")
    return torchaudio.models.wav2vec2_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=[(16, 10, 5), (16, 3, 2)],
        extractor_conv_bias=False,
        encoder_layer_norm_first=False,
        **sizes,
        **layers,
        **{f"encoder_{name}": 0.0 for name in names},
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], dict[str, int]]] = {
    "Conformer": (
        lambda: torchaudio.models.Conformer(16, 2, 32, 2, 7),
        (normal(2, 20, 16), torch.tensor([20, 13])),
        {f"conformer_layers.{block}.conv_module.sequential.2": 16 for block in (0, 1)},
    ),
    "Emformer": (
        lambda: torchaudio.models.Emformer(16, 2, 32, 2, 8, right_context_length=2),
        (normal(2, 18, 16), torch.tensor([16, 11])),
        {},
    ),
    "Wav2Vec2Model": (small_wav2vec2, (normal(2, 2000),), {"encoder.transformer.pos_conv_embed.conv": 4}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchaudios_networks(name: str) -> None:
    make, x, grouped = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make().eval()
    chip = exact(net)
    assert {layer.name: layer.tiling.groups for layer in mapping_of(chip).mapped if layer.tiling.groups > 1} == grouped
    kinds = {layer.reason.removesuffix(" stays digital") for layer in mapping_of(chip).digital}
    assert kinds <= {"LayerNorm", "BatchNorm1d", "GroupNorm"}
    with torch.no_grad():
        wanted = net(*x)[0]
        is_close(chip(*x)[0], wanted)
        physical = memsim.map_model(net, {**PHYSICAL, "weights": {"bits": 8}}, calibration=[x])
        assert 1e-3 < (physical(*x)[0] - wanted).norm() / wanted.norm() < 0.3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_transformer_encoder(norm_first: bool) -> None:
    """Also where torch would take its fused kernel: in evaluation, without gradients."""
    options = {"batch_first": True, "norm_first": norm_first, "activation": "gelu"}
    net = drawn(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 11, **options), 2, nn.LayerNorm(6)))
    x, mask = normal(3, 5, 6), torch.arange(5) >= torch.tensor([5, 3, 4])[:, None]
    chip = exact(net)
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "linear1", "linear2")
    names = [f"0.layers.{i}.{kind}" for i in (0, 1) for kind in kinds]
    assert [layer.name for layer in mapping_of(chip).mapped] == names
    read: list[str] = []
    for name, matrix in mapping_of(chip).layers.items():
        matrix.register_forward_hook(lambda *_, name=name: read.append(name))
    with torch.no_grad():
        got, wanted = (one[0](x, src_key_padding_mask=mask) for one in (chip, net))
    assert sorted(read) == sorted(names)
    is_close(got[~mask], wanted[~mask], tolerance=1e-2)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: torch.nn.utils.parametrizations.spectral_norm(layer),
        lambda layer: torch.nn.utils.spectral_norm(layer),
        lambda layer: torch.nn.utils.parametrizations.orthogonal(layer),
        lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    ],
    ids=["spectral norm", "spectral norm of old", "orthogonal", "pruned"],
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Conv1d(3, 4, 2)], ids=["linear", "conv"])
def test_computed_weights(make: Callable[[], nn.Module], change: Callable[[nn.Module], nn.Module]) -> None:
    """Those of the parameters as they are when it is mapped, which may have changed since the layer last ran."""
    torch.manual_seed(0)
    net = nn.Sequential(change(make()))
    net.train()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5).add_(0.1)
    chip = exact(net)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    x = normal(2, 3, 6)
    is_close(chip(x), net.eval()(x))
    assert {name.split(".")[1] for name in chip.state_dict()} == {"bias", "matrix"}


def test_fused_batch_norm() -> None:
    """Whether torch folds the norm into the weights, or only puts it beside them."""
    net = drawn(lambda: nn.Sequential(nn.Conv1d(3, 4, 3, groups=1, bias=False), nn.BatchNorm1d(4)))[0]
    with torch.no_grad():
        for buffer in (net[1].running_mean, net[1].running_var):
            buffer.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    x = normal(2, 3, 9)
    folded = nn.Sequential(torch.nn.utils.fusion.fuse_conv_bn_eval(net[0], net[1]))
    beside = nn.Sequential(torch.ao.nn.intrinsic.ConvBn1d(net[0], net[1])).eval()
    for fused, names in ((folded, ["0"]), (beside, ["0.0"])):
        chip = exact(fused)
        assert [layer.name for layer in mapping_of(chip).mapped] == names
        is_close(chip(x), net(x))
    training = nn.Sequential(torch.ao.nn.intrinsic.qat.ConvBn1d(3, 4, 3, qconfig=torch.ao.quantization.default_qconfig))
    reasons = {layer.name: layer.reason for layer in mapping_of(exact(training)).digital}
    own = "ConvBn1d, derived from Conv1d with a forward of its own, stays digital"
    assert reasons == {"0": own, "0.bn": "BatchNorm1d stays digital"}


COUNTS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, int, int, int]]]] = {
    # by matrix: outputs, inputs, row tiles of 16 and column tiles of 8
    "linear": (lambda: nn.Linear(17, 9), {"0": (9, 17, 2, 2)}),
    "conv2d": (lambda: nn.Conv2d(3, 9, (2, 3)), {"0": (9, 18, 2, 2)}),
    "transposed": (lambda: nn.ConvTranspose1d(5, 3, 4), {"0": (12, 5, 1, 2)}),
    "lstm": (
        lambda: nn.LSTM(3, 5, proj_size=2),
        {"0.weight_ih_l0": (20, 3, 1, 3), "0.weight_hh_l0": (20, 2, 1, 3), "0.weight_hr_l0": (2, 5, 1, 1)},
    ),
    "gru cell": (lambda: nn.GRUCell(17, 3), {"0.weight_ih": (9, 17, 2, 2), "0.weight_hh": (9, 3, 1, 2)}),
    "attention": (
        lambda: nn.MultiheadAttention(10, 2, kdim=3),
        {
            "0.q_proj": (10, 10, 1, 2),
            "0.k_proj": (10, 3, 1, 2),
            "0.v_proj": (10, 10, 1, 2),
            "0.out_proj": (10, 10, 1, 2),
        },
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_tiles_and_cells_are_counted(name: str) -> None:
    make, expected = COUNTS[name]
    chip = memsim.map_model(drawn(make), {**PHYSICAL, "weights": {"bits": 4, "copies": 2}})
    assert [layer.name for layer in mapping_of(chip).mapped] == list(expected)
    for layer in mapping_of(chip).mapped:
        outs, ins, row_tiles, col_tiles = expected[layer.name]
        tiling = layer.tiling
        assert (tiling.out_features, tiling.in_features, tiling.row_tiles, tiling.col_tiles) == expected[layer.name]
        assert tiling.tiles == row_tiles * col_tiles * 3 * 2 * 2  # 4 bits: 3 planes; pairs; 2 copies
        assert tiling.cells == tiling.tiles * 16 * 8
        assert tiling.utilisation == outs * ins / (row_tiles * col_tiles * 16 * 8)
        assert tiling.conversions == row_tiles * 3 * outs
        assert mapping_of(chip).layers[layer.name].states.shape == (3, 2, 2, ins, outs)
