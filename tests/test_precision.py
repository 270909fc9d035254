from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from memsim.precision import autocast, multiplies_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    multiplies_bfloat16.cache_clear()
    yield
    multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16", None])
def test_products_are_of_bfloat16_where_there_are_units(unit: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict.fromkeys(("avx2", "avx512_f", "avx512_bf16", "amx_bf16"), False) | {unit: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    x, linear = torch.randn(3, 4), torch.nn.Linear(4, 2)
    with autocast("bfloat16", CPU):
        assert linear(x).dtype == (torch.float32 if unit is None else torch.bfloat16)
    with autocast("float32", CPU):
        assert linear(x).dtype == torch.float32


def test_a_gpu_has_units_from_compute_capability_8_on(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {0: (7, 5), 1: (8, 0), 2: (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    assert [multiplies_bfloat16(torch.device("cuda", i)) for i in capabilities] == [False, True, True]


def test_an_lstm_computes_on_any_cpu() -> None:
    """torch's LSTM fails in bfloat16 on CPUs without units for it."""
    lstm = torch.nn.LSTM(4, 4)
    with autocast("bfloat16", CPU):
        lstm(torch.randn(2, 3, 4))[0].float().sum().backward()
    assert lstm.weight_hh_l0.grad is not None
