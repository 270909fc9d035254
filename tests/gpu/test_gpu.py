"""What a GPU computes, against the CPU: random numbers, programming, reads, a training step and an evaluation.

`make gpu` runs these tests and those of the Triton kernel on a machine that has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import memsim
from memsim.crossbar.program import program_matrix
from memsim.crossbar.read_noise import standard_normals
from memsim.nn.quantisation import HardwareConfig, Quantisation, QuantisationConfig
from memsim.portable import elementwise

pytestmark = pytest.mark.gpu

SPECS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "hardware").glob("*.yaml"))


def same_bits(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(got.cpu().view(torch.uint8), expected.view(torch.uint8))


def test_random_numbers_and_functions_have_the_same_bits() -> None:
    counters = torch.arange((1 << 32) - 50_000, (1 << 32) + 50_000)
    words = elementwise.random_words(0x0123456789ABCDEF, counters, 3, 5)
    there = elementwise.random_words(0x0123456789ABCDEF, counters.cuda(), 3, 5)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(there, words, strict=True))
    for got, expected in zip(
        elementwise.normal_pair(there[0], there[1]), elementwise.normal_pair(words[0], words[1]), strict=True
    ):
        assert same_bits(got, expected)
    x = elementwise.uniform(words[2]) * 60 - 30
    for function in (elementwise.exp2, lambda x: elementwise.log2(x.abs() + 1e-6), lambda x: elementwise.sqrt(x.abs())):
        assert same_bits(function(x.cuda()), function(x))


def test_read_noise_has_the_same_bits() -> None:
    shape = (3, 500, 512)
    there, here = (standard_normals(7, 32, shape, torch.device(name)) for name in ("cuda", "cpu"))
    assert same_bits(there, here)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"programming.relaxation": 0.02},
        {"retention": {"age_seconds": 1e6, "exponent": 0.005, "exponent_std": 0.001}},
        {"faults": {"stuck_lrs": 0.01, "stuck_hrs": 0.02, "dead_rows": 0.01, "dead_cols": 0.01}},
        {"read_disturb": "settle"},
    ],
    ids=["programmed", "relaxed", "aged", "faulty", "disturbed"],
)
@pytest.mark.parametrize("name", [name for name in SPECS if name != "ideal"])
def test_chips_have_the_same_bits(name: str, changes: dict[str, Any]) -> None:
    spec = memsim.load_hardware(name).with_settings({"weights.bits": 3, **changes})
    levels = torch.randint(-3, 4, (300, 260), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    states, report = program_matrix("layer", levels, spec, 5)
    there, report_there = program_matrix("layer", levels.cuda(), spec, 5)
    assert states is not None
    assert report is not None
    assert there is not None
    assert report_there is not None
    assert there.is_cuda
    differing = int((there.cpu() != states).sum())
    assert differing == 0, f"{differing} of {states.numel()} cells"
    assert report_there.to_dict() == pytest.approx(report.to_dict())


@pytest.mark.parametrize("hardware", ["physical", "best", "two-phase", "multilevel"])
def test_a_mapped_layer_gives_what_it_gives_on_the_cpu(hardware: str) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(300, 200)), torch.randn(100, 300)
    chip = memsim.map_model(network, hardware, bits=3, seed=1, calibration=[x])
    there = memsim.map_model(network, hardware, bits=3, seed=1, calibration=[x]).cuda()
    with torch.inference_mode():
        expected, got = chip(x), there(x.cuda()).cpu()
    off = (got - expected).abs() > 1e-4 * expected.abs().max()
    assert off.float().mean() < 0.01  # products round differently, and an ADC code may be the next one


def training_step(where: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of a step through the converters and mean cells of a chip."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 100))
    x, wanted = torch.randn(64, 200), torch.randn(64, 100)
    recipe = QuantisationConfig(layers="all", hardware=HardwareConfig(programming_spread=0))
    statistics = memsim.measure_inputs(network, [x])
    quantisation = Quantisation(recipe, 3, memsim.load_hardware("physical"))
    model = quantisation.apply(network, statistics).train()
    quantisation.calibrate(model, statistics)
    model = model.to(where)
    loss = (model(x.to(where)) - wanted.to(where)).square().mean()
    loss.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def test_a_training_step_through_the_chip_gives_the_same_gradients() -> None:
    """Without the draws of the spread, which differ between devices; an ADC code may be the next one."""
    (loss, gradients), (loss_there, gradients_there) = (training_step(where) for where in ("cpu", "cuda"))
    assert loss_there == pytest.approx(loss, rel=1e-3)
    assert gradients.keys() == gradients_there.keys() != set()
    for name, expected in gradients.items():
        error = (gradients_there[name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 0.02, f"{name}: {error:.3f}"


def test_the_demo_is_heard_as_on_the_cpu() -> None:
    results = [
        memsim.evaluate("demo", data="demo", hardware="best", limit=20, trials=1, compute=compute).to_dict()
        for compute in ("cpu", "cuda")
    ]
    for role in ("digital", "mapped"):
        wers = [result[role]["wer"] if role == "digital" else result[role]["wer"]["mean"] for result in results]
        assert wers[1] == pytest.approx(wers[0], abs=0.02), role
