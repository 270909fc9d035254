"""Result of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from memsim.report.text import as_html
from memsim.training.state import EpochResult


@dataclass(frozen=True)
class TrainingResult:
    """The best epoch of a training, its checkpoint, and what the epochs measured.

    >>> result = memsim.TrainingResult("mine.safetensors", 3, {"wer": 0.125, "cer": 0.0625}, seed=0)
    >>> print(result)
    best dev WER 12.50%, of epoch 3: mine.safetensors
    >>> result.to_dict()["best_epoch"]
    3
    """

    checkpoint: str | Path
    """The file of the best epoch's weights."""
    best_epoch: int
    """The epoch with the lowest dev WER, or loss where the recipe's `best_by` says so, from 1; of equal ones the last.

    0 is the network before training, which recipes with `evaluate_start` score, too.
    """
    dev: Mapping[str, int | float]
    """Scores of the best epoch on the dev set: `wer` and `cer` (fractions) and the counts that they are made of."""
    seed: int
    epochs: tuple[EpochResult, ...] = field(default=(), repr=False)
    """Losses and dev scores of every epoch; empty where an earlier call had finished the training."""
    dev_loss: float | None = None
    """The mean loss on the dev set of the best epoch; None where its WER made it the best."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `memsim qat --json` writes."""
        return {
            "checkpoint": str(self.checkpoint),
            "best_epoch": self.best_epoch,
            "dev": dict(self.dev),
            "dev_loss": self.dev_loss,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        which = f"epoch {self.best_epoch}" if self.best_epoch else "the network before training"
        wer = f"dev WER {self.dev['wer']:.2%}"
        score = wer if self.dev_loss is None else f"dev loss {self.dev_loss:.4f}, with {wer}"
        return f"best {score}, of {which}: {self.checkpoint}"

    def _repr_html_(self) -> str:
        table = Table("epoch", "loss", "extra loss", "dev WER", "dev CER", "dev loss")
        for epoch in self.epochs:
            dev_loss = "" if epoch.dev_loss is None else f"{epoch.dev_loss:.4f}"
            scores = (f"{epoch.dev_wer:.2%}", f"{epoch.dev_cer:.2%}", dev_loss)
            table.add_row(str(epoch.epoch), f"{epoch.train_loss:.3f}", f"{epoch.extra_loss:.3f}", *scores)
        return as_html(str(self), *([table] if self.epochs else []))
