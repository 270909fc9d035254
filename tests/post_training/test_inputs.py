"""Input transforms as recipes choose them: for one matrix, in a network, and in a mapped file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim.errors import InputError
from memsim.networks.mapped_file import load_chip
from memsim.nn.chip import mapping_of, remap
from memsim.post_training.inputs import InputFit, block_for, chosen_transform
from memsim.post_training.recipe import load_mapping
from memsim.storage.checkpoint import load_checkpoint
from tests.crossbar.by_hand import statistics_of
from tests.crossbar.matrices import from_weight

ALL = {"input_scales": {"strength": 0.5}, "rotation": "hadamard", "digital_rows": 0.05}
FOUR_BITS = {"base": "best", "weights": {"bits": 4}, "digital": []}


def outliers(out: int = 20, inputs: int = 128, n: int = 200) -> tuple[Tensor, Tensor]:
    """A weight, and inputs of which three are thirty times as large as the others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, inputs, generator=generator)
    x[:, [5, 70, 99]] *= 30
    return torch.randn(out, inputs, generator=generator), x


def error_of(recipe: dict[str, object], dac_bits: int = 6) -> float:
    """The relative error of the product by a matrix of 8-bit weights behind a coarse DAC."""
    weight, x = outliers()
    spec = memsim.load_hardware(
        {"base": "ideal", "weights": {"bits": 8}, "dac": {"bits": dac_bits, "method": "max"}, "digital": []}
    )
    own = statistics_of(x)
    transform, _ = chosen_transform("layer", weight, spec, load_mapping(recipe), own)
    matrix = from_weight("layer", weight, spec, 0, own, input_transform=transform)
    errors = matrix(x) - x @ weight.T
    return float(errors.norm() / (x @ weight.T).norm())


@pytest.mark.parametrize("recipe", [{"rotation": "hadamard"}, {"input_scales": {}}, {"digital_rows": 0.03}, ALL])
def test_each_key_lowers_the_error_of_inputs_with_outliers(recipe: dict[str, object]) -> None:
    assert error_of(recipe) < 0.75 * error_of({})


def test_scales_are_those_of_smoothquant() -> None:
    weight, x = outliers()
    spec, own = memsim.load_hardware("ideal"), statistics_of(x, most_rows=2 * len(x))
    for strength in (0.0, 0.3, 1.0):
        transform, fit = chosen_transform(
            "l", weight, spec, load_mapping({"input_scales": {"strength": strength}}), own
        )
        assert transform is not None
        ratio = x.abs().amax(0) ** strength / weight.abs().amax(0) ** (1 - strength) * transform.factors
        assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4)
        assert float(transform(x).abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-5)
        assert fit == InputFit(128, scaled=True, operations=128)
    powers, _ = chosen_transform("l", weight, spec, load_mapping({"input_scales": {"powers_of_two": True}}), own)
    assert powers is not None
    assert (torch.frexp(powers.factors).mantissa == 0.5).all()


def test_digital_rows_are_those_of_the_largest_products() -> None:
    weight, x = outliers()
    weight[:, 70] = 0  # large inputs without weights are as good as none
    recipe = load_mapping({"digital_rows": 2 / 128})
    transform, fit = chosen_transform("l", weight, memsim.load_hardware("ideal"), recipe, statistics_of(x))
    assert transform is not None
    assert fit is not None
    assert transform.digital_rows is not None
    assert transform.digital_rows.tolist() == [5, 99]
    assert fit.digital == 2


def test_silent_inputs_have_finite_scales() -> None:
    weight, x = outliers()
    weight[:, 3], x[:, 4] = 0, 0
    for inputs in (x, torch.zeros_like(x)):
        transform, _ = chosen_transform(
            "l", weight, memsim.load_hardware("ideal"), load_mapping(ALL), statistics_of(inputs)
        )
        assert transform is not None
        assert torch.isfinite(transform.factors).all()
        assert torch.isfinite(transform.weight(weight)).all()


@pytest.mark.parametrize(
    ("inputs", "rows", "block"), [(384, 128, 128), (80, 128, 64), (200, 96, 32), (1, 128, 1), (5, 3, 1), (256, 192, 64)]
)
def test_blocks_fit_tiles(inputs: int, rows: int, block: int) -> None:
    assert block_for(inputs, rows) == block


def test_signs_are_drawn_by_name() -> None:
    weight, _ = outliers()
    spec, recipe = memsim.load_hardware("ideal"), load_mapping({"rotation": "hadamard"})
    one, again, other = (chosen_transform(n, weight, spec, recipe, None)[0] for n in ("a", "a", "b"))
    assert torch.equal(one.factors, again.factors)
    assert not torch.equal(one.factors, other.factors)
    assert len(one.factors.unique()) == 2


@pytest.mark.parametrize(
    ("recipe", "full_scale", "is_trained", "reason"),
    [
        (ALL, None, True, "trained with scales"),
        (ALL, 2.5, False, "trained with scales"),
        ({"input_scales": {}, "digital_rows": 0.05}, None, False, "not reached by calibration"),
    ],
)
def test_inputs_that_stay_as_they_are(
    recipe: dict[str, object], full_scale: float | None, is_trained: bool, reason: str
) -> None:
    weight, x = outliers()
    own = None if reason.startswith("not reached") else replace(statistics_of(x), full_scale=full_scale)
    found = chosen_transform(
        "l", weight, memsim.load_hardware("ideal"), load_mapping(recipe), own, is_trained=is_trained
    )
    assert found == (None, InputFit(128, reason=reason))


class Net(nn.Module):
    """A look-up, a grouped convolution, and layers whose inputs may change."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.grouped = nn.Conv1d(8, 12, 3, groups=2, padding=1)
        self.convolution = nn.Conv1d(12, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.convolution(self.grouped(self.table(ids).mT)).mT
        return self.head(x + self.attention(x, x, x)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("feedback", [None, {}])
def test_a_network_keeps_its_function(feedback: object) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    batches = list(torch.randint(9, (6, 8, 30), generator=torch.Generator().manual_seed(0)))
    spec = {"base": "best", "weights": {"bits": 8}, "digital": [], "embeddings": ["table"]}
    chip = memsim.map_model(net, spec, mapping={**ALL, "feedback": feedback}, calibration=batches)
    fits = {name: fit.inputs for name, fit in chip.mapping.report.layers.items()}
    assert fits["table"] == InputFit(9, reason="one-hot inputs")
    assert fits["grouped"] == InputFit(8 * 3, reason="a matrix of groups")
    assert fits["convolution"] == InputFit(
        36, scaled=True, rotated=32, block=32, digital=2, operations=36 + 32 * 5 + 2 * 2 * 8
    )
    exact = net(batches[0])
    assert (chip(batches[0]) - exact).norm() < 0.1 * exact.norm()
    assert "inputs of 2 as they are" in str(chip.mapping.report)
    statistics = memsim.measure_inputs(net, batches)
    other = remap(chip, memsim.load_hardware(spec), seed=1, statistics=statistics)
    assert (other(batches[0]) - exact).norm() < 0.1 * exact.norm()


def test_a_file_carries_the_transforms(tiny_recogniser: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    result = memsim.map_checkpoint(tiny_recogniser, "best", bits=4, mapping=ALL, out=out, budget=True)
    checkpoint = load_checkpoint(out)
    mapping = mapping_of(load_chip(checkpoint)[0].model)
    assert mapping.report == result.mapped.report
    fits = [fit.inputs for fit in result.mapped.report.layers.values()]
    assert any(fit.rotated and fit.scaled and fit.digital for fit in fits)
    for layer, matrix in mapping.layers.items():
        transform = matrix.input_transform
        assert (transform is None) == (f"{layer}.matrix.input_transform.factors" not in checkpoint.names)
    evaluated = memsim.evaluate(tiny_recogniser, "demo", limit=2, hardware="best", bits=4, mapping=ALL)
    again = memsim.evaluate(out, "demo", limit=2)
    assert [trial.score for trial in evaluated.trials] == [trial.score for trial in again.trials]


def test_rotations_need_no_data_but_scales_do(tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    memsim.save_checkpoint(bare, {"layer.weight": torch.randn(8, 8)}, {})
    result = memsim.map_checkpoint(bare, "ideal", mapping={"rotation": "hadamard"}, out=tmp_path / "o.safetensors")
    assert "inputs of 1 rotated" in str(result.mapped.report)
    for recipe in ({"input_scales": {}}, {"digital_rows": 0.1}):
        with pytest.raises(InputError, match=r"^mapping custom: needs the inputs of layer, "):
            memsim.map_checkpoint(bare, "ideal", mapping=recipe)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rotation: fourier", "rotation: expected hadamard or none, got 'fourier'"),
        ("digital_rows: 0.9", "digital_rows: 0.9 is out of range (0 to 0.5)"),
        ("input_scales: {strength: 2}", "input_scales.strength: 2.0 is out of range (0 to 1)"),
    ],
)
def test_bad_keys(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_mapping(tmp_path / "m.yaml")
    assert found in str(caught.value)
