"""Keep one small file of each kind as this version of memsim writes it: tests/published/VERSION.

    python tests/tools/published_files.py

Run once for a release that changes what is in a file (and raises its format, where an older memsim could not read it);
tests/test_published.py reads what every released version wrote. The networks are a Conformer of one narrow block and
what two minutes of training make of it: nobody reads their transcripts, only that they stay the same.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from memsim import __version__, load_checkpoint
from memsim.asr.corpora import load_corpus
from memsim.asr.recogniser import Recogniser, load_recogniser
from memsim.device import load_device, save_device
from memsim.networks.mapped_file import load_chip

REPOSITORY = Path(__file__).resolve().parents[2]

MODEL = """
architecture: conformer_ctc
features: {mel_bins: 16}
frontend: [{channels: 2, stride_time: 2, stride_frequency: 2}, {channels: 2, stride_time: 2, stride_frequency: 4}]
width: 6
blocks: 1
heads: 2
feed_forward_width: 10
kernel_frames: 3
"""
FLOAT = """
model: model.yaml
epochs: 2
batch_seconds: 10
learning_rate: [[0, 1.0e-2], [1, 1.0e-3]]
"""
FEW_BITS = FLOAT + "quantisation: {teacher: none}\n"
CHIP = """
name: published
base: physical
faults: {stuck_hrs: 0.01}
read_noise: none
overrides:
  - match: "*.feed_forward_1.*"
    adc: {range: fixed, precision_bits: 4, range_bits: 4}
"""


def log_probabilities(recogniser: Recogniser) -> list[list[float]]:
    """[frames][tokens] that `recogniser` computes from a smooth utterance of 60 frames."""
    time, pitch = torch.arange(60.0)[:, None], torch.arange(16.0)[None]
    features = torch.sin(0.2 * time + 0.7 * pitch)[None]  # [1, frames, mel bins]
    with torch.no_grad():
        outputs, _ = recogniser.model.eval()(features, torch.tensor([60]))
    return [[round(value, 4) for value in frame] for frame in outputs[0].tolist()]


def memsim(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command line, begun in `folder`."""
    return subprocess.Popen([sys.executable, "-m", "memsim", *arguments, "--quiet"], cwd=folder)


def make(folder: Path) -> None:
    """Write the files into `folder`; everything in them is named relative to it."""
    for name, text in (("model", MODEL), ("float", FLOAT), ("few-bits", FEW_BITS), ("chip", CHIP)):
        (folder / f"{name}.yaml").write_text(text)
    rows = ["audio\ttext"]
    for utterance in load_corpus("demo", limit=4).utterances:
        shutil.copy(utterance.audio, folder)
        rows.append(f"{utterance.audio.name}\t{utterance.text}")
    (folder / "few.tsv").write_text("\n".join(rows) + "\n")
    device = load_device("synaptogen")
    save_device(
        dataclasses.replace(device, name="short", var={p: device.var[p] for p in (1, 2)}), folder / "device.safetensors"
    )
    data = ("--data", "few.tsv", "--dev", "few.tsv")
    few_bits = ("qat", "--bits", "3", *data, "--config", "few-bits.yaml", "--init", "model.safetensors")
    mapping = ("map", "trained.safetensors", "--hardware", "chip.yaml", "--cell", "device.safetensors")
    evaluation = ("eval", "mapped.safetensors", "--data", "few.tsv", "--trials", "2", "--json", "result.json")
    for arguments in (
        ("qat", "--bits", "float", *data, "--config", "float.yaml", "-o", "model.safetensors"),
        (*few_bits, "-o", "trained.safetensors"),
        (*mapping, "-o", "mapped.safetensors"),
        (*evaluation, "--results", "results.jsonl"),
    ):
        if memsim(folder, *arguments).wait() != 0:
            sys.exit(f"failed: {' '.join(arguments)}")
    (folder / "few-bits.yaml").write_text(FEW_BITS.replace("epochs: 2", "epochs: 1000"))
    training = memsim(folder, *few_bits, "-o", "training.safetensors")
    while not (folder / "training.resume.safetensors").exists():
        time.sleep(0.1)
    training.send_signal(signal.SIGTERM)
    if training.wait() != 75:
        sys.exit("the training was not stopped with its work saved")
    result = json.loads((folder / "result.json").read_text())
    expected = {
        "model": log_probabilities(load_recogniser(load_checkpoint(folder / "model.safetensors"))),
        "trained": log_probabilities(load_recogniser(load_checkpoint(folder / "trained.safetensors"))),
        "mapped": log_probabilities(load_chip(load_checkpoint(folder / "mapped.safetensors"))[0]),
        "results": {key: result[key] for key in ("digital", "mapped", "clip_rate")},
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


KEPT = (
    "device.safetensors",
    "expected.json",
    "mapped.safetensors",
    "model.safetensors",
    "results.jsonl",
    "trained.safetensors",
    "training.resume.safetensors",
)


if __name__ == "__main__":
    target = REPOSITORY / "tests" / "published" / __version__
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
        for name in KEPT:
            shutil.copy(Path(made) / name, target)
