"""torch.compile of networks on arrays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import memsim
from memsim.nn.chip import mapping_of
from tests.nn.layers import PHYSICAL, normal

pytestmark = pytest.mark.filterwarnings("ignore:.*enable_nested_tensor is True", "ignore:.*lru_cache")


class Branches(nn.Module):
    """Python between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x).relu()
        for _ in range(2):
            hidden = self.norm(hidden + self.second(hidden))
        return {"hidden": hidden, "sum": hidden.sum(-1)}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), (normal(4, 6),)),
    "a layer alone": (lambda: nn.Linear(6, 4), (normal(4, 6),)),
    "branches": (Branches, (normal(4, 6),)),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 2, 3)),
        (normal(2, 3, 8),),
    ),
    "lstm": (lambda: nn.LSTM(3, 4, 2, bidirectional=True), (normal(5, 2, 3),)),
    "cell": (lambda: nn.GRUCell(3, 4), (normal(2, 3),)),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 1),
        (normal(2, 3, 6),),
    ),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)), (torch.tensor([[1, 2, 3]]),)),
}


def chip_of(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, inputs = NETWORKS[name]
    return memsim.map_model(make().eval(), {**PHYSICAL, "embeddings": ["*"]}, calibration=[inputs]), inputs


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in NETWORKS),
        ("linear", "eager"),
        *(pytest.param(name, "eager", marks=pytest.mark.slow) for name in NETWORKS if name != "linear"),
    ],
)
def test_a_compiled_chip_is_the_chip(name: str, backend: str) -> None:
    chip, inputs = chip_of(name)
    torch._dynamo.reset()
    compiled = torch.compile(chip, backend=backend)

    def outputs(of: nn.Module) -> list[Any]:
        with mapping_of(chip).batch("0"):
            return tree_leaves(of(*inputs))

    wanted = outputs(chip)
    for _ in range(2):
        assert all(torch.equal(got, want) for got, want in zip(outputs(compiled), wanted, strict=True))
    assert compiled.mapping is chip.mapping
    with torch.no_grad():
        assert all(torch.equal(got, want) for got, want in zip(outputs(compiled), wanted, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_full_graph_is_refused_with_the_reason(name: str) -> None:
    chip, inputs = chip_of(name)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"simulated arrays run between compiled graphs.*compile without fullgraph"):
        torch.compile(chip, backend="eager", fullgraph=True)(*inputs)
    chip(*inputs)


def test_a_function_that_reads_a_chip_can_be_compiled() -> None:
    chip, (x,) = chip_of("branches")
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def step(x: Tensor) -> Tensor:
        return chip(x * 2)["sum"] + 1

    with mapping_of(chip).batch("0"):
        got = step(x)
    with mapping_of(chip).batch("0"):
        assert torch.equal(got, chip(x * 2)["sum"] + 1)


def test_reads_do_not_import_the_compiler() -> None:
    code = (
        "import sys, torch, memsim\n"
        "x = torch.randn(4, 6)\n"
        "memsim.map_model(torch.nn.Linear(6, 3), 'physical', calibration=[x])(x)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
