"""Training a CTC recogniser: schedule, clipping, averaged weights, a dev WER an epoch, best and last checkpoints."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import field_validator
from pydantic.types import Strict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import Corpus
from memsim.asr.ctc import ctc_loss, encode_text
from memsim.asr.data import FeatureSource, evaluation_batches, pad, training_batches
from memsim.asr.features import AugmentConfig, spec_augment
from memsim.asr.recogniser import Recogniser
from memsim.asr.scoring import Score, score
from memsim.checkpoint import save_checkpoint
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.evaluate import input_statistics, transcribe
from memsim.resources import find_config
from memsim.rng import derive_seed, generator
from memsim.schema import Schema, Section, Within, problem
from memsim.yaml_config import read_config

Pair = Annotated[tuple[float, Annotated[float, Within(low=0)]], Strict(False)]


class TrainConfig(Section):
    """A training recipe (configs/qat/*.yaml)."""

    name: str
    model: str = "conformer-small"
    epochs: Annotated[int, Within(1)]
    batch_seconds: Annotated[float, Within(above=0)]
    optimiser: Literal["adamw", "radam"] = "adamw"
    learning_rate: Annotated[tuple[Pair, ...], Strict(False)]  # (fraction of the training, rate), linear between them
    weight_decay: Annotated[float, Within(low=0)] = 0.01
    clip_norm: Annotated[float, Within(above=0)] = 1.0
    average_decay: Annotated[float, Within(low=0, below=1)] = 0.0  # of the weights' moving average; 0: the weights
    precision: Literal["float32", "bfloat16"] = "float32"  # of the matrix products in training
    cache_features: bool = True
    augment: AugmentConfig = AugmentConfig()

    @field_validator("learning_rate")
    @classmethod
    def _rates_are_a_curve(cls, points: tuple[Pair, ...]) -> tuple[Pair, ...]:
        fractions = [fraction for fraction, _ in points]
        if len(points) < 2 or fractions[0] != 0 or fractions[-1] != 1 or fractions != sorted(set(fractions)):
            raise problem("expected [fraction, rate] pairs whose fractions rise from 0 to 1")
        return points

    def learning_rate_at(self, fraction: float) -> float:
        """The learning rate after `fraction` of the training."""
        for (start, low), (end, high) in zip(self.learning_rate, self.learning_rate[1:], strict=False):
            if fraction <= end:
                return low + (high - low) * (fraction - start) / (end - start)
        return self.learning_rate[-1][1]


def load_train_config(name_or_path: str | Path) -> TrainConfig:
    """The recipe of that name (shipped in configs/qat) or in that YAML file, seen from whose folder is its `model`.

    A recipe without a `name` takes its file's. Raises InputError that lists every problem with its file, line and key.
    """
    path = find_config("qat", name_or_path)
    config = read_config(path)
    config.data.setdefault("name", path.stem)
    model = config.data.get("model")
    if isinstance(model, str) and (path.parent / model).is_file():
        config.data["model"] = str(path.parent / model)
    return Schema(TrainConfig).validate(config)


class Watcher(Protocol):
    """Told how a training goes; the command line draws it."""

    def step(self, epoch: int, done: int, total: int, loss: float) -> None: ...

    def epoch(self, result: EpochResult) -> None: ...


@dataclass(frozen=True)
class EpochResult:
    epoch: int
    seconds: float
    learning_rate: float
    train_loss: float  # mean CTC loss a character
    dev_wer: float
    dev_cer: float
    is_best: bool
    too_short: int  # utterances with fewer frames than their text needs, which taught nothing


def train(
    recogniser: Recogniser,
    config: TrainConfig,
    train_corpora: Sequence[Corpus],
    dev: Corpus,
    out: Path,
    *,
    seed: int,
    provenance: Mapping[str, str],
    watcher: Watcher,
) -> Score:
    """Train `recogniser` and write `out` (best by dev WER, with input statistics), `*.last.safetensors` and `*.csv`.

    A corpus named twice in `train_corpora` counts twice in every epoch. Raises InputError when a transcript has a
    character without a token or `out` cannot be written, FloatingPointError when the loss or gradient is not finite.
    """
    model = recogniser.model
    utterances = [u for corpus in train_corpora for u in corpus.utterances]
    targets = [encode_text(recogniser.tokens, u) for u in utterances]
    durations = [duration_seconds(u) for u in utterances]
    source = FeatureSource(recogniser.features, cache=config.cache_features)
    dev_source = FeatureSource(recogniser.features, cache=True)
    optimiser = _optimiser(model, config)
    average = AveragedModel(model, multi_avg_fn=_warming_average(config.average_decay))
    evaluated = replace(recogniser, model=average.module)
    last = out.with_name(f"{out.stem}.last.safetensors")
    log = out.with_suffix(".csv")
    if not os.access(out.absolute().parent, os.W_OK):
        raise InputError(f"{out}: the folder {out.absolute().parent} does not exist or is not writable")
    best = math.inf
    best_score: Score | None = None
    step = 0

    for epoch in range(1, config.epochs + 1):
        started = time.monotonic()
        batches = training_batches(
            durations, config.augment.speeds, config.batch_seconds, generator(seed, "batches", epoch)
        )
        losses = []
        too_short = 0
        model.train()
        for done, batch in enumerate(batches, start=1):
            rate = config.learning_rate_at((epoch - 1 + done / len(batches)) / config.epochs)
            for group in optimiser.param_groups:
                group["lr"] = rate
            # Dropout and SpecAugment draw from torch's own generator: a step is a function of the seed and its number.
            torch.manual_seed(derive_seed(seed, "step", step))
            step += 1
            features, lengths = pad([source(utterances[i], speed) for i, speed in batch])
            features = spec_augment(features, config.augment)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                log_probs, frames = model(features, lengths)
            chosen = [targets[i] for i, _ in batch]
            too_short += sum(_frames_needed(t) > n for t, n in zip(chosen, frames.tolist(), strict=True))
            loss = ctc_loss(log_probs.float(), frames, chosen)
            optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            for what, value in (("loss", loss), ("norm of the gradient", norm)):
                if not torch.isfinite(value):
                    names = ", ".join(utterances[i].id for i, _ in batch[:3])
                    raise FloatingPointError(
                        f"the {what} is {value.item()} at epoch {epoch}, batch {done} ({names}, ...)"
                    )
            optimiser.step()
            average.update_parameters(model)
            losses.append(loss.item())
            watcher.step(epoch, done, len(batches), losses[-1])

        average.module.eval()
        hypotheses = transcribe(evaluated, evaluation_batches(dev.utterances, dev_source))
        dev_score = score([u.text for u in dev.utterances], hypotheses)
        is_best = dev_score.wer <= best
        result = EpochResult(
            epoch,
            time.monotonic() - started,
            config.learning_rate_at(epoch / config.epochs),
            sum(losses) / len(losses),
            dev_score.wer,
            dev_score.cer,
            is_best,
            too_short,
        )
        if too_short == len(utterances):
            raise InputError(f"{utterances[0].audio}: every utterance has fewer frames than its text has characters")
        _append_row(log, result, new=epoch == 1)
        metadata = {"kind": "model", "seed": str(seed), **provenance, **recogniser.metadata()}
        if is_best:
            best, best_score = dev_score.wer, dev_score
            statistics = input_statistics(evaluated, train_corpora[0].utterances, source, seed=seed)
            save_checkpoint(out, _with_statistics(average.module, statistics), metadata)
        save_checkpoint(last, average.module.state_dict(), metadata)
        watcher.epoch(result)
    assert best_score is not None
    return best_score


def _with_statistics(model: nn.Module, statistics: Mapping[str, InputStatistics]) -> dict[str, Tensor]:
    tensors = dict(model.state_dict())
    for layer, measured in statistics.items():
        tensors |= measured.to_tensors(layer)
    return tensors


def _frames_needed(target: Tensor) -> int:
    """CTC spends a frame on every token, and one on the blank between two that are alike."""
    return len(target) + int((target[1:] == target[:-1]).sum())


def _optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay, decoupled, on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimiser == "radam":
        return torch.optim.RAdam(groups, lr=config.learning_rate[0][1], decoupled_weight_decay=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate[0][1], betas=(0.9, 0.98))


def _warming_average(decay: float) -> Any:
    """An exponential moving average whose decay grows from 0 to `decay`, so that the first steps do not linger."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def _append_row(log: Path, result: EpochResult, *, new: bool) -> None:
    with log.open("w" if new else "a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(field.name for field in fields(EpochResult))
        writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in vars(result).values())
