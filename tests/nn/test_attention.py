"""Attention on arrays against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import memsim
from memsim.nn.mapping import mapping_of
from nn.layers import PHYSICAL, drawn, exact, is_close, normal

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
