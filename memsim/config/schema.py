"""Checks of a config against a pydantic model, with errors for people, and merges of one config over another.

    schema = Schema(TrainingConfig)
    config = schema.merge(read_config(base_path), read_config(path))    # the second wins
    training = schema.validate(config)                                  # or one InputError that lists every problem

A problem reads `file.yaml:12: adc.bitz: unknown key (nearest: adc.bits)`: place, key, fault and remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Discriminator, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from memsim.config.yaml_file import Config, KeyPath, Mark, dotted, shown
from memsim.errors import InputError

M = TypeVar("M", bound=BaseModel)

# pydantic's errors that are shown as `expected ..., got ...`; all others have a message of their own
_WRONG_TYPE = ("_type", "literal_error", "none_required", "finite_number", "int_from_float")


class Section(BaseModel):
    """Base class of config models: immutable, without unknown keys, coercion ("8" is not 8) or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Within:
    """Bounds of a number: `Annotated[int, Within(2, 16)]` (inclusive), `Annotated[float, Within(above=0, high=2)]`."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low} to {self.high}"
        bounds = {"above": self.above, "at least": self.low, "below": self.below, "at most": self.high}
        return " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)

    def __contains__(self, number: float) -> bool:
        return (
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def _check(self, number: float) -> float:
        if number not in self:
            raise problem(f"{shown(number)} is out of range ({self})")
        return number

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))


def kind_of(key: str, *kinds: type[Section]) -> Discriminator:
    """Return a discriminator of the kinds of a section by `key`, a literal of one value in each kind.

    Each kind is tagged with its class's name. A section without the key is of the first kind; one with an unknown
    value is of the kind that has most of the section's keys.
    """
    names = {get_args(kind.model_fields[key].annotation)[0]: kind.__name__ for kind in kinds}

    def name(section: Any) -> str:
        if isinstance(section, kinds):
            return type(section).__name__
        if not isinstance(section, Mapping) or key not in section:
            return kinds[0].__name__
        for value, kind in names.items():
            if section[key] == value:
                return kind
        return max(kinds, key=lambda kind: len(kind.model_fields.keys() & section.keys())).__name__

    return Discriminator(name)


def problem(text: str, key: str | None = None) -> PydanticCustomError:
    """Return the error that a validator of a `Section` raises: `text` is shown as it is, at the (dotted) `key`."""
    return PydanticCustomError("problem", "{text}", {"text": text, "key": key})


class Schema(Generic[M]):
    """A config model with a table of its keys, for errors and merges.

    Args:
        model: the model. Its sections are `Section`s, alone or in lists (not in dicts); a section of several kinds is a
            union of models that share one `Literal` field, such as `range: Literal["fixed"]`.
    """

    def __init__(self, model: type[M]) -> None:
        self.model = model
        self.keys: dict[tuple[str, ...], list[Any]] = {}  # path without list positions -> types, one for each kind
        self.kinds: dict[tuple[str, ...], dict[str, frozenset[str]]] = {}  # path of a discriminator -> keys by kind
        self._collect(model, ())

    def _collect(self, model: type[BaseModel], path: tuple[str, ...]) -> None:
        for name, hint in get_type_hints(model, include_extras=True).items():
            if name not in model.model_fields:
                continue
            here = (*path, name)
            self.keys.setdefault(here, []).append(hint)
            models = models_in(hint)
            for inner in models:
                self._collect(inner, here)
                for key, annotation in get_type_hints(inner).items():
                    if len(models) > 1 and get_origin(annotation) is Literal and len(get_args(annotation)) == 1:
                        kinds = self.kinds.setdefault((*here, key), {})
                        kinds[get_args(annotation)[0]] = frozenset(inner.model_fields)

    def expected(self, path: KeyPath) -> str:
        """Return the type of the key at `path` in words, such as `an integer (2 to 16) or none`; empty for no key."""
        key = tuple(step for step in path if isinstance(step, str))
        is_item = bool(path) and isinstance(path[-1], int)
        return _either(_expected(_item_of(hint) if is_item else hint) for hint in self.keys.get(key, ()))

    def merge(self, base: Config, over: Config) -> Config:
        """Return `base` with the keys of `over`, section by section; lists are replaced whole.

        Where `over` changes the kind of a section, the keys that only the old kind has are dropped.
        """
        marks = dict(base.marks)

        def forget(path: KeyPath) -> None:
            for key in [key for key in marks if key[: len(path)] == path]:
                del marks[key]

        def blend(old: dict[str, Any], new: dict[str, Any], path: KeyPath) -> dict[str, Any]:
            outdated = self._outdated(old, new, path)
            result = {key: value for key, value in old.items() if key not in outdated}
            for key, value in new.items():
                here = (*path, key)
                below = old.get(key)
                if isinstance(value, dict) and isinstance(below, dict):
                    result[key] = blend(below, value, here)
                else:
                    forget(here)
                    marks.update((p, mark) for p, mark in over.marks.items() if p[: len(here)] == here)
                    result[key] = value
                marks[here] = over.mark(here)
            return result

        data = blend(base.data, over.data, ())
        return Config(
            data, base.source, marks, base.problems + over.problems, incomplete=base.incomplete or over.incomplete
        )

    def _outdated(self, old: dict[str, Any], new: dict[str, Any], path: KeyPath) -> set[str]:
        """Return the keys that the section at `path` loses because `new` changes its kind."""
        for switch, kinds in self.kinds.items():
            kind = new.get(switch[-1])
            if switch[:-1] == path and isinstance(kind, str) and kind in kinds and old.get(switch[-1]) != kind:
                return set().union(*kinds.values()) - kinds[kind]
        return set()

    def validate(self, config: Config) -> M:
        """Return the model that `config` describes. Raises one InputError that lists every problem, a line each."""
        model, problems = self.check(config)
        if model is None or problems:
            raise InputError("\n".join(problems))
        return model

    def check(self, config: Config) -> tuple[M | None, list[str]]:
        """Return the model, None where a key is wrong, and every problem.

        Problems that missing keys of an incomplete config may cause are left out.
        """
        try:
            return self.model.model_validate(config.data), list(config.problems)
        except ValidationError as error:
            by_path: dict[KeyPath, list[ErrorDetails]] = {}
            for details in error.errors(include_url=False):
                path = _path_of(details, config.data)
                if not (config.incomplete and self._may_be_of_missing_keys(path, details, config.data)):
                    by_path.setdefault(path, []).append(details)
        found = [(config.mark(path), self._explain(path, errors, config.data)) for path, errors in by_path.items()]
        return None, [*config.problems, *(f"{mark}: {text}" for mark, text in _by_line(found))]

    def _may_be_of_missing_keys(self, path: KeyPath, error: ErrorDetails, data: Any) -> bool:
        """Whether further keys may resolve `error`: a missing key, keys of another kind, keys that do not agree."""
        if error["type"] == "missing" or error.get("ctx", {}).get("key"):
            return True
        key = tuple(step for step in path if isinstance(step, str))
        if error["type"] != "extra_forbidden" or key not in self.keys:
            return False
        for step in path[:-1]:
            data = data[step]
        return not any(switch[:-1] == key[:-1] and switch[-1] in data for switch in self.kinds)

    def _explain(self, path: KeyPath, errors: list[ErrorDetails], data: dict[str, Any]) -> str:
        """Explain the errors of the key at `path`, of which a union reports several for one value."""
        key = tuple(step for step in path if isinstance(step, str))
        expected = self.expected(path)
        kinds_of_error = {error["type"] for error in errors}
        if "missing" in kinds_of_error:
            return f"missing; expected {expected}"
        given = errors[0]["input"]
        if "extra_forbidden" in kinds_of_error:
            return self._misplaced(path, data) if key in self.keys else f"unknown key ({self._nearest(path)})"
        for error in errors:
            if error["type"] == "problem":
                return str(error["ctx"]["text"])
            if not expected or not error["type"].endswith(_WRONG_TYPE):
                return error["msg"].removeprefix("Value error, ")
        return f"expected {expected}, got {shown(given)}{self._inside(key) if expected.startswith(_SECTION) else ''}"

    def _inside(self, key: tuple[str, ...]) -> str:
        """Return the keys of the section `key`, also of a section inside an override."""
        for section in (key, key[-1:]):
            if inside := [inner[-1] for inner in self.keys if inner[:-1] == section]:
                return f"; its keys are {', '.join(inside)}"
        return ""

    def _misplaced(self, path: KeyPath, data: Any) -> str:
        """Explain a key that belongs to another kind of the same section."""
        for step in path[:-1]:
            data = data[step]
        for switch, kinds in self.kinds.items():
            if switch[:-1] == tuple(step for step in path[:-1] if isinstance(step, str)):
                name = switch[-1]
                right = _either(f"{name}: {kind}" for kind, keys in kinds.items() if path[-1] in keys)
                own = sorted(kinds.get(str(data.get(name)), frozenset()) - {name})
                return f"goes with {right} only" + (f" ({name}: {data[name]} has {', '.join(own)})" if own else "")
        return "does not belong here"

    def _nearest(self, path: KeyPath) -> str:
        """Return the key that may have been meant: a neighbour, else one further in, else all neighbours."""
        parent = tuple(step for step in path[:-1] if isinstance(step, str))
        word = str(path[-1]).lower()[:60]
        neighbours = [key[-1] for key in self.keys if key[:-1] == parent]
        if close := get_close_matches(word, neighbours, n=1):
            return f"nearest: {dotted((*path[:-1], close[0]))}"
        further = [key for key in self.keys if key[: len(parent)] == parent and len(key) > len(parent) + 1]
        if close := get_close_matches(word, {key[-1] for key in further}, n=1, cutoff=0.8):
            return "nearest: " + ", ".join(dotted(key) for key in further if key[-1] == close[0])
        return "known here: " + ", ".join(neighbours)


def _by_line(problems: list[tuple[Mark, str]]) -> list[tuple[Mark, str]]:
    """Sort problems, each with its place, by line, file after file."""
    sources = list(dict.fromkeys(mark.place[0] for mark, _ in problems))
    return sorted(problems, key=lambda problem: (sources.index(problem[0].place[0]), problem[0].place[1]))


def _path_of(error: ErrorDetails, data: Any) -> KeyPath:
    """Return the keys that lead to an error: pydantic's location without the names of union members."""
    path: KeyPath = ()
    for index, step in enumerate(error["loc"]):
        missing = error["type"] == "missing" and index == len(error["loc"]) - 1
        if (isinstance(data, dict) and (missing or step in data)) or (isinstance(data, list) and isinstance(step, int)):
            path = (*path, step)
            data = None if missing else data[step]  # type: ignore[index]
    key = error.get("ctx", {}).get("key")
    return (*path, *key.split(".")) if key else path


def models_in(hint: Any) -> list[type[BaseModel]]:
    """Return the models that a value of the type `hint` may have."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    inner = get_args(hint) if get_origin(hint) in (Annotated, Union, UnionType, list, tuple) else ()
    return [model for part in inner for model in models_in(part)]


def _item_of(hint: Any) -> Any:
    """Return the type of the items of a list."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = get_args(hint)[0]
    return (get_args(hint) or (hint,))[0]


_SECTION = "a section of keys"


def _expected(hint: Any) -> str:
    """Return the words of an error message for a type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [f" ({part})" for part in parts[1:] if isinstance(part, Within)]
        return "".join([_expected(parts[0]), *bounds])
    if origin in (Union, UnionType):
        return _either(_expected(part) for part in sorted(parts, key=lambda part: part is NoneType))
    if origin is Literal:
        return _either(str(part) for part in parts)
    if origin in (list, tuple):
        return "a list"
    if origin is dict or models_in(hint):
        return _SECTION
    return {NoneType: "none", int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(hint, "")


def _either(words: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(word for word in words if word))
