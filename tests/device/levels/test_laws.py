"""Laws, shapes and paths of devices of kind `levels`."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memsim
from memsim.config.resources import configs_root
from memsim.device import load_device
from memsim.device.file import adopt, embedded
from memsim.device.levels.deviation import Deviation, Path, Places
from memsim.device.levels.device import LevelsDevice
from memsim.device.levels.file import device_of
from memsim.device.levels.laws import law_values, time_law_values
from memsim.errors import InputError
from memsim.hardware import SinglePulse
from memsim.networks.mapped_file import stored_spec
from memsim.portable.draws import standard_normals
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint

N = 200_000
GRID = {"probabilities": [0.1, 0.9], "microsiemens": [5], "seconds": [1], "values": [[[-1, 1]]]}
DEVICE: dict[str, Any] = {
    "kind": "levels",
    "name": "mine",
    "source": "made up",
    "microsiemens": {"low": 2.0, "high": 50.0},
}


def law(value: Any) -> Any:
    relaxation = device_of(DEVICE | {"relaxation": {"spread": value}}).file.relaxation
    assert relaxation is not None
    return relaxation.spread


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, lambda g: 3 + 0 * g),
        ({"polynomial": [1, 2, -0.5]}, lambda g: 1 + 2 * g - 0.5 * g**2),
        (
            {"polynomial": [1, 2], "argument": "relative", "low": 1.5, "high": 2.5},
            lambda g: np.clip(1 + g / 25, 1.5, 2.5),
        ),
        ({"polynomial": [1, 2], "argument": "ln_relative"}, lambda g: 1 + 2 * np.log(g / 50)),
        ({"polynomial": [0, 1], "argument": "log10_siemens"}, lambda g: np.log10(g * 1e-6)),
        ({"power": [3, -0.5]}, lambda g: 3 / np.sqrt(g)),
        ({"saturating": [3, 10]}, lambda g: 3 * (1 - np.exp(-g / 10))),
        ({"table": {"at": [10, 20], "values": [1, 3]}}, lambda g: np.interp(g, [10, 20], [1, 3])),
        (
            {"argument": "relative", "pieces": [{"below": 0.5, "polynomial": [7]}, {"power": [2, 1]}]},
            lambda g: np.where(g < 25, 7, 2 * g),
        ),
    ],
)
def test_forms_by_conductance(value: Any, expected: Any) -> None:
    g = np.linspace(1, 60, 50)
    np.testing.assert_allclose(law_values(law(value), g, 50.0), expected(g))


def test_forms_with_time() -> None:
    grid = {"microsiemens": [10.0, 20.0], "seconds": [1.0, 100.0], "values": [[0.0, 1.0], [2.0, 3.0]]}
    g = np.array([5.0, 15.0, 30.0])

    def values(form: dict[str, Any], seconds: float) -> list[float]:
        return time_law_values(law(form), g, seconds, 50.0).tolist()

    assert values({"grid": grid}, 10.0) == pytest.approx([1.0, 1.5, 2.0])  # half way in the logarithm of time
    assert values({"grid": grid}, 1e-3) == pytest.approx([0.0, 0.5, 1.0])
    assert values({"grid": grid}, 1e4) == pytest.approx([2.0, 2.5, 3.0])
    assert values({"grid": grid, "beyond": "extrapolate"}, 1e4) == pytest.approx([4.0, 4.5, 5.0])
    laws = {"at_seconds": [1.0, 100.0], "laws": [1.0, {"polynomial": [0.0, 1.0]}]}
    assert values(laws, 10.0) == pytest.approx([3.0, 8.0, 15.5])
    line = {"start": 1.0, "per_ln_second": {"polynomial": [0.0, 0.1]}, "unit_seconds": 2.0, "high": 4.0}
    assert values(line, 2 * math.e) == pytest.approx([1.5, 2.5, 4.0])


SHAPES = {
    "normal": scipy.stats.norm(),
    "laplace": scipy.stats.laplace(scale=math.sqrt(0.5)),
    "student": scipy.stats.t(5, scale=math.sqrt(3 / 5)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_their_distribution(name: str) -> None:
    shape: Any = {"student": 5.0} if name == "student" else name
    found = standardised(shape)
    assert scipy.stats.kstest(found, SHAPES[name].cdf).pvalue > 1e-4
    assert found.std() == pytest.approx(1, abs=0.02)


def standardised(shape: Any) -> np.ndarray:
    """[N] deviations of unit spread."""
    relaxation = device_of(DEVICE | {"relaxation": {"shape": shape}}).file.relaxation
    assert relaxation is not None
    one = Deviation.of(Places.of_conductances(75.0), lambda g: 0 * g, lambda g: 1 + 0 * g, relaxation.shape, 50.0)
    scores = standard_normals(1, torch.arange(N))[0], standard_normals(2, torch.arange(N))[0]
    return one(torch.full((N,), 20.0), *scores).double().numpy()


def test_two_populations() -> None:
    found = standardised({"two_populations": {"tail_share": 0.1, "tail_factor": {"power": [0.2, 1.0]}}})  # 4 at 20 uS
    core = 1 / math.sqrt(0.9 + 0.1 * 16)
    mixture = lambda z: 0.9 * scipy.stats.norm.cdf(z / core) + 0.1 * scipy.stats.norm.cdf(z / (4 * core))  # noqa: E731
    assert scipy.stats.kstest(found, mixture).pvalue > 1e-4
    assert found.std() == pytest.approx(1, abs=0.02)


def test_quantiles_are_met() -> None:
    quantiles = {"probabilities": [0.05, 0.5, 0.95], "values": [-4.0, -0.5, 2.0]}
    found = standardised({"quantiles": quantiles})
    np.testing.assert_allclose(np.quantile(found, quantiles["probabilities"]), quantiles["values"], atol=0.04)
    assert np.quantile(found, 0.001) < -7  # the line goes on beyond the first


@given(st.floats(1e-3, 40), st.floats(1e-3, 40))
@settings(deadline=None)
def test_increments_are_independent_in_the_logarithm_of_time(first: float, second: float) -> None:
    """Scores at two times share draws so that they correlate as a Brownian path over ln t does."""
    one, other = (dict(Path.increments(1, u).terms) for u in (first, second))
    assert sum(weight**2 for weight in one.values()) == pytest.approx(1)
    found = sum(weight * other.get(key, 0.0) for key, weight in one.items())
    low, high = sorted((first, second))
    assert found == pytest.approx(math.sqrt(low / high), abs=0.02 + 0.01 / low)


def test_a_chip_read_at_two_times_is_the_same_chip() -> None:
    digits = torch.full((N,), 3, dtype=torch.int32)
    cells, r = torch.arange(N), torch.full((N,), 0.4)

    def correlation(**relaxation: Any) -> float:
        device = device_of(DEVICE | {"relaxation": {"spread": 2.0, **relaxation}})
        aged = [device.ageing(seconds, SinglePulse(), 4, 5) for seconds in (9.0, 999.0)]
        changes = torch.stack([law(r, digits, cells) - r for law in aged if law is not None])
        return float(torch.corrcoef(changes)[0, 1])

    assert correlation(path="frozen") == pytest.approx(1, abs=1e-3)
    assert correlation(path="redrawn") == pytest.approx(0, abs=0.01)
    assert correlation(path_seconds=1.0) == pytest.approx(math.sqrt(math.log(10) / math.log(1000)), abs=0.01)


def test_nothing_of_time_happens_at_once() -> None:
    device = device_of(
        DEVICE | {"relaxation": {"spread": 2.0}, "drift": {"exponent_mean": 0.1, "reference_seconds": 1}}
    )
    assert device.ageing(0.0, SinglePulse(), 4, 5) is None
    assert device.has_ageing


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"microsiemens": {"low": 60.0, "high": 50.0}}, "microsiemens.low: 60.0 is not below high (50.0)"),
        ({"programming": {"spread": {"polynomial": [1], "power": [1, 2]}}}, "polynomial and power given; give one of"),
        ({"programming": {"sprad": 1}}, "programming.sprad: unknown key (nearest: programming.spread)"),
        ({"relaxation": {"spread": {"at_seconds": [2, 1], "laws": [1, 2]}}}, "must rise"),
        ({"relaxation": {"spread": {"at_seconds": [1, 2], "laws": [1]}}}, "laws: holds 1, but at_seconds holds 2"),
        ({"relaxation": {"spread": {"laws": [1, 2], "start": 1, "per_ln_second": 0}}}, "goes with at_seconds"),
        ({"relaxation": {"spread": {"start": 1}}}, "start and per_ln_second go together; one is missing"),
        (
            {"relaxation": {"spread": {"grid": {"microsiemens": [1, 2], "seconds": [1], "values": [[1]]}}}},
            "grid.values: holds 1, but microsiemens holds 2",
        ),
        ({"programming": {"spread": {"power": [1]}}}, "spread.power: holds 1 numbers; it must hold two"),
        ({"programming": {"spread": {"saturating": [1, 0]}}}, "spread.saturating: its second number is 0"),
        ({"programming": {"spread": {"polynomial": [1], "low": 2, "high": 1}}}, "spread.low: 2.0 is above high (1.0)"),
        (
            {"programming": {"spread": {"pieces": [{"polynomial": [1]}, {"polynomial": [2]}]}}},
            "every piece but the last needs below, and the last has none",
        ),
        (
            {"relaxation": {"shape": {"quantiles": {"probabilities": [0.1, 0.9], "values": [1, 0]}}}},
            "quantiles.values: must hold at least two numbers that do not fall",
        ),
        (
            {"relaxation": {"shape": {"quantile_grid": GRID | {"probabilities": [0.5]}}}},
            "must hold at least two numbers",
        ),
        ({"relaxation": {"shape": {"quantile_grid": GRID | {"probabilities": [0.1, 1]}}}}, "above 0 and below 1"),
        ({"relaxation": {"shape": {"quantile_grid": GRID | {"seconds": [1, 9]}}}}, "holds 1, but seconds holds 2"),
        (
            {"relaxation": {"shape": {"quantile_grid": GRID | {"values": [[[1, 0]]]}}}},
            "must hold numbers that do not fall from quantile to quantile",
        ),
        ({"relaxation": {"shape": {"student": 2.0}}}, "student: 2.0 is out of range"),
        ({"floor_microsiemens": 3.0}, "floor_microsiemens: is above the lowest target"),
        ({"ceiling_microsiemens": 40.0}, "ceiling_microsiemens: is below the highest target (50.0)"),
        ({"kind": "cycles"}, "kind: expected levels, got 'cycles'"),
    ],
)
def test_impossible_files(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as error:
        device_of(DEVICE | change, "mine.yaml")
    (line,) = str(error.value).splitlines()
    assert line.startswith("mine.yaml: ")
    assert expected in line


def test_a_mapped_file_carries_a_device_of_ones_own(tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "kind: levels\nname: mine\nsource: me\nmicrosiemens: {low: 1, high: 9}\nprogramming: {spread: 0.5}\n"
    )
    name, tensors, metadata = embedded(str(file))
    assert name.startswith("mine@")
    assert not tensors
    save_checkpoint(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {"kind": "mapped", **metadata})
    adopt(load_checkpoint(tmp_path / "x.safetensors"))
    device = load_device(name)
    assert isinstance(device, LevelsDevice)
    assert device.file == load_device(file).file  # type: ignore[attr-defined]


def test_a_mapped_file_carries_laws_of_ones_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law of the spec and that of an override are taken along, also where the files are gone."""
    source = (configs_root() / "devices" / "rram-relaxation.yaml").read_text()
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").write_text(source.replace("name: rram-relaxation", f"name: {name}"))
    monkeypatch.chdir(tmp_path)
    own = {"match": "*.output", "programming": {"relaxation": "second.yaml"}}
    changes = {"read_at_seconds": 3600, "programming": {"relaxation": "first.yaml"}, "overrides": [own]}
    memsim.map_checkpoint("demo", {"base": "best", **changes}, out="m.safetensors")
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").unlink()
    spec, _ = stored_spec(load_checkpoint("m.safetensors"))
    laws = [spec.programming.relaxation, spec.overrides[0].programming["relaxation"]]
    assert [str(law).split("@")[0] for law in laws] == ["first", "second"]
    assert all(load_device(str(law)).has_ageing for law in laws)
    memsim.map_checkpoint("demo", spec, out="again.safetensors")  # and can be carried on
    assert stored_spec(load_checkpoint("again.safetensors"))[0].programming.relaxation == laws[0]


@pytest.mark.parametrize(
    "laws", ["no JSON", '{"name": "x"}', "[1]", '[{"name": "x", "kind": "levels", "cell": "x@0"}]']
)
def test_damaged_laws_of_a_mapped_file(tmp_path: pathlib.Path, laws: str) -> None:
    save_checkpoint(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {"kind": "mapped", "embedded_laws": laws})
    with pytest.raises(InputError, match="its device model is damaged"):
        adopt(load_checkpoint(tmp_path / "x.safetensors"))


def test_the_yaml_of_the_shipped_cycles_is_no_device(tmp_path: Any) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text("name: synaptogen\nreference_volts: 0.2\n")
    with pytest.raises(InputError, match=r"numbers.yaml: kind is missing"):
        load_device(file)


@pytest.mark.parametrize(
    "shape",
    [
        "normal",
        "laplace",
        {"student": 3.0},
        {"two_populations": {"tail_share": {"polynomial": [0.0, 0.01]}, "tail_factor": 3.0}},
        {"quantiles": {"probabilities": [0.1, 0.5, 0.9], "values": [-2.0, 0.0, 1.0]}},
    ],
)
def test_compiled_deviations_have_the_bits_of_their_definition(shape: Any) -> None:
    relaxation = device_of(DEVICE | {"relaxation": {"shape": shape}}).file.relaxation
    assert relaxation is not None
    places = Places.of_conductances(75.0)
    own = Deviation.of(places, lambda g: np.sin(g), lambda g: 1 + np.cos(g), relaxation.shape, 50.0)
    place = torch.linspace(-1, 80, N)
    scores = standard_normals(1, torch.arange(N))
    assert torch.equal(own(place, *scores), own.by_definition(place, *scores))
