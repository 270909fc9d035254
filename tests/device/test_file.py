"""Device files that change, or disappear, while a process lives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memsim.config.resources import configs_root
from memsim.device import load_device_on
from memsim.errors import InputError
from memsim.hardware import load_hardware
from memsim.nn.transfer import pair_bank

ON = torch.device("cpu")


def text_of(name: str) -> str:
    return (configs_root() / "devices" / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text_of("cmo-hfox"), encoding="utf-8")
    return path


def test_a_file_is_read_once_and_again_where_it_has_changed(path: Path) -> None:
    first = load_device_on(str(path), ON)
    assert load_device_on(str(path), ON) is first
    path.write_text(text_of("rram-wan"), encoding="utf-8")
    assert load_device_on(str(path), ON).name == "rram-wan"


def test_a_file_that_is_gone_is_taken_as_it_was(path: Path) -> None:
    first = load_device_on(str(path), ON)
    path.unlink()
    assert load_device_on(str(path), ON) is first
    with pytest.raises(InputError, match="no such file"):
        load_device_on(str(path.with_name("other.yaml")), ON)


def test_training_draws_from_the_cells_that_the_file_has_now(path: Path) -> None:
    spec = load_hardware("physical").with_settings({"cell": str(path), "weights.bits": 3})
    before = pair_bank(spec, "cpu")
    assert pair_bank(spec, "cpu") is before
    path.write_text(text_of("rram-wan"), encoding="utf-8")
    assert not torch.equal(pair_bank(spec, "cpu").means, before.means)
