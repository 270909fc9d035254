"""Quantisers in networks of many kinds of layers, and their mapping."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memsim
from memsim.errors import InputError
from memsim.hardware import HardwareSpec, load_hardware
from memsim.nn.calibration import CalibrationData
from memsim.nn.chip import mapping_of, remap
from memsim.nn.layer_adapters import mappable_layers, quantised_matrices
from memsim.nn.mapping import map_model, measure_inputs
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.nn.rounding import ActivationQuantiser
from memsim.post_training.recipe import load_mapping
from memsim.storage.checkpoint import load_checkpoint
from memsim.training.optimiser import make_optimiser, set_learning_rate
from memsim.training.quantised import QuantisedTraining
from memsim.training.recipe import load_train_config
from tests.nn.layers import PHYSICAL, drawn, normal, quantised_layers

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
    Quantisation(recipe, 3, SPEC).apply(net, measure_inputs(net, [X]))
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


@pytest.mark.parametrize(
    "changes", [{"rotation": "none", "digital_rows": 0}, {"digital_rows": 0.2}, {"digital_rows": 0}]
)
@pytest.mark.parametrize("scale", ["per_tile", "per_channel"])
def test_training_starts_from_what_a_mapping_recipe_fits(
    scale: Literal["per_tile", "per_channel"], changes: dict[str, Any], tmp_path: Path
) -> None:
    spec = load_hardware({"base": "ideal", "tile": {"rows": 4, "cols": 8}, "digital": []})
    net = drawn(Mixed)[0]
    statistics = CalibrationData(net, [X]).statistics(with_moments=True)
    mapping = load_mapping({"base": "feedback", "scale": scale, "trim": "none", **changes})
    chip = map_model(net, spec, bits=3, calibration=statistics, mapping=mapping)
    recipe = {"layers": "all", "inputs": None, "weights": {"scale": scale}, "mapping": "feedback"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memsim.nn.quantisation.load_mapping", lambda name: mapping)
        learner = Quantisation(QuantisationConfig.model_validate(recipe), 3, spec).apply(copy.deepcopy(net), statistics)
    for name, product in quantised_matrices(mappable_layers(learner)).items():
        torch.testing.assert_close(product.weight_quantiser.scale.detach(), mapping_of(chip).layers[name].scale)
    with torch.no_grad():
        torch.testing.assert_close(learner(X), chip(X), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(learner.train()(X), chip(X), rtol=1e-4, atol=1e-6)
    again = map_model(learner, spec, bits=3)
    for name, matrix in mapping_of(chip).layers.items():
        trained = mapping_of(again).layers[name]
        torch.testing.assert_close(trained.quantised_weight(), matrix.quantised_weight())
        assert (trained.input_transform is None) == (matrix.input_transform is None)
    assert not torch.equal(learner.middle.weight, net.middle.weight)
    file, mapped = tmp_path / "learner.safetensors", tmp_path / "mapped.safetensors"
    memsim.save_checkpoint(file, learner.state_dict(), {})
    memsim.map_checkpoint(file, spec, bits=3, out=mapped)
    stored = load_checkpoint(mapped)
    assert not any("trained_transform" in name for name in stored.names)
    for name, matrix in mapping_of(again).layers.items():
        if name == "front":  # a file does not say that it has groups
            continue
        for key, value in matrix.state_dict().items():
            assert torch.equal(stored.tensors()[f"{name}.matrix.{key}"], value), (name, key)


@pytest.mark.parametrize(
    ("mapping", "weights", "found"),
    [
        ({"offsets": True}, {}, "reads cells back, adds offsets or allots bits"),
        ({"allot": {"budget": "bits_per_weight", "at_most": 4}}, {}, "reads cells back, adds offsets or allots bits"),
        ({"feedback": {"read_back": "rows"}}, {}, "reads cells back, adds offsets or allots bits"),
        ({}, {"method": "minmax"}, "set weights.method: lsq"),
        ({}, {"scale": "per_channel"}, "its scales are per_tile; set weights.scale: per_tile"),
    ],
)
def test_recipes_that_training_cannot_start_from_are_refused(
    mapping: dict[str, Any], weights: dict[str, Any], found: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({"base": "feedback", **mapping}))
    config = {"weights": {"scale": "per_tile", **weights}, "mapping": str(file)}
    with pytest.raises(InputError, match=found) as caught:
        Quantisation(QuantisationConfig.model_validate(config), 3, SPEC)
    assert len(str(caught.value).splitlines()) == 1


def test_a_layer_that_no_data_reached_is_named() -> None:
    net = drawn(Mixed)[0]
    statistics = measure_inputs(net, [X])
    del statistics["last"]
    with pytest.raises(InputError, match=r"^last: no training data reached this layer; keep it in full_precision$"):
        Quantisation(QuantisationConfig(), 3, SPEC).apply(net, statistics)


def test_training_through_hardware_takes_the_bits_of_its_dac() -> None:
    with pytest.raises(InputError) as caught:
        trained(hardware={}, overrides=[{"match": "last", "input_bits": 6}])
    assert str(caught.value) == (
        "last: inputs of 6 bits, but hardware custom has 8; bits: dac takes the number of its DAC"
    )
    for overrides in ([], [{"match": "last", "input_bits": 8}], [{"match": "last", "input_bits": "dac"}]):
        assert int(trained(hardware={}, overrides=overrides).last.input_quantiser.bits) == 8


def with_transform(spec: HardwareSpec, file: Path) -> tuple[nn.Module, list[Tensor]]:
    """A layer in training through `spec`, whose recipe rotates its inputs and keeps the large ones digital."""
    net, x = drawn(lambda: nn.Linear(19, 7)), normal(40, 19) * torch.where(torch.arange(19) == 5, 20.0, 1.0)
    file.write_text(json.dumps({"base": "feedback", "scale": "per_channel", "digital_rows": 0.1, "trim": "none"}))
    config = {"hardware": {}, "weights": {"scale": "per_channel"}, "mapping": str(file)}
    statistics = CalibrationData(net, [x]).statistics(with_moments=True)
    Quantisation(QuantisationConfig.model_validate(config), 3, spec).apply(net, statistics)
    places = net[0].trained_transform.places.tolist()
    assert len(places) == 2
    assert 5 in places
    assert net[0].trained_transform.rotated
    return net, [x]


def test_hardware_is_calibrated_to_inputs_as_they_come_from_their_transform(tmp_path: Path) -> None:
    spec = load_hardware({**PHYSICAL, "read_noise": None})
    net, batches = with_transform(spec, tmp_path / "own.yaml")
    statistics = measure_inputs(net, batches)
    Quantisation(QuantisationConfig(layers="all"), 3, spec).calibrate(net, statistics)
    chip = map_model(net, spec.with_settings({"programming.exact": True}), calibration=statistics)
    on_chip = mapping_of(chip).layers["0"]
    assert on_chip.input_transform is not None
    assert net[0].transfer.gain_per_ampere == pytest.approx(float(on_chip.gain_per_ampere), rel=1e-4)
    torch.testing.assert_close(net[0].transfer.adc_range, on_chip.adc_range, rtol=1e-4, atol=0)
    with torch.no_grad():
        wanted = chip(batches[0])
        assert (net(batches[0]) - wanted).norm() < 0.03 * wanted.norm()


def test_a_transform_of_training_is_not_that_of_other_bits(tmp_path: Path) -> None:
    """Its range for inputs goes with it: weights of other bits are mapped as if they had not been trained for any."""
    spec = load_hardware(PHYSICAL)
    net, batches = with_transform(spec, tmp_path / "own.yaml")
    plain = nn.Sequential(nn.Linear(19, 7))
    plain.load_state_dict(net.state_dict(), strict=False)
    other, wanted = (map_model(model, spec, bits=5, calibration=batches) for model in (net, plain))
    assert mapping_of(other).layers["0"].input_transform is None
    assert torch.equal(other(batches[0]), wanted(batches[0]))


def test_a_recipe_leaves_some_layer_to_quantise() -> None:
    with pytest.raises(InputError, match=r"full_precision: matches every layer; use --bits float"):
        trained(full_precision=["*"])


def test_a_network_without_linear_layers_has_nothing_to_quantise() -> None:
    net = nn.Sequential(nn.Conv1d(3, 6, 3))
    with pytest.raises(InputError, match="has no linear layer of this network on arrays"):
        Quantisation(QuantisationConfig(), 3, SPEC).apply(net, measure_inputs(net, [X]))


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
    statistics = measure_inputs(net, [X])
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
    for copied in (
        chip,
        remap(chip, mapping_of(chip).spec, seed=1, statistics=measure_inputs(net, [X])),
        copy.deepcopy(chip),
    ):
        for name, layer in quantised_layers(net):
            found = copied.get_submodule(name).output_quantiser
            assert isinstance(found, ActivationQuantiser)
            assert found is not layer.output_quantiser
            assert torch.equal(found.range, layer.output_quantiser.range)
        with torch.no_grad():
            step = float(net.last.output_quantiser.range) / 7
            codes = copied(X) / step
        assert (codes - codes.round()).abs().max() < 1e-3


RECIPES = ("paper", "robust")  # the others quantise like them


class Branch(nn.Module):
    """A layer, and a branch beside it whose last layer is `last`; [batch, 6] to [batch, 6]."""

    def __init__(self, last: float, live_channels: int = 0) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 6), nn.Linear(6, 12), nn.Linear(12, 6, bias=False)
        self.behind = nn.Linear(6, 6)
        with torch.no_grad():
            self.last.weight[live_channels:] *= last

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.behind(F.gelu(self.last(self.middle(x).relu())))


def trained_with(
    net: nn.Module, recipe: str | QuantisationConfig, bits: int, steps: int = 100, spec: str = "physical"
) -> tuple[nn.Module, float]:
    """`net`, trained by a recipe towards a network like it, and its error relative to that one's variance."""
    config = load_train_config(recipe).quantisation if isinstance(recipe, str) else recipe
    torch.manual_seed(1)
    x = torch.randn(256, 6)
    with torch.no_grad():
        towards = Branch(1.0)
        towards.first.load_state_dict(net.first.state_dict())
        y = towards(x)
    quantisation = Quantisation(config.model_copy(update={"teacher": None}), bits, load_hardware(spec))
    quantisation.apply(net, measure_inputs(net, [x]))
    training = QuantisedTraining(quantisation, OPTIMISER)
    optimiser = make_optimiser(net, training.parameter_groups(net, OPTIMISER), OPTIMISER)
    errors = []
    for _ in range(steps):
        error = F.mse_loss(net.train()(x), y)
        optimiser.zero_grad()
        error.backward()
        set_learning_rate(optimiser, 5e-3)
        optimiser.step()
        errors.append(float(error.detach() / y.var()))
    return net.eval(), min(errors[-10:])


OPTIMISER = load_train_config("robust").model_copy(update={"weight_decay": 0.0})


@pytest.mark.parametrize(
    ("bits", "live_channels"),
    [(3, 0), (4, 3), *(pytest.param(bits, 0, marks=pytest.mark.slow) for bits in (2, 4, 8))],
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_layers_that_begin_at_zero_learn_map_and_evaluate(recipe: str, bits: int, live_channels: int) -> None:
    torch.manual_seed(0)
    usual, least = trained_with(Branch(1.0), recipe, bits)
    torch.manual_seed(0)
    zero, found = trained_with(Branch(0.0, live_channels), recipe, bits)
    assert found < 1.3 * least + 0.02
    scale = zero.last.weight_quantiser.scale
    assert scale.max() < 3 * usual.last.weight_quantiser.scale.max()
    chip = memsim.map_model(zero, load_hardware({"base": "ideal", "dac": {"bits": 8}}), calibration=[torch.ones(1, 6)])
    assert torch.isfinite(chip(torch.randn(3, 6))).all()


@pytest.mark.filterwarnings("ignore:calibration saw only zeros")
@pytest.mark.parametrize("recipe", RECIPES)
def test_layers_that_stay_at_zero_map_and_evaluate(recipe: str) -> None:
    net = Branch(0.0)
    net.last.weight.requires_grad_(False)
    net, _ = trained_with(net, recipe, 3, steps=3)
    assert not net.last.weight_quantiser.scale.any()
    x = torch.randn(5, 6)
    for spec in (SPEC, load_hardware("physical")):
        chip = memsim.map_model(net, spec, calibration=[x])
        assert not chip.last(torch.randn(5, 12)).any()
        assert torch.isfinite(chip(x)).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_inputs_that_were_dead_in_calibration_come_alive(recipe: str) -> None:
    net = Branch(1.0)
    bias = net.middle.bias.detach().clone()
    with torch.no_grad():
        net.middle.bias.fill_(-100)
    net, _ = trained_with(net, recipe, 8, steps=2)
    x = torch.randn(256, 6)
    with torch.no_grad():
        net.middle.bias.copy_(bias)
        net.train()(x)
        exact = F.linear(net.middle(x).relu(), net.last.weight)
        assert (net.eval().last(net.middle(x).relu()) - exact).norm() < 0.2 * exact.norm()


def test_what_is_small_everywhere_does_not_follow() -> None:
    """It is the size beside the network's other inputs that counts, not the unit that a network computes in."""
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    x = 1e-5 * torch.randn(64, 6)
    Quantisation(QuantisationConfig(), 3, SPEC).apply(net, measure_inputs(net, [x]))
    for layer in net:
        assert layer.input_quantiser.followed_percentile is None
        assert 0 < layer.input_quantiser.range < 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
def test_networks_of_float64_train_in_float64(recipe: str) -> None:
    net = drawn(Mixed)[0].double()
    config = load_train_config(recipe).quantisation.model_copy(update={"teacher": None})
    Quantisation(config, 3, load_hardware({"base": "physical", "digital": []})).apply(
        net, measure_inputs(net, [X.double()])
    )
    found = net.train()(X.double())
    found.square().sum().backward()
    assert found.dtype == torch.float64
    trained = [parameter for parameter in net.parameters() if parameter.grad is not None]
    assert {parameter.dtype for parameter in trained} == {parameter.grad.dtype for parameter in trained}
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert {scale.dtype for _, product in quantised_layers(net) for scale in (product.weight_quantiser.scale,)} == {
        torch.float64
    }
    chip = memsim.map_model(net.eval(), SPEC, calibration=[X.double()])
    assert chip(X.double()).dtype == torch.float64
