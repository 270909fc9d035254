from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.asr.prior import measure_log_prior, stored_log_prior, to_metadata
from memsim.errors import InputError
from memsim.storage.checkpoint import Checkpoint


def test_the_mean_over_frames_by_hand() -> None:
    batch = torch.tensor([[[0.8, 0.2], [0.4, 0.6]], [[0.1, 0.9], [0.5, 0.5]]]).log()
    prior = measure_log_prior([(batch, torch.tensor([2, 1])), (batch[:1], torch.tensor([1]))]).exp()
    expected = [(0.8 + 0.4 + 0.1 + 0.8) / 4, (0.2 + 0.6 + 0.9 + 0.2) / 4]
    assert prior.tolist() == pytest.approx(expected)


def test_a_token_that_never_is_has_a_finite_logarithm() -> None:
    prior = measure_log_prior([(torch.tensor([[[0.0, float("-inf")]]]), torch.tensor([1]))])
    assert prior.isfinite().all()
    assert prior[1] < -80


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 9))
def test_batches_do_not_matter(seed: int, cut: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(10, 5, 3, generator=draws).log_softmax(dim=-1)
    lengths = torch.randint(1, 6, (10,), generator=draws)
    whole = measure_log_prior([(log_probs, lengths)])
    parts = measure_log_prior([(log_probs[:cut], lengths[:cut]), (log_probs[cut:], lengths[cut:])])
    torch.testing.assert_close(whole, parts)
    assert whole.exp().sum().item() == pytest.approx(1)


def test_no_frames() -> None:
    with pytest.raises(ValueError, match="no frame"):
        measure_log_prior([])


def checkpoint(metadata: dict[str, str]) -> Checkpoint:
    return Checkpoint(Path("x.safetensors"), metadata, ())


def test_metadata_round_trip() -> None:
    log_prior = torch.tensor([0.25, 0.75]).log()
    found = stored_log_prior(checkpoint(to_metadata(log_prior)), 2)
    assert found is not None
    torch.testing.assert_close(found, log_prior.double(), atol=1e-6, rtol=0)
    assert stored_log_prior(checkpoint({}), 2) is None


@pytest.mark.parametrize(
    "text", ["[-1.0]", "[-1.0, null]", "3", "[-1.0, NaN]", '["a", "b"]', "{}", "[true, 1]", f"[1, {9**999}]"]
)
def test_unusable_metadata(text: str) -> None:
    with pytest.raises(InputError, match=r"x\.safetensors: the metadata's log_prior must be 2 numbers"):
        stored_log_prior(checkpoint({"log_prior": text}), 2)


def test_metadata_that_is_no_json() -> None:
    with pytest.raises(InputError, match=r"x\.safetensors: the metadata's log_prior: not JSON"):
        stored_log_prior(checkpoint({"log_prior": "no"}), 2)
