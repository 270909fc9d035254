"""Batches of a training's utterances, shared out to processes: a function of the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memsim.asr.audio import duration_seconds
from memsim.asr.data import FeatureSource, encode_text, pad, training_batches
from memsim.asr.features import FeatureConfig, spec_augment
from memsim.asr.recogniser import Recogniser
from memsim.asr.utterances import Utterance
from memsim.rng import generator
from memsim.training.recipe import TrainConfig

Draws = Sequence[tuple[int, float]]
"""Numbers of utterances, each with the speed that it is played at."""


@dataclass(frozen=True)
class TrainingBatch:
    """Utterances with their augmented features [batch, frames, mel_bins], their lengths [batch] and their tokens."""

    utterances: tuple[Utterance, ...]
    features: Tensor
    lengths: Tensor
    targets: tuple[Tensor, ...]

    def to(self, device: torch.device) -> TrainingBatch:
        """Return this batch with its features and lengths on `device`."""
        moved = (tensor.to(device, non_blocking=True) for tensor in (self.features, self.lengths))
        return replace(self, features=next(moved), lengths=next(moved))


class TrainingSet:
    """Utterances with their tokens, which are made into the batches of any epoch.

    The tokens are those of the transcripts; where these are not learned, `targets` is set before the first batch.

    Raises:
        InputError: A transcript has a character without a token, or audio is missing.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        recogniser: Recogniser,
        config: TrainConfig,
        seed: int,
        *,
        learns_transcripts: bool = True,
    ) -> None:
        self.utterances = tuple(utterances)
        self.source = FeatureSource(recogniser.features, cache_bytes=1e9 * config.feature_cache_gigabytes)
        self._config = config
        self._masked = isinstance(recogniser.features, FeatureConfig)
        self._seed = seed
        self.targets = [encode_text(recogniser.tokens, u) for u in utterances] if learns_transcripts else []
        self._durations = [duration_seconds(u) for u in utterances]

    def batches(self, epoch: int) -> list[Draws]:
        """Return the batches of `epoch` in their order."""
        draws = generator(self._seed, "batches", epoch)
        speeds, seconds = self._config.augment.speeds, self._config.batch_seconds
        return list(training_batches(self._durations, speeds, seconds, draws))

    def load(self, epoch: int, draws: Draws) -> TrainingBatch:
        """Load the features of these utterances, augmented by draws that depend on `epoch` and the utterance alone.

        Waveforms have no frames and bins to mask: only their speed changes.
        """
        features = [self.source(self.utterances[i], speed) for i, speed in draws]
        if self._masked:
            draw = [generator(self._seed, "augment", epoch, i) for i, _ in draws]
            features = [spec_augment(f, self._config.augment, g) for f, g in zip(features, draw, strict=True)]
        targets = tuple(self.targets[i] for i, _ in draws)
        return TrainingBatch(tuple(self.utterances[i] for i, _ in draws), *pad(features), targets)


@dataclass(frozen=True)
class Share:
    """A process's part of a batch of `batch_size` utterances, in pieces that are computed one after the other.

    Where a batch has fewer utterances than there are processes, a process without one computes the batch's first
    utterance with `weight` 0, as all processes exchange gradients at each step.
    """

    pieces: tuple[Draws, ...]
    batch_size: int
    weight: float


def share(batch: Draws, pieces: int, rank: int, workers: int) -> Share:
    """Return the share of `batch` of process `rank` of `workers`, in up to `pieces` pieces of similar lengths."""
    mine = batch[rank::workers]
    parts = tuple(part for i in range(pieces) if (part := mine[i::pieces]))
    return Share(parts or (batch[:1],), len(batch), 1.0 if parts else 0.0)
