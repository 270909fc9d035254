"""Weights on arrays that the network around their layer looks at or computes with."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.errors import InputError
from tests.nn.layers import drawn, exact, is_close, normal
from tests.nn.test_quantised_layers import Conv1D


class LooksUp(nn.Module):
    """As T5 and ViT of Hugging Face transformers do: the input becomes what the weight is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return self.layer(x.to(weight.dtype).to(weight.device))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(6, 3),
        lambda: nn.Conv1d(4, 6, 3, groups=2),
        lambda: nn.Conv2d(4, 6, (1, 3)),
        lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
        lambda: Conv1D(3, 6),
    ],
)
def test_a_weight_on_arrays_has_its_shape_dtype_and_device(make: Callable[[], nn.Module]) -> None:
    net = drawn(lambda: LooksUp(make()))
    chip = exact(net)
    found = chip[0].layer.weight
    wanted = net[0].layer.weight
    assert (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)
    assert not found.requires_grad
    assert repr(found) == f"WeightOnArrays(0.layer, {list(wanted.shape)})"
    assert "0.layer.weight" not in chip.state_dict()
    if wanted.ndim < 4:
        x = normal(2, 4, 6).double()
        is_close(chip(x), net(x))
    pickle.loads(pickle.dumps(copy.deepcopy(chip)))


class GoesRound(nn.Module):
    """As Hugging Face's Mamba and WavLM do: the layer is only where the weight is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.kept = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.used(x), self.kept.weight, self.kept.bias)


@pytest.mark.parametrize("inference", [False, True])
def test_computing_with_it_names_the_matrix_and_the_way_out(inference: bool) -> None:
    net, x = drawn(GoesRound), normal(3, 4)
    chip = exact(net)
    with torch.inference_mode(inference), pytest.raises(InputError, match=r"^0\.kept: .*exclude=\['0\.kept'\]"):
        chip(x)
    for action in (lambda w: w @ x.T, lambda w: w.sum(), lambda w: w.squeeze(), lambda w: w.clone(), lambda w: w[0]):
        with pytest.raises(InputError, match=r"^0\.kept: the network computes with this weight itself"):
            action(chip[0].kept.weight)
    is_close(exact(net, exclude=["0.kept"])(x), net(x))


class ProjectsItself(nn.Module):
    """As torchaudio's WavLM does."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)


def test_the_projections_of_attention() -> None:
    net, x = drawn(ProjectsItself), normal(3, 4)
    for mapped in (["*.q_proj"], ["*.v_proj", "*.out_proj"], []):
        chip = exact(net, include=mapped)
        assert chip[0].attention.in_proj_weight.shape == (12, 4)
        with pytest.raises(InputError, match=r"^0\.attention\.[qv]_proj: .*exclude=\['0\.attention\.\*'\]"):
            chip(x)
    is_close(exact(net, include=["*.out_proj"])(x), net(x))
    is_close(exact(net, exclude=["0.attention.*"])(x), net(x))
