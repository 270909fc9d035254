"""Fixtures with the published implementation of the device model."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import numpy as np
import pytest
import synaptogen.synaptogen as published_module
import torch


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2024)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The PyPI package `synaptogen`, with its global random numbers seeded."""
    rng = np.random.default_rng(2022)
    monkeypatch.setattr(published_module, "randn", partial(rng.standard_normal, dtype=np.float32))
    monkeypatch.setattr(published_module, "rand", partial(rng.random, dtype=np.float32))
    return published_module
