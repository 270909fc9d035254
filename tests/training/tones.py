"""Trainings of a moment: four utterances in which each character is a tone, and a tiny recogniser."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from memsim.asr.corpora import Corpus
from memsim.asr.features import AugmentConfig, FeatureConfig
from memsim.asr.models.conformer import ConformerConfig
from memsim.asr.models.frontend import ConvConfig
from memsim.asr.recogniser import Recogniser, build
from memsim.asr.scoring import Score
from memsim.asr.tokens import CharacterTokens
from memsim.asr.utterances import Utterance
from memsim.storage.checkpoint import load_checkpoint
from memsim.training import loop
from memsim.training.hooks import Hooks
from memsim.training.loop import Job
from memsim.training.recipe import TrainConfig
from memsim.training.state import Best, EpochResult, Progress

TEXTS = ("ab", "ba", "a b", "bb a")
HZ = {"a": 500.0, "b": 2000.0, " ": 0.0}

MODEL = ConformerConfig(
    features=FeatureConfig(mel_bins=16),
    frontend=(ConvConfig(channels=4, stride_time=2, stride_frequency=2), ConvConfig(channels=4, stride_time=2)),
    width=24,
    blocks=1,
    heads=2,
    feed_forward_width=48,
    kernel_frames=7,
    dropout=0.0,
)

PLAIN = TrainConfig(
    name="plain",
    epochs=60,
    batch_seconds=100.0,
    learning_rate=((0.0, 1e-3), (0.2, 1e-2), (1.0, 1e-4)),
    average_decay=0.5,
    augment=AugmentConfig(speeds=(1.0,), time_mask_frames=0, frequency_masks_min=0, frequency_masks_max=0),
)

# Everything that draws (with a dropout: DROPOUT): speeds, masks, warping, several batches an epoch.
RANDOM = PLAIN.model_copy(
    update={
        "epochs": 3,
        "batch_seconds": 1.5,
        "average_decay": 0.9,
        "augment": AugmentConfig(frequency_mask_bins=2, frequency_warp=0.1),
    }
)
DROPOUT = MODEL.model_copy(update={"dropout": 0.2})


def record(folder: Path) -> Corpus:
    """Write the utterances into `folder`."""
    time = np.arange(2400) / 16000
    utterances = []
    for i, text in enumerate(TEXTS):
        pieces = [[0.3 * np.sin(2 * math.pi * HZ[c] * time), np.zeros(1600)] for c in text]
        samples = np.concatenate([piece for pair in pieces for piece in pair])
        samples += 0.003 * np.random.default_rng(i).standard_normal(len(samples))
        soundfile.write(folder / f"{i}.wav", samples, 16000)
        utterances.append(Utterance(f"u{i}", folder / f"{i}.wav", text))
    return Corpus("tones", "all", tuple(utterances))


def fresh(config: ConformerConfig = MODEL, characters: str = " ab") -> Recogniser:
    torch.manual_seed(0)
    return build("conformer_ctc", config, CharacterTokens(tuple(characters)), "kaldi")


@dataclass
class Watching:
    """Keeps what it is told."""

    begun: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    epochs: list[EpochResult] = field(default_factory=list)
    best: Best | None = None
    start_loss: float | None = None

    def begin(self, progress: Progress) -> None:
        self.begun.append(progress.step)

    def start(self, dev: Score, dev_loss: float | None) -> None:
        assert dev.words
        self.start_loss = dev_loss

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        assert 1 <= done <= total
        self.losses.append(loss)

    def epoch(self, result: EpochResult) -> None:
        self.epochs.append(result)


class Killed(BaseException):
    """Nothing in the training catches it, as nothing catches SIGKILL."""


class KilledAt(Watching):
    """Kills the training after its step number `step` (of this run)."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        super().step(epoch, done, total, loss)
        if len(self.losses) == self._step:
            raise Killed


def job(
    corpus: Corpus,
    out: Path,
    config: TrainConfig = PLAIN,
    *,
    recogniser: Recogniser | None = None,
    seed: int = 0,
    hooks: Hooks | None = None,
) -> Job:
    provenance = {"recipe": config.model_dump_json(), "data": "tones"}
    return Job(recogniser or fresh(), config, [corpus], corpus, out, seed, provenance, hooks or Hooks())


def hooks_of(**methods: Any) -> Hooks:
    """The plain hooks with some of their methods replaced by functions."""
    hooks = Hooks()
    vars(hooks).update(methods)
    return hooks


def run(job: Job, watching: Watching | None = None, **how: Any) -> Watching:
    watching = watching or Watching()
    watching.best = loop.run(job, watching, **how)
    return watching


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).tensors()


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
