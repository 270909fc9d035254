"""Hardware options in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.hardware import load_hardware
from memsim.hardware.options import choose_hardware


def test_a_spec_may_be_a_name_a_file_a_mapping_or_loaded(tmp_path: Path) -> None:
    wanted = load_hardware("paper").with_settings({"weights.bits": 4})
    file = tmp_path / "paper.yaml"
    file.write_text("base: paper\n")
    for hardware in ("paper", file, {"base": "paper", "name": "paper"}, load_hardware("paper")):
        assert choose_hardware(hardware, 4).is_same_hardware(wanted)
    assert choose_hardware(None) == load_hardware("physical")


def test_options_are_applied_together() -> None:
    spec = choose_hardware("physical", 3, "ideal", ["adc.bits=6", "dac.bits=5"])
    assert (spec.weights.bits, spec.cell, spec.adc.bits, spec.dac.bits) == (3, "ideal", 6, 5)


def test_a_key_has_one_source() -> None:
    with pytest.raises(InputError, match="both name cell; leave one out"):
        choose_hardware("physical", cell="ideal", settings=["cell=ideal"])
