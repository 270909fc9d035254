"""Offsets take the levels' errors out of the means of outputs, on every chip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.nn.chip import remap
from memsim.nn.deviation import exact_product
from memsim.post_training.moments import MomentCollector, mean_of, moments_of
from memsim.post_training.recipe import load_mapping
from memsim.post_training.trims import tile_results

IDEAL = {"base": "ideal", "weights": {"bits": 3}, "digital": [], "tile": {"rows": 16}}
PLAIN = {"base": "feedback", "rotation": None, "digital_rows": 0.0, "trim": None}
RECIPE = {**PLAIN, "offsets": True}


def inputs(n: int = 300, features: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=generator) @ torch.randn(8, features, generator=generator)
    return x.relu() + 0.5


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 12)).eval()


@pytest.mark.parametrize("groups", [1, 4])
def test_the_mean_of_a_stream_and_moments_about_it(groups: int) -> None:
    x, collector = inputs(), MomentCollector(groups)
    for part in x.split(70):
        collector.add(part)
    mean = x.double().mean(dim=0)
    found = collector.mean()
    assert found is not None
    torch.testing.assert_close(found, mean.float().view(groups, -1))
    layer = nn.Conv1d(40, 8, 1, groups=groups)
    statistics = memsim.measure_inputs(layer, [x.T[None]], with_moments=True)["conv1d"]
    blocks = (x.double() - mean).view(len(x), groups, -1)
    expected = torch.einsum("ngi,ngj->gij", blocks, blocks).float() / len(x)
    bare = memsim.measure_inputs(layer, [x.T[None]])["conv1d"]
    assert not bare.is_complete
    torch.testing.assert_close(mean_of(statistics, groups), mean.float().view(groups, -1))
    torch.testing.assert_close(mean_of(bare, groups), mean.float().view(groups, -1), rtol=0.1, atol=0)
    torch.testing.assert_close(moments_of(statistics, groups, centred=True), expected, rtol=1e-4, atol=1e-5)
    assert (statistics.mean is None, bare.mean) == (False, None)
    sampled = moments_of(bare, groups, centred=True)
    assert sampled is not None
    torch.testing.assert_close(sampled.diagonal(dim1=1, dim2=2), expected.diagonal(dim1=1, dim2=2), rtol=0.2, atol=0)
    assert torch.linalg.eigvalsh(sampled.double()).min() > -1e-5


@pytest.mark.parametrize("keys", [{}, {"rotation": "hadamard", "digital_rows": 0.1}], ids=["", "transformed"])
def test_the_means_of_outputs_are_exact(keys: dict[str, object]) -> None:
    model, x = network(), inputs()
    exact = model[0](x)
    means = {}
    for offsets in (False, True):
        chip = memsim.map_model(model, IDEAL, mapping={**RECIPE, "offsets": offsets, **keys}, calibration=[x])
        error = chip[0](x) - exact
        means[offsets] = error.mean(dim=0).abs().max()
        if not keys:  # the report is of the product on arrays, without that of digital rows
            reported = chip.mapping.report.layers["0"].product_error
            assert reported == pytest.approx(float((error.norm() / (exact - model[0].bias).norm()).detach()), rel=1e-2)
    assert means[True] < 1e-5
    assert means[False] > 1e-3


def test_errors_about_the_mean_are_smaller() -> None:
    model, x = network(), inputs()
    spreads = []
    for keys in (RECIPE, PLAIN):
        error = memsim.map_model(model, IDEAL, mapping=keys, calibration=[x])[0](x) - model[0](x)
        spreads.append(error.std(dim=0).square().sum())
    assert spreads[0] < spreads[1]


def test_every_chip_and_a_file_keep_them(tmp_path: Path) -> None:
    model, x = network(), inputs()
    spec = {**IDEAL, "base": "physical", "overrides": []}
    chip = memsim.map_model(model, spec, mapping=RECIPE, calibration=[x])
    offset = chip.mapping.layers["0"].offset
    assert offset is not None
    other = remap(chip, chip.mapping.spec, seed=3, statistics=memsim.measure_inputs(model, [x]))
    assert torch.equal(other.mapping.layers["0"].offset, offset)
    matrix = chip.mapping.layers["0"]
    assert torch.equal(matrix.under(matrix.spec.digital_twin(), 0).offset, offset)
    tensors = {name: value.clone() for name, value in matrix.state_dict().items()}
    again = MappedMatrix.from_tensors("0", matrix.spec, tensors)
    assert torch.equal(again.offset, offset)
    with pytest.raises(InputError, match=r"offset is \[3\]"):
        MappedMatrix.from_tensors("0", matrix.spec, {**tensors, "offset": torch.zeros(3)})
    without = MappedMatrix.from_tensors("0", matrix.spec, {k: v for k, v in tensors.items() if k != "offset"})
    noiseless = matrix.spec.model_copy(update={"read_noise": None})
    torch.testing.assert_close(matrix.under(noiseless, 0)(x), without.under(noiseless, 0)(x) + offset)


def test_trims_leave_them_as_they_are() -> None:
    model, x = network(), inputs()
    spec = {**IDEAL, "base": "physical", "overrides": []}
    untrimmed = memsim.map_model(model, spec, mapping=RECIPE, calibration=[x]).mapping.layers["0"]
    chip = memsim.map_model(model, spec, mapping={**RECIPE, "trim": "tile"}, calibration=[x])
    matrix, fit = chip.mapping.layers["0"], chip.mapping.report.layers["0"]
    assert torch.equal(matrix.offset, untrimmed.offset)
    quiet = untrimmed.under(untrimmed.spec.model_copy(update={"read_noise": None}), 0)
    whole = tile_results(matrix, x, 0).sum(dim=1) + matrix.offset
    torch.testing.assert_close(whole.float(), quiet(x), rtol=1e-4, atol=1e-4)
    assert fit.trimmed_error is not None
    assert fit.untrimmed_error is not None
    assert fit.trimmed_error < fit.untrimmed_error
    wanted = exact_product(matrix, x, model[0].weight)
    assert (chip[0](x) - model[0].bias - wanted).norm() / wanted.norm() < 1.2 * fit.untrimmed_error
    plain = exact_product(matrix, x, None)
    torch.testing.assert_close(plain, exact_product(matrix, x, matrix.quantised_weight()) + matrix.offset)


def test_the_key() -> None:
    assert load_mapping({"offsets": True}).needs_moments
    with pytest.raises(InputError, match="offsets: expected true or false"):
        load_mapping({"offsets": "mean"})
    x, model = inputs(), network()
    rounded = memsim.map_model(model, IDEAL, mapping={"offsets": True}, calibration=[x])
    assert rounded.mapping.report.layers["0"].method == "nearest"
    assert (rounded[0](x) - model[0](x)).mean(dim=0).abs().max() < 1e-5
