"""The mapped matrix as a whole: exactness where the hardware is ideal, the sizes of its errors, calibration, files."""

from __future__ import annotations

import copy
import io
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim import load_hardware
from memsim.crossbar import encode
from memsim.crossbar.calibrator import RANGES
from memsim.crossbar.convert import dac_codes
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.program import mean_window
from memsim.crossbar.read_context import ReadContext
from memsim.device import DeviceModel, state_means
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from tests.crossbar.by_hand import columns_of, small_matrix, spec_of, statistics_of
from tests.crossbar.matrices import from_weight

IDEAL = {"cell": "ideal", "dac": None, "adc": None, "read_noise": None}


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def quantised(matrix: MappedMatrix) -> Tensor:
    """[out, in] float64: the weights that the levels and scales mean."""
    return matrix.levels.double() * matrix.scale.double()[:, None]


# Exactness


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 9),
    st.integers(2, 16),
    st.integers(1, 20),
    st.sampled_from(["per_tensor", "per_channel"]),
    st.sampled_from([{}, {"encoding": "multilevel", "cell_bits": 2}, {"encoding": "multilevel", "cell_bits": 4}]),
)
def test_ideal_hardware_multiplies_by_the_quantised_weights(
    out: int, width: int, n: int, bits: int, rows: int, scale: str, encoding: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(out * width + bits)
    weights = {"bits": bits, "scale": scale, **encoding}
    spec = load_hardware({"base": "ideal", "weights": weights, "tile": {"rows": rows}})
    weight = torch.randn(out, width, generator=generator)
    x = torch.randn(n, width, generator=generator)
    matrix = from_weight("layer", weight, spec, 0)
    got = matrix(x)
    bound = 1e-6 * (x.abs().double() @ quantised(matrix).abs().T)  # float32 rounding of the sum, term by term
    assert ((got - x.double() @ quantised(matrix).T).abs() <= bound + 1e-12).all()
    assert got.shape == (n, out)


def test_sixteen_bits_are_nearly_float() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(30, 100, generator=generator), torch.randn(50, 100, generator=generator)
    spec = load_hardware({"base": "ideal", "weights": {"bits": 16}})
    matrix = from_weight("layer", weight, spec, 0)
    # weights off by up to half a step: 100 of them, uniform, against inputs of variance 1
    step = float(matrix.scale.max())
    assert (matrix(x) - x @ weight.T).abs().max() <= 5 * (100 / 12) ** 0.5 * step + 1e-5
    assert relative_error(matrix(x), x @ weight.T) < 1e-4


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(2, 12), st.integers(2, 8), st.sampled_from([3, 128]))
def test_the_digital_twin_multiplies_quantised_inputs(out: int, width: int, dac: int, bits: int, rows: int) -> None:
    twin = spec_of(bits, rows, dac={"bits": dac}).digital_twin()
    matrix = small_matrix(twin, out, width)
    assert matrix.states is None
    assert matrix.input_range is not None
    x = 2 * torch.randn(30, width, generator=torch.Generator().manual_seed(1))
    codes = dac_codes(x, float(matrix.input_range), dac).double()
    step = matrix.input_range.double() / (2 ** (dac - 1) - 1)
    wanted = (codes * step) @ quantised(matrix).T
    bound = 1e-6 * ((codes * step).abs() @ quantised(matrix).abs().T)
    assert ((matrix(x) - wanted).abs() <= bound + 1e-12).all()


def test_the_twin_has_the_levels_and_the_input_range_of_the_chip() -> None:
    spec = spec_of(4)
    chip, twin = small_matrix(spec), small_matrix(spec.digital_twin())
    assert torch.equal(chip.levels, twin.levels)
    assert torch.equal(chip.scale, twin.scale)
    assert torch.equal(chip.input_range, twin.input_range)


# Sizes of errors: physics.md, section 3, for 512 x 512 Gaussian weights at 3 bits


@pytest.fixture(scope="module")
def gaussian() -> tuple[Tensor, Tensor]:
    """(weights [512, 512], inputs [400, 512])."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(512, 512, generator=generator), torch.randn(400, 512, generator=generator)


def product_error(matrix: MappedMatrix, x: Tensor) -> float:
    return relative_error(matrix(x), x.double() @ quantised(matrix).T)


def shared_scale(weight: Tensor, spec: HardwareSpec, x: Tensor) -> MappedMatrix:
    """At 0.6 of the MinMax scale of the whole matrix: what the single effects of the table have in common."""
    scale = 0.6 * weight.abs().max()[None] / 3
    return MappedMatrix.from_levels("layer", encode.quantise(weight, scale, 3), scale, spec, 0, statistics_of(x))


def test_the_error_of_the_physical_spec(gaussian: tuple[Tensor, Tensor]) -> None:
    weight, x = gaussian
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}})
    error = product_error(from_weight("layer", weight, spec, 0, statistics_of(x)), x)
    assert error == pytest.approx(0.09, abs=0.005)


@pytest.mark.parametrize(
    ("name", "matrix_percent", "percent"),
    [("write-verify", 5.1, 5.5), ("incremental-reset", 0.75, 2.3), ("multilevel", 1.05, 2.4)],
)
def test_the_errors_of_closed_loops(
    name: str, matrix_percent: float, percent: float, gaussian: tuple[Tensor, Tensor]
) -> None:
    """Of the programmed weights alone, and of the product through the 8-bit converters and the voltage law of 0.4 V.

    The law alone errs by 1.7 %, the converters by 1.4 %. An eighth on both sides is more than chips differ.
    """
    weight, x = gaussian
    spec = load_hardware({"base": name, "weights": {"bits": 3}})
    matrix = from_weight("layer", weight, spec, 0, statistics_of(x))
    assert matrix.programming_error() == pytest.approx(matrix_percent / 100, rel=0.125)
    assert product_error(matrix, x) == pytest.approx(percent / 100, rel=0.125)


@pytest.mark.parametrize(("name", "percents"), [("incremental-reset", (2.7, 6.2)), ("multilevel", (3.3, 7.7))])
def test_relaxation_adds_its_error(
    name: str, percents: tuple[float, float], gaussian: tuple[Tensor, Tensor], device: DeviceModel
) -> None:
    """Of the programmed weights: what physics.md measured for 2 and 5 %, and what the currents of the cells make of it.

    A relaxation of 1 moves the state of a cell by its distance from the state that conducts nothing.
    """
    weight, _ = gaussian
    llrs, hhrs = device.reference_conductances_siemens

    def mapped(relaxation: float | None) -> MappedMatrix:
        spec = load_hardware({"base": name, "weights": {"bits": 3}, "programming": {"relaxation": relaxation}})
        return from_weight("layer", weight, spec, 0)

    plain = mapped(None)
    assert plain.states is not None
    window = mean_window(plain.spec.programming, device, plain.tiling.cell_bits)
    by_slice = ((plain.states.double() - llrs / (llrs - hhrs)) / window).square().sum(dim=(1, 2, 3, 4))
    significances = encode.slice_significances(3, plain.tiling.cell_bits).double()
    unit = float((significances.square() * by_slice).sum().sqrt() / plain.levels.double().norm())
    for relaxation, percent in zip((0.02, 0.05), percents, strict=True):
        error = mapped(relaxation).programming_error()
        assert error == pytest.approx(math.hypot(plain.programming_error(), relaxation * unit), rel=0.01)
        assert error == pytest.approx(percent / 100, rel=0.125)


def test_copies_average_their_errors(gaussian: tuple[Tensor, Tensor]) -> None:
    """Four cells a bit spread half as much."""
    weight = gaussian[0][:128]
    errors = []
    for copies in (1, 4):
        spec = load_hardware({"base": "physical", "weights": {"bits": 3, "copies": copies}})
        matrix = from_weight("layer", weight, spec, 0)
        assert matrix.states is not None
        assert matrix.states.shape == (2, 2, copies, 512, 128)
        errors.append(matrix.programming_error())
    # a relative standard error of the norm of 65,000 errors is 0.5 % with their tails
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.025)


def test_programming_is_reported() -> None:
    matrix = small_matrix(spec_of(4, programming={"scheme": "incremental_reset"}), 20, 30)
    assert matrix.programming is not None
    assert matrix.programming.scheme == "incremental_reset"
    assert matrix.states is not None
    assert matrix.programming.cells == matrix.states.numel() == 3 * 2 * 20 * 30
    stored = MappedMatrix.from_tensors("layer", matrix.spec, dict(matrix.state_dict()))
    assert stored.programming is None  # it was not programmed here
    assert small_matrix(spec_of(4, cell="ideal")).programming is None


def test_the_error_of_the_paper_spec(gaussian: tuple[Tensor, Tensor]) -> None:
    """16 % at the largest weight of physics.md's matrix; which weight is the largest moves it by a percent or two."""
    weight, x = gaussian
    spec = load_hardware({"base": "paper", "weights": {"bits": 3}, "programming": {"cycling": {"pulses_per_round": 4}}})
    error = product_error(from_weight("layer", weight, spec, 0, statistics_of(x)), x)
    assert error == pytest.approx(0.165, abs=0.02)


@pytest.mark.parametrize(("precision", "width", "percent"), [(4, 4, 1.5), (2, 6, 5.8)])
def test_the_error_of_the_adc_alone(
    precision: int, width: int, percent: float, gaussian: tuple[Tensor, Tensor]
) -> None:
    weight, x = gaussian
    adc = {"range": "fixed", "precision_bits": precision, "range_bits": width}
    spec = spec_of(3, 128, cell="ideal", read_noise=None, adc=adc, dac={"bits": None, "method": "max"})
    assert product_error(shared_scale(weight, spec, x), x) == pytest.approx(percent / 100, rel=0.1)


def test_the_error_of_the_spread_alone(gaussian: tuple[Tensor, Tensor]) -> None:
    weight, x = gaussian
    spec = spec_of(3, 128, read_noise=None, adc=None, dac={"bits": None, "vmax_volts": 0.05, "method": "max"})
    matrix = shared_scale(weight, spec, x)
    assert product_error(matrix, x) == pytest.approx(0.106, rel=0.1)
    assert matrix.programming_error() == pytest.approx(product_error(matrix, x), rel=0.1)


@pytest.mark.parametrize(("gain", "percent"), [("calibrated", 2.3), ("voltage", 3.5)])
def test_the_error_of_the_voltage_law_alone(
    gain: str, percent: float, gaussian: tuple[Tensor, Tensor], device: DeviceModel
) -> None:
    weight, x = gaussian
    dac = {"bits": None, "vmax_volts": 0.6, "method": "max"}
    spec = spec_of(3, 128, read_noise=None, adc=None, dac=dac)
    matrix = shared_scale(weight, spec, x)
    without_spread(matrix, device)
    if gain == "voltage":  # the paper's: over positive voltages alone
        volts = torch.linspace(0.1, 0.6, 501, dtype=torch.float64)
        currents = device.window_amperes(volts) * mean_window(spec.programming, device)
        matrix.gain_per_ampere = (volts / currents).mean() / 0.6
    assert product_error(matrix, x) == pytest.approx(percent / 100, abs=0.007)


def without_spread(matrix: MappedMatrix, device: DeviceModel) -> None:
    """Every cell in the mean state of its kind."""
    lrs, hrs = state_means(device)
    is_set = matrix.tiling.digits(matrix.levels).view(matrix.tiling.shape) > 0
    matrix.states = torch.where(is_set, lrs, hrs)


def test_programming_error_is_nothing_without_spread(device: DeviceModel) -> None:
    matrix = small_matrix(spec_of(4), 20, 30)
    assert 0.02 < matrix.programming_error() < 0.3
    without_spread(matrix, device)
    assert matrix.programming_error() < 1e-6
    assert small_matrix(spec_of(4, cell="ideal")).programming_error() == 0
    zero = MappedMatrix.from_levels("zero", torch.zeros(3, 3, dtype=torch.int8), torch.ones(3), spec_of(3), 0)
    assert zero.programming_error() == 0  # there is nothing to relate an error to


# Noise keys


def test_noise_is_keyed_by_seed_trial_name_batch_and_call() -> None:
    x = torch.randn(4, 5)
    keys: list[dict[str, Any]] = [{}, {"seed": 1}, {"trial": 1}, {"batch": "b"}]

    def read(name: str = "layer", **key: Any) -> Tensor:
        matrix = small_matrix(spec_of(3, adc=None))
        matrix.name, matrix.reads = name, ReadContext(**key)
        first, second = matrix(x), matrix(x)
        assert not torch.equal(first, second)
        matrix.reads.begin(key.get("batch", ""))
        assert torch.equal(matrix(x), first)
        return first

    reads = [read(**key) for key in keys] + [read("other")]
    assert torch.equal(read(), reads[0])
    for i, a in enumerate(reads):
        for b in reads[:i]:
            assert not torch.equal(a, b)


def test_matrices_do_not_disturb_each_others_noise() -> None:
    one, two = small_matrix(spec_of(3, adc=None)), small_matrix(spec_of(3, adc=None))
    one.name, two.name = "one", "two"
    x = torch.randn(4, 5)

    def reads(order: list[MappedMatrix]) -> dict[str, Tensor]:
        shared = ReadContext(seed=3)
        for matrix in order:
            matrix.reads = shared
        shared.begin("batch")
        return {matrix.name: matrix(x) for matrix in order}

    forth, back = reads([one, two]), reads([two, one])
    assert all(torch.equal(forth[name], back[name]) for name in forth)
    assert not torch.equal(forth["one"], forth["two"])


# Inputs


SPECS = {
    "physical": {},
    "voltages": {"dac": {"bits": None}},
    "fixed": {"adc": {"range": "fixed", "precision_bits": 4, "range_bits": 4}},
    "twin": {"cell": "ideal", "adc": None, "read_noise": None},
    "ideal": IDEAL,
}


@pytest.mark.parametrize("changes", SPECS.values(), ids=SPECS)
def test_shapes_and_strides(changes: dict[str, Any]) -> None:
    matrix = small_matrix(spec_of(3, **{"read_noise": None, **changes}))
    x = torch.randn(2, 6, 5)
    y = matrix(x)
    assert y.shape == (2, 6, 3)
    assert torch.equal(matrix(x[1, 2]), y[1, 2])
    assert torch.equal(matrix(x.view(12, 5)), y.view(12, 3))
    assert torch.equal(matrix(x[0].T.contiguous().T), y[0])  # rows that do not lie in a row
    assert torch.equal(matrix(x[0, :1].expand(4, 5)), y[0, :1].expand(4, 3))
    assert torch.equal(matrix(x[:, ::2]), y[:, ::2])
    assert torch.equal(matrix(x.permute(1, 0, 2)), y.permute(1, 0, 2))
    assert matrix(x[:0]).shape == (0, 6, 3)
    assert matrix(x[:, :0]).shape == (2, 0, 3)
    with pytest.raises(ValueError, match=r"layer: its input has 6 features, the matrix has 5"):
        matrix(torch.randn(2, 6))  # fits the last tile, whose sixth row is empty
    with pytest.raises(ValueError, match=r"4 features"):
        matrix(torch.randn(2, 4))
    with pytest.raises(TypeError, match=r"layer: .*int64"):
        matrix(torch.ones(2, 5, dtype=torch.int64))


@pytest.mark.parametrize("changes", SPECS.values(), ids=SPECS)
def test_dtypes_and_gradients(changes: dict[str, Any]) -> None:
    matrix = small_matrix(spec_of(3, **{"read_noise": None, **changes}))
    x = torch.randn(4, 5).bfloat16().half()  # exact in all of them
    wanted = matrix(x.float())
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        got = matrix(x.to(dtype))
        assert got.dtype == dtype
        assert torch.equal(got, wanted.to(dtype))
    assert torch.equal(matrix(x.float().requires_grad_()).detach(), wanted)
    with torch.no_grad():
        assert torch.equal(matrix(x.float()), wanted)


def test_nan_and_uncalibrated_reads_name_the_layer() -> None:
    matrix = small_matrix(spec_of(3))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(FloatingPointError, match="layer: its input holds NaN or Inf"):
            matrix(torch.tensor([1, 2, bad, 4, 5.0]))
    for changes in ({}, {"adc": None}, {"cell": "ideal"}, {"cell": "ideal", "dac": None, "read_noise": None}):
        fresh = from_weight("enc.7", torch.randn(3, 5), spec_of(3, **changes), 0)
        assert not fresh.is_calibrated
        with pytest.raises(InputError, match=r"enc\.7: .*--calibrate DATA .*map_model"):
            fresh(torch.randn(2, 5))
    assert from_weight("enc.7", torch.randn(3, 5), spec_of(3, **IDEAL), 0).is_calibrated
    with pytest.raises(InputError, match=r"enc\.7: .*of 4 features, the matrix has 5"):
        fresh.calibrate(statistics_of(torch.randn(9, 4)))


@pytest.mark.parametrize("scale", ["per_channel", "per_tensor"])
def test_outputs_whose_weights_are_all_zero_give_nothing(scale: str) -> None:
    """As those of the padding token of a language model do: their cells' errors are of a scale that means nothing."""
    generator = torch.Generator().manual_seed(3)
    weight, x = 0.01 * torch.randn(6, 40, generator=generator), torch.randn(50, 40, generator=generator)
    weight[2] = 0
    spec = spec_of(3, weights={"bits": 3, "scale": scale})
    y = from_weight("layer", weight, spec, 0, statistics_of(x))(x)
    assert (y.norm(dim=0)[2] == 0) == (scale == "per_channel")
    assert y.norm(dim=0)[2] < 0.5 * (x @ weight.T).norm(dim=0).max()
    assert y.norm(dim=0)[[0, 1, 3, 4, 5]].min() > 0
    assert not from_weight("layer", 0 * weight, spec, 0, statistics_of(x))(x).any()


@pytest.mark.parametrize(
    "changes", [{}, {"wires": {"ohms": 1, "solve": "effective"}}, {"dac": {"bits": 8, "range": "per_vector"}}]
)
def test_inputs_and_weights_that_are_all_zero_leave_a_gain(changes: dict[str, Any]) -> None:
    """A layer that training has killed gets no input: what calibrates it is zeros alone."""
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(6, 40, generator=generator), torch.randn(50, 40, generator=generator)
    spec = spec_of(3, **changes)
    usual = from_weight("layer", weight, spec, 0, statistics_of(x)).gain_per_ampere
    learned = replace(statistics_of(0 * x), full_scale=3.0)  # as the range of a trained layer
    for statistics, matrix in ((statistics_of(0 * x), weight), (learned, weight), (statistics_of(x), 0 * weight)):
        dead = from_weight("layer", matrix, spec, 0, statistics)
        assert 0.5 * usual < dead.gain_per_ampere < 2 * usual
        assert dead(x).isfinite().all()
        assert dead(0 * x).abs().max() < 0.01 * (x @ weight.T).abs().max()


def test_calibrating_again_takes_effect() -> None:
    matrix = small_matrix(spec_of(3, read_noise=None))
    x = torch.randn(20, 5)
    first = matrix(x)
    matrix.calibrate(statistics_of(0.1 * torch.randn(500, 5)))
    clipped = matrix(x)
    assert clipped.norm() < 0.5 * first.norm()


def test_calibration_hits_the_adc_range_that_the_read_needs() -> None:
    """Method max on a sample of all rows: the same inputs use the whole ADC and never clip."""
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(3))
    adc = {"range": "calibrated", "bits": 8, "method": "max"}
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(3))
    matrix = from_weight("layer", weight, spec_of(4, adc=adc, read_noise=None), 0, statistics_of(x))
    matrix.reads.count_clips = True
    matrix(x)
    assert int(matrix.clips.adc_clipped) == 0
    codes = columns_of(matrix, x)[0][:, :, :9].round().unflatten(2, (3, 3))
    torch.testing.assert_close(codes.abs().amax((0, 1, 3)), torch.full((3,), 127.0))


def test_the_fitted_gain_makes_a_weight_read_as_itself() -> None:
    """Over many cells the product regresses on the digital one with slope 1 (spread: 9 % / sqrt(weights) and less)."""
    matrix = small_matrix(spec_of(3, 128, adc=None), 300, 300)
    x = torch.randn(200, 300)
    wanted = x.double() @ quantised(matrix).T
    slope = float((matrix(x) * wanted).sum() / wanted.square().sum())
    assert slope == pytest.approx(1, abs=0.005)


# Files


@pytest.mark.parametrize(
    ("changes", "same_cells"),
    [
        ({"adc": {"bits": 4}}, True),
        ({"adc": {"gain_error": 0.1}}, True),
        ({"adc": None, "read_noise": None}, True),
        ({"dac": {"bits": 5}}, True),
        ({"wires": {"ohms": 2.0, "solve": "effective"}}, True),
        ({"programming": {"relaxation": 0.1}}, False),
        ({"programming": {"exact": True}}, False),
        ({"read_disturb": "settle"}, False),
        ({"retention": {"age_seconds": 1e6}}, False),
        ({"faults": {"stuck_lrs": 0.3}}, False),
        ({"weights": {"copies": 2}}, False),
        ({"cell": "ideal"}, False),
    ],
)
def test_under_another_spec_cells_are_kept_if_it_programs_them_alike(changes: dict[str, Any], same_cells: bool) -> None:
    matrix, statistics = small_matrix(spec_of()), statistics_of(torch.randn(99, 5))
    spec = matrix.spec.with_settings(changes)
    other = matrix.under(spec, 1, statistics)
    assert (other.states is matrix.states) == same_cells
    anew = MappedMatrix.from_levels("layer", matrix.levels, matrix.scale, spec, 1, statistics)
    x = torch.randn(20, 5)
    assert torch.equal(other(x), anew(x))
    assert other.programming == anew.programming
    assert other.spec == spec
    assert matrix.spec == spec_of()


def test_arrays_between_wires_are_solved_once_for_specs_that_read_them_alike() -> None:
    matrix = small_matrix(spec_of(wires={"ohms": 2.0, "solve": "effective"}))
    statistics = statistics_of(torch.randn(99, 5))
    quiet = matrix.under(matrix.spec.with_settings({"read_noise": None}), 1, statistics)
    assert quiet._ir_drop is matrix._ir_drop
    assert matrix._ir_drop
    for changes in ({"wires.ohms": 1.0}, {"dac.vmax_volts": 0.3}):
        spec = matrix.spec.with_settings(changes)
        other = matrix.under(spec, 1, statistics)
        anew = MappedMatrix.from_levels("layer", matrix.levels, matrix.scale, spec, 1, statistics)
        x = torch.randn(20, 5)
        assert torch.equal(other(x), anew(x))


@pytest.fixture(params=["physical", "paper", "ideal", "twin"])
def spec(request: pytest.FixtureRequest) -> HardwareSpec:
    name = request.param
    base = load_hardware("physical" if name == "twin" else name)
    base = base.with_settings({"weights.bits": 3, "tile": {"rows": 4, "cols": 2}})
    if base.programming.cycling:
        base = base.with_settings({"programming.cycling.pulses_per_round": 2})
    return base.digital_twin() if name == "twin" else base


def test_a_matrix_survives_safetensors_pickle_and_copy(spec: HardwareSpec) -> None:
    matrix = small_matrix(spec)
    x = torch.randn(20, 5)

    def same(other: MappedMatrix) -> None:
        matrix.reads.begin("again")
        other.reads.begin("again")
        assert torch.equal(matrix(x), other(x))

    stored = safetensors.torch.load(safetensors.torch.save(matrix.state_dict()))
    same(MappedMatrix.from_tensors("layer", spec, stored))
    matrix(x)  # with what it keeps between reads
    same(copy.deepcopy(matrix))
    same(pickle.loads(pickle.dumps(matrix)))
    buffer = io.BytesIO()
    torch.save(matrix.state_dict(), buffer)
    buffer.seek(0)
    other = small_matrix(spec, seed=2)
    other.name = "layer"
    other(x)
    other.load_state_dict(torch.load(buffer))  # after a read: no operator of the old cells may stay
    same(other)
    uncalibrated = MappedMatrix.from_levels("layer", other.levels, other.scale, spec, 9)
    uncalibrated.load_state_dict(stored)
    same(uncalibrated)


def test_a_cast_leaves_the_cells_alone() -> None:
    for changes in ({"read_noise": None}, {"read_noise": None, "adc": None}, IDEAL):
        matrix = small_matrix(spec_of(3, **changes))
        x = torch.randn(20, 5)
        wanted = matrix(x)
        before = {key: value.clone() for key, value in matrix.state_dict().items()}
        for cast in (matrix.double, matrix.half, matrix.bfloat16, lambda m=matrix: m.to("cpu", torch.float64)):
            assert cast() is matrix
            assert torch.equal(matrix(x), wanted)
        assert all(torch.equal(value, before[key]) for key, value in matrix.state_dict().items())
        assert all(value.dtype == before[key].dtype for key, value in matrix.state_dict().items())


def test_tensors_that_do_not_fit_are_refused() -> None:
    matrix = small_matrix(spec_of(3))
    stored = dict(matrix.state_dict())
    assert set(stored) == {"levels", "scale", "states", *RANGES}
    for key in ("levels", "scale"):
        with pytest.raises(InputError, match=rf"layer: .*{key}"):
            MappedMatrix.from_tensors("layer", spec_of(3), {k: v for k, v in stored.items() if k != key})
    with pytest.raises(InputError, match=r"layer: states are None, but 3 bits need \[2, 2, 1, 5, 3\]"):
        MappedMatrix.from_tensors("layer", spec_of(3), {k: v for k, v in stored.items() if k != "states"})
    with pytest.raises(InputError, match=r"layer: states are \[2, 2, 1, 5, 3\], but 4 bits need \[3, 2, 1, 5, 3\]"):
        MappedMatrix.from_tensors("layer", spec_of(4), stored)
    with pytest.raises(InputError, match=r"layer: states are \[2, 2, 1, 5, 3\], but 3 bits need None"):
        MappedMatrix.from_tensors("layer", spec_of(3, cell="ideal"), stored)
    with pytest.raises(InputError, match=r"layer: scale is \[4\]"):
        MappedMatrix.from_tensors("layer", spec_of(3), stored | {"scale": torch.ones(4)})


def test_bits_must_be_chosen() -> None:
    with pytest.raises(ValueError, match=r"weights\.bits"):
        from_weight("layer", torch.ones(2, 2), load_hardware("physical"), 0)
