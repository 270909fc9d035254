"""Attention on arrays against torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import memsim
from memsim.nn.chip import mapping_of
from memsim.nn.mapping import measure_inputs
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from tests.nn.layers import EXACT, PHYSICAL, drawn, exact, is_close, normal

ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 3, "vdim": 5},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention(options: dict[str, Any]) -> None:
    net = drawn(lambda: nn.MultiheadAttention(6, 2, **options))
    layer, chip = net[0], exact(net)[0]
    first = options.get("batch_first", False)
    q, k, v = (
        normal(*((4, n) if first else (n, 4)), width, seed=width)
        for n, width in ((5, 6), (7, layer.kdim), (7, layer.vdim))
    )
    padding = torch.arange(7) >= torch.tensor([7, 3, 5, 1])[:, None]
    causal = torch.triu(torch.ones(5, 7, dtype=torch.bool), 1)
    by_head = torch.where(normal(8, 5, 7) > 1.5, -torch.inf, normal(8, 5, 7, seed=2))
    is_close(chip(q, k, v), layer(q, k, v))
    for asked in (
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        # where there are extra keys, torch masks them, too, in this case only
        *([] if layer.add_zero_attn else [{"attn_mask": causal, "is_causal": True, "need_weights": False}]),
        {"attn_mask": by_head, "average_attn_weights": False},
        {"attn_mask": by_head, "key_padding_mask": torch.zeros(4, 7).masked_fill(padding, -torch.inf)},
        {"need_weights": False},
    ):
        is_close(chip(q, k, v, **asked), layer(q, k, v, **asked))
    one = [x[0] if first else x[:, 0] for x in (q, k, v)]
    is_close(chip(*one, key_padding_mask=padding[1]), layer(*one, key_padding_mask=padding[1]))
    with pytest.raises(ValueError, match="is_causal"):
        chip(q, k, v, is_causal=True)


@pytest.mark.parametrize(
    "mask",
    [
        {"key_padding_mask": torch.zeros(2, 3, dtype=torch.bool)},
        {"key_padding_mask": torch.zeros(2, 7, dtype=torch.bool)},
        {"key_padding_mask": torch.zeros(1, 5, dtype=torch.bool)},
        {"key_padding_mask": torch.zeros(2, 5, dtype=torch.int64)},
        {"attn_mask": torch.zeros(4, 3)},
        {"attn_mask": torch.zeros(1, 5)},
        {"attn_mask": torch.zeros(2, 4, 5)},
        {"attn_mask": torch.zeros(4, 5, dtype=torch.uint8)},
    ],
    ids=lambda mask: " ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in mask.items()),
)
def test_masks_that_torch_refuses_are_refused(mask: dict[str, Tensor]) -> None:
    layer = drawn(lambda: nn.MultiheadAttention(6, 2, batch_first=True))
    q, k = normal(2, 4, 6), normal(2, 5, 6)
    with pytest.raises((AssertionError, RuntimeError)):
        layer[0](q, k, k, **mask)
    with pytest.raises((ValueError, TypeError), match=f"^{next(iter(mask))} is "):
        exact(layer)[0](q, k, k, **mask)


def test_a_masked_key_has_no_effect_whatever_it_holds() -> None:
    net = drawn(lambda: nn.MultiheadAttention(6, 2, batch_first=True))
    x = normal(2, 5, 6)
    chip = memsim.map_model(net, PHYSICAL, calibration=lambda n: n[0](x, x, x))
    padding = torch.tensor([[False] * 3 + [True] * 2] * 2)

    def outputs(key: Tensor) -> Tensor:
        mapping_of(chip).begin_batch("0")
        return chip[0](x, key, key, key_padding_mask=padding, need_weights=False)[0]

    other = torch.cat([x[:, :3], x[:, :2]], dim=1)
    assert torch.equal(outputs(x), outputs(other))
    assert not torch.equal(outputs(x), outputs(x.flip(1)))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_attention_of_any_size(data: st.DataObject) -> None:
    heads, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    queries, keys, batch = (data.draw(st.integers(1, 6)) for _ in range(3))
    kdim, vdim = (data.draw(st.integers(1, 20)) for _ in range(2))
    options = {"bias": data.draw(st.booleans()), "add_bias_kv": data.draw(st.booleans())}
    net = drawn(lambda: nn.MultiheadAttention(heads * width, heads, kdim=kdim, vdim=vdim, batch_first=True, **options))
    q, k, v = (
        normal(batch, queries, heads * width),
        normal(batch, keys, kdim, seed=1),
        normal(batch, keys, vdim, seed=2),
    )
    is_hidden = torch.arange(keys) >= 1 + torch.arange(batch)[:, None] % keys
    for mask in (None, is_hidden):
        is_close(exact(net)[0](q, k, v, key_padding_mask=mask), net[0](q, k, v, key_padding_mask=mask))


MASKS: dict[str, dict[str, Tensor]] = {
    "padding": {"key_padding_mask": torch.tensor([[True] * 3, [False, False, True]])},
    "padding, all of it": {"key_padding_mask": torch.ones(2, 3, dtype=torch.bool)},
    "padding as numbers": {"key_padding_mask": torch.tensor([[-torch.inf] * 3, [0.0, -torch.inf, 0.0]])},
    "a query": {"attn_mask": torch.tensor([[True] * 3, [False] * 3, [False, True, True]])},
    "a query of one head": {
        "attn_mask": torch.zeros(4, 3, 3).index_put((torch.tensor([1]),), torch.tensor(-torch.inf))
    },
    "both together": {
        "attn_mask": torch.triu(torch.ones(3, 3, dtype=torch.bool), 1),
        "key_padding_mask": torch.tensor([[True, False, False], [False] * 3]),
    },
}


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
@pytest.mark.parametrize("name", MASKS)
def test_a_query_that_sees_no_key_gets_what_torch_gives(name: str, options: dict[str, Any]) -> None:
    net = drawn(lambda: nn.MultiheadAttention(6, 2, **options))
    layer = net[0]
    chip = exact(net)
    first = options.get("batch_first", False)
    q, k, v = (normal(*((2, 3) if first else (3, 2)), width, seed=width) for width in (6, layer.kdim, layer.vdim))
    for grad in (True, False):
        for asked in ({}, {"need_weights": False}, {"average_attn_weights": False}):
            for inputs in ((q, k, v), *([] if layer.kdim != 6 else [(q, q, q)])):
                with torch.set_grad_enabled(grad):
                    mapping_of(chip).begin_batch("0")
                    got, wanted = (one(*inputs, **MASKS[name], **asked) for one in (chip[0], layer))
                for one, other in zip(got, wanted, strict=True):
                    assert (one is None) == (other is None)
                    if one is not None:
                        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3, equal_nan=True)


class Block(nn.Module):
    """Attention, by default with its weights, as people write it, and layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.last, self.conv = nn.LayerNorm(6), nn.Linear(6, 4), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        mixed = self.attention(x, x, x, key_padding_mask=padding)[0]
        return self.conv(self.last(self.norm(x + mixed)).mT).mT


@pytest.mark.parametrize("spec", ["exact", "physical"])
def test_what_lies_behind_a_query_that_sees_no_key_goes_on(spec: str) -> None:
    net = drawn(Block)[0]
    x, padding = normal(3, 4, 6), torch.tensor([[False] * 4, [True] * 4, [False, True, True, True]])
    chip = exact(net) if spec == "exact" else memsim.map_model(net, PHYSICAL, calibration=[x])
    mapping = mapping_of(chip)
    with mapping.batch("0"):
        got = chip(x, padding)
    assert torch.equal(got.isnan(), net(x, padding).isnan())
    assert torch.equal(got.isnan().any(dim=(1, 2)), torch.tensor([False, True, False]))
    with mapping.batch("0"):
        seen = chip(x, padding & padding.logical_not().any(1, keepdim=True))
    assert torch.equal(got[[0, 2]], seen[[0, 2]])  # the others are as without it
    calibrated = memsim.map_model(net, PHYSICAL, calibration=[(x, padding)])
    assert torch.isfinite(calibrated(x)).all()
    with mapping.batch("1"), pytest.raises(FloatingPointError, match="last: its input holds NaN"):
        chip.last(x * torch.nan)  # NaN of somebody else


def test_a_query_that_sees_no_key_in_training() -> None:
    net = nn.Sequential(nn.MultiheadAttention(6, 2, batch_first=True))
    x, padding = normal(2, 3, 6), MASKS["padding"]["key_padding_mask"]
    recipe = QuantisationConfig(layers="all")
    statistics = measure_inputs(net, lambda n: n[0](x, x, x))
    Quantisation(recipe, 8, memsim.load_hardware(PHYSICAL)).apply(net, statistics).train()
    for asked in ({}, {"need_weights": False}):
        outputs = net[0](x, x, x, key_padding_mask=padding, **asked)[0]
        wanted = nn.MultiheadAttention(6, 2, batch_first=True)(x, x, x, key_padding_mask=padding, **asked)[0]
        assert torch.equal(outputs.isnan(), wanted.isnan())
    outputs.sum().backward()
    assert torch.isfinite(net[0].in_proj_weight.grad).all()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(6, bias=True)], ids=["without norm", "with norm"])
@pytest.mark.parametrize("trained", [False, True], ids=["mapped", "in training"])
def test_padded_frames_of_an_encoder_are_what_torch_makes_them(norm: nn.Module | None, trained: bool) -> None:
    net = drawn(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 11, batch_first=True), 2, norm))[0]
    if trained:
        chip = nn.Sequential(copy.deepcopy(net))
        spec = memsim.load_hardware({"base": "ideal", "digital": []})
        recipe = QuantisationConfig(layers="all", inputs={"bits": 16})
        chip = Quantisation(recipe, 16, spec).apply(chip, measure_inputs(chip, [normal(4, 5, 6)]))[0].eval()
    else:
        chip = exact(net)
    x, length = normal(4, 5, 6), torch.tensor([5, 3, 0, 1])
    padding = torch.arange(5) >= length[:, None]
    ragged = torch.tensor([[True, False, False, False, True]] * 4)
    frames = torch.ones(4, 5, dtype=torch.bool)
    numbers = torch.zeros(4, 5).masked_fill(padding, -torch.inf)
    asked: list[dict[str, Any]] = [
        {"src_key_padding_mask": padding},
        {"src_key_padding_mask": numbers},
        {"src_key_padding_mask": ragged},
        {"src_key_padding_mask": ~frames},
        {"src_key_padding_mask": padding & (length > 0)[:, None], "mask": torch.zeros(5, 5, dtype=torch.bool)},
        {},
    ]
    for grad in (True, False):
        for options in asked:
            with torch.set_grad_enabled(grad):
                got, wanted = chip(x, **options), net(x, **options)
            if grad and options.get("src_key_padding_mask") is padding:
                assert not torch.equal(wanted[1, 4], wanted[1, 3])  # torch computes them
            torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
    with torch.no_grad():
        again = memsim.map_model(chip, EXACT, bits=16) if trained else copy.deepcopy(chip)
        torch.testing.assert_close(again(x, None, padding), net(x, None, padding), rtol=2e-2, atol=2e-2)
        assert torch.equal(again(x, None, padding)[2, 0], again(x, None, padding)[1, 4])
