"""Quantisers in networks of many kinds of layers, and what mapping makes of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim.errors import InputError
from memsim.nn.mapping import mapping_of, measure, remap
from memsim.nn.quantisation import Quantisation, QuantisationConfig, quantised_layers
from memsim.nn.quantisers import ActivationQuantiser
from memsim.spec import load_hardware
from nn.layers import PHYSICAL, drawn, normal

SPEC = load_hardware({"base": "ideal", "dac": {"bits": 8}, "tile": {"rows": 16, "cols": 8}, "digital": []})
X = normal(4, 3, 20)


class Mixed(nn.Module):
    """[batch, 3, 20] to [batch, 20, 5], with one of each: the linear layers are `middle` and `last`."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.middle = nn.Conv1d(3, 6, 3, padding=1, groups=3), nn.Linear(6, 4)
        self.attention, self.lstm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LSTM(4, 7, batch_first=True)
        self.last = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.front(x).transpose(1, 2))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(self.lstm(x)[0])


def trained(**config: object) -> nn.Module:
    """`Mixed` with quantisers of 3 bits, whose observers have seen `X`."""
    net = drawn(Mixed)[0]
    recipe = QuantisationConfig.model_validate(config)
    Quantisation(recipe, 3, SPEC).apply(net, measure(net, [X]))
    net.train()(X)
    return net.eval()


def test_linear_layers_are_quantised_and_others_are_left() -> None:
    net = trained(full_precision=["last"])
    assert [name for name, _ in quantised_layers(net)] == ["middle"]
    assert type(net.front) is nn.Conv1d
    with pytest.raises(
        InputError, match=r"quantisation: front: matches no layer \(layers are named like middle, last\)"
    ):
        trained(full_precision=["front"])


def test_a_recipe_leaves_some_layer_to_quantise() -> None:
    with pytest.raises(InputError, match=r"full_precision: matches every layer; --bits float trains like that"):
        trained(full_precision=["*"])


def test_a_network_without_linear_layers_has_nothing_to_quantise() -> None:
    net = nn.Sequential(nn.Conv1d(3, 6, 3))
    with pytest.raises(InputError, match="has no linear layer of this network on arrays"):
        Quantisation(QuantisationConfig(), 3, SPEC).apply(net, measure(net, [X]))


def test_layers_keep_the_bits_and_scales_of_their_training_and_others_are_fitted() -> None:
    net = trained()
    mapping = mapping_of(memsim.map_model(net, SPEC, calibration=[X]))
    bits = {layer.name: layer.tiling.bits for layer in mapping.mapped}
    assert bits == {
        name: 3 if name in ("middle", "last") else 8
        for name in (
            *("front", "middle", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
            *("lstm.weight_ih_l0", "lstm.weight_hh_l0", "last"),
        )
    }
    assert mapping.spec.weights.bits == 8
    for name, layer in quantised_layers(net):
        assert torch.equal(mapping.layers[name].scale, layer.weight_quantiser.scale)
        assert torch.equal(mapping.layers[name].levels.float(), layer.weight_quantiser.levels(layer.weight))


def test_full_scales_are_learned_ones_where_there_are_any() -> None:
    net = trained()
    statistics = measure(net, [X])
    learned = {name: layer.full_scale for name, layer in quantised_layers(net)}
    assert {name: found.full_scale for name, found in statistics.items() if found.full_scale} == learned
    assert statistics["front"].full_scale is None
    matrices = mapping_of(memsim.map_model(net, SPEC, calibration=statistics)).layers
    assert {name: float(matrices[name].input_range) for name in learned} == pytest.approx(learned)


def test_exact_hardware_computes_what_was_trained() -> None:
    net = trained(outputs={"bits": 8}, full_precision=["last"])
    only = ["front", "attention*", "lstm*", "last"]
    chip = memsim.map_model(net, SPEC, calibration=[X], exclude=only)
    assert list(mapping_of(chip).layers) == ["middle"]
    with torch.no_grad():
        # an output at the middle of two codes may round to either, rarely
        assert ((chip(X) - net(X)).abs() > 1e-5).float().mean() < 0.01


def test_a_chip_has_output_quantisers_of_its_own() -> None:
    net = trained(outputs={"bits": 4})
    chip = memsim.map_model(net, PHYSICAL, calibration=[X])
    for copied in (chip, remap(chip, mapping_of(chip).spec, seed=1, statistics=measure(net, [X])), copy.deepcopy(chip)):
        for name, layer in quantised_layers(net):
            found = copied.get_submodule(name).output_quantiser
            assert isinstance(found, ActivationQuantiser)
            assert found is not layer.output_quantiser
            assert torch.equal(found.range, layer.output_quantiser.range)
        with torch.no_grad():
            step = float(net.last.output_quantiser.range) / 7
            codes = copied(X) / step
        assert (codes - codes.round()).abs().max() < 1e-3
