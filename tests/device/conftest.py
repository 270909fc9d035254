"""The shipped device, and the published implementation of it to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import synaptogen.synaptogen as published_module
import torch

from memsim.device import DeviceModel, load_device


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread, so that the tests are quick on cores that others use too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def device() -> DeviceModel:
    return load_device("synaptogen")


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
