"""The read of a small matrix cell by cell, as a reference for the matrix products."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.statistics import InputStatistics
from memsim.device import load_device, read_noise_std_amperes
from memsim.hardware import CalibratedAdc, HardwareSpec, load_hardware
from memsim.nn.collect import MOST_ROWS, StatisticsCollector
from tests.crossbar.matrices import from_weight


def spec_of(bits: int = 3, rows: int = 2, **changes: Any) -> HardwareSpec:
    """`physical` with small tiles and the sections in `changes`."""
    tile = {"rows": rows, "cols": 2}
    return load_hardware({"base": "physical", "tile": tile, **{"weights": {"bits": bits}, **changes}})


def statistics_of(x: Tensor, most_rows: int = MOST_ROWS) -> InputStatistics:
    collector = StatisticsCollector(torch.Generator().manual_seed(0), most_rows)
    collector.add(x)
    result = collector.result()
    assert result is not None
    return result


def small_matrix(spec: HardwareSpec, out_features: int = 3, in_features: int = 5, seed: int = 1) -> MappedMatrix:
    """A calibrated matrix of random weights, with at least one of the largest level."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator)
    x = torch.randn(500, in_features, generator=generator)
    matrix = from_weight("layer", weight, spec, seed, statistics_of(x, most_rows=2 * len(x)))
    if isinstance(spec.adc, CalibratedAdc):
        assert matrix.adc_range is not None
        matrix.adc_range *= 1.0007  # no multiple of the signals, so that none lies between two codes
    return matrix


def columns_of(matrix: MappedMatrix, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the first phase of inputs [n, in] puts on the columns, and the variances of its noise."""
    operator = matrix._make_operator()
    signals, noise_terms, _ = operator.drive(operator.drive.phases[0], x, operator.columns.shape[1])
    return operator._columns(signals, noise_terms)


def fractions(matrix: MappedMatrix, x: Tensor) -> Tensor:
    """Inputs as fractions of full scale, float64, through the DAC of the spec."""
    dac, x = matrix.spec.dac, x.double()
    if dac is None:
        return x
    assert matrix.input_range is not None
    u = x / float(matrix.input_range)
    if dac.bits is None:
        return u.clamp(-1, 1)
    largest = 2 ** (dac.bits - 1) - 1
    return (u * largest).round().clamp(-largest, largest) / largest


def column_signals(matrix: MappedMatrix, x: Tensor) -> tuple[Tensor, Tensor]:
    """(signal, variance of its read noise), each [row_tiles, n, slices, out], summed over every single cell."""
    spec, u = matrix.spec, fractions(matrix, x)
    assert matrix.states is not None
    assert spec.dac is not None
    assert matrix.gain_per_ampere is not None
    device, gain, rows = load_device(spec.cell), float(matrix.gain_per_ampere), spec.tile.rows
    slices, polarities, copies, in_features, out_features = matrix.states.shape
    signal = torch.zeros(-(-in_features // rows), len(x), slices, out_features, dtype=torch.float64)
    variance = torch.zeros_like(signal)
    for row in range(in_features):
        volts = u[:, row] * spec.dac.vmax_volts
        for slice_, polarity, copy, column in product(*map(range, (slices, polarities, copies, out_features))):
            r = matrix.states[slice_, polarity, copy, row, column].double()
            current = device.current_amperes(volts, r)
            signal[row // rows, :, slice_, column] += (1 - 2 * polarity) * gain * current / copies
            if spec.read_noise is not None:
                conductance = device.conductance_siemens(volts, r)
                std = read_noise_std_amperes(
                    conductance, volts, **spec.read_noise.model_dump(exclude={"variance_product"})
                )
                variance[row // rows, :, slice_, column] += (gain * std / copies) ** 2
    return signal, variance


def shift_add(matrix: MappedMatrix, signal: Tensor) -> Tensor:
    """[n, out] from signals [row_tiles, n, slices, out]: the ADC of every tile and slice, then the digital sum.

    It is in units of (weight 1 x full-scale input) or, with scales for each tile, in those of the weights.
    """
    adc, factors = matrix.spec.adc, tile_factors(matrix)
    total = torch.zeros(signal.shape[1], signal.shape[3], dtype=torch.float64)
    for tile in range(signal.shape[0]):
        for slice_ in range(signal.shape[2]):
            value = signal[tile, :, slice_]
            if adc is not None and adc.range == "fixed":
                edge = 2.0 ** (adc.precision_bits + adc.range_bits - 1)
                value = (value * 2.0**adc.precision_bits).round().clamp(-edge, edge) / 2.0**adc.precision_bits
            elif adc is not None:
                assert matrix.adc_range is not None
                largest = 2 ** (adc.bits - 1) - 1
                step = float(matrix.adc_range[0, slice_]) / largest
                value = (value / step).round().clamp(-largest, largest) * step
            total += factors[tile] * value * 2 ** (cell_bits(matrix) * slice_)
    return total


def tile_factors(matrix: MappedMatrix) -> Tensor:
    """What the results of each row tile are multiplied by before they are added, [row_tiles, out]."""
    tiles, out_features = matrix.tiling.row_tiles, matrix.out_features
    factors = torch.ones(tiles, out_features, dtype=torch.float64)
    for tile, out in product(range(tiles), range(out_features)):
        if matrix.scale.ndim == 2:
            factors[tile, out] *= float(matrix.scale[tile, out])
        if matrix.gain_trim is not None:
            factors[tile, out] *= float(matrix.gain_trim[tile, out])
    return factors


def cell_bits(matrix: MappedMatrix) -> int:
    """How many bits of a weight a cell holds."""
    return matrix.spec.weights.cell_bits


def in_weights_and_inputs(matrix: MappedMatrix, product: Tensor) -> Tensor:
    """The sum `product` [n, out] of `shift_add`, in the units of x @ W.T, with the chip's offsets."""
    input_range = 1.0 if matrix.input_range is None else float(matrix.input_range)
    scale = 1.0 if matrix.scale.ndim == 2 else matrix.scale.double()
    offset = 0.0 if matrix.offset_trim is None else matrix.offset_trim.double()
    return product * scale * input_range + offset
