"""Every shipped spec on small layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from memsim import load_hardware, map_model
from memsim.config.resources import configs_root
from memsim.hardware import HardwareSpec

SHIPPED = sorted(path.stem for path in (configs_root() / "hardware").glob("*.yaml"))


def spec_of(name: str) -> HardwareSpec:
    return load_hardware(name).with_settings({"weights.bits": 3})


@pytest.mark.filterwarnings("ignore:.*matches no layer")  # a spec may be for other networks
@pytest.mark.parametrize("name", SHIPPED)
def test_a_small_layer_computes_about_the_product_of_its_weights(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30))
    x = torch.randn(200, 40, generator=generator)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(30, 40, generator=generator))
        model[0].bias.zero_()
        wanted = model(x)
        error = (map_model(model, spec_of(name), calibration=[x])(x) - wanted).norm() / wanted.norm()
    # 3 bits of Gaussian weights with the best scale lose 0.17; MinMax scales, and cells, more. Random outputs: 1.4
    assert 0.05 < error < (0.4 if load_hardware(name).weights.scale_method == "mse" else 0.7)


def encodings(frames: int, width: int) -> Tensor:
    """[frames, width] sinusoidal positional encodings (Vaswani et al., 2017)."""
    angles = torch.arange(frames)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def test_paper_positional_keeps_the_layers_on_positional_encodings_from_saturating() -> None:
    layers = nn.ModuleDict({"linear_pos": nn.Linear(256, 64, bias=False), "linear_q": nn.Linear(256, 64, bias=False)})

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = layers

        def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            return self.heads["linear_q"](x), self.heads["linear_pos"](positions)

    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        layer.weight.data.uniform_(-1, 1, generator=generator)
    model = Attention()
    inputs = (torch.randn(200, 256, generator=generator), encodings(200, 256))
    model.requires_grad_(False)
    wanted = model(*inputs)
    errors, clipped = {}, {}
    for name in ("paper", "paper-positional"):
        chip = map_model(model, spec_of(name), calibration=[inputs])
        chip.mapping.reads.count_clips = True
        errors[name] = [float((g - w).norm() / w.norm()) for g, w in zip(chip(*inputs), wanted, strict=True)]
        clipped[name] = [chip.mapping.clip_rates()[f"heads.{layer}"].adc for layer in ("linear_q", "linear_pos")]
    assert clipped["paper"][1] > 0.05
    assert clipped["paper-positional"][1] < 0.001
    assert errors["paper-positional"][1] < 0.8 * errors["paper"][1]
    # the other layers are as they were
    assert clipped["paper"][0] == clipped["paper-positional"][0] < 0.001
    assert errors["paper"][0] == errors["paper-positional"][0]
