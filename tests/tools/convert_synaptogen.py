"""Make configs/devices/synaptogen.{safetensors,yaml} from the parameters in the PyPI package `synaptogen`.

Run: python tests/tools/convert_synaptogen.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import torch
from torch import Tensor

from memsim.device import DeviceModel, save_device
from memsim.device.cycles.file import summarise, summary_yaml

SOURCE = "PyPI package synaptogen {version}, default_params.json (https://github.com/thennen/Synaptogen)"
CITATION = [
    "Hennen et al., A high throughput generative vector autoregression model for stochastic synapses, "
    "Front. Neurosci. 16:941753 (2022)",
    "Hennen et al., Synaptogen: A cross-domain generative device model for large-scale neuromorphic circuit design, "
    "IEEE Trans. Electron Devices (2024), arXiv:2404.06344",
]
HEADER = """\
# The numbers of synaptogen.safetensors, to read; memsim loads the safetensors file, a test keeps the two equal.
# Both are made by tests/tools/convert_synaptogen.py.
"""


def convert() -> DeviceModel:
    """The published parameters as a device model."""
    package = distribution("synaptogen")
    parameters = json.loads(Path(str(package.locate_file("synaptogen/default_params.json"))).read_text("utf-8"))
    licences = [file for file in package.files or [] if file.name == "LICENSE"]

    def tensor(key: str) -> Tensor:
        return torch.tensor(parameters[key], dtype=torch.float64)

    weights = tensor("wk")
    return DeviceModel(
        name="synaptogen",
        llrs=tensor("LLRS"),
        hhrs=tensor("HHRS"),
        gamma=tensor("γ"),
        mixture_weights=weights,
        mixture_means=tensor("μDtD"),
        # [8, 24] holds L_1, L_2, L_3 side by side
        mixture_cholesky=tensor("LDtD").reshape(8, len(weights), 8).transpose(0, 1).contiguous(),
        var={int(key[4:]): tensor(key) for key in parameters if key.startswith("VAR_")},
        reference_volts=parameters["U₀"],
        reset_full_volts=parameters["Umax"],
        reset_exponent=parameters["η"],
        source=SOURCE.format(version=version("synaptogen")),
        licence=licences[0].read_text().strip(),
    )


def describe(model: DeviceModel) -> str:
    """The YAML that shows the numbers to people; the large matrices by their shapes."""
    summary = summarise(model)
    first = {key: summary.pop(key) for key in ("name", "source")}
    text = summary_yaml(first | {"citation": CITATION} | summary | {"licence": model.licence})
    head, licence = text.split("licence:")[0], "\n".join(f"  {line}".rstrip() for line in model.licence.splitlines())
    return f"{HEADER}{head}licence: |\n{licence}\n"


def main(folder: Path) -> None:
    model = convert()
    save_device(model, folder / "synaptogen.safetensors")
    (folder / "synaptogen.yaml").write_text(describe(model), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "configs" / "devices")
