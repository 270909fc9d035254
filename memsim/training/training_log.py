"""Logs of a training: a CSV file with a row per epoch, and TensorBoard's event files with every step."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import fields

from memsim.storage.files import writing
from memsim.training.state import EpochResult
from memsim.training.training_files import TrainingFiles


class TrainingLog:
    """The CSV and TensorBoard logs of a training; a resumed training continues them with each epoch and step once.

    Args:
        files: The training's files, among them both logs.
        step: The step from which the training continues; 0 removes the events of an earlier training.
    """

    def __init__(self, files: TrainingFiles, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every process logs

        self._csv = files.log
        if step == 0:
            for old in files.events.glob("events.out.tfevents.*"):
                old.unlink(missing_ok=True)
        # Drop later steps of an interrupted run, as they are logged again.
        self._events = SummaryWriter(str(files.events), purge_step=step + 1 if step else None)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values`, measured in the step of this number."""
        for name, value in values.items():
            self._events.add_scalar(f"train/{name}", value, step)

    def epoch(self, results: Sequence[EpochResult], step: int) -> None:
        """Log the last of `results`; the CSV file is written anew with all of them."""
        last = results[-1]
        for name, value in (("wer", last.dev_wer), ("cer", last.dev_cer), ("loss", last.dev_loss)):
            if value is not None:
                self._events.add_scalar(f"dev/{name}", value, step)
        self._events.flush()
        with writing(self._csv) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in fields(EpochResult))
            for result in results:
                writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in vars(result).values())

    def close(self) -> None:
        """Write the remaining events, and close the files."""
        self._events.close()
