"""memsim: how a real neural network behaves when its matrix products run on memristor crossbars.

    chip = memsim.map_model(model, "physical", bits=3, calibration=batches)   # any nn.Module on simulated arrays
    print(chip.mapping)                                                       # layers on arrays, and digital ones
    result = memsim.evaluate(model, batches, score=accuracy, hardware="best", bits=3, trials=5)
    result = memsim.evaluate("demo", "demo", hardware="best", trials=5)       # as `memsim eval`
    result = memsim.map_checkpoint("demo", "best", out="demo.mapped.safetensors")
    result = memsim.train(data=["tedlium2"], bits=3, init="demo-float", out="mine.safetensors")
    result = memsim.fit_device("cycles.csv", out="device.safetensors")

Results print as the commands do, show themselves in notebooks, and have `to_dict()`. Input that is wrong raises an
`InputError` that says in one line what is wrong, where, and the remedy. See `memsim --help` for the command line.

Importing memsim is cheap: torch is imported when one of these names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memsim.errors import InputError
from memsim.version import __version__

if TYPE_CHECKING:
    from memsim.asr.language_model import LanguageModelResult, estimate_language_model
    from memsim.evaluation.evaluate import evaluate, merge_results
    from memsim.evaluation.evaluation_result import EvaluationResult
    from memsim.evaluation.network_cost import estimate_cost
    from memsim.evaluation.options import Decoding, Findings, Sharing
    from memsim.fit.device_fit import DeviceFit, fit_device
    from memsim.fit.inspection import Inspection, inspect_measurements
    from memsim.hardware import HardwareSpec, load_hardware
    from memsim.mapping import MapResult, map_checkpoint
    from memsim.nn.mapping import map_model, measure_inputs
    from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
    from memsim.training.result import TrainingResult
    from memsim.training.train import train

_HOMES = {
    "DeviceFit": "memsim.fit.device_fit",
    "Decoding": "memsim.evaluation.options",
    "EvaluationResult": "memsim.evaluation.evaluation_result",
    "Findings": "memsim.evaluation.options",
    "HardwareSpec": "memsim.hardware",
    "Inspection": "memsim.fit.inspection",
    "estimate_cost": "memsim.evaluation.network_cost",
    "fit_device": "memsim.fit.device_fit",
    "inspect_measurements": "memsim.fit.inspection",
    "MapResult": "memsim.mapping",
    "LanguageModelResult": "memsim.asr.language_model",
    "TrainingResult": "memsim.training.result",
    "estimate_language_model": "memsim.asr.language_model",
    "Sharing": "memsim.evaluation.options",
    "evaluate": "memsim.evaluation.evaluate",
    "load_checkpoint": "memsim.storage.checkpoint",
    "load_hardware": "memsim.hardware",
    "map_checkpoint": "memsim.mapping",
    "map_model": "memsim.nn.mapping",
    "measure_inputs": "memsim.nn.mapping",
    "merge_results": "memsim.evaluation.evaluate",
    "save_checkpoint": "memsim.storage.checkpoint",
    "train": "memsim.training.train",
}

__all__ = [
    "Decoding",
    "DeviceFit",
    "EvaluationResult",
    "Findings",
    "HardwareSpec",
    "InputError",
    "Inspection",
    "LanguageModelResult",
    "MapResult",
    "Sharing",
    "TrainingResult",
    "__version__",
    "estimate_cost",
    "estimate_language_model",
    "evaluate",
    "fit_device",
    "inspect_measurements",
    "load_checkpoint",
    "load_hardware",
    "map_checkpoint",
    "map_model",
    "measure_inputs",
    "merge_results",
    "save_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'memsim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
