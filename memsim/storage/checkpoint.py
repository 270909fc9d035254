"""Checkpoints: safetensors files with memsim's metadata, mapped into memory and written whole or not at all.

The files of a sharded checkpoint are read as one checkpoint, by the index that lies beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from memsim.arguments import require_types
from memsim.config.json_input import parse_json_object
from memsim.errors import InputError
from memsim.storage.files import file_sha256, is_file, read_text, replacing, require_format, write_errors, writing
from memsim.version import __version__

T = TypeVar("T")

FORMAT = "memsim/2"
READ_FORMATS = ("memsim/1", FORMAT)
INDEX = "model.safetensors.index.json"

_WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "_forward_module.": "DeepSpeed",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "activation checkpointing",
}
"""Wrappers of networks, by the prefix that they put before the names of tensors."""
_TENSORS_OF_WRAPPERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel
_COPIED_BYTES = _CHECKED_VALUES = 1 << 24  # at a time


@dataclass(frozen=True)
class Checkpoint:
    """An open safetensors file: its metadata, and its tensors, which are views of the file mapped into memory."""

    path: Path
    """The file, or the index of several files."""
    metadata: Mapping[str, str]
    names: tuple[str, ...]
    """The names of the tensors, without the prefixes of wrappers."""
    shards: Mapping[str, Path] = field(default_factory=dict)
    """The file of each tensor, where there are several files."""
    wrappers: tuple[str, ...] = ()
    """The prefixes that wrappers of the network, such as DistributedDataParallel, have put before the names."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """The name in the file of each tensor, where there are such prefixes."""
    cannot_run: str | None = None
    """The reason why the recogniser that it seems to be cannot be run; None where there is none."""

    @property
    def kind(self) -> str:
        """`model`, `mapped`, `device` or `training` for memsim's own files, `foreign` for any other."""
        return self.metadata.get("kind", "foreign") if self.metadata.get("format") in READ_FORMATS else "foreign"

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hex; with several files, that of their hashes, the index's first."""
        if not self.shards:
            return file_sha256(self.path)
        return hashlib.sha256("".join(file_sha256(path) for path in self.files).encode()).hexdigest()

    @property
    def files(self) -> list[Path]:
        """All files of the checkpoint."""
        return [self.path, *sorted(set(self.shards.values()))]

    @property
    def wrapped_by(self) -> str | None:
        """The prefixes that are left out of the names of tensors, with the wrappers' names; None without any."""
        return ", ".join(f"{prefix} ({_WRAPPERS[prefix]})" for prefix in self.wrappers) or None

    @property
    def prefix_note(self) -> str | None:
        """A line about the prefixes that are left out of the names of its tensors; None without any."""
        wrapped = self.wrapped_by
        return wrapped and f"{self.path.name}: names of its tensors have the prefix {wrapped}, which is left out"

    def with_prefixes(self) -> Checkpoint:
        """Return the checkpoint with the names as they are in the file, for a network that has the prefixes itself."""
        return replace(self, names=tuple(self.stored[name] for name in self.names), wrappers=(), stored={})

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return self._each(self.names, lambda file, name: tuple(file.get_slice(name).get_shape()))

    @cached_property
    def integers(self) -> frozenset[str]:
        """The names of the tensors that hold whole numbers or truth values."""
        types = self._each(self.names, lambda file, name: file.get_slice(name).get_dtype())
        return frozenset(name for name, dtype in types.items() if dtype[0] in "IUB" and dtype != "BF16")

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return tensors by name (default: all). Raises InputError when one of floating point holds NaN or Inf."""
        views = self.views(names)
        for name, view in views.items():
            self.require_finite(name, view)
        return views

    def views(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return tensors by name, like `tensors`, without reading their values, and so without a check for NaN or Inf.

        The operating system reads a page when it is used. Writing to a view changes memory, never the file. The pages
        that were read stay in memory until the last of the views is gone.
        """
        return self._each(self.names if names is None else names, lambda file, name: file.get_tensor(name))

    def one_by_one(self) -> Mapping[str, Tensor]:
        """Return all tensors by name, each of which is read, like `tensors`, when it is asked for, and not kept."""
        return _OneByOne(self)

    def _each(self, names: Iterable[str], read: Callable[[Any, str], T]) -> dict[str, T]:
        """Return the results of `read(opened file, name in the file)` for these tensors.

        One file is open at a time; it may have been replaced since. Raises InputError where one cannot be read.
        """
        names = list(names)
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.shards.get(self.stored.get(name, name), self.path), []).append(name)
        found: dict[str, T] = {}
        for path, own in by_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    found |= {name: read(file, self.stored.get(name, name)) for name in own}
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: cannot be read ({error})") from None
        return {name: found[name] for name in names}

    def require_finite(self, name: str, tensor: Tensor) -> None:
        """Raise InputError when `tensor`, called `name` in this file, is of floating point and holds NaN or Inf."""
        if not tensor.is_floating_point():
            return
        # isfinite does not take 8-bit floats, and values beyond float32 would become infinite later
        values = tensor.float() if tensor.element_size() in (1, 8) else tensor
        if not all(torch.isfinite(part).all() for part in values.reshape(-1).split(_CHECKED_VALUES)):
            raise InputError(f"{self.path}: tensor {name} holds NaN or Inf; the checkpoint is damaged or diverged")


_VALUES_AT_ONCE = 1 << 22
"""The number of values of neighbouring small tensors that are read with one look at the header of their file."""


class _OneByOne(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name: views of which a few small neighbours, or one large tensor, are kept."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._part_of: dict[str, int] = {}
        self._parts: list[list[str]] = []
        values = _VALUES_AT_ONCE
        for name, shape in checkpoint.shapes.items():
            values += math.prod(shape)
            if values >= _VALUES_AT_ONCE:
                self._parts.append([])
                values = math.prod(shape)
            self._parts[-1].append(name)
            self._part_of[name] = len(self._parts) - 1
        self._views: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._part_of:
            raise KeyError(name)
        if name not in self._views:
            self._views = {}  # before the next ones are read
            self._views = self._checkpoint.views(self._parts[self._part_of[name]])
        self._checkpoint.require_finite(name, self._views[name])
        return self._views[name]

    def __contains__(self, name: object) -> bool:
        return name in self._part_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._part_of)

    def __len__(self) -> int:
        return len(self._part_of)


def shown_name(path: Path) -> str:
    """Return the name of a checkpoint for users: its folder's, where that is one of Hugging Face's, else its own."""
    in_folder = path.name.startswith("model.safetensors") and path.parent.name and is_file(path.parent / "config.json")
    return path.parent.name if in_folder else path.name


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open a safetensors file, or the index of several (`model.safetensors.index.json`).

    Names in a file that memsim did not write lose the prefixes of wrappers in which the network was saved
    (DistributedDataParallel, torch.compile and others).

    Raises InputError for a missing file, one that is truncated, of another format or of a newer version, and for an
    index whose files are not there.

    >>> import torch
    >>> memsim.save_checkpoint("model.safetensors", torch.nn.Linear(4, 2).state_dict(), {})
    >>> checkpoint = memsim.load_checkpoint("model.safetensors")
    >>> checkpoint.shapes
    {'bias': (2,), 'weight': (2, 4)}
    >>> torch.nn.Linear(4, 2).load_state_dict(checkpoint.tensors())
    <All keys matched successfully>
    """
    require_types(load_checkpoint, locals())
    path = Path(path)
    return _unwrapped(_load_shards(path) if path.name.endswith(".index.json") else _load_file(path))


def _load_file(path: Path) -> Checkpoint:
    try:
        with path.open("rb") as file:
            magic = file.read(10)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        inside = next((name for name in (INDEX, "model.safetensors") if (path / name).is_file()), None)
        remedy = f"name the file in it: {path / inside}" if inside else "name the .safetensors file in it"
        raise InputError(f"{path}: a folder; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    has_header = magic[8:9] == b"{"  # the first byte after the header's length
    if not has_header and magic[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise InputError(
            f"{path}: a pickle (torch.save); pickles can run code and are refused, convert it: "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')"
        )
    if magic == b"version ht":  # of https://git-lfs.github.com/spec/v1
        raise InputError(
            f"{path}: a pointer of Git LFS in place of the weights; `git lfs pull` in its folder fetches them"
        )
    if not has_header and magic[:1] in (b"{", b"["):
        remedy = f"the folder that it is in, or of a sharded checkpoint the file {INDEX}"
        raise InputError(f"{path}: JSON, not safetensors; name {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = tuple(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({error})") from None
    version = metadata.get("format", "")
    if version.startswith("memsim/"):
        require_format(path, version, *READ_FORMATS)
    return Checkpoint(path, metadata, names)


def _load_shards(path: Path) -> Checkpoint:
    """Open the checkpoint of an index: {"weight_map": {tensor: file beside the index}}."""
    if not is_file(path):
        raise InputError(f"{path}: no such file")
    weight_map = parse_json_object(read_text(path), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: has no weight_map, which gives the file of each tensor")
    places: dict[str, Path] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{path}: has {name} in {file!r:.80}; expected the name of a file beside the index")
        places[name] = path.parent / file
    held: dict[Path, set[str]] = {}
    for shard in dict.fromkeys(places.values()):
        if not is_file(shard):
            raise InputError(f"{path}: names {shard.name}, which is not beside it; download all of its files")
        held[shard] = set(_load_file(shard).names)
    if lost := next((name for name, shard in places.items() if name not in held[shard]), None):
        raise InputError(f"{path}: has {lost} in {places[lost].name}, which does not hold it; the files do not match")
    return Checkpoint(path, {}, tuple(places), places)


def _unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` with the names of tensors as they were before the network was wrapped.

    memsim's own files are returned unchanged. `module.` may be the name of a layer, so it is removed only where all
    names begin with it; no layer has one of the other prefixes as its name.
    """
    if checkpoint.kind != "foreign":
        return checkpoint
    found: dict[str, None] = {}
    renamed = {name: name for name in checkpoint.names if name not in _TENSORS_OF_WRAPPERS}
    while True:
        before = list(renamed.values())
        for prefix in _WRAPPERS:
            if before and prefix == "module.":
                cut = {key: name[len(prefix) :] for key, name in renamed.items() if name.startswith(prefix)}
                cut = cut if len(cut) == len(renamed) else {}
            else:
                segment = re.compile(rf"(^|(?<=\.)){re.escape(prefix)}")
                cut = {key: segment.sub("", name) for key, name in renamed.items() if prefix in name}
            if any(renamed[key] != name for key, name in cut.items()):
                renamed |= cut
                found[prefix] = None
        if list(renamed.values()) == before:
            break
    if not found or len(set(renamed.values())) < len(renamed) or "" in renamed.values():
        return checkpoint
    stored = {name: key for key, name in renamed.items()}
    return replace(checkpoint, names=tuple(stored), wrappers=tuple(found), stored=stored)


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all; a tensor of several names is stored once under each.

    >>> import torch
    >>> chip = memsim.map_model(torch.nn.Linear(4, 2), "physical", calibration=[torch.randn(8, 4)])
    >>> memsim.save_checkpoint("chip.safetensors", chip.state_dict(), {"made_by": "me"})
    >>> memsim.load_checkpoint("chip.safetensors").metadata["made_by"]
    'me'

    Raises InputError when the file cannot be written there.
    """
    require_types(save_checkpoint, locals())
    with writing(path) as temporary:
        kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        _write(temporary, kinds, metadata, lambda file, name: _put(file, tensors[name]))


@contextmanager
def writing_checkpoint(path: str | Path) -> Iterator[CheckpointWriter]:
    """Open a block that writes a safetensors file tensor by tensor, whole or not at all, as `save_checkpoint` does.

    Raises InputError when the file cannot be written there.
    """
    with replacing(path) as temporary:
        with write_errors(path):
            waiting = (temporary.parent / f"{temporary.name}.tensors").open("w+b", buffering=0)
        with waiting:
            writer = CheckpointWriter(path, waiting)
            yield writer
            with write_errors(path):
                writer.finish(temporary)


class CheckpointWriter:
    """A safetensors file that takes one tensor at a time, in any order, and keeps none of them in memory.

    The header is the first thing in such a file, and it names all tensors. So their values wait in another file, and
    are copied behind the header when there are no more.
    """

    metadata: Mapping[str, str]
    """The metadata of the file, to be set before the block of `writing_checkpoint` ends."""

    def __init__(self, path: str | Path, waiting: FileIO) -> None:
        self.metadata = {}
        self._path = path
        self._waiting = waiting
        self._kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take the tensor `name`, in place of one of the same name. Raises OSError with the path on a full disk."""
        with write_errors(self._path):
            first = self._waiting.tell()
            _put(self._waiting, tensor)
            self._kinds[name] = tensor.dtype, tuple(tensor.shape)
            self._places[name] = first, self._waiting.tell()

    def finish(self, path: Path) -> None:
        """Write the file with all tensors to `path`."""
        _write(path, self._kinds, self.metadata, self._copy)

    def _copy(self, file: FileIO, name: str) -> None:
        first, last = self._places[name]
        self._waiting.seek(first)
        while first < last:
            part = self._waiting.read(min(_COPIED_BYTES, last - first))
            _put_bytes(file, part)
            first += len(part)


def _write(
    path: Path,
    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str],
    put: Callable[[FileIO, str], None],
) -> None:
    """Write a safetensors file to `path`, with tensors of the dtypes and shapes `kinds`, whose values `put` writes.

    The order of the tensors, and the names of the dtypes, are those that safetensors itself gives empty ones.
    """
    empty = {name: torch.empty(0, dtype=dtype) for name, (dtype, _) in kinds.items()}
    made = save(empty, {"format": FORMAT, "memsim_version": __version__, **metadata})
    (length,) = struct.unpack_from("<Q", made)
    header = json.loads(made[8 : 8 + length])
    # safetensors writes the metadata in another order each time
    metadata = dict(sorted(header.pop("__metadata__").items()))
    end = 0
    for name, entry in header.items():
        dtype, shape = kinds[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entry |= {"shape": shape, "data_offsets": (start, end)}
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    with path.open("wb", buffering=0) as file:
        text = text.ljust(-(-len(text) // 8) * 8)
        _put_bytes(file, struct.pack("<Q", len(text)) + text)
        for name in header:
            put(file, name)


def _put(file: FileIO, tensor: Tensor) -> None:
    """Write the values of `tensor`, row by row."""
    _put_bytes(file, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _put_bytes(file: FileIO, values: Any) -> None:
    """Write all bytes of a buffer: one call may write fewer."""
    rest = memoryview(values)
    while rest:
        rest = rest[file.write(rest) :]
