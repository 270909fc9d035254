"""Checks that the arguments of a public call are of the types that its signature names."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from memsim.errors import InputError

_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    type(None): "None",
}
_LONGEST = 60


def require_types(call: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise InputError for the first of the `arguments` that is not of the type that `call` declares for it.

    The call makes this its first statement, with `locals()`; a dataclass does so in `__post_init__`, with `vars(self)`.

    >>> def double(times: int = 2) -> None:
    ...     require_types(double, locals())
    >>> double("3")
    Traceback (most recent call last):
    memsim.errors.InputError: times: expected a whole number, got '3'
    """
    for name, hint in _hints(call).items():
        if name in arguments and not _is(arguments[name], hint):
            raise InputError(f"{name}: expected {_described(hint)}, got {_shown(arguments[name], hint)}")


@cache
def _hints(call: Callable[..., Any]) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(call).items() if name != "return"}


def _is(value: Any, hint: Any) -> bool:
    """Return whether `value` is of the type `hint`; where that cannot be told, it is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if hint in (int, float):  # numpy's numbers are, too; True is none
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if origin is Callable:
        return callable(value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_is(k, inner[0]) and _is(v, inner[1]) for k, v in value.items())
    if origin is Iterable:  # which may be read only once
        return isinstance(value, Iterable) or hasattr(value, "__getitem__")
    if _is_list(origin):  # any collection will do, but not the letters of a text
        is_list = isinstance(value, typing.Collection) and not isinstance(value, str | bytes | Mapping)
        return is_list and all(_is(one, inner[0]) for one in value)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _is_list(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, typing.Sequence)


def _described(hint: Any, plural: bool = False) -> str:
    """Return what `hint` asks for, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        said = list(dict.fromkeys(_described(one, plural) for one in inner))
        return " or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if plural:
        return {str: "texts", Path: "paths", int: "numbers"}.get(hint, getattr(hint, "__name__", str(hint)))
    if origin is Callable:
        return "a function"
    if origin is Mapping:
        return "a mapping"
    if origin is Iterable:
        return "a list or another iterable"
    if _is_list(origin):
        return f"a list of {_described(inner[0], plural=True)}"
    return _NAMES.get(hint) or f"a {hint.__name__}"


def _shown(value: Any, hint: Any) -> str:
    """Return `value` on one line, with the remedy where a text stands for a list of one."""
    said = repr(value)
    if len(said) > _LONGEST or "\n" in said:
        said = f"a {type(value).__name__}"
    return f"{said}; write [{said}]" if isinstance(value, str) and _is([value], hint) else said
