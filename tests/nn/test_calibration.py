"""Calibration of networks by all their inputs, and warnings about layers that it does not reach."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim.asr.recogniser import build, load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.nn.collect import StatisticsCollector
from memsim.nn.mapping import measure_inputs

MAX = {"base": "ideal", "adc": {"bits": 8, "range": "calibrated", "method": "max"}}
DAC_TOO = {**MAX, "dac": {"bits": 8, "method": "max"}}


def clips(chip: nn.Module, *inputs: Any) -> float:
    """The largest share of the conversions of a layer that is clipped."""
    chip.mapping.count_clips()
    with torch.no_grad():
        chip(*inputs)
    return max(rate.adc for rate in chip.mapping.clip_rates().values() if rate.adc is not None)


def convolutional() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.zeros(40, 1, 24, 24)
    x[:, :, 10:13, 11:14] = torch.rand(40, 1, 3, 3)  # mostly background
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(100, 5)), x


def recurrent() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.zeros(6, 50, 3)
    x[2, 7] = torch.tensor([3.0, -1, 2])
    return nn.LSTM(3, 5, batch_first=True), x


def padded() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.zeros(8, 400, 6)
    for index, row in enumerate(x):
        row[: 2 + index] = torch.randn(2 + index, 6)
    return nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 4)), x


def attention() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 9, 8) * (torch.arange(27).view(3, 9, 1) % 9 == 4)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    return Attends(), x


@pytest.mark.parametrize("made", [convolutional, recurrent, padded, attention], ids=lambda made: made.__name__)
def test_max_clips_nothing_that_it_saw_whatever_the_seed(made: Any) -> None:
    net, x = made()
    net = net.eval()
    ranges = []
    for seed in range(4):
        chip = memsim.map_model(net, DAC_TOO, bits=8, seed=seed, calibration=list(x.split(3)))
        ranges.append({name: matrix.adc_range for name, matrix in chip.mapping.layers.items()})
        assert clips(chip, x) < 0.02  # by a code, in deeper layers, whose inputs have gone through the chip
        first = next(iter(chip.mapping.clip_rates().values()))
        assert first.adc in (0, None)
    for other in ranges[1:]:  # ideal cells: nothing of a chip is drawn
        assert all(torch.equal(other[name], own) for name, own in ranges[0].items())


def test_the_case_of_one_row_in_a_hundred() -> None:
    net = nn.Sequential(nn.Linear(1, 1, bias=False))
    net[0].weight.data.fill_(0.5)
    x = torch.zeros(100, 1)
    x[50] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for hardware in (MAX, "best", {"base": "best", "adc": {"percentile": 99.5}}):
            for seed in range(4):
                chip = memsim.map_model(net, hardware, bits=8, seed=seed, calibration=[x])
                assert float(chip(x[50:51])) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("percentile", [90.0, 99.0])
def test_a_chip_of_real_cells_clips_what_was_asked(percentile: float) -> None:
    torch.manual_seed(1)
    net, x = nn.Sequential(nn.Linear(40, 30)).eval(), torch.randn(3000, 40) * (0.5 + torch.rand(3000, 1))
    hardware = {"base": "physical", "read_noise": None, "adc": {"percentile": percentile}}
    for seed in range(3):
        share = clips(memsim.map_model(net, hardware, bits=6, seed=seed, calibration=[x]), x)
        assert share == pytest.approx(1 - percentile / 100, rel=0.1)  # the last half step is no clip


def test_an_iterator_is_read_once_and_a_function_called_twice() -> None:
    net, x = padded()
    wanted = memsim.map_model(net, MAX, bits=8, calibration=[x]).mapping.layers["0"].adc_range
    calls: list[nn.Module] = []

    def run(model: nn.Module) -> None:
        calls.append(model)
        model(x)

    for data in (iter([x[:3], x[3:]]), (part for part in (x,)), run):
        assert torch.equal(memsim.map_model(net, MAX, bits=8, calibration=data).mapping.layers["0"].adc_range, wanted)
    assert len(calls) == 2
    assert net not in calls


def test_statistics_are_no_data_for_max() -> None:
    net, x = padded()
    statistics = measure_inputs(net, [x])
    with pytest.raises(InputError, match=r"^0: adc\.method: max needs all calibration inputs"):
        memsim.map_model(net, MAX, bits=8, calibration=statistics)
    chip = memsim.map_model(net, {**MAX, "adc": {"bits": 8, "percentile": 99.9}}, bits=8, calibration=statistics)
    assert clips(chip, x) < 0.01


@pytest.mark.parametrize("name", ["conformer-small", "lstm-small", "conformer-transducer-small"])
def test_frames_beyond_an_utterance_do_not_count(name: str) -> None:
    """A batch calibrates as its utterances do alone."""
    architecture, config = load_model_config(name)
    small = {"width": 8, "blocks": 1, "heads": 2, "feed_forward_width": 12, "layers": 1, "hidden": 8}
    config = config.model_copy(update={key: value for key, value in small.items() if hasattr(config, key)})
    torch.manual_seed(0)
    model = build(architecture, config, CharacterTokens((" ", "a")), "kaldi").model.eval()
    features, lengths = torch.randn(3, 60, 80), torch.tensor([60, 9, 33])
    alone = [(features[i : i + 1, :length], lengths[i : i + 1]) for i, length in enumerate(lengths.tolist())]
    together, apart = measure_inputs(model, [(features, lengths)]), measure_inputs(model, alone)
    assert together.keys() == apart.keys()
    for layer, found in together.items():
        assert torch.equal(found.histogram, apart[layer].histogram), layer
        assert float(found.weights.sum()) == pytest.approx(float(apart[layer].weights.sum()))


class Dead(nn.Module):
    """The second layer never sees anything but 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.second((x - 1e3).relu()))


@pytest.mark.parametrize("hardware", ["physical", MAX, "best"])
def test_a_layer_that_saw_only_zeros_is_named(hardware: Any) -> None:
    with pytest.warns(UserWarning, match=r"only zeros at the input of second, so") as seen:
        chip = memsim.map_model(Dead(), hardware, bits=8, calibration=[torch.randn(30, 4)])
    assert not any("first" in str(warning.message) for warning in seen)
    assert chip(torch.randn(3, 4)).isfinite().all()
    assert chip.mapping.deviations["second"].to_digital == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memsim.map_model(Dead(), hardware, bits=8, exclude=["second"], calibration=[torch.randn(30, 4)])
        memsim.map_model(Dead(), "ideal", bits=8, calibration=[torch.randn(30, 4)])  # which has no ranges


def test_deviations_are_those_of_the_products() -> None:
    torch.manual_seed(2)
    net, x = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 10)), torch.randn(60, 30)
    hardware = {"base": "physical", "read_noise": None}
    chip = memsim.map_model(net, hardware, bits=4, calibration=[x])
    assert chip.mapping.deviations.keys() == {"0", "2"}
    first = chip.mapping.layers["0"]
    exact = x.double() @ net[0].weight.detach().double().T
    twin = memsim.map_model(net, {"base": "ideal", "dac": {"bits": 8}}, bits=4, calibration=[x])
    digital = twin.mapping.layers["0"](x).double()
    found = chip.mapping.deviations["0"]
    product = first(x).double()

    def expected(wanted: Tensor) -> float:
        each = (product - wanted).norm(dim=1) / wanted.norm(dim=1)
        return max(float((product - wanted).norm() / wanted.norm()), float(each.median()))

    assert found.to_full_precision == pytest.approx(expected(exact), rel=1e-2)
    assert found.to_digital == pytest.approx(expected(digital), rel=1e-2)
    assert 0.02 < found.to_digital < found.to_full_precision < 0.25
    assert not memsim.map_model(net, "ideal", bits=4).mapping.deviations
    exactly = memsim.map_model(net, "ideal", bits=8, calibration=[x]).mapping.deviations["0"]
    assert exactly.to_digital < 1e-6 < exactly.to_full_precision < 0.02


def test_one_heavy_row_does_not_hide_that_the_others_are_lost() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(24, 10, bias=False)), torch.randn(3000, 24)
    x[5] = 1e4
    hardware = {"base": "physical", "dac": {"method": "max"}, "adc": {"method": "max"}}
    with pytest.warns(UserWarning, match=r"the products of 0 \(100%\)"):
        chip = memsim.map_model(net, hardware, bits=6, calibration=[x])
    assert chip.mapping.deviations["0"].to_full_precision > 0.9
    x[5] = 3e38
    x[6] = -3e38
    with pytest.warns(UserWarning, match=r"the products of 0 "):
        memsim.map_model(net, {"base": "ideal", "adc": {"method": "max"}}, bits=6, calibration=[x])


def test_only_matrices_on_arrays_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows of a convolution that stays digital are more values than all other inputs together."""
    net, x = convolutional()
    wanted = memsim.map_model(net, "physical", bits=4, calibration=[x]).mapping.layers["4"]
    rows = dict[StatisticsCollector, int]()
    add = StatisticsCollector.add

    def count(self: StatisticsCollector, x: Tensor) -> None:
        add(self, x)
        rows[self] = self.rows

    monkeypatch.setattr(StatisticsCollector, "add", count)
    chip = memsim.map_model(net, {"base": "physical", "digital": ["0"]}, bits=4, calibration=[x])
    assert list(rows.values()) == [len(x)]
    assert torch.equal(chip.mapping.layers["4"].adc_range, wanted.adc_range)
    with pytest.raises(InputError, match="ran none of the layers to be mapped"):
        memsim.map_model(net, {"base": "physical", "digital": ["0"]}, calibration=lambda net: net[0](x))


def test_a_deviation_takes_one_read_of_the_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = [], MappedMatrix.forward

    def count(self: MappedMatrix, x: Tensor) -> Tensor:
        reads.append(self.spec.cell)
        return read(self, x)

    monkeypatch.setattr(MappedMatrix, "forward", count)
    memsim.map_model(nn.Linear(8, 4), "physical", bits=4, calibration=[torch.randn(20, 8)])
    assert sorted(reads) == ["ideal", "synaptogen"]


@pytest.mark.parametrize("ratio", [1e4, 1e8, 1e20])
def test_one_outlier_leaves_the_range_of_the_others(ratio: float) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(24, 10, bias=False)), torch.randn(3000, 24)
    usual = memsim.map_model(net, "physical", bits=6, calibration=[x]).mapping.layers["0"]
    x[5, 3] = ratio
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the one row
        for calibration in ([x], measure_inputs(net, [x])):
            matrix = memsim.map_model(net, "physical", bits=6, calibration=calibration).mapping.layers["0"]
            assert float(matrix.input_range) == pytest.approx(float(usual.input_range), rel=0.15)
            assert float(matrix.adc_range.max()) == pytest.approx(float(usual.adc_range.max()), rel=0.3)


def test_a_calibration_that_misses_layers_or_finds_none_is_warned_of() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    statistics = measure_inputs(net, [torch.randn(9, 8)])
    del statistics["1"]
    with pytest.warns(UserWarning, match="did not reach 1, so"):
        memsim.map_model(net, "physical", calibration=statistics)
    with pytest.warns(UserWarning, match="no layer is on arrays"):
        memsim.map_model(nn.Sequential(nn.ReLU()), "ideal")
    with pytest.raises(InputError, match=r"^progress: expected a function, got True$"):
        memsim.map_model(net, "ideal", progress=True)


def test_the_layer_at_which_calibration_fails_is_named() -> None:
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(33, 4))
    for data in ([torch.randn(3, 64)], [torch.randn(3, 64, dtype=torch.float64)]):
        with pytest.raises(RuntimeError, match=r"^[02]: mat1 and mat2"):
            memsim.map_model(net, "physical", bits=4, calibration=data)


def test_layers_that_cannot_work_are_named_with_the_remedy() -> None:
    torch.manual_seed(2)
    net, x = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 10)), torch.randn(60, 30)
    with pytest.warns(UserWarning, match=r"0 \(\d+%\).* more bits.*exclude=\['0'\]"):
        memsim.map_model(
            net,
            {"base": "ideal", "overrides": [{"match": "0", "weights": {"bits": 2}}]},
            bits=8,
            calibration=[x],
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memsim.map_model(net, "physical", bits=6, calibration=[x])
