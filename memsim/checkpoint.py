"""Checkpoints: safetensors files with memsim's metadata, mapped into memory and written whole or not at all."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memsim import __version__
from memsim.errors import InputError
from memsim.files import file_sha256, require_format, writing

FORMAT = "memsim/1"


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors file: `metadata` (strings) and tensors by name, which are views of the file mapped into memory."""

    path: Path
    metadata: Mapping[str, str]
    names: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`model`, `mapped`, `device` or `training` for memsim's own files, `foreign` for any other."""
        return self.metadata.get("kind", "foreign") if self.metadata.get("format") == FORMAT else "foreign"

    @cached_property
    def sha256(self) -> str:
        return file_sha256(self.path)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        with self._opened() as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in self.names}

    @cached_property
    def integers(self) -> frozenset[str]:
        """The names of the tensors that hold whole numbers or truth values."""
        with self._opened() as file:
            types = {name: file.get_slice(name).get_dtype() for name in self.names}
        return frozenset(name for name, dtype in types.items() if dtype[0] in "IUB" and dtype != "BF16")

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The tensors of these names (default: all). Raises InputError when a floating one holds NaN or Inf."""
        views = self.views(names)
        for name, view in views.items():
            self.require_finite(name, view)
        return views

    def views(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """`tensors` of which nothing is read yet, so that NaN and Inf pass: the system reads a page when it is used.

        Writing to one changes memory, never the file.
        """
        with self._opened() as file:
            return {name: file.get_tensor(name) for name in (self.names if names is None else names)}

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file, which another one may have replaced since. Raises InputError where it cannot be read."""
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path}: cannot be read ({error})") from None

    def require_finite(self, name: str, tensor: Tensor) -> None:
        """Raise InputError when `tensor`, this file's `name`, is a floating one that holds NaN or Inf."""
        if not tensor.is_floating_point():
            return
        # isfinite knows no 8-bit floats, and what float32 cannot hold is infinite to all that follows
        values = tensor.float() if tensor.element_size() in (1, 8) else tensor
        if not torch.isfinite(values).all():
            raise InputError(f"{self.path}: tensor {name} holds NaN or Inf; the checkpoint is damaged or diverged")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open a safetensors file. Raises InputError for a missing, foreign-format, truncated or newer-format file.

    >>> import torch
    >>> memsim.save_checkpoint("model.safetensors", torch.nn.Linear(4, 2).state_dict(), {})
    >>> checkpoint = memsim.load_checkpoint("model.safetensors")
    >>> checkpoint.shapes
    {'bias': (2,), 'weight': (2, 4)}
    >>> torch.nn.Linear(4, 2).load_state_dict(checkpoint.tensors())
    <All keys matched successfully>
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(10)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; name the .safetensors file in it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    has_header = magic[8:9] == b"{"  # after the header's length, which may have any bytes
    if not has_header and magic[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise InputError(
            f"{path}: a pickle (torch.save); pickles can run code and are refused, convert it: "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')"
        )
    if not has_header and magic[:1] in (b"{", b"["):
        raise InputError(f"{path}: JSON, not safetensors; of a sharded checkpoint, name one of the shards")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = tuple(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None
    version = metadata.get("format", "")
    if version.startswith("memsim/"):
        require_format(path, version, FORMAT)
    return Checkpoint(path, metadata, names)


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all; a tensor of several names is stored once for each.

    >>> import torch
    >>> chip = memsim.map_model(torch.nn.Linear(4, 2), "physical", calibration=[torch.randn(8, 4)])
    >>> memsim.save_checkpoint("chip.safetensors", chip.state_dict(), {"made_by": "me"})
    >>> memsim.load_checkpoint("chip.safetensors").metadata["made_by"]
    'me'

    Raises InputError when it cannot be written there.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in stored.values())
    stored = {n: t.clone() if shared[t.untyped_storage().data_ptr()] > 1 else t for n, t in stored.items()}
    with writing(path) as temporary:
        try:
            save_file(stored, temporary, {"format": FORMAT, "memsim_version": __version__, **metadata})
        except SafetensorError as error:
            raise OSError(str(error)) from None
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Bring the header's metadata into order, in place: safetensors writes it in another order each time."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the same content, so the same length but for the padding
            file.seek(8)
            file.write(text.ljust(length))
