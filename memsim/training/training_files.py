"""Where a training's files lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.launch import is_first
from memsim.storage.locks import held_file


@dataclass(frozen=True)
class TrainingFiles:
    """The files of the training that writes `out`; all but `state` stay when it is done."""

    out: Path
    """The best checkpoint by dev WER."""

    @property
    def last(self) -> Path:
        """The weights after the last epoch."""
        return self.out.with_name(f"{self.out.stem}.last.safetensors")

    @property
    def log(self) -> Path:
        """A row an epoch, as CSV."""
        return self.out.with_suffix(".csv")

    @property
    def events(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.out.with_suffix(".tensorboard")

    @property
    def state(self) -> Path:
        """What a stopped training resumes from."""
        return self.out.with_name(f"{self.out.stem}.resume.safetensors")

    def require_no_state(self) -> None:
        """Raise InputError when a stopped training lies here."""
        if self.state.exists():
            raise InputError(f"{self.state}: a stopped training lies here; --resume continues it, --force starts anew")

    @contextmanager
    def held(self) -> Iterator[None]:
        """While open, no other training writes these files. Of the processes of a torchrun, the first one holds them.

        Raises InputError while another training does.
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
