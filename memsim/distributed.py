"""Processes that work together: one alone, or those that torchrun started."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from memsim.errors import InputError
from memsim.launch import is_torchrun
from memsim.units import counted

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """This process and the ones that it works with; all of them call the same methods in the same order.

    Attributes:
        device: The device on which this process computes.
        rank: The number of this process, from 0.
        size: The number of processes.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and says how it goes."""
        return self.rank == 0

    def parallel(self, model: nn.Module, *, is_staged: bool = False) -> nn.Module:
        """Return `model` such that its gradients are averaged over the processes.

        With `is_staged`, parameters may have no gradient in some steps.
        """
        if self.size == 1:
            return model
        on_gpu = self.device.type == "cuda"
        devices = [self.device] if on_gpu else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=is_staged)

    def without_exchange(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which backward passes of the `parallel` model do not exchange the gradients they add."""
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the processes."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(together)
        total: list[float] = together.tolist()
        return total

    def take_largest(self, tensors: Sequence[Tensor]) -> None:
        """Give each of `tensors` (on `device`), element by element, its largest value in any process."""
        if self.size == 1 or not tensors:
            return
        together = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        for tensor, largest in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(largest.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.gather(None)


def choose_device(compute: str) -> str:
    """Return the kind of device to compute on, `cpu` or `cuda`, from `auto`, `cpu` or `cuda`.

    Raises:
        InputError: `compute` is another word, or `cuda` where torch sees no such device.
    """
    if compute not in ("auto", "cpu", "cuda"):
        raise InputError(f"--compute {compute}: expected auto, cpu or cuda")
    if compute == "cuda" and not torch.cuda.is_available():
        raise InputError("--compute cuda: torch sees no CUDA device here; use --compute cpu")
    return "cuda" if compute != "cpu" and torch.cuda.is_available() else "cpu"


def own_device(device: str) -> torch.device:
    """Return this process's device of the kind `device`, `cpu` or `cuda`: under torchrun, the GPU of its local rank.

    Raises:
        InputError: There are fewer GPUs than processes.
    """
    if device != "cuda" or not is_torchrun():
        return torch.device(device)
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"torchrun: process {local_rank} here, but torch sees {counted(torch.cuda.device_count(), 'GPU')}"
        )
    return torch.device(device, local_rank)


@contextmanager
def joined_workers(device: str, patience: timedelta | None = None) -> Iterator[Workers]:
    """Join the processes of this torchrun until the block ends; without torchrun, this process works alone.

    Args:
        device: The kind of device whose tensors they exchange: `cpu` (by gloo) or `cuda` (by NCCL).
        patience: How long they wait for each other; None is torch's default, half an hour or less.

    Raises:
        InputError: There are fewer GPUs than processes.
        OSError: Another process failed.
    """
    chosen = own_device(device)
    if not is_torchrun():
        yield Workers(chosen)
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=rank, world_size=size, timeout=patience)
    try:
        yield Workers(chosen, rank, size)
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise OSError(f"process {rank}: another process of this job failed; see its message") from error
        raise
    finally:
        # A DistributedDataParallel refers to itself; until it is freed it keeps the group and its threads, which would
        # abort the process when they outlive the interpreter.
        gc.collect()
        torch.distributed.destroy_process_group()
