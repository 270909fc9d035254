from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from memsim.asr.kinds import CTC
from memsim.asr.models.conformer import ConformerConfig, ConformerCTC
from memsim.asr.recogniser import load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.config.schema import Schema
from memsim.config.yaml_file import parse_config
from memsim.errors import InputError

NAMES = ("conformer-paper", "conformer-small")


def on_paper(name: str, tokens: int) -> ConformerCTC:
    with torch.device("meta"):
        return ConformerCTC(load_model_config(name)[1].model_copy(update={"tokens": tokens}))


def tiny(name: str, **other: object) -> ConformerCTC:
    """The shipped model with its own strides and pooling, and next to no width."""
    shipped = load_model_config(name)[1]
    changes = {
        "features": shipped.features.model_copy(update={"mel_bins": 8}),
        "frontend": tuple(conv.model_copy(update={"channels": 3}) for conv in shipped.frontend),
        "width": 8,
        "blocks": 2,
        "heads": 2,
        "feed_forward_width": 12,
        "kernel_frames": 5,
        "tokens": 5,
    }
    torch.manual_seed(0)
    return ConformerCTC(ConformerConfig.model_validate(shipped.model_copy(update=changes | other).model_dump()))


TINY = {name: tiny(name).eval() for name in NAMES}


def block_linears(model: nn.Module) -> int:
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("blocks.")}
    return sum(module.weight.numel() for module in linears.values())


def test_sizes_of_the_paper() -> None:
    model = on_paper("conformer-paper", tokens=79)
    assert sum(parameter.numel() for parameter in model.parameters()) == 42_066_991
    assert block_linears(model) == 40_697_856
    assert model.frontend.projection.in_features == 2560
    assert not list(model.buffers())


def test_size_of_the_small_one() -> None:
    model = on_paper("conformer-small", tokens=30)
    assert 1_200_000 < sum(parameter.numel() for parameter in model.parameters()) < 1_500_000
    assert block_linears(model) / 1e6 == pytest.approx(1.27, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_padding_changes_nothing(name: str, data: st.DataObject) -> None:
    model = TINY[name]
    lengths = data.draw(st.lists(st.integers(1, 45), min_size=1, max_size=4))
    longest = max(lengths) + data.draw(st.integers(0, 9))
    features = torch.randn(len(lengths), longest, 8, generator=torch.Generator().manual_seed(sum(lengths)))
    with torch.inference_mode():
        together, frames = model(features * 3, torch.tensor(lengths))  # the padding holds noise, not zeros
        for row, length in enumerate(lengths):
            alone, frames_alone = model(features[row : row + 1, :length] * 3, torch.tensor([length]))
            count = int(frames_alone)
            assert frames[row] == count <= alone.shape[1]
            torch.testing.assert_close(together[row, :count], alone[0, :count], atol=2e-5, rtol=1e-5)
    assert torch.isfinite(together).all()


@pytest.mark.parametrize(
    ("name", "lengths"), [("conformer-paper", [0, 0, 0, 1, 1]), ("conformer-small", [1] * 4 + [2])]
)
def test_frames_that_come_out(name: str, lengths: list[int]) -> None:
    given_frames = torch.arange(1, 6)
    _, frames = TINY[name](torch.randn(5, 5, 8), given_frames)
    assert frames.tolist() == lengths


@pytest.mark.parametrize("name", NAMES)
def test_more_frames_come_out_a_quarter(name: str) -> None:
    log_probs, frames = TINY[name](torch.randn(1, 400, 8), torch.tensor([400]))
    assert frames.tolist() == [100]
    assert log_probs.shape == (1, 100, 5)
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(1, 100))


@pytest.mark.parametrize("lengths", [[1], [2, 3], [3, 1, 20], [0, 9]])
@pytest.mark.parametrize("training", [False, True])
def test_an_utterance_without_frames_is_an_empty_text(lengths: list[int], training: bool) -> None:
    model = tiny("conformer-paper").train(training)
    log_probs, frames = model(torch.randn(len(lengths), max(lengths), 8), torch.tensor(lengths))
    assert torch.isfinite(log_probs).all()
    assert frames.tolist() == [length // 4 for length in lengths]
    texts = CTC().transcribe(model, log_probs, frames, CharacterTokens(tuple("abcd")))
    assert all(text == "" for text, length in zip(texts, lengths, strict=True) if length < 4)
    targets = torch.ones(len(lengths), 1, dtype=torch.long)
    ones = torch.ones(len(lengths), dtype=torch.long)
    nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, frames, ones, zero_infinity=True).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_every_parameter_is_used() -> None:
    for name in NAMES:
        model = tiny(name).train()
        log_probs, _ = model(torch.randn(2, 40, 8), torch.tensor([40, 33]))
        log_probs[..., 0].sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_dropout_is_off_in_evaluation_only() -> None:
    model = tiny("conformer-small", dropout=0.5)
    features, lengths = torch.randn(1, 40, 8), torch.tensor([40])
    assert not torch.equal(model(features, lengths)[0], model(features, lengths)[0])
    model.eval()
    assert torch.equal(model(features, lengths)[0], model(features, lengths)[0])


GOOD = {
    "frontend": "[{channels: 4}, {channels: 4, pool_time: 2}]",
    "width": "8",
    "blocks": "1",
    "heads": "2",
    "feed_forward_width": "16",
}


def written(**changes: str) -> str:
    return "\n".join(f"{key}: {value}" for key, value in (GOOD | changes).items())


def test_a_good_config() -> None:
    assert Schema(ConformerConfig).validate(parse_config(written(), "m.yaml")).kernel_frames == 31


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"heads": "3"}, "m.yaml:4: heads: heads (3) must divide width (8)"),
        ({"kernel_frames": "30"}, "m.yaml:6: kernel_frames: 30 is even; a centred kernel is odd"),
        ({"width": "0"}, "m.yaml:2: width: 0 is out of range (1 to 65536)"),
        ({"blocks": "two"}, "m.yaml:3: blocks: expected an integer (1 to 256), got 'two'"),
        ({"dropout": "1.0"}, "m.yaml:6: dropout: 1.0 is out of range (at least 0 and below 1)"),
        ({"kernal_frames": "3"}, "m.yaml:6: kernal_frames: unknown key (nearest: kernel_frames)"),
        ({"frontend": "[{chanels: 4}]"}, "frontend[0].chanels: unknown key (nearest: frontend[0].channels)"),
        ({"frontend": "[]"}, "m.yaml:1: frontend: "),
        (
            {"frontend": "[{channels: 4, pool_frequency: 100}]"},
            "m.yaml:1: frontend: nothing is left of 80 mel bins after its pooling",
        ),
    ],
)
def test_bad_configs(changes: dict[str, str], found: str) -> None:
    with pytest.raises(InputError) as caught:
        Schema(ConformerConfig).validate(parse_config(written(**changes), "m.yaml"))
    assert found in str(caught.value)
