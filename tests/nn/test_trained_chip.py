"""Training through a chip: gradients are those of the network with the weights that its levels stand for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from memsim.crossbar.encode import by_tile, scale_of_weights
from memsim.crossbar.tiling import split_rows
from memsim.nn.mapping import map_model
from memsim.nn.trained_chip import train_digital_parts, trained_matrices


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)), (4, 8)),
    "grouped": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.Tanh(), nn.Conv1d(6, 2, 1)),
        (2, 4, 9),
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(4, 3, 2)), (2, 4, 5)),
    "recurrent": (Recurrent, (2, 4, 6)),
}


TILES: dict[str, Any] = {
    "base": "ideal",
    "digital": [],
    "tile": {"rows": 4},
    "weights": {"scale": "per_tile", "scale_method": "mse"},
}


@pytest.mark.parametrize("mapping", [None, {"rotation": "hadamard"}])
@pytest.mark.parametrize("spec", [{"base": "ideal", "digital": []}, TILES], ids=["per channel", "per tile"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_levels(name: str, spec: dict[str, Any], mapping: dict[str, Any] | None) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    chip = map_model(network, spec, bits=4, mapping=mapping)
    rounded = copy.deepcopy(network)
    for layer in chip.mapping.mapped:
        matrix = chip.mapping.layers[layer.name]
        parameter = rounded.get_parameter(layer.source.tensor)
        stored = layer.source.matrix(torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)).long()
        parameter.data.flatten()[stored.flatten()] = matrix.quantised_weight().float().flatten()
    matrices = train_digital_parts(chip)
    assert matrices.keys() == trained_matrices(chip).keys() == {layer.name for layer in chip.mapping.mapped}
    x = torch.randn(shape)
    of_chip, of_levels = (copy.deepcopy(x).requires_grad_() for _ in range(2))
    weights = torch.randn_like(rounded(x))
    (chip(of_chip) * weights).sum().backward()
    (rounded(of_levels) * weights).sum().backward()
    torch.testing.assert_close(of_chip.grad, of_levels.grad, rtol=1e-4, atol=1e-5)
    for local, parameter in chip.named_parameters():
        if "bias" in local:
            torch.testing.assert_close(parameter.grad, rounded.get_parameter(local).grad, rtol=1e-4, atol=1e-5)
        elif local.endswith("trim"):
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("mapping", [None, {"rotation": "hadamard"}])
def test_trims_learn_from_what_the_chip_has(mapping: dict[str, Any] | None) -> None:
    torch.manual_seed(0)
    chip = map_model(nn.Sequential(nn.Linear(10, 6, bias=False)), TILES, bits=4, mapping=mapping)
    matrix = chip.mapping.layers["0"]
    matrix.set_trims(1 + torch.rand(3, 6), torch.rand(6))
    x, weights = torch.randn(5, 10), torch.randn(5, 6)
    expected = chip(x)
    trained = train_digital_parts(chip)["0"]
    found = chip(x)
    torch.testing.assert_close(found, expected)
    (found * weights).sum().backward()
    gain, offset = (trim.detach().clone().requires_grad_() for trim in (trained.gain_trim, trained.offset_trim))
    at_dac = split_rows(x if mapping is None else matrix.input_transform(x), 4)  # [tiles, n, rows]
    steps = scale_of_weights(matrix.scale, 10, 4)
    products = torch.einsum("tni,toi->tno", at_dac, by_tile(matrix.levels * steps, 4))
    product = (products * gain[:, None]).sum(dim=0) + offset
    torch.testing.assert_close(product.detach(), expected, rtol=1e-4, atol=1e-5)
    (product * weights).sum().backward()
    torch.testing.assert_close(trained.gain_trim.grad, gain.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.offset_trim.grad, offset.grad, rtol=1e-4, atol=1e-5)


def test_copies_share_cells_and_not_gains() -> None:
    chip = map_model(nn.Sequential(nn.Linear(8, 6)), {"base": "ideal"}, bits=4)
    cells = chip.mapping.layers["0"]
    train_digital_parts(chip)
    other = copy.deepcopy(chip)
    mine, its = (next(iter(trained_matrices(network).values())) for network in (chip, other))
    assert its.levels is mine.levels is cells.levels
    assert {name for name, _ in chip.named_buffers() if "matrix" in name} == set()
    with torch.no_grad():
        mine.gain_trim.mul_(2)
        mine.offset_trim.add_(1)
        x = torch.randn(3, 8)
        bias = chip[0].bias
        torch.testing.assert_close(chip(x) - bias, 2 * (other(x) - bias) + 1)
