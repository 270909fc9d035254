"""What a recipe does with a matrix, and with all matrices of a network, by every way that leads there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import memsim
from memsim.crossbar import encode
from memsim.errors import InputError
from memsim.networks.mapped_file import load_chip
from memsim.nn.chip import mapping_of, remap
from memsim.post_training.feedback import product_errors
from memsim.post_training.fitting import LayerFit, MappingReport, fitted
from memsim.post_training.recipe import NEAREST, load_mapping
from memsim.storage.checkpoint import load_checkpoint

IDEAL = {"base": "ideal", "weights": {"bits": 3}, "digital": []}
FEEDBACK = load_mapping("feedback")


def spec_of(**weights: object) -> memsim.HardwareSpec:
    return memsim.load_hardware({"base": "ideal", "weights": {"bits": 4, **weights}, "tile": {"rows": 16}})


def problem(out: int, features: int, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [out, features / groups], and second moments of inputs that resemble each other."""
    generator = torch.Generator().manual_seed(0)
    weight, width = torch.randn(out, features // groups, generator=generator), features // groups
    x = torch.randn(groups, 500, 5, generator=generator) @ torch.randn(groups, 5, width, generator=generator)
    x += 0.1 * torch.randn(groups, 500, width, generator=generator)
    return weight, x.mT @ x / 500


@pytest.mark.parametrize("scale", ["per_tile", "per_channel", "per_tensor"])
@pytest.mark.parametrize("scale_method", ["mse", "minmax"])
def test_nearest_rounds_as_ever(scale: str, scale_method: str) -> None:
    weight, moments = problem(12, 30)
    weight[3] = 0
    spec = spec_of(scale=scale, scale_method=scale_method)
    found = fitted(weight, spec, NEAREST, moments)
    expected = encode.fit_scale(weight, 4, spec.weights, 16)
    assert torch.equal(found.levels, encode.quantise(weight, expected, 4, 16))
    assert torch.equal(found.scale, encode.without_idle_channels(expected, found.levels, 16))
    assert found.fit == LayerFit("nearest")


@pytest.mark.parametrize("scale", ["per_tile", "per_channel", "per_tensor"])
@pytest.mark.parametrize("groups", [1, 3])
def test_each_key_lowers_the_error_of_the_product(scale: str, groups: int) -> None:
    weight, moments = problem(12, 60, groups)
    spec = spec_of(scale=scale)
    weighted, fed = load_mapping({"scale_error": "inputs"}), load_mapping({"feedback": {}})
    found = {
        recipe.name + str(i): fitted(weight, spec, recipe, moments, None, groups)
        for i, recipe in enumerate([weighted, fed, FEEDBACK])
    }
    error = {}
    for name, each in found.items():
        change = each.levels * encode.scale_of_weights(each.scale, weight.shape[1], 16) - weight
        parts = [
            (product_errors(own, m).sum(), product_errors(exact, m).sum())
            for own, exact, m in zip(change.chunk(groups), weight.chunk(groups), moments, strict=True)
        ]
        error[name] = float((sum(part[0] for part in parts) / sum(part[1] for part in parts)).sqrt())
        assert each.fit.product_error == pytest.approx(error[name], rel=1e-3)
        assert each.levels.dtype == torch.int8
    rounding = found["custom1"].fit.rounding_error
    assert found["custom0"].fit.product_error == found["custom0"].fit.rounding_error
    assert error["custom1"] < 0.7 * rounding
    assert error["feedback2"] < 0.7 * found["feedback2"].fit.rounding_error


def test_scales_of_training_and_unknown_inputs_are_rounded() -> None:
    weight, moments = problem(4, 10)
    scale = torch.full((4,), 0.3)
    found = fitted(weight, spec_of(), FEEDBACK, moments, scale)
    assert torch.equal(found.levels, encode.quantise(weight, scale, 4))
    assert found.fit == LayerFit("trained")
    found = fitted(weight, spec_of(), FEEDBACK, None, None, why_without="one-hot inputs")
    assert torch.equal(found.levels, fitted(weight, spec_of(), NEAREST).levels)
    assert found.fit == LayerFit("nearest", "one-hot inputs")


def test_the_report_is_read_as_it_was_written() -> None:
    layers = {"a": LayerFit("feedback", None, 0.05, 0.1, 0.01), "b": LayerFit("trained"), "c": LayerFit("feedback")}
    report = MappingReport(FEEDBACK, layers, 2.04)
    assert MappingReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    said = (
        "mapping feedback: 2 layers by error feedback, 1 layer with scales of training, by rounding to nearest; 2.0 s"
    )
    assert str(report) == said
    with pytest.raises(ValueError, match="method"):
        MappingReport.from_dict({"recipe": NEAREST.to_dict(), "layers": {"a": {}}})


class Net(nn.Module):
    """Layers of every kind, among them a table that is read with one-hot inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.convolution = nn.Conv1d(8, 12, 3, groups=2, padding=1)
        self.recurrent = nn.LSTM(12, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)
        self.unused = nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.recurrent(self.convolution(self.table(ids).mT).mT)[0]
        return self.head(x + self.attention(x, x, x)[0])


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def batches() -> list[torch.Tensor]:
    return list(torch.randint(9, (6, 8, 30), generator=torch.Generator().manual_seed(0)))


@pytest.mark.filterwarnings("ignore")
def test_every_layer_of_a_network_is_mapped_by_it(net: nn.Module) -> None:
    spec = {**IDEAL, "embeddings": ["table"]}
    options = {"calibration": batches(), "exclude": ["unused"]}
    recipes = {"nearest": "nearest", "feedback": {"base": "feedback", "name": "feedback", "rotation": None}}
    chips = {name: memsim.map_model(net, spec, mapping=recipe, **options) for name, recipe in recipes.items()}
    fits = chips["feedback"].mapping.report.layers
    assert (fits["table"].method, fits["table"].reason) == ("nearest", "one-hot inputs")
    by_feedback = {name for name, fit in fits.items() if fit.method == "feedback"}
    assert by_feedback == fits.keys() - {"table"}
    assert len(by_feedback) == 8
    for name in by_feedback:
        near, fed = (chips[way].mapping.deviations[name].to_full_precision for way in ("nearest", "feedback"))
        assert fed < near, name
        assert fits[name].product_error <= fits[name].rounding_error
    plain = memsim.map_model(net, spec, **options)
    assert plain.mapping.report == chips["nearest"].mapping.report
    for name, matrix in plain.mapping.layers.items():
        assert torch.equal(matrix.levels, chips["nearest"].mapping.layers[name].levels)
    exact, near, fed = (model(batches()[0]) for model in (net, chips["nearest"], chips["feedback"]))
    assert (fed - exact).norm() < 0.8 * (near - exact).norm()
    assert "mapping feedback: 8 layers by error feedback, 1 layer by rounding to nearest, " in str(fed_report(chips))
    assert remap(chips["feedback"], plain.mapping.spec, seed=3).mapping.report is chips["feedback"].mapping.report


def fed_report(chips: dict[str, nn.Module]) -> object:
    return chips["feedback"].mapping


@pytest.mark.filterwarnings("ignore")
def test_unknown_inputs(net: nn.Module) -> None:
    with pytest.raises(
        InputError, match=r"^mapping feedback: needs the inputs of convolution, recurrent.weight_ih_l0, "
    ):
        memsim.map_model(net, IDEAL, mapping="feedback")
    chip = memsim.map_model(net, IDEAL, mapping="feedback", calibration=batches())
    unused = chip.mapping.report.layers["unused"]
    assert (unused.method, unused.reason) == ("nearest", "not reached by calibration")
    stored = memsim.measure_inputs(net, batches())
    estimated = memsim.map_model(net, IDEAL, mapping="feedback", calibration=stored)
    measured = memsim.map_model(
        net, IDEAL, mapping="feedback", calibration=memsim.measure_inputs(net, batches(), with_moments=True)
    )
    assert estimated.mapping.report.layers["head"].method == "feedback"
    assert torch.equal(measured.mapping.layers["head"].levels, chip.mapping.layers["head"].levels)


@pytest.mark.filterwarnings("ignore")
def test_a_module_is_evaluated_by_it(net: nn.Module, tmp_path: Path) -> None:
    data = [(ids, net(ids)) for ids in batches()]

    def distance(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean(dim=(1, 2))

    def run(mapping: object, **options: object) -> memsim.EvaluationResult:
        return memsim.evaluate(
            net, data, score=distance, lower_is_better=True, hardware=IDEAL, mapping=mapping, **options
        )

    near, fed = run(None), run("feedback")
    assert fed.digital.value < 0.8 * near.digital.value
    chip = memsim.map_model(net, IDEAL, mapping="feedback", calibration=[ids for ids, _ in data])
    assert fed.trials[0].score.value == pytest.approx(
        float(torch.cat([distance(chip(ids), wanted) for ids, wanted in data]).mean()), rel=1e-5
    )
    sharing = memsim.Sharing(results=tmp_path / "r.jsonl")
    run("feedback", sharing=sharing)
    with pytest.raises(InputError, match=r"mapping feedback .*, not nearest"):
        run(None, sharing=sharing)


def test_a_file_carries_what_was_done(tiny_recogniser: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    options = {"bits": 3, "calibrate": "demo", "out": out}
    result = memsim.map_checkpoint(tiny_recogniser, "ideal", mapping="feedback", **options)
    assert result.spec.weights.scale == FEEDBACK.scale
    report = result.mapped.report
    assert {fit.method for fit in report.layers.values()} == {"feedback"}
    assert result.to_dict()["mapping"]["recipe"] == FEEDBACK.to_dict()
    assert result.to_dict()["mapping"]["seconds"] == report.seconds
    assert re.search(r"\nmapping feedback: \d+ layers by error feedback, [^;]*; \d+\.\d s\n", str(result))
    checkpoint = load_checkpoint(out)
    mapping = mapping_of(load_chip(checkpoint)[0].model)
    assert mapping.report == report
    for layer, matrix in mapping.layers.items():
        assert torch.equal(matrix.levels, checkpoint.tensors()[f"{layer}.matrix.levels"])
    written = out.read_bytes()
    memsim.map_checkpoint(tiny_recogniser, "ideal", mapping=FEEDBACK.to_dict(), force=True, **options)
    assert out.read_bytes() == written

    evaluated = memsim.evaluate(
        tiny_recogniser, "demo", limit=2, hardware="ideal", bits=3, calibrate="demo", mapping="feedback", trials=2
    )
    again = memsim.evaluate(out, "demo", limit=2, trials=2)
    assert [trial.score for trial in evaluated.trials] == [trial.score for trial in again.trials]
    assert evaluated.digital == again.digital
    with pytest.raises(InputError, match="is mapped, and its levels are set"):
        memsim.evaluate(out, "demo", limit=2, mapping="feedback")


def test_the_input_statistics_of_a_file_give_an_estimate(tiny_recogniser: Path) -> None:
    found = memsim.map_checkpoint(tiny_recogniser, "ideal", bits=3, mapping="feedback")
    assert {fit.method for fit in found.mapped.report.layers.values()} == {"feedback"}


def test_a_file_without_statistics_is_refused(tmp_path: Path) -> None:
    bare, out = tmp_path / "bare.safetensors", tmp_path / "o.safetensors"
    memsim.save_checkpoint(bare, {"layer.weight": torch.randn(8, 8)}, {})
    with pytest.raises(
        InputError, match=r"^mapping feedback: needs the inputs of layer, .*; calibrate \(--calibrate DATA"
    ):
        memsim.map_checkpoint(bare, "ideal", mapping="feedback", out=out)
    assert not out.exists()
    result = memsim.map_checkpoint(bare, "ideal", out=out)
    assert str(result.mapped.report) == "mapping nearest: 1 layer by rounding to nearest"
