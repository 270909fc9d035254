"""Gradient checkpointing: the same gradients, to the bit, with less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from memsim.asr.corpora import Corpus
from memsim.asr.models.lstm import LSTMConfig
from memsim.asr.recogniser import build
from memsim.asr.tokens import CharacterTokens
from memsim.crossbar.calibrator import InputStatistics
from memsim.errors import InputError, Stopped
from memsim.hardware import load_hardware
from memsim.nn.calibration import CalibrationData
from memsim.nn.quantisation import Quantisation
from memsim.training.quantised import QuantisedTraining
from memsim.training.recipe import load_train_config
from memsim.training.recomputation import blocks_of, computed_again
from tests.training.tones import DROPOUT, MODEL, RANDOM, Watching, fresh, job, run, same


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 256), nn.Linear(256, 16)
        self.normalise = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor, *, factor: float) -> Tensor:
        inner: Tensor = self.second(self.dropout(self.first(x).relu()))
        return x + factor * self.normalise(inner)


class Network(nn.Module):
    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.plain = nn.ModuleList([nn.Linear(16, 16)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, factor=0.5)
        result: Tensor = self.plain[0](x)
        return result


def statistics(network: nn.Module, x: Tensor) -> dict[str, InputStatistics]:
    return CalibrationData(network, [x]).statistics()


def quantised(network: nn.Module, x: Tensor) -> nn.Module:
    """Its ranges follow inputs that were nearly zero at the beginning, and scales are observed."""
    config = load_train_config("robust").quantisation
    assert config is not None
    made = Quantisation(config, 4, load_hardware("best")).apply(network, statistics(network, 1e-4 * x))
    return made.train()


@pytest.mark.parametrize("prepare", [lambda network, x: network, quantised])
def test_gradients_and_state_are_the_same_bits(prepare: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    plain = prepare(Network().train(), x)
    again = copy.deepcopy(plain)
    assert blocks_of(again, "it") == list(again.blocks)
    for network, blocks in ((plain, ()), (again, blocks_of(again, "it"))):
        torch.manual_seed(2)
        with computed_again(blocks):
            outputs = network(x)
        assert not any("forward" in vars(module) for module in network.modules())
        outputs.square().sum().backward()
    gradients = [{name: p.grad for name, p in network.named_parameters()} for network in (plain, again)]
    assert all(gradient is not None for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    states = [network.state_dict() for network in (plain, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(module.training for module in again.modules())


def test_memory_is_that_of_one_block() -> None:
    """The bytes that autograd keeps between the passes."""
    x = torch.randn(512, 16, requires_grad=True)
    kept = []
    for blocks in ((), None):
        network = Network().train()
        held: dict[int, int] = {}

        def keep(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        chosen = blocks_of(network, "it") if blocks is None else blocks
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), computed_again(chosen):
            network(x)
        kept.append(sum(held.values()))
    assert kept[1] < 0.2 * kept[0]


def test_networks_without_blocks_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    config = LSTMConfig(features=MODEL.features, frontend=MODEL.frontend, width=8, layers=1, hidden=8)
    recogniser = build("lstm_ctc", config, CharacterTokens(tuple(" ab")), "kaldi")
    recipe = RANDOM.model_copy(update={"model": "lstm-small", "gradient_checkpointing": True})
    with pytest.raises(InputError, match="gradient_checkpointing: lstm-small has no blocks") as refused:
        run(job(corpus, tmp_path / "m.safetensors", recipe, recogniser=recogniser))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("few_bits", [False, True])
def test_a_training_gives_the_same_and_resumes(corpus: Corpus, tmp_path: Path, few_bits: bool) -> None:
    """With dropout, parts of batches, quantisers and the spread of the hardware's cells."""

    def one(name: str, again: bool) -> object:
        config = RANDOM.model_copy(update={"epochs": 2, "accumulate": 2, "gradient_checkpointing": again})
        hooks = None
        if few_bits:
            quantisation = load_train_config("robust").quantisation
            assert quantisation is not None
            hooks = QuantisedTraining(Quantisation(quantisation, 3, load_hardware("physical")), config)
        return job(corpus, tmp_path / name, config, recogniser=fresh(DROPOUT), hooks=hooks)

    run(one("plain.safetensors", False))
    watching = Watching()
    with pytest.raises(Stopped):
        run(one("again.safetensors", True), watching, stop_request=lambda: 15 if len(watching.losses) == 3 else None)
    run(one("again.safetensors", True), resume=True)
    assert same(tmp_path / "plain.safetensors", tmp_path / "again.safetensors")
