"""Reports of the progress of a training, for a listener."""

from __future__ import annotations

import time

from memsim.asr.scoring import Score
from memsim.listener import Listener
from memsim.training.state import EpochResult, Progress
from memsim.units import counted


class Narrator:
    """Reports the progress of a training of `epochs` epochs to a listener, and keeps the results of its epochs."""

    def __init__(self, listener: Listener, epochs: int) -> None:
        self.results: list[EpochResult] = []
        self._listener = listener
        self._epochs = epochs

    def begin(self, progress: Progress) -> None:
        """Take note of the position that the training begins or resumes at."""
        self._started = time.monotonic()
        self._done_before = (progress.epoch - 1) / self._epochs
        self.results = list(progress.results)
        if progress.step:
            self._listener.say(f"resumed in epoch {progress.epoch}, after {progress.batches} of its batches")

    def start(self, dev: Score, dev_loss: float | None) -> None:
        """Report the scores of the network before training."""
        self._listener.say(f"before training: {_scores(dev.wer, dev.cer, dev_loss)}")

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        """Report a step: of `total` batches of `epoch`, `done` are done; the mean loss a token is `loss`."""
        fraction = (epoch - 1 + done / total) / self._epochs
        fraction = min(fraction, 0.999999)  # the last epoch is still to be evaluated
        dev = f", dev WER {self.results[-1].dev_wer:.2%}" if self.results else ""
        detail = f"epoch {epoch}/{self._epochs}, loss {loss:.3f}{dev}"
        self._listener.progress("training", fraction, detail, self._epochs * total, "batches")

    def epoch(self, result: EpochResult) -> None:
        """Keep and report the result of an epoch."""
        self.results.append(result)
        done = result.epoch / self._epochs
        left = (time.monotonic() - self._started) * (1 - done) / (done - self._done_before) / 60
        short = f", {counted(result.too_short, 'utterance')} too short for their text" if result.too_short else ""
        extra = f" + {result.extra_loss:.3f}" if result.extra_loss else ""
        self._listener.say(
            f"epoch {result.epoch}/{self._epochs}: loss {result.train_loss:.3f}{extra}, "
            f"{_scores(result.dev_wer, result.dev_cer, result.dev_loss)}{' (best)' if result.is_best else ''}{short}, "
            f"about {left:.0f} min left"
        )


def _scores(wer: float, cer: float, loss: float | None) -> str:
    """Describe the scores of an epoch on dev; `loss` is None where none is measured."""
    measured = "" if loss is None else f"dev loss {loss:.4f}, "
    return f"{measured}dev WER {wer:.2%}, CER {cer:.2%}"
