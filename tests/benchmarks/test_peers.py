"""The table row of SynaptogenML, with stand-ins for the classes of its main branch and others."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.benchmarks import peers


class AtHead(nn.Linear):
    def __init__(self, inputs, outputs, weight_bits, settings, memristor_inputs, memristor_outputs, bias=True):
        super().__init__(inputs, outputs, bias)
        self.programmed = 0

    def init_from_linear_quant(self, activation_quant, linear_quant, num_cycles_init):
        self.programmed += 1


class OnABranch(AtHead):
    def init_from_linear_quant(self, activation_quant, linear_quant, num_cycles_init, correction_settings):
        assert (num_cycles_init, correction_settings) == (0, None)
        self.programmed += 1


class BeforeBoth(AtHead):
    def init_from_linear_quant(self, activation_quant, linear_quant):
        self.programmed += 1


@pytest.mark.parametrize("layer_class", [AtHead, OnABranch, BeforeBoth])
def test_the_row_of_synaptogen_ml(monkeypatch, layer_class):
    modules = {
        "linear": {"TiledMemristorLinear": layer_class},
        "memristor": {"DacAdcHardwareSettings": dict},
        "quant_modules": {
            "ActivationQuantizer": lambda *_, **__: nn.Identity(),
            "LinearQuant": lambda inputs, outputs, *_, bias: nn.Linear(inputs, outputs, bias),
        },
    }
    for name in ("synaptogen_ml", "synaptogen_ml.memristor_modules"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, classes in modules.items():
        path = f"synaptogen_ml.{name}" if name == "quant_modules" else f"synaptogen_ml.memristor_modules.{name}"
        module = ModuleType(path)
        vars(module).update(classes)
        monkeypatch.setitem(sys.modules, path, module)
    network, x = peers.LAYER.network()
    layer, program = peers._synaptogen_ml(network, x)
    program()
    assert layer.programmed == 2
    with torch.inference_mode():
        assert layer(x).shape == network(x).shape
