"""External recognisers from a factory in the user's code: building, storing in files, and mapping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from memsim.asr.architectures import ARCHITECTURES, Architecture
from memsim.asr.external import with_architecture
from memsim.asr.kinds import CTC
from memsim.asr.models.external_ctc import Factory, FactoryConfig
from memsim.asr.recogniser import load_recogniser, metadata_of
from memsim.asr.tokens import CharacterTokens, tokens_from_json
from memsim.hardware import load_hardware
from memsim.networks.mapped_file import load_chip
from memsim.networks.programming import plan_checkpoint, program_checkpoint
from memsim.nn.chip import mapping_of
from memsim.nn.mapping import map_model, measure_inputs
from memsim.nn.plan import Selection
from memsim.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

TOKENS = CharacterTokens(tuple(" abc"))
NORMS: dict[str, Callable[..., nn.Module]] = {
    "parametrised": parametrizations.weight_norm,
    "older": torch.nn.utils.weight_norm,
    "spectral": parametrizations.spectral_norm,
}


class Odd(nn.Module):
    """What files and devices without values make hard: computed weights, shared ones, buffers that no file holds."""

    def __init__(self, tokens: int, norm: str) -> None:
        super().__init__()
        self.convolution = NORMS[norm](nn.Conv1d(8, 12, 3, padding=1, groups=2))
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(12, tokens)
        self.register_buffer("wave", torch.arange(12).cos(), persistent=False)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.convolution(features.transpose(1, 2)).transpose(1, 2) * self.wave
        return self.last(self.second(self.first(hidden).relu())).log_softmax(dim=-1), lengths


@pytest.fixture(params=sorted(NORMS))
def checkpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Checkpoint:
    monkeypatch.setitem(ARCHITECTURES, "here:Odd", Architecture(FactoryConfig, Factory("here:Odd", Odd), CTC()))
    config = FactoryConfig(tokens=5, characters=" abc", options={"norm": request.param})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Odd(5, request.param).eval()
        state = network.state_dict()
        for tensor in state.values():
            tensor += 0.1 * torch.randn(tensor.shape)
    del state["second.weight"]  # as save_model leaves out what is shared
    path = tmp_path / "odd.safetensors"
    save_checkpoint(path, state, {"kind": "model", **metadata_of("here:Odd", config, TOKENS, "kaldi")})
    return load_checkpoint(path)


BATCH = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([9, 6])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@torch.no_grad()
def test_a_network_from_a_file_is_the_network(checkpoint: Checkpoint) -> None:
    model = load_recogniser(checkpoint).model
    tensors = checkpoint.tensors()
    assert model.second.weight is model.first.weight
    assert torch.equal(model.first.weight, tensors["first.weight"])
    assert all(torch.equal(value, tensors.get(key, model.first.weight)) for key, value in model.state_dict().items())
    assert torch.equal(model.wave, torch.arange(12).cos())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@torch.no_grad()
def test_a_mapped_file_is_what_map_model_makes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    spec = load_hardware({"base": "physical", "tile": {"rows": 8, "cols": 8}, "digital": []})
    spec = spec.with_settings({"weights.bits": 4})
    model = load_recogniser(checkpoint).model
    statistics = measure_inputs(model, [BATCH])
    chip = map_model(model, spec, calibration=statistics, seed=0)
    names = [layer.name for layer in mapping_of(chip).mapped]
    assert names == ["convolution", "first", "last"]  # `second` is on the arrays of `first`

    plan = plan_checkpoint(checkpoint, spec, Selection())
    assert {layer.name for layer in plan.mapped} == set(names)
    mapped = program_checkpoint(checkpoint, spec, plan, statistics=statistics)
    assert not [
        name
        for name in mapped.tensors
        if name.startswith("convolution") and "matrix" not in name and name != "convolution.bias"
    ]
    save_checkpoint(tmp_path / "m.safetensors", mapped.tensors, mapped.metadata)
    loaded, _ = load_chip(load_checkpoint(tmp_path / "m.safetensors"))
    for network in (chip, loaded.model):
        mapping_of(network).begin_batch("0")
    assert torch.equal(loaded.model(*BATCH)[0], chip(*BATCH)[0])
    assert loaded.model.second.matrix is loaded.model.first.matrix


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@torch.no_grad()
def test_a_computed_weight_can_stay_digital(checkpoint: Checkpoint, tmp_path: Path) -> None:
    spec = load_hardware({"base": "ideal", "digital": []}).with_settings({"weights.bits": 16})
    plan = plan_checkpoint(checkpoint, spec, Selection(exclude=["convolution"]))
    assert [(left.name, left.shape) for left in plan.digital if left.reason == "--exclude convolution"] == [
        ("convolution", (12, 12))
    ]
    mapped = program_checkpoint(checkpoint, spec, plan)
    save_checkpoint(tmp_path / "m.safetensors", mapped.tensors, mapped.metadata)
    loaded, _ = load_chip(load_checkpoint(tmp_path / "m.safetensors"))
    wanted = load_recogniser(checkpoint).model(*BATCH)[0]
    torch.testing.assert_close(loaded.model(*BATCH)[0], wanted, rtol=1e-3, atol=1e-3)


def test_a_file_that_says_nothing_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a name it stays as it is; a mapped one stays mapped."""
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "f.safetensors")
    (tmp_path / "c.yaml").write_text('characters: "ab"')
    (tmp_path / "one_function.py").write_text("def make(tokens): pass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    foreign = load_checkpoint(tmp_path / "f.safetensors")
    assert with_architecture(foreign, None) is foreign
    found = with_architecture(foreign, "one_function:make", "c.yaml")
    monkeypatch.delitem(ARCHITECTURES, "one_function:make")
    assert (found.kind, found.metadata["architecture"]) == ("model", "one_function:make")
    assert tokens_from_json(found.metadata["tokens"]) == CharacterTokens(("a", "b"))
    assert '"tokens":3' in found.metadata["architecture_config"]
