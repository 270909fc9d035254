"""The processes that train together: one, or those that torchrun started."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from memsim.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """This process among those that train together. All call the same methods in the same order."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and says how it goes."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, whose gradients are averaged over the processes."""
        if self.size == 1:
            return model
        on_gpu = self.device.type == "cuda"
        return nn.parallel.DistributedDataParallel(model, device_ids=[self.device] if on_gpu else None)

    def without_exchange(self, model: nn.Module) -> AbstractContextManager[Any]:
        """While open, the `parallel` model's backward passes add up gradients without exchanging them."""
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(together)
        total: list[float] = together.tolist()
        return total

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)


@contextmanager
def joined_workers(device: str) -> Iterator[Workers]:
    """The processes of this torchrun (the group is left afterwards), or this process alone where there is none.

    Args:
        device: `cpu` (gloo) or `cuda` (NCCL; each process takes the GPU of its local rank).

    Raises InputError when there are fewer GPUs than processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Workers(torch.device(device))
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if chosen.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InputError(f"torchrun: process {local_rank} here, but torch sees {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(chosen)
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield Workers(chosen, rank, size)
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise OSError(f"process {rank}: another process of this training failed, which says why") from error
        raise
    finally:
        # What is left of a DistributedDataParallel (it refers to itself) keeps the group, and its threads, which would
        # abort the process when they outlive the interpreter.
        gc.collect()
        torch.distributed.destroy_process_group()
