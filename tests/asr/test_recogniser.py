from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from memsim.asr.features import FeatureConfig
from memsim.asr.models.conformer import ConformerConfig
from memsim.asr.models.frontend import ConvConfig
from memsim.asr.recogniser import Recogniser, assign_state, build, load_recogniser, skeleton
from memsim.asr.running import input_statistics
from memsim.asr.tokens import CharacterTokens
from memsim.asr.utterances import Utterance
from memsim.errors import InputError
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint

CONFIG = ConformerConfig(
    features=FeatureConfig(mel_bins=8, normalise=None),
    frontend=(ConvConfig(channels=2, stride_time=2),),
    width=8,
    blocks=2,
    heads=2,
    feed_forward_width=12,
    kernel_frames=3,
)
TOKENS = CharacterTokens(tuple(" ab"))


@pytest.fixture
def recogniser() -> Recogniser:
    torch.manual_seed(0)
    built = build("conformer_ctc", CONFIG, TOKENS, "rwth")
    built.model.eval()
    return built


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.safetensors"


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    save_checkpoint(path, tensors, {"kind": "model", **metadata})


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_recogniser(load_checkpoint(path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_the_number_of_tokens_is_filled_in(recogniser: Recogniser) -> None:
    assert recogniser.config.tokens == 4
    assert recogniser.model.output.out_features == 4
    assert recogniser.features == CONFIG.features


def test_the_seed_decides_fresh_weights() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(build("conformer_ctc", CONFIG, TOKENS, "kaldi").model.output.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_round_trip(recogniser: Recogniser, path: Path) -> None:
    save(path, recogniser.model.state_dict(), recogniser.metadata())
    torch.manual_seed(1)
    loaded = load_recogniser(load_checkpoint(path))
    assert loaded.config == recogniser.config
    assert (loaded.tokens, loaded.text_style, loaded.architecture) == (TOKENS, "rwth", "conformer_ctc")
    assert not loaded.model.training
    features, lengths = torch.randn(2, 30, 8), torch.tensor([30, 17])
    with torch.inference_mode():
        for before, after in zip(recogniser.model(features, lengths), loaded.model(features, lengths), strict=True):
            assert torch.equal(before, after)
    save(path, loaded.model.state_dict(), loaded.metadata())
    assert load_checkpoint(path).metadata["architecture_config"] == recogniser.metadata()["architecture_config"]


def test_a_loaded_recogniser_can_be_trained(recogniser: Recogniser, path: Path) -> None:
    save(path, recogniser.model.state_dict(), recogniser.metadata())
    model = load_recogniser(load_checkpoint(path)).model
    model(torch.randn(1, 10, 8), torch.tensor([10]))[0].sum().backward()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_other_precisions_become_float32(recogniser: Recogniser, path: Path) -> None:
    save(path, {n: t.bfloat16() for n, t in recogniser.model.state_dict().items()}, recogniser.metadata())
    assert {p.dtype for p in load_recogniser(load_checkpoint(path)).model.parameters()} == {torch.float32}


def test_input_statistics_are_no_weights(recogniser: Recogniser, path: Path) -> None:
    statistics = {"statistics/output/histogram": torch.ones(256)}
    save(path, recogniser.model.state_dict() | statistics, recogniser.metadata())
    load_recogniser(load_checkpoint(path))


@pytest.mark.parametrize(("longest", "count"), [(None, 200), (30.0, 16)])
def test_statistics_are_of_few_utterances_where_each_is_filled_up(
    recogniser: Recogniser, longest: float | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    utterances = [Utterance(str(i), Path("audio"), "") for i in range(300)]

    def source(utterance: Utterance) -> torch.Tensor:
        heard.append(int(utterance.id))
        return torch.zeros(8, recogniser.features.mel_bins)

    monkeypatch.setattr("memsim.asr.running.longest_seconds", lambda features: longest)
    input_statistics(recogniser, utterances, source)
    assert heard == [i * 300 // count for i in range(count)]


def test_a_skeleton_holds_no_weights(recogniser: Recogniser, path: Path) -> None:
    save(path, {}, recogniser.metadata())
    assert all(parameter.is_meta for parameter in skeleton(load_checkpoint(path)).model.parameters())


def test_tensors_that_do_not_fit(recogniser: Recogniser, path: Path) -> None:
    good = recogniser.model.state_dict()

    def told(**changes: Tensor | None) -> str:
        tensors = {name: changes.get(name.replace(".", "_"), tensor) for name, tensor in good.items()}
        tensors |= {name: tensor for name, tensor in changes.items() if name.startswith("extra")}
        save(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, recogniser.metadata())
        return refusal(path).removeprefix("tensors do not fit the architecture: ")

    assert told(output_bias=None) == "output.bias is missing"
    assert told(extra=torch.ones(1)) == "extra is unexpected"
    assert told(output_bias=torch.ones(5)) == "output.bias is [5], not [4]"
    assert told(output_bias=torch.ones(4, dtype=torch.int8)) == "output.bias is torch.int8, not torch.float32"
    assert told(output_bias=None, output_weight=torch.ones(1), extra=torch.ones(1)) == (
        "output.bias is missing; extra is unexpected; output.weight is [1], not [4, 8]"
    )
    assert told(**{f"extra{i}": torch.ones(1) for i in range(5)}).endswith("(and 2 more)")
    assert told(output_bias=torch.full((4,), float("nan"))).startswith("tensor output.bias holds NaN or Inf")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"architecture": None}, "the file names no architecture, so it can be mapped but not run"),
        ({"architecture": "lstm"}, "unknown architecture 'lstm' (known: conformer_ctc, "),
        ({"architecture_config": None}, "the metadata lacks architecture_config, so the file cannot be run"),
        ({"tokens": None}, "the metadata lacks tokens, so the file cannot be run"),
        ({"architecture_config": "{"}, "unusable metadata: architecture_config: not JSON ("),
        ({"architecture_config": "[" * 100_000}, "unusable metadata: architecture_config: nested too deep"),
        ({"architecture_config": "3"}, "unusable metadata: architecture_config: expected keys and values"),
        ({"architecture_config": "{}"}, "unusable metadata: architecture_config: frontend: missing"),
        ({"tokens": "["}, "unusable metadata: tokens: not JSON ("),
        ({"tokens": '{"kind": "words"}'}, "unusable metadata: tokens: kind is 'words'"),
        (
            {"tokens": CharacterTokens(tuple("abcd")).to_json()},
            "unusable metadata: architecture_config: has 4 tokens, but there are 5",
        ),
    ],
)
def test_metadata_that_cannot_be_used(
    recogniser: Recogniser, path: Path, changes: dict[str, str | None], found: str
) -> None:
    metadata = {key: value for key, value in (recogniser.metadata() | changes).items() if value is not None}
    save(path, recogniser.model.state_dict(), metadata)
    assert refusal(path).startswith(found)


def test_an_impossible_shape_is_explained(recogniser: Recogniser, path: Path) -> None:
    stored = json.loads(recogniser.metadata()["architecture_config"])
    save(path, {}, recogniser.metadata() | {"architecture_config": json.dumps(stored | {"heads": 3})})
    assert refusal(path) == "unusable metadata: architecture_config: heads: heads (3) must divide width (8)"


def test_the_text_style_of_files_without_one(recogniser: Recogniser, path: Path) -> None:
    metadata = recogniser.metadata()
    del metadata["text_style"]
    save(path, recogniser.model.state_dict(), metadata)
    assert load_recogniser(load_checkpoint(path)).text_style == "kaldi"


def test_a_parameter_of_several_names_stays_one() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
        net[1].weight = net[0].weight
    weight, bias = torch.randn(4, 3), torch.randn(4)
    state = {"0.weight": weight, "1.weight": weight.clone(), "1.bias": bias}
    assign_state(net, state, "x")
    assert net[1].weight is net[0].weight
    assert torch.equal(net[0].weight, weight)
    with pytest.raises(InputError, match=r"x: 0\.weight and 1\.weight differ, but the architecture has one tensor"):
        assign_state(net, state | {"1.weight": weight + 1}, "x")
