"""Matrices on cells of kind `levels`: their reads against a sum over single cells, time, compensation, encodings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.statistics import InputStatistics
from memsim.device import load_device
from memsim.device.levels.device import LevelsDevice
from memsim.device.noise import BOLTZMANN_JOULES_PER_KELVIN, ELEMENTARY_CHARGE_COULOMBS
from memsim.errors import InputError
from memsim.hardware import HardwareSpec, load_hardware
from memsim.hardware.options import choose_hardware
from memsim.nn.chip import trim
from memsim.nn.transfer import _statistics_of
from memsim.post_training.fitting import LayerFit
from tests.crossbar.matrices import from_weight

OUT, IN = 12, 40
GENERATOR = torch.Generator().manual_seed(4)
WEIGHT = torch.randn(OUT, IN, generator=GENERATOR)
INPUTS = torch.randn(96, IN, generator=GENERATOR).clamp(-3, 3)
MONTH = 2592000.0


def statistics() -> InputStatistics:
    return _statistics_of(INPUTS, 3.0)


def spec_of(cell: str, **keys: Any) -> HardwareSpec:
    exact = {"dac": {"bits": None}, "adc": None, "read_noise": None}
    weights = {"bits": 4} | keys.pop("weights", {})
    spec = load_hardware({"base": "physical", "cell": cell, "tile": {"rows": 16}, **exact, "weights": weights, **keys})
    return spec.for_layer("layer")


def matrix_of(cell: str, seed: int = 1, **keys: Any) -> MappedMatrix:
    return from_weight("layer", WEIGHT, spec_of(cell, **keys), seed, statistics())


def by_hand(matrix: MappedMatrix, current: Any) -> torch.Tensor:
    """[n, out], in the units of the product, of `current(volts [n, 1, in, 1], microsiemens [slices, in, out])`."""
    assert matrix.states is not None
    assert matrix.input_range is not None
    device = load_device(matrix.spec.cell)
    assert isinstance(device, LevelsDevice)
    assert matrix.spec.dac is not None
    g = (1 - matrix.states.double().mean(dim=2)) * device.file.microsiemens.high  # [slices, 2, in, out]
    u = (INPUTS / matrix.input_range).clamp(-1, 1).double() * matrix.spec.dac.vmax_volts
    volts = u[:, None, :, None]
    columns = (current(volts, g[:, 0]) - current(volts, g[:, 1])).sum(dim=2)  # [n, slices, out]
    product = torch.einsum("s,nso->no", matrix.arrays.significances().double(), columns)
    assert matrix.gain_per_ampere is not None
    return product * float(matrix.gain_per_ampere) * float(matrix.input_range) * matrix.scale.double()


def ohmic(volts: torch.Tensor, microsiemens: torch.Tensor) -> torch.Tensor:
    return volts * microsiemens * 1e-6


def milo(volts: torch.Tensor, microsiemens: torch.Tensor) -> torch.Tensor:
    log = torch.log10(microsiemens * 1e-6)
    second = 1.388e-4 * log**3 + 1.541e-3 * log**2 + 5.711e-3 * log + 7.063e-3
    third = 8.871e-5 * log**2 + 6.7919e-4 * log + 1.2968e-3
    return microsiemens * 1e-6 * volts + second * volts**2 + third * volts**3


@pytest.mark.parametrize(("cell", "current"), [("pcm-joshi", ohmic), ("rram-milo", milo)])
@pytest.mark.parametrize("encoding", ["binary_planes", "analog"])
def test_products_are_sums_of_currents_of_cells(cell: str, current: Any, encoding: str) -> None:
    matrix = matrix_of(cell, weights={"encoding": encoding})
    expected = by_hand(matrix, current)
    # laws are tabulated: 1e-3 of the curved part
    torch.testing.assert_close(matrix(INPUTS).double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_curved_currents_go_through_converters() -> None:
    """With fine converters the columns are those without, so that the tables of DAC codes drive the same voltages."""
    fine = {"dac": {"bits": 12}, "adc": {"range": "calibrated", "bits": 14, "method": "max"}}
    plain, converted = matrix_of("rram-milo")(INPUTS), matrix_of("rram-milo", **fine)(INPUTS)
    assert float((converted - plain).norm() / plain.norm()) < 3e-3


def test_noise_of_every_read() -> None:
    """The variance of reads is that of Johnson, shot and the device's noise of all cells of a column."""
    matrix = matrix_of("sonos", read_noise=NOISE)
    assert matrix.states is not None
    assert matrix.input_range is not None
    x = INPUTS[:1].expand(4000, IN)
    found = matrix(x).double().var(dim=0)
    g = (1 - matrix.states.double()[:, :, 0]) * 16  # microsiemens
    white = 0.125804 * (1 - torch.exp(-g / 2.15366)) * 1e-6
    volts = (INPUTS[0] / matrix.input_range).clamp(-1, 1).double()[:, None] * 0.4
    thermal = 4 * BOLTZMANN_JOULES_PER_KELVIN * 300 + 2 * ELEMENTARY_CHARGE_COULOMBS * volts.abs()
    variance = ((volts * white).square() + thermal * 1e8 * g * 1e-6).sum(dim=(1, 2))  # [slices, out]
    significances = matrix.arrays.significances().double()
    amperes = torch.einsum("s,so->o", significances.square(), variance)
    assert matrix.gain_per_ampere is not None
    size = float(matrix.gain_per_ampere) * float(matrix.input_range) * matrix.scale.double()
    torch.testing.assert_close(found, amperes * size.square(), rtol=0.12, atol=0)
    assert float((matrix(x[:1]) - matrix_of("sonos")(x[:1])).abs().max()) > 0


def test_line_resistance_refuses_curved_currents() -> None:
    with pytest.raises(InputError, match="rram-milo has more; set wires to none"):
        matrix_of("rram-milo", wires={"ohms": 1.0})


def test_drift_is_taken_out_by_compensation() -> None:
    exact = INPUTS @ WEIGHT.T

    def error(way: str | None) -> float:
        matrix = matrix_of("pcm-nandakumar", read_at_seconds=MONTH)
        if way is not None:
            trim(matrix, statistics(), way, 1, WEIGHT, LayerFit("nearest"))
        return float((matrix(INPUTS) - exact).norm() / exact.norm())

    none, layer, column = (error(way) for way in (None, "layer", "column"))
    assert none > 0.4  # g falls to (1 + 2592000 / 20)^-0.049
    assert layer < 0.2
    assert column < 1.1 * layer


def test_one_gain_for_a_layer() -> None:
    matrix = matrix_of("pcm-nandakumar", read_at_seconds=MONTH)
    trim(matrix, statistics(), "layer", 1, WEIGHT, LayerFit("nearest"))
    assert matrix.gain_trim is not None
    assert matrix.offset_trim is not None
    assert float(matrix.gain_trim.min()) == float(matrix.gain_trim.max())
    assert 1.4 < float(matrix.gain_trim.max()) < 2.2
    assert not matrix.offset_trim.any()


AGEING = ("pcm-hermes-pair", "cmo-hfox", "sonos", "rram-wan", "rram-relaxation")
NOISE = {"bandwidth_hz": 1e8, "temperature_kelvin": 300.0, "shot_scale": 1.0, "johnson_scale": 1.0}


def compensated(cell: str, way: str, seed: int = 1, seconds: float = MONTH, **keys: Any) -> MappedMatrix:
    matrix = matrix_of(cell, seed, read_at_seconds=seconds, **keys)
    trim(matrix, statistics(), way, seed, WEIGHT, LayerFit("nearest"))
    return matrix


@pytest.mark.parametrize("cell", AGEING)
@pytest.mark.parametrize(("seed", "seconds"), [(1, MONTH), (2, MONTH), (1, 3600.0)])
def test_compensation_of_a_layer_is_the_gain_of_this_chip_s_cells_at_this_time(
    cell: str, seed: int, seconds: float
) -> None:
    """Least squares over the currents of its own cells, which noise accumulates in and the noise of a read does not."""
    matrix = compensated(cell, "layer", seed, seconds, read_noise=NOISE)
    own, wanted = by_hand(matrix, ohmic), INPUTS.double() @ WEIGHT.double().T
    expected = float((own * wanted).sum() / own.square().sum())
    if matrix.gain_trim is None:  # cells that move at random leave a gain that helps no rows but those it is fitted to
        assert expected == pytest.approx(1, abs=0.01)
    else:
        assert float(matrix.gain_trim[0, 0]) == pytest.approx(expected, rel=1e-3)
    assert matrix.trim_vectors == len(INPUTS)  # whose reads the cost counts


@pytest.mark.parametrize("cell", AGEING)
def test_compensation_of_columns_is_that_of_one_chip_and_not_of_its_noise(cell: str) -> None:
    fresh = torch.randn(400, IN, generator=torch.Generator().manual_seed(9)).clamp(-3, 3)
    exact = fresh @ WEIGHT.T

    def error(matrix: MappedMatrix) -> float:
        return float((matrix(fresh) - exact).norm() / exact.norm())

    own, other = compensated(cell, "column"), compensated(cell, "column", seed=2)
    assert own.gain_trim is not None
    assert other.gain_trim is not None
    assert error(own) < 1.02 * error(matrix_of(cell, read_at_seconds=MONTH))
    noisy = compensated(cell, "column", read_noise=NOISE)
    assert noisy.gain_trim is not None
    torch.testing.assert_close(noisy.gain_trim, own.gain_trim, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own.gain_trim, other.gain_trim, rtol=1e-3)
    mine = error(own)
    own.set_trims(other.gain_trim, other.offset_trim)
    assert error(own) > mine


def test_two_times_are_the_same_chip() -> None:
    at_once, hour, month = (matrix_of("pcm-nandakumar", read_at_seconds=t).states for t in (None, 3600.0, MONTH))
    assert at_once is not None
    assert hour is not None
    assert month is not None
    high = at_once < 0.5  # cells with a conductance to speak of
    changes = torch.stack([(1 - states[high].double()) / (1 - at_once[high].double()) for states in (hour, month)])
    assert float(torch.corrcoef(changes)[0, 1]) > 0.4  # each with its own exponent of drift
    assert torch.equal(month, matrix_of("pcm-nandakumar", read_at_seconds=MONTH).states)


def test_write_verify_ends_within_the_tolerance() -> None:
    verified = matrix_of(
        "pcm-joshi",
        weights={"encoding": "multilevel", "cell_bits": 3},
        programming={"scheme": "write_verify", "tolerance": 0.02, "tries": 20, "verify": {"noise": None}},
    )
    report = verified.programming
    assert report is not None
    assert report.failures == 0
    assert 1 < report.pulses / report.cells < 4
    assert verified.states is not None
    targets = 1 - torch.linspace(0.01, 1, 8, dtype=torch.float64)
    assert float((verified.states.double().flatten()[:, None] - targets).abs().amin(dim=1).max()) < 0.0205


@pytest.mark.parametrize("bits", [8, 9, 16])
def test_analog_weights_of_many_bits_on_ideal_cells(bits: int) -> None:
    spec = load_hardware({"base": "ideal", "weights": {"encoding": "analog", "bits": bits}})
    matrix = from_weight("layer", WEIGHT, spec, 0)
    x = torch.randn(10, WEIGHT.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix(x).double(), x.double() @ matrix.quantised_weight().T, rtol=1e-4, atol=1e-4)
    assert (matrix.quantised_weight() - WEIGHT).norm() / WEIGHT.norm() < 2.0 ** (2 - bits)


def test_analog_weights_are_one_pair() -> None:
    matrix = matrix_of("cmo-hfox", weights={"encoding": "analog", "bits": 9})
    assert matrix.tiling.shape == (1, 2, 1, IN, OUT)
    assert matrix.programming is not None
    assert len(matrix.programming.levels) == 16  # bands of the 256 levels
    assert sum(level.cells for level in matrix.programming.levels) == 2 * IN * OUT
    assert all(abs((level.mean or level.target) - level.target) < 0.002 for level in matrix.programming.levels)
    exact = INPUTS @ WEIGHT.T
    assert float((matrix(INPUTS) - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["cell=pcm-joshi", "read_at_seconds=60"], "device pcm-joshi does not say what time does to its cells"),
        (["read_at_seconds=60"], "device synaptogen does not say what time does"),
        (["cell=pcm-joshi", "programming.scheme=incremental_reset"], "incremental_reset is for devices with switching"),
        (["cell=pcm-joshi", "programming.cycling={}"], "pcm-joshi has no switching cycles"),
        (["retention={exponent: 0.1}"], "retention: says how cells drift, but not until when; give read_at_seconds"),
        (["retention={age_seconds: 1.0}", "read_at_seconds=1"], "is an older place of read_at_seconds"),
    ],
)
def test_specs_that_a_device_cannot_meet(settings: list[str], expected: str) -> None:
    with pytest.raises(InputError) as error:
        choose_hardware(None, settings=settings)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_reads_of_unknown_disturb() -> None:
    with pytest.raises(InputError, match="read_disturb: the file of device pcm-joshi does not say"):
        matrix_of("pcm-joshi", read_disturb="settle")


def test_the_old_place_of_the_time() -> None:
    """`retention.age_seconds` and `read_at_seconds` give the same cells."""
    law = {"exponent": 0.05, "exponent_std": 0.01}
    old = matrix_of("synaptogen", retention=law | {"age_seconds": 1e5}).states
    new = matrix_of("synaptogen", retention=law, read_at_seconds=1e5).states
    assert old is not None
    assert new is not None
    assert torch.equal(old, new)
    assert not torch.equal(old, matrix_of("synaptogen").states)
    assert math.isfinite(float(old.float().sum()))


def test_switching_cells_relax_by_the_law_of_another_device(tmp_path: Any) -> None:
    """Middle levels move, as the law says, and the others do not; the spread is that of full scale."""
    law = tmp_path / "law.yaml"
    grid = "{microsiemens: [0, 40, 50, 60, 100], seconds: [1, 100], values: [[0, 0, 1, 0, 0], [0, 0, 5, 0, 0]]}"
    law.write_text(
        f"kind: levels\nname: law\nsource: made up\nmicrosiemens: {{low: 0, high: 100}}\n"
        f"relaxation: {{spread: {{grid: {grid}}}, path: frozen}}\n"
    )
    loop = {"scheme": "incremental_reset", "low_level": 0.25, "high_level": 0.75}
    weights = {"encoding": "multilevel", "cell_bits": 1}
    weight = {"weights": weights | {"cell_bits": 2}}
    still = matrix_of("synaptogen", programming=loop, **weight)
    moved = matrix_of("synaptogen", programming=loop | {"relaxation": str(law)}, read_at_seconds=10.0, **weight)
    assert still.states is not None
    assert moved.states is not None
    device = load_device("synaptogen")
    volts = torch.tensor(0.3, dtype=torch.float64)
    full = device.current_amperes(volts, torch.tensor(device.mean_states(load_hardware({}).programming, 2)[1]))
    before, after = (device.current_amperes(volts, matrix.states.double()) / full for matrix in (still, moved))
    middle = (before - 0.5).abs() < 0.2  # digits at 0.25, 0.417, 0.583 and 0.75 of the full-scale current
    near = (before - 0.58).abs() < 0.03
    assert not (after - before)[~middle].abs().gt(1e-3).any()
    assert near.any()
    assert 0.0 < float((after - before)[near].std()) < 0.03
    with pytest.raises(InputError, match="is a law over time; give read_at_seconds"):
        choose_hardware(None, settings=[f"programming.relaxation={law}"])
    with pytest.raises(InputError, match="pcm-joshi has no law of relaxation"):
        matrix_of("synaptogen", programming={"relaxation": "pcm-joshi"}, read_at_seconds=10.0)
