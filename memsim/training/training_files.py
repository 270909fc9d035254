"""Files that a training writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.launch import is_first
from memsim.storage.outputs import held_output, require_outputs


@dataclass(frozen=True)
class TrainingFiles:
    """The files of the training that writes `out`. All but `state` stay when it is done."""

    out: Path
    """The checkpoint of the best epoch."""

    @property
    def last(self) -> Path:
        """The weights after the last epoch."""
        return self.out.with_name(f"{self.out.stem}.last.safetensors")

    @property
    def log(self) -> Path:
        """The log as CSV, with a row per epoch."""
        return self.out.with_suffix(".csv")

    @property
    def events(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.out.with_suffix(".tensorboard")

    @property
    def state(self) -> Path:
        """The state that a stopped training resumes from."""
        return self.out.with_name(f"{self.out.stem}.resume.safetensors")

    def require_no_state(self) -> None:
        """Raise InputError when there is the state of a stopped training."""
        if self.state.exists():
            raise InputError(f"{self.state}: a stopped training lies here; --resume continues it, --force starts anew")

    def require_writable(
        self, others: Sequence[Path], inputs: Sequence[str | Path | None], *, resume: bool, force: bool
    ) -> None:
        """Raise InputError when the training must not or cannot write its files.

        Args:
            others: Files that the caller writes beside them: none may be one of the training's.
            inputs: Files that the training reads, which are never overwritten.
            resume: The training continues with its existing files.
            force: Files that exist are overwritten.
        """
        if resume and force:
            raise InputError("--resume continues what --force would overwrite; give one of them")
        if not (resume or force):
            self.require_no_state()
        resumed = resume and (self.state.exists() or self.out.exists())
        require_outputs((self.out, self.last, self.log, self.state, *others), force, inputs, resumed=resumed)
        if self.events.exists() and not (force or resumed):
            raise InputError(f"{self.events}: exists already; --force overwrites it")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other trainings from writing these files until the block ends; under torchrun, the first process does.

        Raises:
            InputError: Another training is writing them, or they cannot be written.
        """
        with held_output(self.out, "training") if is_first() else nullcontext():
            yield
