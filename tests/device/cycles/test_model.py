"""The device model: its equations against the published ones, and its file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from memsim.config.resources import configs_root
from memsim.device import DeviceModel, load_device, save_device
from memsim.device.cycles.model import TENSORS
from memsim.device.file import _adopted, adopt, embedded, require_device
from memsim.device.interface import polynomial
from memsim.errors import InputError
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.tools.convert_synaptogen import convert, describe

SHIPPED = configs_root() / "devices" / "synaptogen.safetensors"
DEVICE = load_device(SHIPPED)  # for Hypothesis, which does not go with fixtures


def test_envelopes_equal_the_published_polynomials(device: DeviceModel, published: ModuleType) -> None:
    volts = torch.linspace(-1.46, 1.46, 293, dtype=torch.float64)
    parameters = published.default_params
    envelopes = [(device.llrs_current_amperes, parameters.LLRS), (device.hhrs_current_amperes, parameters.HHRS)]
    for ours, theirs in envelopes:
        # the package rounds its coefficients to float32: 6e-8 of terms of up to 4e-4 A
        np.testing.assert_allclose(ours(volts), np.polyval(theirs.astype(float), volts.numpy()), rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(ours(volts.float()).double(), ours(volts), rtol=1e-5, atol=1e-10)


def test_mixed_current_equals_the_published_one(device: DeviceModel, published: ModuleType) -> None:
    volts, r = torch.meshgrid(torch.linspace(-0.6, 0.6, 25), torch.linspace(0, 1, 11), indexing="ij")
    theirs = published.Imix(r.numpy(), volts.numpy(), published.default_params.HHRS, published.default_params.LLRS)
    np.testing.assert_allclose(device.current_amperes(volts, r), theirs, rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(device.conductance_siemens(volts, r) * volts, device.current_amperes(volts, r))


def test_conductance_is_finite_at_zero_volts(device: DeviceModel) -> None:
    zero = torch.zeros(1)
    assert device.llrs_conductance_siemens(zero).item() == pytest.approx(2.650e-4, rel=1e-3)
    assert device.hhrs_conductance_siemens(zero).item() == pytest.approx(-3.299e-5, rel=1e-3)
    assert device.reference_conductances_siemens == pytest.approx((269e-6, -33.2e-6), rel=2e-3)  # at U0 = 0.2 V


def test_window_is_hhrs_less_llrs_and_does_not_vanish_within_the_full_reset(device: DeviceModel) -> None:
    volts = torch.linspace(0.01, device.reset_full_volts, 100)
    window = device.window_amperes(volts)
    torch.testing.assert_close(window, device.hhrs_current_amperes(volts) - device.llrs_current_amperes(volts))
    assert (window < 0).all()


@pytest.mark.parametrize("path", sorted(SHIPPED.parent.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_numbers_to_read_are_those_of_the_file(path: Path) -> None:
    numbers = yaml.safe_load(path.with_suffix(".yaml").read_text("utf-8"))
    shipped = load_device(path)
    assert numbers["name"] == shipped.name == path.stem
    assert numbers["source"] == shipped.source
    torch.testing.assert_close(torch.tensor(numbers["llrs"], dtype=torch.float64), shipped.llrs)
    torch.testing.assert_close(torch.tensor(numbers["mixture_means"], dtype=torch.float64), shipped.mixture_means)


@given(st.floats(500.0, 1e6))
def test_a_cell_in_the_state_of_a_resistance_has_it(ohms: float) -> None:
    device = DEVICE
    r = device.state_of_resistance(torch.tensor(ohms, dtype=torch.float64))
    volts = torch.tensor(device.reference_volts, dtype=torch.float64)
    assert (volts / device.current_amperes(volts, r)).item() == pytest.approx(ohms, rel=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.lists(st.floats(-2, 2), min_size=1, max_size=5))
def test_polynomial_is_polyval(coefficients: list[float], x: list[float]) -> None:
    ours = polynomial(torch.tensor(coefficients, dtype=torch.float64), torch.tensor(x, dtype=torch.float64))
    np.testing.assert_allclose(ours, np.polyval(coefficients, x), rtol=1e-12, atol=1e-11)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_polynomial_rounds_every_product_and_sum_by_itself(coefficients: list[float], seed: int) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    expected = np.zeros(64, np.float32)
    for coefficient in coefficients:
        expected = expected * x.numpy() + np.float32(coefficient)
    assert np.array_equal(polynomial(torch.tensor(coefficients, dtype=torch.float64), x).numpy(), expected)


def test_reset_distance_is_a_power_and_zero_at_the_full_reset(device: DeviceModel) -> None:
    volts = torch.cat([torch.linspace(0.5, 1.6, 111), torch.tensor([device.reset_full_volts])])
    distance = device.reset_distance(volts)
    expected = (np.float32(device.reset_full_volts) - volts).abs().double() ** device.reset_exponent
    torch.testing.assert_close(distance.double(), expected, rtol=2e-6, atol=0)
    assert distance[-1] == 0


def test_current_has_the_gradient_of_the_polynomial(device: DeviceModel) -> None:
    volts = torch.linspace(-0.6, 0.6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: 1e4 * device.window_amperes(u), volts)


def test_denormalise_is_the_published_gamma_and_psi(device: DeviceModel, published: ModuleType) -> None:
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mu, sigma = device.mixture_means[:4, :1].expand(4, 100), device.mixture_means[4:, :1].expand(4, 100)
    gamma = published.Γ(published.default_params.γ.astype(float), x.numpy())
    expected = published.Ψ(mu.numpy(), sigma.numpy(), gamma)
    np.testing.assert_allclose(device.denormalise(x, mu, sigma), expected, rtol=1e-5)


def test_unknown_order_names_those_there_are(device: DeviceModel) -> None:
    with pytest.raises(ValueError, match=r"no cycle-to-cycle order 11 \(available: \[1, 2"):
        device.var_matrix(11)


def test_to_moves_every_tensor(device: DeviceModel) -> None:
    moved = device.to("meta")
    tensors = [getattr(moved, field.name) for field in dataclasses.fields(moved)]
    assert all(t.device.type == "meta" for t in [*tensors, *moved.var.values()] if isinstance(t, torch.Tensor))


# Files


def assert_same(a: DeviceModel, b: DeviceModel) -> None:
    for field in dataclasses.fields(DeviceModel):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name == "var":
            assert left.keys() == right.keys()
            assert all(torch.equal(left[order], right[order]) for order in left)
        else:
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, field.name


def test_shipped_file_is_the_conversion_of_the_package_and_its_yaml_says_the_same(device: DeviceModel) -> None:
    converted = convert()
    assert_same(device, converted)
    assert SHIPPED.with_suffix(".yaml").read_text("utf-8") == describe(converted)
    summary = yaml.safe_load(SHIPPED.with_suffix(".yaml").read_text("utf-8"))
    assert summary["llrs"] == device.llrs.tolist()
    assert "Copyright (c) 2024 Tyler Hennen" in summary["licence"]


def test_save_and_load_round_trip(device: DeviceModel, tmp_path: Path) -> None:
    save_device(device, tmp_path / "copy.safetensors")
    assert_same(load_device(tmp_path / "copy.safetensors"), device)
    assert [p.name for p in tmp_path.iterdir()] == ["copy.safetensors"]


def test_save_into_a_missing_folder_says_so(device: DeviceModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save_device(device, tmp_path / "none" / "device.safetensors")


def test_unknown_name_lists_the_shipped() -> None:
    with pytest.raises(InputError, match=r"sinaptogen.*available:.*synaptogen"):
        load_device("sinaptogen")


Edit = Callable[[dict[str, torch.Tensor], dict[str, str]], object]

FAULTS: list[tuple[Edit, str]] = [
    (lambda t, m: m.update(kind="model"), "a model file, not a device model"),
    (lambda t, m: m.pop("kind"), "a foreign file, not a device model"),
    (lambda t, m: m.update(format="memsim/3"), "format memsim/3; this memsim .* reads memsim/1 and memsim/2"),
    (lambda t, m: m.pop("reset_exponent"), r"reset_exponent \(metadata\) is missing; it must be a positive number"),
    (lambda t, m: m.update(reference_volts="-0.2"), r"reference_volts \(metadata\) is -0.2"),
    (lambda t, m: m.update(reset_full_volts="nan"), r"reset_full_volts \(metadata\) is nan"),
    (lambda t, m: t.pop("gamma"), r"gamma is missing; it must be a tensor of shape \[4, 5\]"),
    (lambda t, m: t.update(gamma=t["gamma"][:, :4].clone()), r"gamma has shape \[4, 4\]; it must be \[4, 5\]"),
    (lambda t, m: t.update(llrs=t["llrs"][:0].clone()), r"llrs has shape \[0\]; it must be \[any\]"),
    (lambda t, m: t.update(hhrs=t["hhrs"].long()), "hhrs holds torch.int64"),
    (lambda t, m: t["hhrs"].fill_(math.inf), "tensor hhrs holds NaN or Inf"),
    (lambda t, m: t["llrs"][-1].fill_(1e-6), "llrs ends in 1e-06; its last coefficient must be 0"),
    (lambda t, m: t["llrs"].mul_(-1), "llrs conducts -0.000269 S at 0.2 V; hhrs, -3.32e-05 S, must be less"),
    (lambda t, m: t["mixture_weights"].mul_(2), "mixture_weights are .* with sum 1"),
    (lambda t, m: t["mixture_weights"].copy_(torch.tensor([1.2, -0.2, 0.0])), "mixture_weights are"),
    (lambda t, m: t.update(mixture_means=t["mixture_means"][:, :2].clone()), r"has shape \[8, 2\]; .* \[8, 3\]"),
    (lambda t, m: t["mixture_cholesky"][0, 0, 1].fill_(0.1), "mixture_cholesky is not lower triangular"),
    (lambda t, m: t["mixture_cholesky"][2, 3, 3].zero_(), "mixture_cholesky is not lower triangular"),
    (lambda t, m: t.pop("var_004"), r"var_004 is missing; it must be a tensor of shape \[4, 20\]"),
    (lambda t, m: [t.pop(f"var_{p:03d}") for p in range(1, 11)], "var_001 is missing"),
    (lambda t, m: t["var_002"].mul_(2), r"var_002 has spectral radius 1\.\d+; it must be below 1"),
    (lambda t, m: t["var_003"][:, 0].zero_(), "var_003 has a singular B"),
]


@pytest.mark.parametrize(("edit", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_every_fault_of_a_file_is_one_line_that_names_it(edit: Edit, message: str, tmp_path: Path) -> None:
    with safe_open(SHIPPED, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert set(TENSORS) < set(tensors)
    edit(tensors, metadata)
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=message) as error:
        load_device(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load_device(path)


@settings(deadline=None)
@given(size=st.integers(0, SHIPPED.stat().st_size - 1))
def test_truncated_files_are_refused(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated.safetensors"
    path.write_bytes(SHIPPED.read_bytes()[:size])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load_device(path)


# Devices that other files carry


@pytest.fixture
def carrier(tmp_path: Path) -> Path:
    """A file that carries a device model of its own."""
    own = dataclasses.replace(DEVICE, name="own", reset_exponent=2.5)
    save_device(own, tmp_path / "own.safetensors")
    name, tensors, metadata = embedded(tmp_path / "own.safetensors")
    assert name.startswith("own@")
    save_checkpoint(tmp_path / "carrier.safetensors", tensors, metadata)
    (tmp_path / "own.safetensors").unlink()
    _adopted.clear()
    return tmp_path / "carrier.safetensors"


def test_a_carried_device_is_found_by_the_name_of_its_content(carrier: Path) -> None:
    name = json.loads(load_checkpoint(carrier).metadata["embedded_device"])["cell"]
    with pytest.raises(InputError, match="no such file"):
        load_device(name)
    with pytest.raises(InputError, match="no such file"):
        require_device(name)
    adopt(load_checkpoint(carrier))
    require_device(name)
    model = load_device(name)
    assert (model.name, model.reset_exponent, model.licence) == ("own", 2.5, DEVICE.licence)
    assert all(torch.equal(model.var[order], DEVICE.var[order]) for order in DEVICE.var)
    again, tensors, _ = embedded(name)  # and can be carried on
    assert again == name
    assert len(tensors) == len(TENSORS) + 10


def test_a_shipped_device_goes_by_its_name() -> None:
    assert embedded("synaptogen") == ("synaptogen", {}, {})


def test_a_file_that_carries_no_device_is_left_alone() -> None:
    adopt(load_checkpoint(SHIPPED))


@pytest.mark.parametrize("what", ["tensor", "metadata", "json"])
def test_a_damaged_carried_device_is_refused(carrier: Path, what: str) -> None:
    checkpoint = load_checkpoint(carrier)
    tensors, metadata = checkpoint.tensors(), dict(checkpoint.metadata)
    if what == "tensor":
        tensors["device/gamma"][0, 0] += 1
    elif what == "metadata":
        metadata["embedded_device"] = metadata["embedded_device"].replace("2.5", "2.6")
    else:
        metadata["embedded_device"] = "{"
    save_checkpoint(carrier, tensors, metadata)
    with pytest.raises(
        InputError, match=r"carrier\.safetensors: its device model is damaged; map the checkpoint again"
    ):
        adopt(load_checkpoint(carrier))
