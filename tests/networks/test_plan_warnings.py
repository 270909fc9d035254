"""Warnings about checkpoints that were trained for other hardware than they are mapped on."""

from __future__ import annotations

from pathlib import Path

import torch

from memsim.hardware import load_hardware
from memsim.networks.plan_warnings import bits_warnings
from memsim.networks.programming import plan_checkpoint
from memsim.nn.plan import Selection
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint


def test_scales_of_other_tiles_are_fitted_anew_with_a_warning(tmp_path: Path) -> None:
    tensors = {}
    for name, width in (("a", 20), ("b", 8)):
        quantiser = f"{name}.weight_quantiser"
        tensors |= {
            f"{name}.weight": torch.randn(5, width),
            f"{quantiser}.bits": torch.tensor(3),
            f"{quantiser}.scale": torch.ones(-(-width // 8), 5),
            f"{quantiser}.tile_rows": torch.tensor(8),
        }
    path = tmp_path / "trained.safetensors"
    save_checkpoint(path, tensors, {})
    checkpoint = load_checkpoint(path)

    def warnings_on(rows: int) -> list[str]:
        spec = load_hardware({"base": "physical", "digital": [], "tile": {"rows": rows}})
        return bits_warnings(plan_checkpoint(checkpoint, spec, Selection()), checkpoint)

    assert warnings_on(8) == []
    assert warnings_on(16) == [
        "1 layer has tiles of other rows than in training (a: 16, not 8): their scales are fitted anew"
    ]
