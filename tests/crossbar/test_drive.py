"""Row voltages: levels, phases and ranges, against the cells' own currents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim.crossbar import convert, elementwise, ranges
from memsim.crossbar.calibrator import MANTISSA_BITS
from memsim.crossbar.cell import IdealCell, MemristorCell
from memsim.crossbar.drive import Drive
from memsim.crossbar.histogram import MagnitudeHistogram
from memsim.crossbar.matrix import MappedMatrix
from memsim.device import load_device
from memsim.errors import InputError
from memsim.hardware import Dac, load_hardware
from tests.crossbar.by_hand import column_signals, in_weights_and_inputs, shift_add, small_matrix, spec_of

CPU = torch.device("cpu")
CELL = MemristorCell(load_device("synaptogen"), 0.4, 1.0)
BIT_PATTERNS = [{}, {"polarity": "two_phase"}, {"slice_bits": 1}, {"slice_bits": 3, "polarity": "two_phase"}]


def responses(dac: Dac, cell: IdealCell | MemristorCell = CELL) -> Tensor:
    """What each code, from the lowest to the highest, adds to a column; full scale is an input of 1."""
    assert dac.bits is not None
    codes = torch.arange(-convert.dac_max_code(dac.bits), convert.dac_max_code(dac.bits) + 1)
    return Drive.make(dac, 1.0, cell, None, CPU).response(codes / codes[-1]).double()


def straightness(values: Tensor) -> float:
    """The largest deviation from the line through 0 and the last value, relative to that."""
    line = torch.linspace(-1, 1, len(values), dtype=torch.float64) * values[-1]
    return float((values - line).abs().max() / values[-1].abs())


@settings(deadline=None)
@given(st.integers(2, 12), st.data())
def test_every_pattern_of_phases_adds_up_to_the_input(bits: int, data: st.DataObject) -> None:
    """On ideal cells, which respond in proportion to the voltage."""
    slice_bits = data.draw(st.none() | st.integers(1, bits - 1))
    polarity = data.draw(st.sampled_from(["signed", "two_phase"]))
    dac = Dac(bits=bits, slice_bits=slice_bits, polarity=polarity)
    values = responses(dac, IdealCell())
    torch.testing.assert_close(values, torch.linspace(-1, 1, len(values), dtype=torch.float64), rtol=0, atol=1e-6)
    drive = Drive.make(dac, 1.0, IdealCell(), None, CPU)
    slices = 1 if slice_bits is None else -(-(bits - 1) // slice_bits)
    assert len(drive.phases) == slices * (2 if polarity == "two_phase" else 1)


@pytest.mark.parametrize("pattern", BIT_PATTERNS)
@pytest.mark.parametrize("bits", [4, 8])
def test_linearised_levels_are_linear_in_the_code(bits: int, pattern: dict[str, Any]) -> None:
    plain = responses(Dac(bits=bits, **pattern))
    linearised = responses(Dac(bits=bits, transfer="linearised", **pattern))
    assert straightness(linearised) < 1e-6
    if pattern != {"slice_bits": 1}:  # one level a sign: nothing to linearise but the two ends
        assert straightness(plain) > 0.004
    one_end = pattern.get("polarity") == "two_phase"
    full = [float(CELL.signal(torch.tensor(end)).abs()) for end in (1.0, -1.0)]
    assert float(linearised[-1].abs()) == pytest.approx(full[0] if one_end else min(full), rel=1e-6)


def test_levels_on_a_uniform_grid_are_the_nearest() -> None:
    free = convert.dac_fractions(Dac(transfer="linearised"), 127, CELL.signal, CPU)
    grid = convert.dac_fractions(Dac(transfer="linearised", level_grid="uniform"), 127, CELL.signal, CPU)
    torch.testing.assert_close(grid * 127, (grid * 127).round(), rtol=0, atol=1e-9)
    assert (grid - free).abs().max() <= 0.5 / 127 + 1e-12
    straight = {
        kind: straightness(responses(Dac(transfer="linearised", level_grid=kind)))
        for kind in ("programmable", "uniform")
    }
    assert straight["programmable"] < 1e-6 < 0.001 < straight["uniform"] < straightness(responses(Dac()))


def test_two_phases_use_positive_voltages_and_treat_both_signs_alike() -> None:
    signed, two_phase = responses(Dac()), responses(Dac(polarity="two_phase"))
    torch.testing.assert_close(two_phase, -two_phase.flip(0), rtol=0, atol=0)
    torch.testing.assert_close(two_phase[127:], signed[127:])
    assert (signed + signed.flip(0)).abs().max() > 0.01 * signed.abs().max()
    drive = Drive.make(Dac(polarity="two_phase"), 1.0, CELL, None, CPU)
    for phase in drive.phases:
        assert phase.tables is not None
        assert (phase.tables[0] <= 0).all()  # the signal of positive voltages (the window is negative)


@pytest.mark.parametrize("polarity", ["signed", "two_phase"])
def test_phases_without_codes(polarity: str) -> None:
    x = torch.linspace(-1.2, 1.2, 25)
    u = x.clamp(-1, 1).double()
    got = Drive.make(Dac(bits=None, polarity=polarity), 1.0, CELL, None, CPU).response(x).double()
    expected = CELL.signal(u) if polarity == "signed" else u.sign() * CELL.signal(u.abs())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("adc", [None, {"range": "calibrated", "bits": 6}], ids=["none", "calibrated"])
def test_two_phases_are_converted_apart(adc: dict[str, Any] | None) -> None:
    spec = spec_of(4, 3, adc=adc, dac={"polarity": "two_phase"}, read_noise=None)
    matrix = small_matrix(spec)
    x = 1.5 * torch.randn(40, 5, generator=torch.Generator().manual_seed(7))
    matrix.reads.count_clips = True
    got = matrix(x)
    by_hand = [
        in_weights_and_inputs(matrix, shift_add(matrix, column_signals(matrix, part)[0]))
        for part in (x.clamp(min=0), (-x).clamp(min=0))
    ]
    torch.testing.assert_close(got.double(), by_hand[0] - by_hand[1], rtol=0, atol=2e-5)
    assert matrix.clips.adc_total == (0 if adc is None else 2 * 2 * 3 * 40 * 3)  # phases, tiles, planes


def test_every_phase_has_noise_of_its_own() -> None:
    """Were it shared, that of x+ and x- at an input of 0 would cancel."""
    matrix = small_matrix(spec_of(3, 2, adc=None, dac={"polarity": "two_phase"}))
    one_phase = small_matrix(spec_of(3, 2, adc=None))
    one_phase.gain_per_ampere, one_phase.input_range = matrix.gain_per_ampere, matrix.input_range
    zeros = torch.zeros(20_000, 5)
    ratio = matrix(zeros).std(0) / one_phase(zeros).std(0)
    torch.testing.assert_close(ratio, torch.full((3,), 2.0).sqrt(), rtol=0.04, atol=0)  # 5 x sqrt(2 / 2 / 20000)


def test_a_range_for_every_vector() -> None:
    """The largest input of a vector drives full scale, so a scaled vector gives a scaled product; zeros give zeros."""
    matrix = small_matrix(
        spec_of(4, 3, adc={"range": "calibrated", "bits": 8}, dac={"range": "per_vector"}, read_noise=None)
    )
    assert matrix.input_range is None
    assert matrix.is_calibrated
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    whole = matrix(x)
    torch.testing.assert_close(matrix(x * 1024), whole * 1024)
    assert not matrix(torch.zeros(2, 5)).any()
    fixed = small_matrix(spec_of(4, 3, adc={"range": "calibrated", "bits": 8}, read_noise=None))
    exact = x @ (fixed.levels.float() * fixed.scale[:, None]).T
    small = x * 0.01  # a few codes of a DAC whose range is the layer's
    error = {
        name: float((m(small) - exact * 0.01).norm() / (exact * 0.01).norm())
        for name, m in (("vector", matrix), ("layer", fixed))
    }
    assert error["vector"] < 0.7 * error["layer"]


@pytest.mark.parametrize("pattern", BIT_PATTERNS)
def test_the_product_has_the_right_size(pattern: dict[str, Any]) -> None:
    """The calibrated gain counts all phases: the product regresses on the digital one with slope 1."""
    matrix = small_matrix(spec_of(3, 128, adc=None, read_noise=None, dac=pattern), 200, 300)
    x = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    wanted = x.double() @ (matrix.levels.double() * matrix.scale.double()[:, None]).T
    slope = float((matrix(x) * wanted).sum() / wanted.square().sum())
    assert slope == pytest.approx(1, abs=0.01)


def test_impossible_inputs_are_refused() -> None:
    for dac, words in (
        ({"bits": None, "transfer": "linearised"}, "dac.transfer: linearised chooses the voltage of each code"),
        ({"bits": 4, "slice_bits": 4}, "dac.slice_bits: 4 bits per slice, but an input has 3, and a sign"),
        ({"bits": None, "slice_bits": 1}, "dac.slice_bits: 1 bits per slice, but an input is not quantised"),
    ):
        with pytest.raises(InputError, match=words):
            load_hardware({"dac": dac})


# The converters' errors


def reading(adc: dict[str, Any]) -> tuple[MappedMatrix, Tensor]:
    matrix = small_matrix(spec_of(4, 3, adc={"range": "calibrated", "bits": 10, **adc}, read_noise=None))
    return matrix, torch.randn(50, 5, generator=torch.Generator().manual_seed(7))


def test_gain_and_offset_errors_are_each_converters_own() -> None:
    matrix, x = reading({"gain_error": 0.05, "offset_error_codes": 3.0})
    gain, offset = matrix.adc_gain_error, matrix.adc_offset_codes
    assert gain is not None
    assert offset is not None
    assert gain.shape == offset.shape == (2, 3, 3)
    assert len(gain.unique()) == len(offset.unique()) == 18
    assert matrix.adc_range is not None
    signal, _ = column_signals(matrix, x)
    step = matrix.adc_range.double().view(1, 1, 3, 1) / 511
    codes = (signal / step * (1 + gain[:, None]) + offset[:, None]).round().clamp(-511, 511)
    by_hand = in_weights_and_inputs(
        matrix, torch.einsum("tnpo,p->no", codes * step, torch.tensor([1.0, 2, 4]).double())
    )
    torch.testing.assert_close(matrix(x).double(), by_hand, rtol=0, atol=1e-5)


def test_converter_errors_have_the_deviation_of_the_spec() -> None:
    adc = load_hardware({"adc": {"gain_error": 0.02, "offset_error_codes": 0.7}}).adc
    errors = convert.AdcErrors.draw(adc, (10, 2, 1000), 0, torch.device("cpu"))
    assert errors is not None
    assert float(errors.gain.std()) == pytest.approx(0.02, rel=0.03)
    assert float(errors.offset_codes.std()) == pytest.approx(0.7, rel=0.03)
    assert abs(float(torch.corrcoef(torch.stack([errors.gain.flatten(), errors.offset_codes.flatten()]))[0, 1])) < 0.03
    assert convert.AdcErrors.draw(load_hardware({}).adc, (1, 1, 1), 0, torch.device("cpu")) is None


def test_nonlinearity_bends_by_so_many_codes() -> None:
    straight, x = reading({"bits": 12, "method": "max"})
    bent, _ = reading({"bits": 12, "method": "max", "nonlinearity_codes": 40.0})
    operator = bent._make_operator()
    t = torch.linspace(-1, 1, 2001)[None, :, None]
    product = torch.zeros(2001, 1)
    conversion = convert.Conversion(torch.ones(1, 1), 2047, None, 40.0)
    elementwise.digitise(t * 2047, None, 0, 0, conversion, 1.0, product)
    deviation = product.flatten() - t.flatten() * 2047
    assert float(deviation.max()) == pytest.approx(40, abs=1)
    assert float(deviation.min()) == pytest.approx(-40, abs=1)
    assert abs(float(t.flatten()[deviation.argmax()]) - 3**-0.5) < 0.02
    assert deviation[[0, 1000, 2000]].abs().max() <= 0.5  # none at the ends and at 0
    assert operator.conversion.nonlinearity_codes == 40
    assert not torch.equal(bent(x), straight(x))


@pytest.mark.parametrize(("granularity", "shape"), [("layer", (1, 1)), ("plane", (1, 3)), ("tile", (2, 3))])
@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_the_granularity_of_adc_ranges(granularity: str, shape: tuple[int, int], method: str) -> None:
    matrix, x = reading({"granularity": granularity, "method": method})
    assert matrix.adc_range is not None
    assert matrix.adc_range.shape == shape
    matrix(x)


def test_the_mse_range_loses_least() -> None:
    """Over the calibration currents, against ranges about it; few bits gain most by clipping."""
    columns = torch.randn(1, 400, 1, 50, generator=torch.Generator().manual_seed(0))

    def loss(full_scale: float, bits: int) -> float:
        step = full_scale / (2 ** (bits - 1) - 1)
        return float(
            ((columns / step).round().clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * step - columns)
            .square()
            .mean()
        )

    for bits in (3, 5, 8):
        adc = load_hardware({"adc": {"bits": bits, "method": "mse"}}).adc
        assert adc is not None
        assert adc.range == "calibrated"
        signals = MagnitudeHistogram(1, MANTISSA_BITS)
        signals.add(columns.view(1, -1))
        chosen = float(ranges.calibrated_adc_range(adc, signals))
        assert loss(chosen, bits) < 1.01 * min(
            loss(factor * float(columns.abs().max()), bits) for factor in torch.linspace(0.1, 1, 40).tolist()
        )
        assert chosen < 0.95 * float(columns.abs().max()) or bits == 8
