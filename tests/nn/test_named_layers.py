"""Errors of layers on arrays, and in training for them, for inputs that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim.errors import InputError
from memsim.nn.mapping import measure_inputs
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.nn.quantisers import quantiser_tensors
from tests.nn.layers import PHYSICAL, exact, is_close, normal

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (normal(3, 6),), (normal(3, 5),)),
    "linear of many": (lambda: nn.Linear(6, 4), (normal(2, 3, 6),), (normal(2, 6, 3),)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (normal(2, 3, 8),), (normal(2, 4, 8),)),
    "conv1d of 4-D": (lambda: nn.Conv1d(3, 4, 3), (normal(2, 3, 8),), (normal(2, 3, 8, 2),)),
    "conv1d, too short": (lambda: nn.Conv1d(3, 4, 3), (normal(2, 3, 8),), (normal(2, 3, 2),)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, groups=2), (normal(2, 2, 8, 8),), (normal(2, 3, 8, 8),)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (normal(1, 2, 4, 4, 4),), (normal(1, 4, 4),)),
    "transposed": (lambda: nn.ConvTranspose1d(3, 4, 3), (normal(2, 3, 8),), (normal(2, 2, 8),)),
    "lstm": (lambda: nn.LSTM(3, 4), (normal(5, 2, 3),), (normal(5, 2, 4),)),
    "lstm of 4-D": (lambda: nn.LSTM(3, 4), (normal(5, 2, 3),), (normal(1, 5, 2, 3),)),
    "lstm's state": (lambda: nn.LSTM(3, 4), (normal(5, 2, 3),), (normal(5, 2, 3), (normal(1, 3, 4), normal(1, 3, 4)))),
    "gru": (lambda: nn.GRU(3, 4, 2, bidirectional=True), (normal(5, 2, 3),), (normal(5, 2, 2),)),
    "lstm cell": (lambda: nn.LSTMCell(3, 4), (normal(2, 3),), (normal(2, 4),)),
    "rnn cell's state": (lambda: nn.RNNCell(3, 4), (normal(2, 3),), (normal(2, 3), normal(1, 4))),
    "attention": (lambda: nn.MultiheadAttention(6, 2), (normal(5, 2, 6),) * 3, (normal(5, 2, 4),) * 3),
    "attention, other keys": (
        lambda: nn.MultiheadAttention(6, 2),
        (normal(5, 2, 6),) * 3,
        (normal(5, 2, 6), normal(5, 1, 6), normal(5, 1, 6)),
    ),
    "attention, other values": (
        lambda: nn.MultiheadAttention(6, 2),
        (normal(5, 2, 6),) * 3,
        (normal(5, 2, 6), normal(4, 2, 6), normal(5, 2, 6)),
    ),
    "attention of 4-D": (lambda: nn.MultiheadAttention(6, 2), (normal(5, 2, 6),) * 3, (normal(1, 5, 2, 6),) * 3),
    "attention's mask": (
        lambda: nn.MultiheadAttention(6, 2),
        (normal(5, 2, 6),) * 3,
        ((normal(5, 2, 6),) * 3 + (torch.zeros(2, 4, dtype=torch.bool),)),
    ),
    "embedding": (lambda: nn.Embedding(7, 4), (torch.tensor([[1, 2]]),), (torch.tensor([[1, 7]]),)),
    "embedding of numbers": (lambda: nn.Embedding(7, 4), (torch.tensor([[1, 2]]),), (normal(1, 2).abs(),)),
}

ON_ARRAYS = {"base": "ideal", "digital": [], "embeddings": ["*"], "tile": {"rows": 16, "cols": 8}}


class Named(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"part": layer})

    def forward(self, *inputs: Any) -> Any:
        return self.encoder["part"](*inputs)


def trained(name: str) -> nn.Module:
    """Named, with quantisers, in training."""
    make, fits, _ = LAYERS[name]
    net = Named(make())
    recipe = QuantisationConfig(layers="all")
    spec = memsim.load_hardware({**PHYSICAL, "embeddings": ["*"]})
    return Quantisation(recipe, 3, spec).apply(net, measure_inputs(net, [fits])).train()


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_that_do_not_fit_are_answered_with_the_name_of_the_layer(name: str) -> None:
    make, fits, misfits = LAYERS[name]
    net = Named(make())
    with pytest.raises((RuntimeError, ValueError, IndexError, AssertionError)):
        net(*misfits)
    chip = memsim.map_model(net, ON_ARRAYS, bits=8)
    for layer in (chip, trained(name)):
        layer(*fits)
        with pytest.raises((RuntimeError, ValueError, TypeError, IndexError), match=r"encoder\.part") as raised:
            layer(*misfits)
        assert str(raised.value).count("encoder.part") == 1


def test_a_layer_with_a_shared_matrix_has_its_own_name() -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    net[1].weight = net[0].weight
    chip = exact(net)
    with pytest.raises(ValueError, match=r"^1: 0: its input has 4 features"):
        chip[1](normal(2, 4))


def test_names_survive_training() -> None:
    net = trained("conv1d")
    assert quantiser_tensors(net.state_dict())
    chip = memsim.map_model(net, ON_ARRAYS, calibration=[normal(2, 3, 8)])
    with pytest.raises(ValueError, match=r"^encoder\.part: its input has 12 features, the matrix has 9$"):
        chip(normal(2, 4, 8))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True")
def test_nested_tensors_are_refused_in_a_line(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([normal(3, 6), normal(5, 6)], layout=layout)
    layers: dict[str, tuple[nn.Module, int]] = {
        "linear": (nn.Linear(6, 4), 1),
        "lstm": (nn.LSTM(6, 4, batch_first=True), 1),
        "attention": (nn.MultiheadAttention(6, 2, batch_first=True), 3),
        "encoder": (nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2), 1),
        "before": (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True), 1),
    }
    for name, (layer, count) in layers.items():
        chip = exact(nn.ModuleDict({name: layer}).eval())
        for grad in (True, False):
            with (
                torch.set_grad_enabled(grad),
                pytest.raises(InputError, match=f"^{name}.*: its input is a nested tensor, .*pad it") as raised,
            ):
                chip[name](*(nested,) * count)
            assert "\n" not in str(raised.value)
        padded = torch.nested.to_padded_tensor(nested, 0.0)
        is_close(chip[name](*(padded,) * count), layer(*(padded,) * count), tolerance=1e-2)
    net = nn.Sequential(nn.Linear(6, 4))
    recipe = QuantisationConfig(layers="all")
    Quantisation(recipe, 3, memsim.load_hardware(PHYSICAL)).apply(net, measure_inputs(net, [normal(3, 6)])).train()
    with pytest.raises(InputError, match=r"^0: its input is a nested tensor"):
        net(nested)
