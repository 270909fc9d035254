"""The Triton kernel against torch operations: on a GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memsim.crossbar import elementwise, read
from memsim.crossbar.convert import Conversion
from memsim.crossbar.read_noise import standard_normals
from tests.crossbar.by_hand import small_matrix, spec_of

pytest.importorskip("triton", reason="Triton is not installed (pip install memsim[dev] on x86-64 Linux)")

from memsim.crossbar import fused

WHERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CALIBRATED = {"range": "calibrated", "bits": 6}
FIXED = {"range": "fixed", "precision_bits": 4, "range_bits": 3}
ERRING = {**CALIBRATED, "gain_error": 0.02, "offset_error_codes": 0.5, "nonlinearity_codes": 0.5}
TWO_PHASE = {"bits": 8, "polarity": "two_phase", "slice_bits": 4}
NOISES = {"none": None, "float32": {}, "bfloat16": {"variance_product": "bfloat16"}}


@pytest.fixture(autouse=True, scope="module")
def bfloat16_in_the_interpreter() -> Iterator[None]:
    """The interpreter keeps bfloat16 as 16-bit integers, and its products take them for such: widen them."""
    if WHERE.type == "cuda":
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    def widened(operand: TensorHandle) -> TensorHandle:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle((operand.data.astype(np.uint32) << np.uint32(16)).view(np.float32), tl.float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return original(self, widened(a), widened(b), *rest)

    original, InterpreterBuilder.create_dot = InterpreterBuilder.create_dot, create_dot
    yield
    InterpreterBuilder.create_dot = original


def differing(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> int:
    """How many values are off by more than rounding."""
    return int(((got - expected).abs() > tolerance * expected.abs().max()).sum())


def test_it_draws_the_same_numbers() -> None:
    """Up to the last bits of float32 functions, by frame, tile and column; 80 lanes are more than two blocks."""
    key, shape = 0x8123456789ABCDEF, (2, 64, 320)
    signals, columns = torch.zeros(2, 64, 2, device=WHERE), torch.zeros(2, 2, 320, device=WHERE)
    noise_terms, noise_columns = torch.zeros(2, 64, 3, device=WHERE), torch.ones(2, 3, 320, device=WHERE)
    noise_terms[:, :, 2] = 1
    expected = standard_normals(key, 1024, shape, WHERE)
    for tile in range(2):
        only, product = torch.zeros(2, 1, device=WHERE), torch.zeros(64, 320, device=WHERE)
        only[tile] = 1
        operands = (signals, noise_terms, columns, noise_columns)
        assert fused.multiply_and_digitise(*operands, key, 1024, Conversion(only), 1.0, product) is not None
        torch.testing.assert_close(product, expected[tile], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("max_code", "erring"), [(None, False), (7, False), (7, True), (127, True)])
@pytest.mark.parametrize("with_factors", [False, True])
@pytest.mark.parametrize("precision", [None, torch.float32, torch.bfloat16], ids=["noiseless", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "planes", "out_features", "width"), [(5, 2, 15, 32), (16, 1, 16, 16), (37, 3, 50, 160)]
)
def test_digitising_products(
    rows: int,
    planes: int,
    out_features: int,
    width: int,
    precision: torch.dtype | None,
    max_code: int | None,
    erring: bool,
    with_factors: bool,
) -> None:
    """Frames and columns beyond the product's are padding and must count for nothing, whatever is in them."""
    tiles, frames, padded = 2, 90, 96
    generator = torch.Generator().manual_seed(3)
    signals = torch.randn(tiles, padded, rows, generator=generator).mul_(30 / rows**0.5).to(WHERE)
    columns = torch.randn(tiles, rows, width, generator=generator).to(WHERE)
    noise_terms = torch.rand(tiles, padded, rows + 1, generator=generator).to(WHERE)
    noise_columns = torch.rand(tiles, rows + 1, width, generator=generator).to(WHERE)
    noise_columns[1, :, 3] = -1e-9  # rounding may leave a variance there: no noise, and no NaN
    columns[:, :, planes * out_features :] = 0
    noise_columns[:, :, planes * out_features :] = 0
    signals[:, frames:] *= 100
    variances = None
    if precision is not None:
        noise_columns = noise_columns.to(precision)
        variances = torch.bmm(noise_terms.to(precision).float(), noise_columns.float())
    noise = (None, None) if precision is None else (noise_terms, noise_columns)
    weights = torch.tensor([[1.0, 2.0, 0.75], [0.5, 1.25, 3.0]])[:, :planes].to(WHERE)
    conversion = Conversion(weights, max_code)
    if erring:
        offsets = torch.randn(tiles, width, generator=generator).to(WHERE)
        conversion = dataclasses.replace(conversion, offsets=offsets, nonlinearity_codes=-1.5)
    if with_factors:
        factors = 1 + torch.rand(tiles, out_features, generator=generator)
        conversion = dataclasses.replace(conversion, tile_factors=factors.to(WHERE))
    got, expected = torch.ones(2, frames, out_features, device=WHERE)
    clipped = fused.multiply_and_digitise(signals, noise[0], columns, noise[1], 9, 64, conversion, -0.5, got)
    products = torch.bmm(signals, columns)
    expected_clipped = elementwise.digitise(products, variances, 9, 64, conversion, -0.5, expected)
    assert clipped is not None
    assert differing(got, expected) <= (0 if max_code is None else 2)  # sums in another order may round to another code
    assert abs(int(clipped) - int(expected_clipped)) <= 2
    assert (int(clipped) > 100) == (max_code == 7)


def test_rounding_is_to_even() -> None:
    """And numbers that have no fractions stay as they are, up to an ADC of 32 bits."""
    values = torch.cat([torch.arange(-8, 8) + 0.5, torch.tensor([2.0**22 + 0.5, 2.0**23 - 0.5, -(2.0**24) - 2, 3e9])])
    values = torch.nn.functional.pad(values, (0, 12)).to(WHERE)
    product = torch.zeros(1, 32, device=WHERE)
    ones, columns = torch.ones(1, 32, 1, device=WHERE), values.view(1, 1, 32)
    conversion = Conversion(torch.ones(1, 1, device=WHERE), 1 << 31)
    clipped = fused.multiply_and_digitise(ones, None, columns, None, 0, 0, conversion, 1.0, product)
    assert clipped == 1
    assert torch.equal(product[0], values.round().clamp(max=2.0**31))


# Whole reads


@pytest.fixture
def through_the_kernel(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Reads take the kernel on a CPU, too; says of each whether it worked."""
    worked: list[bool] = []
    multiply_and_digitise = fused.multiply_and_digitise

    def noted(*arguments: Any) -> Tensor | None:
        clipped = multiply_and_digitise(*arguments)
        worked.append(clipped is not None)
        return clipped

    monkeypatch.setattr(fused, "multiply_and_digitise", noted)
    monkeypatch.setattr(fused, "_works", True)
    monkeypatch.setattr(read, "_fused", lambda x: fused)
    return worked


def clips_and_read(matrix: Any, x: Tensor) -> tuple[tuple[int, int], Tensor]:
    matrix.reads.count_clips = True
    matrix.clips = read.ClipCounts()
    matrix.reads.begin("batch")
    y = matrix(x)
    return (int(matrix.clips.dac_clipped), int(matrix.clips.adc_clipped)), y


@pytest.mark.parametrize("adc", [None, FIXED, ERRING], ids=["none", "fixed", "erring"])
@pytest.mark.parametrize("dac", [{"bits": None}, TWO_PHASE], ids=["voltages", "phases"])
@pytest.mark.parametrize("noise", NOISES)
def test_matrices_read_what_the_steps_read(
    noise: str,
    dac: dict[str, Any],
    adc: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
    through_the_kernel: list[bool],
) -> None:
    matrix = small_matrix(spec_of(4, 16, adc=adc, dac=dac, read_noise=NOISES[noise]), 20, 40).to(WHERE)
    x = 1.5 * torch.randn(90, 40, generator=torch.Generator().manual_seed(7)).to(WHERE)
    clips, y = clips_and_read(matrix, x)
    phases = 1 if dac["bits"] is None else 4
    # a product without noise and ADC is left to the library
    assert through_the_kernel == ([] if adc is None and noise == "none" else phases * [True])
    monkeypatch.setattr(read, "_fused", lambda x: None)
    expected_clips, expected = clips_and_read(matrix, x)
    assert differing(y, expected) <= (0 if adc is None else 3)
    assert clips[0] == expected_clips[0] > 0
    assert abs(clips[1] - expected_clips[1]) <= 2


@pytest.mark.usefixtures("through_the_kernel")
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = small_matrix(spec_of(3, 16, adc=CALIBRATED), 35, 20).to(WHERE)
    x = torch.randn(201, 20, generator=torch.Generator().manual_seed(7)).to(WHERE)
    whole = clips_and_read(matrix, x)[1]
    for values in ("CHUNK_VALUES", "DEVICE_CHUNK_VALUES"):
        monkeypatch.setattr(read, values, 1)
    assert torch.equal(clips_and_read(matrix, x)[1], whole)


# Where there is no kernel


def test_where_it_fails_torch_operations_read_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, through_the_kernel: list[bool]
) -> None:
    class Failing:
        def __getitem__(self, grid: tuple[int, int]) -> Any:
            raise RuntimeError("no C compiler\nand more")

    matrix = small_matrix(spec_of(3, 16, adc=CALIBRATED), 20, 40).to(WHERE)
    x = torch.randn(100, 40, generator=torch.Generator().manual_seed(7)).to(WHERE)
    monkeypatch.setattr(fused, "_kernel", Failing())
    with caplog.at_level(logging.WARNING, "memsim"):
        reads = [clips_and_read(matrix, x)[1] for _ in range(2)]
    assert through_the_kernel == [False, False]
    monkeypatch.setattr(read, "_fused", lambda x: None)
    expected = clips_and_read(matrix, x)[1]
    assert all(torch.equal(y, expected) for y in reads)
    (record,) = caplog.records
    assert record.getMessage().endswith("(RuntimeError: no C compiler)")


def test_without_triton_reads_are_silent_and_take_torch_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read._triton.__wrapped__() is fused
    monkeypatch.delitem(sys.modules, "memsim.crossbar.fused")
    monkeypatch.delattr(sys.modules["memsim.crossbar"], "fused")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert read._triton.__wrapped__() is None
    assert read._fused(torch.zeros(1)) is None


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from memsim.crossbar import fused
from memsim.crossbar.convert import Conversion

class Driver:
    capability = 0
    get_current_device = staticmethod(lambda: Driver.capability)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", Driver.capability, 32))

def compile_only(kernel, grid):
    return lambda *arguments: print(*kernel.run(*arguments, grid=grid, warmup=True).asm)

triton.runtime.driver.set_active(Driver)
triton.JITFunction.__getitem__ = compile_only
for Driver.capability, precision, max_code in ((80, torch.float32, 127), (90, torch.bfloat16, None)):
    signals, columns = torch.ones(2, 64, 128), torch.ones(2, 128, 64)
    noise_terms, noise_columns = torch.ones(2, 64, 129), torch.ones(2, 129, 64, dtype=precision)
    operands = signals, noise_terms, columns, noise_columns
    conversion = Conversion(torch.ones(2, 2), max_code, torch.ones(2, 64), 0.5, torch.ones(2, 30))
    assert fused.multiply_and_digitise(*operands, 1 << 63, 64, conversion, 1.0, torch.zeros(60, 30)) == 0
"""


@pytest.mark.slow
def test_it_compiles_to_machine_code_without_a_gpu(tmp_path: Path) -> None:
    """As a launch would have it compiled, for two generations: the compiler refuses what the interpreter lets pass."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert result.stdout.split().count("cubin") == 2, result.stderr


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["Triton", "torch operations"])
@pytest.mark.parametrize("adc", [None, FIXED, ERRING], ids=["none", "fixed", "erring"])
@pytest.mark.parametrize("noise", NOISES)
def test_gpus_read_what_the_cpu_reads_and_are_never_waited_for(
    noise: str, adc: dict[str, Any] | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 tiles x 500 frames x 2 planes x 200 conversions; a CPU rounds bfloat16 products to bfloat16."""
    matrix = small_matrix(spec_of(3, 128, adc=adc, read_noise=NOISES[noise]), 200, 500)
    x = torch.randn(500, 500, generator=torch.Generator().manual_seed(7))
    expected_clips, expected = clips_and_read(matrix, x)
    if way != "Triton":
        monkeypatch.setattr(read, "_fused", lambda x: None)
    matrix, x = matrix.to("cuda"), x.to("cuda")
    clips, y = clips_and_read(matrix, x)
    assert fused._works
    allowed = 0 if adc is None else 100 if noise == "bfloat16" else 20
    assert differing(y.cpu(), expected, tolerance=1e-4 if noise == "bfloat16" else 1e-5) <= allowed
    assert clips[0] == expected_clips[0]
    assert abs(clips[1] - expected_clips[1]) <= allowed
    torch.cuda.set_sync_debug_mode("error")
    try:
        matrix(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
