"""Embeddings: digital by default; on arrays, and in training for them, with the values that torch looks up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import memsim
from memsim.crossbar.statistics import one_hot_statistics
from memsim.hardware import load_hardware
from memsim.nn import convolution, embedding
from memsim.nn.chip import mapping_of, remap
from memsim.nn.mapping import measure_inputs
from memsim.nn.plan import Selection, plan_tensors, unmatched_globs
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.nn.quantisers import restore_quantisers
from memsim.nn.transfer import HardwareTransfer
from tests.nn.layers import EXACT, PHYSICAL, drawn, is_close, normal, quantised_layers

IDEAL: dict[str, Any] = {**EXACT, "embeddings": ["*"]}
CHIP: dict[str, Any] = {**PHYSICAL, "embeddings": ["*"]}


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 70), features=st.integers(1, 20), shape=st.lists(st.integers(0, 4), max_size=3))
def test_what_is_read_is_what_torch_looks_up(rows: int, features: int, shape: list[int]) -> None:
    net = drawn(lambda: nn.Embedding(rows, features))
    indices = torch.randint(rows, shape, generator=torch.Generator().manual_seed(0))
    chip = memsim.map_model(net, IDEAL, bits=16)
    is_close(chip(indices), net(indices))
    (layer,) = mapping_of(chip).mapped
    tiling = layer.tiling
    assert (tiling.out_features, tiling.in_features) == (features, rows)
    assert tiling.tiles == -(-rows // 16) * -(-features // 8) * 15 * 2  # 16 bits: 15 planes in pairs
    assert tiling.weights == rows * features


def test_embeddings_are_digital_unless_asked_for() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3), nn.ModuleDict({"again": nn.Embedding(9, 4)}))
    digital = {layer.name: layer.reason for layer in mapping_of(memsim.map_model(net, EXACT, bits=4)).digital}
    assert digital == dict.fromkeys(["0", "2.again"], "Embedding stays digital")
    mapping = mapping_of(memsim.map_model(net, {**EXACT, "embeddings": ["2.*"]}, bits=4))
    assert [layer.name for layer in mapping.mapped] == ["1", "2.again"]
    both = memsim.map_model(net, {**IDEAL, "digital": ["0"]}, bits=4)
    assert {layer.name: layer.reason for layer in mapping_of(both).digital} == {"0": "digital: 0 (hardware spec)"}
    spec = load_hardware({**EXACT, "weights": {"bits": 4}, "embeddings": ["9*", "0"]})
    with pytest.warns(UserWarning, match=r": embeddings: 9\* matches no layer"):
        assert unmatched_globs(mapping_of(memsim.map_model(net, spec)).plan, spec) == ["embeddings: 9*"]
    changing = memsim.map_model(nn.Sequential(nn.Embedding(9, 4, max_norm=1.0)), IDEAL)
    assert [layer.reason for layer in mapping_of(changing).digital] == ["Embedding stays digital"]


def test_tables_of_files_are_embeddings_where_the_spec_says_so() -> None:
    shapes = {"wte.weight": (9, 4), "head.weight": (9, 4)}
    spec = load_hardware({**EXACT, "weights": {"bits": 4}, "embeddings": ["wte"]})
    plan = plan_tensors(shapes, spec, Selection())
    assert {layer.name: layer.source.shape for layer in plan.mapped} == {"wte": (4, 9), "head": (9, 4)}
    assert [layer.source.is_lookup for layer in plan.mapped] == [True, False]
    stored = normal(9, 4)
    assert torch.equal(plan.mapped[0].source.matrix(stored), stored.T)


def test_their_inputs_need_no_data() -> None:
    net, indices = drawn(lambda: nn.Embedding(40, 12)), torch.arange(40)
    chip = memsim.map_model(net, CHIP)
    matrix = mapping_of(chip).layers["0"]
    assert matrix.is_calibrated
    assert float(matrix.input_range) == 1
    wanted = net(indices)
    assert 0.05 < (chip(indices) - wanted).norm() / wanted.norm() < 0.4  # 3 bits
    assert not measure_inputs(net, [indices])
    other = remap(chip, mapping_of(chip).spec, seed=1)
    assert not torch.equal(other(indices), chip(indices))
    statistics = one_hot_statistics(200)
    assert statistics.sample.shape == (64, 200)
    assert torch.equal(statistics.sample.sum(1), torch.ones(64))
    assert (statistics.absmax, statistics.full_scale, statistics.is_one_hot) == (1, 1, True)
    rows = torch.cat([rows for rows, _ in statistics.rows()])
    assert torch.equal(rows, torch.eye(200))


def test_the_size_of_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, indices = drawn(lambda: nn.Embedding(40, 12)), torch.arange(120).view(2, 60) % 40
    chip = memsim.map_model(net, CHIP)

    def outputs() -> Tensor:
        mapping_of(chip).begin_batch("0")
        return chip(indices)

    wanted = outputs()
    assert convolution.PIECE_VALUES == embedding.PIECE_VALUES
    monkeypatch.setattr(embedding, "PIECE_VALUES", 100)
    assert torch.equal(outputs(), wanted)


def test_an_index_beyond_the_table_is_refused() -> None:
    chip = memsim.map_model(drawn(lambda: nn.Embedding(40, 12)), IDEAL, bits=4)
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        chip(torch.tensor([40]))


INDICES = torch.tensor([[1, 2, 3], [2, 2, 0]])


def tied() -> nn.Module:
    net = nn.Sequential(nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 9, bias=False))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize("hardware", [None, {}])
def test_training(hardware: Any) -> None:
    spec = load_hardware({**CHIP, "read_noise": None} if hardware is not None else {**IDEAL, "dac": {"bits": 8}})
    net = drawn(tied)[0]
    recipe = QuantisationConfig.model_validate({"layers": "all", "hardware": hardware})
    Quantisation(recipe, 3, spec).apply(net, measure_inputs(net, [INDICES])).eval()
    assert [name for name, _ in quantised_layers(net)] == ["0", "1"]  # one weight, but not in the same arrays
    assert net[0].weight is net[1].weight
    assert isinstance(net[0].transfer, HardwareTransfer) == (hardware is not None)

    chip = memsim.map_model(net, spec.with_settings({"programming.exact": True}), calibration=[INDICES])
    assert torch.equal(chip[0].matrix.levels.float(), net[0].weight_quantiser.levels(net[0].weight.T))
    with torch.no_grad():
        wanted = chip(INDICES)
        assert (net(INDICES) - wanted).norm() < (0.03 if hardware is not None else 1e-5) * wanted.norm()

    net[0](INDICES).square().sum().backward()
    found = net[0].weight.grad
    rounded = net[0](INDICES).detach()
    by_hand = torch.zeros(9, 6)
    for index, row in zip(INDICES.flatten().tolist(), rounded.flatten(0, 1), strict=True):
        by_hand[index] += 2 * row
    by_hand[0] = 0  # the padding
    inside = net[0].weight.abs() <= 3 * net[0].weight_quantiser.scale
    torch.testing.assert_close(found, by_hand * inside)
    assert net[0].weight_quantiser.scale.grad.abs().max() > 0

    again = drawn(tied)[0]
    state = net.state_dict()
    restore_quantisers(again, state)
    again.load_state_dict({key: value for key, value in state.items() if "transfer" not in key}, assign=True)
    if hardware is None:
        assert torch.equal(again(INDICES), net(INDICES))


def test_a_table_alone_is_an_embedding() -> None:
    table = nn.Embedding(3, 2)
    chip = memsim.map_model(table, {**IDEAL, "embeddings": ["embedding"]}, bits=16)
    assert list(mapping_of(chip).layers) == ["embedding"]
    is_close(chip(torch.tensor([0, 2])), table(torch.tensor([0, 2])))
    assert not mapping_of(memsim.map_model(table, "ideal")).layers
