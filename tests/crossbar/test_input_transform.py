"""Transforms of inputs before the DAC: exactness, statistics of transformed inputs, files, and messages."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim import load_hardware
from memsim.crossbar.calibrator import RANGES, ConverterRanges
from memsim.crossbar.input_transform import InputTransform, rotated
from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.nn.budget import layer_budget
from memsim.nn.deviation import deviation
from tests.crossbar.by_hand import spec_of, statistics_of
from tests.crossbar.matrices import from_weight

EXACT = load_hardware({"base": "ideal", "weights": {"bits": 16}})


def transform_of(weight: Tensor, block: int = 8, digital: int = 2) -> InputTransform:
    """A transform with everything that one can have, drawn at random."""
    generator = torch.Generator().manual_seed(len(weight))
    inputs = weight.shape[1]
    return InputTransform.make(
        weight,
        scale=torch.rand(inputs, generator=generator) + 0.5,
        signs=torch.randint(2, (inputs,), generator=generator) * 2 - 1,
        block=min(block, 1 << (inputs.bit_length() - 1)),
        digital_rows=torch.randperm(inputs, generator=generator)[:digital],
    )


def problem(out: int = 6, inputs: int = 21, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(inputs)
    return torch.randn(out, inputs, generator=generator), torch.randn(n, inputs, generator=generator)


def close(got: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return float((got.double() - wanted.double()).norm()) <= tolerance * float(wanted.double().norm())


def hadamard(block: int) -> Tensor:
    """Sylvester's matrix [block, block], by its definition."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix


@given(st.integers(1, 70), st.integers(0, 6), st.integers(0, 5))
@settings(deadline=None)
def test_rotations_multiply_blocks_by_the_hadamard_matrix(inputs: int, log2: int, n: int) -> None:
    block, x = 1 << log2, torch.randn(n, inputs, dtype=torch.float64)
    expected = x.clone()
    for first in range(0, inputs - block + 1, block):
        expected[:, first : first + block] = x[:, first : first + block] @ hadamard(block)
    assert torch.allclose(rotated(x, block), expected, atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 150), st.integers(0, 7), st.integers(0, 3), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_transformed_matrix_multiplies_as_the_plain_one(
    out: int, inputs: int, log2: int, digital: int, has_scale: bool, has_signs: bool
) -> None:
    weight, x = problem(out, inputs, 7)
    block = min(1 << log2, 1 << (inputs.bit_length() - 1))
    transform = InputTransform.make(
        weight,
        scale=torch.rand(inputs) + 0.5 if has_scale else None,
        signs=torch.randint(2, (inputs,)) * 2 - 1 if has_signs else None,
        block=block,
        digital_rows=torch.randperm(inputs)[:digital],
    )
    matrix = from_weight("layer", weight, EXACT, 0, input_transform=transform)
    wanted = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    assert ((matrix(x) - wanted).abs() <= 1e-3 * size + 1e-6).all()
    assert close(matrix.quantised_weight(), weight, 1e-3)
    assert close(transform.plain_weight(transform.weight(weight)), weight, 1e-5)
    moments = (x.T @ x / len(x))[None]
    at_dac = transform(x).double()
    assert torch.allclose(transform.moments(moments).double()[0], at_dac.T @ at_dac / len(x), atol=1e-4)


@pytest.mark.parametrize(("block", "digital"), [(1, 0), (8, 0), (8, 2), (16, 3)])
def test_gradients_are_those_of_the_formula(block: int, digital: int) -> None:
    """Inputs and weights go through it as through products with matrices that are written out."""
    weight, x = problem()
    transform = transform_of(weight, block, digital)
    matrix = torch.eye(21, dtype=torch.float64)
    for first in range(0, transform.rotated, block):
        matrix[first : first + block, first : first + block] = hadamard(block)
    factors = transform.factors.double()
    inverse = torch.where(factors == 0, 0.0, 1 / factors)
    inverse[: transform.rotated] /= block
    for function, values, by_hand in ((transform, x, factors), (transform.weight, weight, inverse)):
        towards = torch.randn(len(values), 21, generator=torch.Generator().manual_seed(1))
        own = values.clone().requires_grad_()
        (function(own) * towards).sum().backward()
        written = values.double().requires_grad_()
        ((written * by_hand) @ matrix * towards).sum().backward()
        assert own.grad is not None
        assert written.grad is not None
        assert close(own.grad, written.grad, 1e-6)


def test_rotations_keep_norms_and_spread_outliers() -> None:
    weight, x = problem(5, 64)
    x[:, 3] *= 100
    transform = InputTransform.make(weight, block=64, signs=torch.ones(64))
    at_dac = transform(x)
    assert torch.allclose(at_dac.norm(dim=1), x.norm(dim=1), rtol=1e-5)
    assert at_dac.abs().max() < 0.2 * x.abs().max()


def test_compiled_rotation_has_the_bits_of_torch_for_any_number_of_rows() -> None:
    weight, x = problem(5, 300, 600)
    transform = transform_of(weight, block=128)
    wanted = rotated(x * transform.factors, 128)
    assert torch.equal(transform(x), wanted)  # in threads
    assert torch.equal(torch.cat([transform(row[None]) for row in x[:20]]), wanted[:20])
    assert torch.equal(transform(x.T.contiguous().T), wanted)
    whole = transform.digital_product(x)
    assert whole is not None
    assert torch.equal(torch.cat([transform.digital_product(row[None]) for row in x[:20]]), whole[:20])


@pytest.mark.parametrize("log2", [0, 3])
def test_arrays_see_transformed_inputs(log2: int) -> None:
    """A chip of the transformed weight, on inputs that were transformed before, does the same."""
    weight, x = problem()
    spec, transform = spec_of(bits=4, rows=8), transform_of(weight, 1 << log2)
    matrix = from_weight("layer", weight, spec, 0, statistics_of(x, 80), input_transform=transform)
    at_dac = transform(x)
    twin = from_weight("layer", transform.weight(weight), spec, 0, statistics_of(at_dac, 80))
    for name in RANGES:
        assert torch.allclose(getattr(matrix, name), getattr(twin, name), rtol=1e-6)
    twin.set_ranges(matrix_ranges(matrix))
    assert torch.equal(matrix(x), twin(at_dac) + transform.digital_product(x))
    assert matrix.cell_watts(x) == twin.cell_watts(at_dac) > 0


def matrix_ranges(matrix: MappedMatrix) -> ConverterRanges:
    return ConverterRanges(*(getattr(matrix, name) for name in RANGES))


def test_deviations_and_budgets_are_those_of_plain_inputs() -> None:
    weight, x = problem(8, 40, 100)
    spec = load_hardware({"base": "best", "weights": {"bits": 8}})
    inputs = statistics_of(x)
    plain = from_weight("layer", weight, spec, 0, inputs)
    changed = from_weight("layer", weight, spec, 0, inputs, input_transform=transform_of(weight))
    for matrix in (plain, changed):
        found = deviation(matrix, inputs, weight)
        assert found.to_full_precision is not None
        assert 0 < found.to_digital < 0.1
        assert 0 < found.to_full_precision < 0.1
        assert list(layer_budget(matrix, spec.steps(), 0, inputs, weight).errors.values())[-1] < 0.1
        assert list(layer_budget(matrix, spec.steps(), 0, inputs).errors.values())[-1] < 0.1


def test_other_specs_and_other_chips_keep_the_transform() -> None:
    weight, x = problem()
    spec = spec_of(bits=8, rows=8)
    matrix = from_weight("layer", weight, spec, 0, statistics_of(x), input_transform=transform_of(weight))
    wanted = x @ weight.T
    assert close(matrix.under(spec.digital_twin(), 0, statistics_of(x))(x), wanted, 0.1)
    again = matrix.programmed_again(load_hardware({"base": "best", "weights": {"bits": 8}}), 5, statistics_of(x))
    assert close(again(x), wanted, 0.1)
    assert again.input_transform is not matrix.input_transform  # one may be moved to a device without the other


def test_a_transformed_matrix_survives_safetensors_pickle_copy_and_load_state_dict() -> None:
    weight, x = problem()
    spec = spec_of(bits=4, rows=8)
    matrix = from_weight("layer", weight, spec, 0, statistics_of(x), input_transform=transform_of(weight))
    wanted = matrix(x)
    tensors = safetensors.torch.load(safetensors.torch.save(matrix.state_dict()))
    plain = from_weight("layer", weight, spec, 0, statistics_of(x))
    plain.load_state_dict(matrix.state_dict())
    copies = [MappedMatrix.from_tensors("layer", spec, tensors), copy.deepcopy(matrix), plain]
    copies.append(pickle.load(io.BytesIO(pickle.dumps(matrix))))
    for other in copies:
        other.reads = copy.deepcopy(matrix.reads)
        other.reads.begin("again")
    matrix.reads.begin("again")
    wanted = matrix(x)
    for other in copies:
        assert torch.equal(other(x), wanted)
    unchanged = from_weight("layer", weight, spec, 0, statistics_of(x))
    plain.load_state_dict(unchanged.state_dict())
    assert plain.input_transform is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_transform.block": None},
            "layer: the file lacks the tensor input_transform.block; map it",
        ),
        ({"input_transform.block": torch.tensor(3)}, "input_transform.block is 3, not a power of 2 up to 21"),
        ({"input_transform.block": torch.tensor(32)}, "input_transform.block is 32, not a power of 2 up to 21"),
        ({"input_transform.factors": torch.ones(20)}, "input_transform.factors is [20], not [21]"),
        ({"input_transform.factors": torch.ones(21)}, "are not those whose input_transform.factors are 0"),
        ({"input_transform.digital_rows": None}, "are not those whose input_transform.factors are 0"),
        ({"input_transform.digital_weight": torch.ones(6, 1)}, "are not those whose input_transform.factors are 0"),
    ],
)
def test_damaged_transforms_are_explained(change: dict[str, Tensor | None], message: str) -> None:
    weight, _ = problem()
    matrix = from_weight("layer", weight, EXACT, 0, input_transform=transform_of(weight))
    tensors = {name: value for name, value in {**matrix.state_dict(), **change}.items() if value is not None}
    with pytest.raises(InputError, match=re.escape(message)):
        MappedMatrix.from_tensors("layer", EXACT, tensors)


def test_operations_are_counted() -> None:
    weight, _ = problem(6, 21)
    assert InputTransform.make(weight, scale=torch.ones(21)).operations == 21
    assert InputTransform.make(weight, block=8).operations == 21 + 16 * 3
    assert InputTransform.make(weight, digital_rows=torch.tensor([4, 2])).operations == 21 + 2 * 2 * 6
