"""Other simulators in the same run, if installed, on a layer of 512 x 512 with tiles of 128 rows.

- aihwkit-lightning (`pip install --no-deps aihwkit-lightning`: it pins a torch of its own): 8-bit inputs and outputs of
  each row tile. It has no bit planes and no cells, and its noise (on weights and outputs) is for training only: one row
  is its evaluation, the other a forward pass in training mode.
- SynaptogenML (a checkout at $SYNAPTOGENML_PATH): the cells, planes, tiles and converters of `paper`.
- synaptogen (PyPI, NumPy, which memsim's tests need): programming only.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from memsim.crossbar.tiling import Tiling
from tests.benchmarks.programming import SINGLE_PULSE
from tests.benchmarks.reads import BASE, NOISES
from tests.benchmarks.timing import Action, Benchmark, Row, median_seconds, times_plain

LAYER = replace(BASE, frames=256)
CELLS = 1 << 18


def _aihwkit_lightning(network: nn.Sequential) -> dict[str, nn.Module]:
    """Its layer in evaluation, and in training mode with the noise that it has there. Raises ImportError without it."""
    with contextlib.redirect_stdout(io.StringIO()):  # says that there is no Triton
        from aihwkit_lightning.nn import AnalogLinear
        from aihwkit_lightning.simulator.configs import (
            TorchInferenceRPUConfig,
            WeightNoiseInjectionType,
            WeightQuantizationType,
        )

    def layer() -> nn.Module:
        config = TorchInferenceRPUConfig()
        config.forward.inp_res = config.forward.out_res = 2**8 - 2
        config.forward.out_bound = 10.0
        config.forward.out_noise = 0.04
        config.pre_post.input_range.enable = True
        config.pre_post.input_range.init_from_data = 0
        config.mapping.max_input_size = LAYER.tile
        config.modifier.quantization_type = WeightQuantizationType.DISCRETIZE_PER_CHANNEL
        config.modifier.res = 2**LAYER.bits - 2
        config.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
        config.modifier.std_dev = 0.05
        return AnalogLinear.from_digital(network[0], config)

    evaluating = layer().eval()
    with warnings.catch_warnings(action="ignore"):  # says that it is done once and for all
        evaluating.quantize_weights()
    return {
        "aihwkit-lightning, without noise": evaluating,
        "aihwkit-lightning, weight and output noise": layer().train(),
    }


def _synaptogen_ml(network: nn.Sequential, x: torch.Tensor) -> tuple[nn.Module, Action]:
    """Its programmed layer, and what programs it anew. Raises ImportError where $SYNAPTOGENML_PATH is no checkout."""
    if (checkout := os.environ.get("SYNAPTOGENML_PATH")) and checkout not in sys.path:
        sys.path.insert(0, checkout)
    from synaptogen_ml.memristor_modules.linear import TiledMemristorLinear
    from synaptogen_ml.memristor_modules.memristor import DacAdcHardwareSettings
    from synaptogen_ml.quant_modules import ActivationQuantizer, LinearQuant

    method = "per_tensor_symmetric"
    linear = LinearQuant(LAYER.in_features, LAYER.out_features, LAYER.bits, torch.qint8, method, bias=False)
    linear.weight.data.copy_(network[0].weight)
    activation = ActivationQuantizer(8, torch.qint8, method, channel_axis=None, moving_avrg=None)
    linear(activation(x))  # its observers see the ranges
    settings = DacAdcHardwareSettings(
        input_bits=8,
        output_precision_bits=4,
        output_range_bits=4,
        hardware_input_vmax=0.6,
        hardware_output_current_scaling=8020.0,
    )
    layer = TiledMemristorLinear(
        LAYER.in_features, LAYER.out_features, LAYER.bits, settings, LAYER.tile, LAYER.tile, bias=False
    ).eval()

    options = {"num_cycles_init": 0, "correction_settings": None}  # its branches have more of them than its head
    known = inspect.signature(layer.init_from_linear_quant).parameters
    options = {name: value for name, value in options.items() if name in known}

    def program() -> None:
        layer.init_from_linear_quant(activation.eval(), linear.eval(), **options)

    program()
    return layer, program


def _synaptogen() -> Action:
    """Makes CELLS cells and programs half of them by one pulse."""
    from synaptogen import CellArrayCPU, applyVoltage

    volts = np.where(np.arange(CELLS) % 2, np.float32(-2.0), np.float32(0.0))
    return lambda: applyVoltage(CellArrayCPU(CELLS), volts)


def _read_rows() -> Iterator[Row]:
    network, x = LAYER.network()
    modules: dict[str, nn.Module] = {f"memsim, {name}": LAYER.chip(settings) for name, settings in NOISES.items()}
    slow: dict[str, nn.Module] = {}
    try:
        modules |= _aihwkit_lightning(network)
    except ImportError as error:
        yield {"library": f"aihwkit-lightning left out: {error}"}
    try:
        slow["SynaptogenML"] = _synaptogen_ml(network, x)[0]
    except ImportError as error:
        yield {"library": f"SynaptogenML left out: {error}"}
    with torch.inference_mode():
        for some, rounds in ((modules, 9), (slow, 1)):
            actions = {name: partial(module, x) for name, module in some.items()}
            for name, ratio in times_plain(partial(network, x), actions, rounds).items():
                yield {"library": name, "times nn.Linear": ratio}


def _programming_rows() -> Iterator[Row]:
    network, x = LAYER.network()
    programs = {
        "memsim": SINGLE_PULSE.prepare(CELLS // 4),
        "synaptogen (NumPy)": (CELLS, _synaptogen()),
    }
    try:
        tiling = Tiling(LAYER.tile, LAYER.tile, LAYER.out_features, LAYER.in_features, LAYER.bits)
        programs["SynaptogenML"] = (tiling.cells, _synaptogen_ml(network, x)[1])
    except ImportError as error:
        yield {"library": f"SynaptogenML left out: {error}"}
    taken = median_seconds({name: action for name, (_, action) in programs.items()}, rounds=3)
    for name, (cells, _) in programs.items():
        yield {"library": name, "million cells/s": cells / taken[name] / 1e6}


READS_OF_PEERS = Benchmark(
    "peers: reads of 512 x 512 x 256 frames, tiles of 128 rows, 3-bit weights, 8-bit converters",
    {"library": "", "times nn.Linear": ".1f"},
    _read_rows,
)
PROGRAMMING_OF_PEERS = Benchmark(
    "peers: fresh cells programmed by a single pulse", {"library": "", "million cells/s": ".2f"}, _programming_rows
)
