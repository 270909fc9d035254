"""The transfer in training equals that of mapped layers, on average and in its spread."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from memsim import rng
from memsim.crossbar import encode
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.read import split_planes
from memsim.errors import InputError
from memsim.hardware import HardwareSpec, load_hardware
from memsim.nn.linear import QuantisedLinear
from memsim.nn.mapping import map_model
from memsim.nn.rounding import ActivationQuantiser, WeightQuantiser
from memsim.nn.transfer import HardwareTransfer, Spread, _drawn, pair_bank, require_trainable
from tests.crossbar.by_hand import statistics_of

SPECS = ["physical", "paper", "multilevel", "ideal"]
LEVELS = torch.randint(-3, 4, (20, 300), generator=torch.Generator().manual_seed(1)).float()
X = torch.randn(200, 300, generator=torch.Generator().manual_seed(2))


def spec_of(name: str, bits: int = 3, **changes: object) -> HardwareSpec:
    return load_hardware({"base": name, "weights": {"bits": bits}, "digital": [], **changes})


def through(transfer: HardwareTransfer, x: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    return transfer.programmed(levels, scale, 3.0)([x])


def transfer_of(spec: HardwareSpec, full_scale: float = 3.0) -> HardwareTransfer:
    statistics = statistics_of(X)
    transfer = HardwareTransfer("layer", spec, -(-300 // spec.tile.rows))
    transfer.calibrate(LEVELS, torch.full((20,), 0.01), replace(statistics, full_scale=full_scale))
    return transfer


@pytest.mark.parametrize("name", SPECS)
def test_the_mean_of_the_hardware_is_an_exactly_programmed_chip(name: str) -> None:
    spec = spec_of(name, read_noise=None)
    if spec.cell != "ideal":
        spec = spec.with_settings({"programming.exact": True})
    scale = torch.linspace(0.01, 0.02, 20)
    matrix = MappedMatrix.from_levels(
        "layer", LEVELS.to(torch.int8), scale, spec, 0, replace(statistics_of(X), full_scale=3.0)
    )
    full_scale = 3.0 if spec.dac is not None else 1.0
    found = transfer_of(spec_of(name)).programmed(LEVELS, scale, full_scale)([X])
    expected = matrix(X)
    # states of a matrix are kept in 16 bits; a last bit moves an ADC code now and then
    assert (found - expected).norm() / expected.norm() < 3e-3


@pytest.mark.parametrize("name", ["physical", "paper", "multilevel"])
def test_the_bank_is_distributed_as_programmed_cells(name: str) -> None:
    spec = spec_of(name)
    bank = pair_bank(spec, "cpu")
    digits = 1 << spec.weights.cell_bits
    assert bank.means.shape == (digits,)
    assert bank.deviations.shape == (digits, 1 << 15)
    for digit in range(digits):
        levels = torch.full((300, 100), digit, dtype=torch.int8)
        settings = {"weights.bits": spec.weights.cell_bits + 1}
        drawn = MappedMatrix.from_levels(
            "other", levels, torch.ones(1), spec.with_settings(settings), 5
        ).arrays.difference()
        drawn, from_bank = drawn.flatten(), bank.means[digit] + bank.deviations[digit]
        drawn, from_bank = ((1e5 * values).round().sort().values for values in (drawn, from_bank))  # 16-bit states tie
        # Kolmogorov-Smirnov: 1.95 is exceeded once in a thousand; cells of a tile share the voltages of its cycling
        bound = 1.95 * math.sqrt(1 / len(drawn) + 1 / len(from_bank))
        places = torch.searchsorted(drawn, from_bank, right=True) / len(drawn)
        places_in_bank = torch.searchsorted(from_bank, from_bank, right=True) / len(from_bank)
        assert (places - places_in_bank).abs().max() < bound


def test_the_spread_is_that_of_chips_and_is_drawn_by_its_key() -> None:
    spec = spec_of("physical", read_noise=None)
    transfer, scale = transfer_of(spec), torch.full((20,), 0.01)

    def product(key: int, size: float) -> Tensor:
        transfer.spread = Spread(key, size)
        return through(transfer, X, LEVELS, scale)

    mean = through(transfer, X, LEVELS, scale)
    assert torch.equal(product(1, 1.0), product(1, 1.0))
    assert not torch.equal(product(1, 1.0), product(2, 1.0))
    assert torch.equal(product(1, 0.0), mean)
    statistics = replace(statistics_of(X), full_scale=3.0)
    chips = [MappedMatrix.from_levels("l", LEVELS.to(torch.int8), scale, spec, seed, statistics) for seed in range(8)]
    of_chips = torch.stack([chip(X) - mean for chip in chips]).std()
    of_spread = torch.stack([product(key, 1.0) - mean for key in range(8)]).std()
    # some 8 x 6000 cells of each sign: a standard deviation is known to 1 / sqrt(2 n), inputs and outputs correlate
    assert of_spread / of_chips == pytest.approx(1, abs=0.05)
    half = torch.stack([product(key, 0.5) - mean for key in range(8)]).std()
    assert half / of_spread == pytest.approx(0.5, abs=0.05)


def test_draws_of_pairs_are_uniform_and_independent() -> None:
    drawn = _drawn(400_003, rng.generator(1)).int().bitwise_and_((1 << 15) - 1)
    assert len(drawn) == 400_003
    assert (int(drawn.min()), int(drawn.max())) == (0, (1 << 15) - 1)
    counts = torch.bincount(drawn >> 9, minlength=64).double()
    expected = len(drawn) / 64
    assert float(((counts - expected).square() / expected).sum()) < 113  # chi-squared of 63, once in 10^4
    centred = drawn.double() - (2**15 - 1) / 2
    for lag in (1, 2, 3, 4):  # numbers of one word, and of the next
        correlation = float((centred[lag:] * centred[:-lag]).mean() / centred.square().mean())
        assert abs(correlation) < 4 / math.sqrt(len(drawn))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("spread", [None, Spread(1, 0.7)])
@pytest.mark.parametrize("shape", [(20, 300), (33, 5)])
def test_compiled_columns_have_the_bits_of_torch_operations(
    name: str, spread: Spread | None, shape: tuple[int, int]
) -> None:
    transfer = HardwareTransfer("layer", spec_of(name), 3)
    transfer.spread = spread
    levels = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(3)).float()
    cells = transfer._cells(levels).of_outputs(slice(4, 19))
    slices, inputs, outputs = cells.shape
    factors = torch.rand(-(-inputs // 128), slices * outputs)
    found = torch.zeros(len(factors), 128, slices * outputs + 5)
    cells.columns(factors, found)
    expected = split_planes(cells.difference(), 128).flatten(2) * factors[:, None]
    assert expected.any()
    assert torch.equal(found, torch.nn.functional.pad(expected, (0, 5)))


def quantised(spec: HardwareSpec, hardware: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layer = QuantisedLinear.from_float(nn.Linear(300, 20))
    layer.weight_quantiser = WeightQuantiser.fitted(layer.weight, 3, "lsq", spec.weights, spec.tile.rows)
    with torch.no_grad():
        layer.weight_quantiser.scale.mul_(0.9)  # as training may leave it
    layer.input_quantiser = ActivationQuantiser(8, torch.tensor(2.1))
    if hardware:
        layer.transfer = HardwareTransfer("0", spec, 3)
        statistics = replace(statistics_of(X), full_scale=2.1)
        layer.transfer.calibrate(layer.weight_quantiser.levels(layer.weight), layer.trained_scale[1], statistics)
    return nn.Sequential(layer)


def test_training_and_ideal_hardware_agree_to_rounding() -> None:
    spec = spec_of("ideal", dac={"bits": 8})
    for hardware in (False, True):
        net = quantised(spec, hardware)
        chip = map_model(net, spec, calibration=[X])
        assert chip.mapping.layers["0"].input_range == pytest.approx(2.1)
        assert torch.equal(chip.mapping.layers["0"].levels.float(), net[0].weight_quantiser.levels(net[0].weight))
        assert torch.allclose(chip(X), net(X), atol=1e-5)


@pytest.mark.parametrize("name", ["ideal", "physical"])
def test_scales_per_tile_are_trained_through_the_hardware_and_kept_by_chips_with_these_tiles(name: str) -> None:
    weights = {"bits": 3, "scale": "per_tile"}
    spec = load_hardware({"base": name, "weights": weights, "digital": [], "dac": {"bits": 8}, "read_noise": None})
    exact = spec if name == "ideal" else spec.with_settings({"programming.exact": True})
    net = quantised(spec, hardware=True)
    quantiser = net[0].weight_quantiser
    assert quantiser.scale.shape == (3, 20)
    chip = map_model(net, exact, calibration=[X])
    matrix = chip.mapping.layers["0"]
    assert torch.equal(matrix.scale, quantiser.scale)
    assert torch.equal(matrix.levels.float(), quantiser.levels(net[0].weight))
    found, expected = net(X), chip(X)
    assert (found - expected).norm() / expected.norm() < 3e-3
    found.square().sum().backward()
    assert (quantiser.scale.grad != 0).all()
    other = map_model(net, exact.with_settings({"tile.rows": 100}), calibration=[X]).mapping.layers["0"]
    assert other.scale.shape == (3, 20)  # as many tiles, of other inputs
    assert torch.equal(other.scale, encode.fit_scale(net[0].weight.detach(), 3, spec.weights, 100))


def test_the_bits_a_layer_was_trained_for_are_its_bits_and_others_are_fitted_anew() -> None:
    net = quantised(spec_of("physical"), hardware=False)
    spec = load_hardware({"base": "physical", "digital": []})
    matrix = map_model(net, spec, calibration=[X]).mapping.layers["0"]
    assert matrix.tiling.bits == 3
    assert torch.equal(matrix.scale, net[0].weight_quantiser.scale)
    other = map_model(net, spec, bits=4, calibration=[X]).mapping.layers["0"]
    assert other.tiling.bits == 4
    assert not torch.equal(other.scale, matrix.scale)


def test_gradients_are_those_of_the_exact_product_of_the_rounded_numbers() -> None:
    spec = spec_of("physical")
    gradients = []
    for hardware in (False, True):
        net = quantised(spec, hardware)
        x = X.clone().requires_grad_()
        net(x).sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in net.parameters())])
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"wires": {"ohms": 1.0}}, "training does not model line resistance"),
        ({"dac": {"range": "per_vector"}}, "one full-scale input for a layer"),
        ({"dac": {"bits": None}}, "the codes of a DAC"),
    ],
)
def test_hardware_that_training_cannot_go_through(changes: dict[str, object], found: str) -> None:
    with pytest.raises(InputError, match=f"enc: .*{found}"):
        require_trainable(spec_of("physical", **changes), "enc")


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_a_layer_that_was_calibrated_at_zero_is_calibrated_when_it_comes_alive(method: str) -> None:
    """Else its ADCs would clip everything until the next epoch."""
    spec = spec_of("physical", adc={"bits": 8, "range": "calibrated", "method": method})
    transfer = HardwareTransfer("layer", spec, 1)
    levels, scale = torch.randint(-3, 4, (5, 20)).float(), torch.full((5,), 0.1)
    x = torch.randn(40, 20)
    zeros = replace(statistics_of(0 * x), full_scale=3.0)
    transfer.calibrate(0 * levels, scale, zeros)
    through(transfer.eval(), x, levels, scale)
    assert not through(transfer.train(), 0 * x, levels, scale).any()
    assert not through(transfer, x, 0 * levels, scale).any()
    assert transfer.adc_range.max() < 1e-10
    exact = x.clamp(-3, 3) @ (levels * 0.1).T
    assert (through(transfer, x, levels, scale) - exact).norm() < 0.2 * exact.norm()
    known = transfer.adc_range.clone()
    through(transfer, 3 * x, levels, scale)
    assert torch.equal(transfer.adc_range, known)


def test_a_loaded_state_replaces_what_was_computed_from_the_one_before() -> None:
    spec, scale = spec_of("physical"), torch.full((20,), 0.01)
    one, other = transfer_of(spec), transfer_of(spec, full_scale=9.0)
    before, wanted = (through(transfer, X, LEVELS, scale) for transfer in (one, other))
    assert not torch.equal(before, wanted)
    one.load_state_dict(other.state_dict())
    assert torch.equal(through(one, X, LEVELS, scale), wanted)
