"""Files that a training writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.launch import is_first
from memsim.storage.locks import held_file
from memsim.storage.outputs import require_outputs


@dataclass(frozen=True)
class TrainingFiles:
    """The files of the training that writes `out`. All but `state` stay when it is done."""

    out: Path
    """The best checkpoint by dev WER."""

    @property
    def last(self) -> Path:
        """The weights after the last epoch."""
        return self.out.with_name(f"{self.out.stem}.last.safetensors")

    @property
    def log(self) -> Path:
        """The log as CSV, a row an epoch."""
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
            resume: The training goes on with files of its own that exist.
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
        with ExitStack() as stack:
            if is_first():
                try:
                    stack.enter_context(held_file(self.out.absolute().with_name(f".{self.out.name}.lock"), wait=False))
                except BlockingIOError:
                    raise InputError(f"{self.out}: another training is writing it; name another file") from None
                except OSError as error:
                    raise InputError(f"{self.out}: cannot be written ({error.strerror})") from None
            yield
