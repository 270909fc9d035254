"""The plan of a file equals that of its network, whatever names the file has for shared tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from memsim import load_checkpoint, load_hardware, map_model, save_checkpoint
from memsim.asr.architectures import ARCHITECTURES, Architecture
from memsim.asr.kinds import CTC
from memsim.asr.models.conformer import ConformerConfig
from memsim.asr.recogniser import Recogniser, build, load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.errors import InputError
from memsim.networks.mapped_file import load_chip
from memsim.networks.open_checkpoint import open_network
from memsim.networks.programming import plan_checkpoint, program_checkpoint
from memsim.nn.chip import mapping_of
from memsim.nn.mapping import measure_inputs
from memsim.nn.plan import Plan, Selection
from memsim.storage.checkpoint import Checkpoint
from memsim.training import initialise

SPEC = load_hardware({"base": "physical", "digital": [], "tile": {"rows": 16, "cols": 16}, "weights": {"bits": 4}})
TABLE, HEAD = "decoder.table.weight", "head.weight"


class TurnedHead(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Tied(nn.Module):
    """Its output layer has the weights of an embedding; its first convolution has one channel."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        width = config.features.mel_bins
        self.decoder = nn.Module()
        self.decoder.table = nn.Embedding(config.tokens, width)
        self.first, self.depth = nn.Conv2d(1, 3, 3, padding=1), nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(width, width))
        self.other = nn.Linear(width, width)
        self.turned, self.head = TurnedHead(width, width, 1), nn.Linear(width, config.tokens, bias=False)
        self.again = nn.Linear(width, width)
        self.head.weight, self.again.weight = self.decoder.table.weight, self.other.weight

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(features[:, None]).mean(1) + self.decoder.table(torch.zeros_like(lengths))[:, None]
        hidden = self.turned(self.normed(self.depth(hidden.transpose(1, 2)).transpose(1, 2)))
        return self.head(self.again(self.other(hidden))).log_softmax(dim=-1), lengths


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> Recogniser:
    monkeypatch.setitem(ARCHITECTURES, "tied", Architecture(ConformerConfig, Tied, CTC()))
    config = load_model_config("conformer-small")[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recogniser = build("tied", config, CharacterTokens.from_texts(["abc"]), "kaldi")
    recogniser.model.eval()
    return recogniser


def stored(recogniser: Recogniser, left_out: str | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in recogniser.model.state_dict().items() if name != left_out}


def shown(plan: Plan) -> list[tuple[object, ...]]:
    return [(layer.name, layer.source.shape, layer.source.groups, layer.tiling) for layer in plan.mapped]


@pytest.mark.parametrize("exclude", [[], ["head"], ["decoder.*"], ["normed", "turned"], ["again"]])
@pytest.mark.parametrize("left_out", [HEAD, TABLE, None, "other.weight", "again.weight"])
def test_a_file_with_shared_weights_is_the_chip_that_map_model_makes(
    tmp_path: Path, tied: Recogniser, left_out: str | None, exclude: list[str]
) -> None:
    batch = (
        torch.randn(2, 9, tied.features.mel_bins, generator=torch.Generator().manual_seed(1)),
        torch.tensor([9, 7]),
    )
    statistics = measure_inputs(tied.model, [batch])
    save_checkpoint(tmp_path / "a.safetensors", stored(tied, left_out), {"kind": "model", **tied.metadata()})
    source = load_checkpoint(tmp_path / "a.safetensors")
    plan = plan_checkpoint(source, SPEC, Selection(exclude=exclude))
    chip = map_model(tied.model, SPEC, seed=3, calibration=statistics, exclude=exclude)
    planned = mapping_of(chip).plan
    assert shown(plan) == shown(planned)
    assert [(d.name, d.shape, d.reason, d.weights) for d in plan.digital] == [
        (d.name, d.shape, d.reason, d.weights) for d in planned.digital
    ]
    assert plan.fraction_on_arrays == planned.fraction_on_arrays
    assert "turned" in {layer.name for layer in (*plan.mapped, *plan.digital)}
    mapped = program_checkpoint(source, SPEC, plan, seed=3, statistics=statistics)
    save_checkpoint(tmp_path / "mapped.safetensors", mapped.tensors, mapped.metadata)
    loaded, _ = load_chip(load_checkpoint(tmp_path / "mapped.safetensors"))
    assert mapping_of(loaded.model).fraction_on_arrays == planned.fraction_on_arrays
    with torch.no_grad():
        for one in (chip, loaded.model):
            mapping_of(one).begin_batch("0")
        assert torch.equal(loaded.model(*batch)[0], chip(*batch)[0])


@pytest.mark.parametrize("name", ["head", "decoder.table", "*.table"])
def test_a_shared_layer_goes_by_either_name(tmp_path: Path, tied: Recogniser, name: str) -> None:
    save_checkpoint(tmp_path / "a.safetensors", stored(tied, HEAD), {"kind": "model", **tied.metadata()})
    source = load_checkpoint(tmp_path / "a.safetensors")
    assert [layer.name for layer in plan_checkpoint(source, SPEC, Selection([name])).mapped] == ["head"]
    assert "head" not in [layer.name for layer in plan_checkpoint(source, SPEC, Selection((), [name])).mapped]


def test_a_file_without_a_matrix_is_refused(tmp_path: Path, tied: Recogniser) -> None:
    save_checkpoint(tmp_path / "a.safetensors", stored(tied, "depth.weight"), {"kind": "model", **tied.metadata()})
    with pytest.raises(InputError, match=r"a\.safetensors: lacks depth\.weight, the weight of depth"):
        plan_checkpoint(load_checkpoint(tmp_path / "a.safetensors"), SPEC, Selection())


def test_tensors_of_no_layer_are_named(tmp_path: Path, tied: Recogniser) -> None:
    tensors = stored(tied, None) | {"lost": torch.ones(3, 2)}
    save_checkpoint(tmp_path / "a.safetensors", tensors, {"kind": "model", **tied.metadata()})
    digital = plan_checkpoint(load_checkpoint(tmp_path / "a.safetensors"), SPEC, Selection()).digital
    assert [(layer.name, layer.shape) for layer in digital if layer.reason == "no tensor of the network"] == [
        ("lost", (3, 2))
    ]


def start_from(path: Path, architecture: str, config: ConformerConfig) -> tuple[Recogniser, Checkpoint]:
    option = f"--init {path}"
    checkpoint = open_network(str(path), "--init")
    return initialise.from_checkpoint(checkpoint, option, architecture, config, ["abc"], "kaldi", architecture)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("left_out", [HEAD, TABLE, None])
def test_training_starts_from_a_file_with_shared_weights(
    tmp_path: Path, tied: Recogniser, left_out: str | None, prefix: str
) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {f"{prefix}{name}": tensor.clone() for name, tensor in stored(tied, left_out).items()}
    save_file(tensors, path)
    given, _ = start_from(path, "tied", tied.config)
    assert given.model.head.weight is given.model.decoder.table.weight
    for name, tensor in given.model.state_dict().items():
        assert torch.equal(tensor, tied.model.state_dict()[name])
    shape = tied.model.head.weight.shape
    wrong = tensors | {f"{prefix}{HEAD}": torch.zeros(shape), f"{prefix}{TABLE}": torch.ones(shape)}
    save_file(wrong, path)
    with pytest.raises(InputError, match=r"--init .*head\.weight.* differ|differ, but the architecture has one tensor"):
        start_from(path, "tied", tied.config)


def test_names_that_save_model_left_out(tmp_path: Path) -> None:
    """safetensors says in the metadata which other tensor holds the values."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens, self.proj_out, self.fc = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False), nn.Linear(4, 4)
            self.proj_out.weight = self.embed_tokens.weight

    net = Small()
    save_model(net, str(tmp_path / "a.safetensors"))
    source = load_checkpoint(tmp_path / "a.safetensors")
    assert "proj_out.weight" not in source.names
    plan = plan_checkpoint(source, SPEC, Selection())
    assert {layer.name for layer in plan.mapped} == {"proj_out", "fc"}
    assert plan.fraction_on_arrays == 1
    mapped = program_checkpoint(source, SPEC, plan)
    chip = map_model(net, SPEC)
    assert torch.equal(mapped.tensors["proj_out.matrix.levels"], mapping_of(chip).layers["proj_out"].levels)
    assert torch.equal(mapped.tensors["embed_tokens.weight"], net.embed_tokens.weight)


def test_a_prefix_that_is_the_networks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inside(nn.Module):
        def __init__(self, config: ConformerConfig) -> None:
            super().__init__()
            self.module = Tied(config)

    monkeypatch.setitem(ARCHITECTURES, "inside", Architecture(ConformerConfig, Inside, CTC()))
    config = load_model_config("conformer-small")[1]
    net = build("inside", config, CharacterTokens.from_texts(["abc"]), "kaldi").model
    save_file({name: tensor.clone() for name, tensor in net.state_dict().items()}, tmp_path / "a.safetensors")
    given, _ = start_from(tmp_path / "a.safetensors", "inside", config)
    assert torch.equal(given.model.module.head.weight, net.module.head.weight)


CONFIGS: list[Mapping[str, object]] = [
    {},
    {"model_type": "whisper"},
    {"architectures": ["WhisperModel"]},
    {"model_type": 3, "architectures": ["WhisperModel"]},
    {"model_type": "whisper", "architectures": []},
]


@pytest.mark.parametrize("config", [json.dumps(config) for config in CONFIGS] + ["not JSON", "[1]"])
def test_configs_of_others_are_none_of_transformers(tmp_path: Path, config: str) -> None:
    save_file({"fc.weight": torch.ones(3, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    plan = plan_checkpoint(load_checkpoint(tmp_path / "model.safetensors"), SPEC, Selection())
    assert [layer.name for layer in plan.mapped] == ["fc"]
    assert plan.remarks == ()
