"""Batches of a user's data: their arguments, their targets, and their numbers of examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memsim.errors import InputError
from memsim.nn.batches import LABELS, described

KEPT_BYTES = 1e9
"""Batches of this size are kept in memory; of more data, every pass reads them again."""


class Batches:
    """Batches that can be read by number, in passes that each begin at the first one.

    Args:
        data: (inputs, targets) pairs, tuples (argument, ..., targets), mappings with a label, or tensors alone; a list,
            a `DataLoader` that does not shuffle, or an iterator, which is read once and kept.

    Raises InputError for no batches, for batches without examples, and for data that differ from pass to pass.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        if isinstance(data, Tensor | Mapping | str | bytes):
            raise InputError("data: is a single batch; give a list of batches, or a DataLoader")
        self._data = list(data) if isinstance(data, Iterator) else data
        self._kept: dict[int, Any] = {}
        self._pass: Iterator[tuple[int, Any]] = iter(())
        self.sizes: list[int] = []
        digest, size_bytes = hashlib.sha256(), 0
        for number, batch in enumerate(self._data):
            self.sizes.append(examples_of(batch, f"data: batch {number}"))
            size_bytes += _update(digest, batch)
            if size_bytes <= KEPT_BYTES or isinstance(self._data, list):
                self._kept[number] = batch
        if not self.sizes:
            raise InputError("data: has no batches")
        self.sha256 = digest.hexdigest()
        if len(self._kept) < len(self.sizes):  # they are read again
            self._require_repeatable(digest.hexdigest())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None}

    def __getitem__(self, number: int) -> Any:
        """The batch of that number; in ascending order each pass reads the data once."""
        if number in self._kept:
            return self._kept[number]
        for found, batch in self._pass or ():
            if found == number:
                return batch
        self._pass = iter(enumerate(self._data))
        for found, batch in self._pass:
            if found == number:
                return batch
        raise IndexError(number)

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self.sizes)))

    def __len__(self) -> int:
        return len(self.sizes)

    def _require_repeatable(self, expected: str) -> None:
        digest = hashlib.sha256()
        for batch in self._data:
            _update(digest, batch)
        if digest.hexdigest() != expected:
            raise InputError(
                "data: differs from one pass to the next, so chips would not be compared on the same "
                "examples; leave shuffling and augmentation out, or give a list of batches"
            )


def inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """Split a batch into what `map_model` takes as calibration (the network's arguments), and the targets.

    The targets of a tuple are its last entry; of a mapping, its label; of anything else, the batch itself.
    """
    if isinstance(batch, Mapping):
        label = next((name for name in LABELS if name in batch), None)
        return (batch, batch) if label is None else ({k: v for k, v in batch.items() if k != label}, batch[label])
    if type(batch) in (tuple, list) and len(batch) > 1:
        return tuple(batch[:-1]), batch[-1]
    return batch, batch


def examples_of(batch: Any, name: str) -> int:
    """Return the number of examples: the first dimension of the first tensor, or the length of the first list.

    Raises InputError, which calls the batch `name`, where it holds none.
    """
    for value in _leaves(batch):
        if isinstance(value, Tensor | np.ndarray) and value.ndim and len(value):
            return len(value)
    raise InputError(f"{name} holds no tensor with examples in its first dimension: it is a {described(batch)}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    elif type(value) in (tuple, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _update(digest: Any, batch: Any) -> int:
    """Add a batch to `digest`; returns its bytes."""
    size = 0
    for value in _leaves(batch):
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous()
            raw = array.view(torch.uint8) if array.ndim and array.dtype != torch.bool else array
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(raw.numpy().tobytes() if raw.ndim else repr(value.item()).encode())
            size += value.numel() * value.element_size()
        else:
            digest.update(repr(value).encode())
    return size
