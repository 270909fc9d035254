"""Running a network on batches of data, which may have labels beside the inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from memsim.errors import InputError

Progress = Callable[[str, float], None]
"""A function called with what runs and the fraction done: "calibration", "allotment", "programming" or
"converter ranges"."""

LABELS = ("label", "labels", "target", "targets")
MISFITS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
"""Errors that code of others raises for values that do not fit it."""


def reported(batches: Iterable[Any], name: str, progress: Progress) -> Iterator[Any]:
    """Yield `batches`, and report the fraction done after each but the last, if their number is known."""
    try:
        total = len(batches)  # type: ignore[arg-type]
    except TypeError:  # an iterator, or a DataLoader over a stream
        total = 0
    for done, batch in enumerate(batches, 1):
        yield batch
        if done < total:
            progress(name, done / total)


def run_batch(model: nn.Module, batch: Any) -> None:
    """Run `model` on a batch: one argument, several in a tuple or list, or named ones in a mapping.

    A network that knows which frames of a batch are padding has a method `unpadded`, which returns the batch as several
    without them.

    Labels are left out where they can be told: in a mapping by their names, and behind a floating-point tensor for a
    network that takes a single argument. Raises InputError where a batch does not fit the network.
    """
    arguments, named = _without_labels(model, batch)
    unpadded = getattr(model, "unpadded", None) if type(batch) in (tuple, list) else None
    try:
        for part in [arguments] if unpadded is None else unpadded(*arguments):
            model(*part, **named)
    except MISFITS as error:
        kind = type(error)
        if kind not in MISFITS:
            raise
        said = str(error).split("\n")[0]
        place = _failing_layer(model, error)
        if isinstance(batch, Tensor) and kind is not TypeError:
            if not place or said.startswith(f"{place}:"):
                raise
            raise kind(f"{place}: {error}") from error
        at = f" (layer {place})" if place else ""
        raise InputError(
            f"calibration: the network fails on a batch of {described(batch)}: {said}{at}; a batch is the argument of "
            f"the network, forward({', '.join(_parameters(model))}), a tuple of its arguments or a mapping of named "
            f"ones, without labels: {_remedy(model, batch)}"
        ) from error


def _failing_layer(model: nn.Module, error: BaseException) -> str:
    """Return the name of the innermost module of `model` in which `error` was raised; empty for the network itself."""
    names = {id(module): name for name, module in model.named_modules()}
    frame, found = error.__traceback__, ""
    while frame is not None:
        found = names.get(id(frame.tb_frame.f_locals.get("self")), "") or found
        frame = frame.tb_next
    return found


def _without_labels(model: nn.Module, batch: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the positional and the named arguments in `batch`."""
    if isinstance(batch, Mapping):
        without = {name: value for name, value in batch.items() if name not in LABELS}
        return (), without if not _fits(model, (), batch) and _fits(model, (), without) else batch
    if type(batch) not in (tuple, list):  # a PackedSequence is one argument
        return (batch,), {}
    takes_one = _fits(model, batch[:1]) and not _fits(model, batch[:2])
    if takes_one and isinstance(batch[0], Tensor) and batch[0].is_floating_point():
        return batch[:1], {}
    return batch, {}


def _fits(model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any] | None = None) -> bool:
    """Whether `forward` takes these arguments; True where that cannot be known."""
    try:
        if (signature := _signature(model)) is not None:
            signature.bind(*arguments, **(named or {}))
    except TypeError:
        return False
    return True


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # TorchScript that was traced or loaded has none
        return None


def _parameters(model: nn.Module) -> list[str]:
    signature = _signature(model)
    return ["..."] if signature is None else list(signature.parameters)


def described(value: Any) -> str:
    """Return the types and shapes in a batch, in words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {described(part)}' for name, part in value.items())}}}"
    if type(value) in (tuple, list):
        return f"({', '.join(map(described, value))})"
    return type(value).__name__


def _remedy(model: nn.Module, batch: Any) -> str:
    if not isinstance(batch, Mapping):
        others = "*_" if isinstance(batch, tuple | list) and len(batch) > 2 else "_"
        return f"[x for x, {others} in loader]"
    known = [name for name in batch if name in _parameters(model)]
    if known:
        return f"[{{{', '.join(f'{name!r}: batch[{name!r}]' for name in known)}}} for batch in loader]"
    return f"[batch[{next(iter(batch), 'input')!r}] for batch in loader]"
