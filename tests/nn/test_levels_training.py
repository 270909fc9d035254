"""Training through cells of kind `levels`: the transfer of a step against chips."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memsim.crossbar import encode
from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.hardware import HardwareSpec, load_hardware
from memsim.nn.chip import trim
from memsim.nn.transfer import HardwareTransfer, Spread, _statistics_of, require_trainable
from memsim.post_training.fitting import LayerFit

GENERATOR = torch.Generator().manual_seed(3)
WEIGHT, INPUTS = torch.randn(24, 128, generator=GENERATOR), torch.randn(64, 128, generator=GENERATOR).clamp(-3, 3)
MONTH = 2592000.0


def spec_of(cell: str, **keys: Any) -> HardwareSpec:
    weights = {"bits": 4} | keys.pop("weights", {})
    spec = load_hardware({"base": "physical", "cell": cell, "weights": weights, "read_noise": None, **keys})
    return spec.for_layer("layer")


def deviation(product: torch.Tensor, exact: torch.Tensor) -> float:
    return float((product - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("cell", "keys"),
    [
        ("pcm-hermes", {}),
        ("pcm-hermes", {"weights": {"encoding": "analog"}}),
        ("pcm-hermes", {"read_at_seconds": MONTH, "drift_compensation": "layer"}),
        ("rram-wan", {"weights": {"encoding": "multilevel", "cell_bits": 3}, "read_at_seconds": 86400.0}),
    ],
)
def test_steps_deviate_as_chips_do(cell: str, keys: dict[str, Any]) -> None:
    spec, statistics = spec_of(cell, **keys), _statistics_of(INPUTS, 3.0)
    scale = encode.fit_scale(WEIGHT, 4, spec.weights)
    levels = encode.quantise(WEIGHT, scale, 4)
    exact = INPUTS @ (levels * scale[:, None]).T
    transfer = HardwareTransfer("layer", spec, 1)
    transfer.calibrate(levels, scale, statistics)
    full_scale = float(MappedMatrix.from_levels("layer", levels, scale, spec, 1, statistics).input_range or 1.0)
    quiet = deviation(transfer.programmed(levels, scale, full_scale)([INPUTS]), exact)
    steps, chips = [], []
    for seed in range(4):
        transfer.spread = Spread(seed, 1.0)
        steps.append(deviation(transfer.programmed(levels, scale, full_scale)([INPUTS]), exact))
        chip = MappedMatrix.from_levels("layer", levels, scale, spec, seed, statistics)
        if spec.drift_compensation is not None:
            trim(chip, statistics, "layer", seed, None, LayerFit("nearest"))
        chips.append(deviation(chip(INPUTS), exact))
    assert quiet < 0.06
    assert sum(steps) == pytest.approx(sum(chips), rel=0.15)
    assert min(steps) > 1.5 * quiet


def test_training_draws_cells_of_few_bits() -> None:
    with pytest.raises(InputError, match="at most 8 bits, and analog weights of 12 bits have 11; --bits 9"):
        require_trainable(spec_of("pcm-hermes", weights={"encoding": "analog", "bits": 12}), "layer")
