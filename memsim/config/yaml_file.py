"""Config files in YAML, read safely and with the line of every key.

    config = read_config(path)      # a Config: plain values, and the place of each key

`memsim.config.schema` merges such configs and checks them against a pydantic model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from memsim.errors import InputError

KeyPath = tuple[str | int, ...]  # ("overrides", 0, "adc", "bits")

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 30
_MAX_NODES = 50_000  # aliases can make a small file expand without bound


class Mark(NamedTuple):
    """The place of a key, and its name there (a merged key may have had another one)."""

    where: str
    key: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}" if self.key else self.where

    @property
    def place(self) -> tuple[str, int]:
        """The file and the line; line 0 where there are no lines."""
        source, _, line = self.where.rpartition(":")
        return (source, int(line)) if line.isdecimal() else (self.where, 0)


@dataclass(frozen=True)
class Config:
    """A tree of plain values (dict, list, text, numbers, bool, None), not validated, and the place of each key."""

    data: dict[str, Any]
    source: str  # the place of keys without a mark
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # found while reading; `Schema.check` reports them with its own
    base: Config | None = None  # the config that it was merged over
    incomplete: bool = False  # keys may be missing because a base could not be read

    @classmethod
    def from_mapping(cls, mapping: Mapping[Any, Any], source: str) -> Config:
        """Make a config of Python values; `source` names it in errors. Raises InputError for keys that are not text."""
        data: dict[str, Any] = _plain(mapping, source)
        return cls(data, source)

    def mark(self, path: KeyPath) -> Mark:
        """Return the place of `path`, or else of the nearest section around it."""
        for depth in range(len(path), -1, -1):
            if path[:depth] in self.marks:
                where, key = self.marks[path[:depth]]
                return Mark(where, dotted(path[depth:], key))
        return Mark(self.source, dotted(path))

    def part(self, path: KeyPath, keys: Iterable[str]) -> Config:
        """Return the given keys of the section at `path`, with their marks, as a config."""
        data: Any = self.data
        for step in path:
            data = data[step]
        marks = {p[len(path) :]: mark for p, mark in self.marks.items() if p[: len(path)] == path}
        chosen = {key: data[key] for key in keys if key in data}
        return Config(chosen, self.source, {(): self.mark(path), **marks}, incomplete=self.incomplete)


def dotted(path: KeyPath, start: str = "") -> str:
    """Return `overrides[0].adc.bits` for ("overrides", 0, "adc", "bits"), continuing from the name `start`."""
    name = start
    for step in path:
        if isinstance(step, int):
            name += f"[{step}]"
        else:
            word = step if re.fullmatch(r"[\w.*-]{1,60}", step) else shown(step)
            name += f".{word}" if name else word
    return name


def _plain(value: Any, source: str, path: KeyPath = ()) -> Any:
    """Return `value` with mappings as dicts and sequences as lists; the word "none" is None, as in YAML."""
    if len(path) > _MAX_DEPTH:
        raise InputError(f"{source}: {dotted(path[:1])}: nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{Mark(source, dotted(path))}: a key must be text, not {shown(key)}")
        return {str(key): _plain(item, source, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, source, (*path, index)) for index, item in enumerate(value)]
    return None if isinstance(value, str) and value.lower() == "none" else value


def shown(value: object) -> str:
    """Return a value as an error message shows it: short, and in the words of YAML."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section of keys"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge integer"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- reading ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """A loader with the plain scalars of YAML 1.2; PyYAML reads `1e8` as text, `on` as true and `1:30` as 90."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML declares it as an instance attribute

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Raise ComposerError for deep nesting, as PyYAML's time grows with the square of the depth."""
        self._depth += 1
        if self._depth > _MAX_DEPTH + 1:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested more than {_MAX_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("null", r"null|Null|NULL|~", "nN~"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(?i:inf)|\.(?i:nan)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"^(?:{_pattern})$"), list(_first))

_SCALARS: dict[str, Callable[[str], object]] = {
    f"{_TAG}str": lambda text: None if text.lower() == "none" else text,  # quoted or not, as in `_plain`
    f"{_TAG}null": lambda text: None,
    f"{_TAG}bool": lambda text: {"true": True, "false": False}[text.lower()],
    f"{_TAG}int": int,
    f"{_TAG}float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}

_BROKEN = object()  # stands for a value that has been reported, and is left out


class _Tree:
    """A builder of plain values from YAML nodes, which keeps the line of every key and all problems."""

    def __init__(self, source: str, with_lines: bool) -> None:
        self.source, self.with_lines = source, with_lines
        self.marks: dict[KeyPath, Mark] = {}
        self.problems: list[str] = []
        self.nodes = 0

    def where(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.with_lines else self.source

    def value(self, node: yaml.Node, path: KeyPath = ()) -> Any:
        self.nodes += 1
        if len(path) > _MAX_DEPTH or self.nodes > _MAX_NODES:  # also catches an alias inside its own anchor
            place = Mark(self.where(node), dotted(path[:1]))
            raise InputError(f"{place}: too large, or nested more than {_MAX_DEPTH} deep")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return self.sequence(node, path)
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            if node.value == "" and node.style is None:
                return self.problem(node, path, "has no value (write none if that is meant)")
            try:
                return _SCALARS[node.tag](node.value)
            except (ValueError, KeyError):
                return self.problem(node, path, f"{shown(node.value)} is not of type {node.tag.removeprefix(_TAG)}")
        return self.problem(node, path, f"the tag {shown(node.tag)} is not allowed here")

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, path, "a key must be a word")
                continue
            here = (*path, key_node.value)
            if here in self.marks:
                self.problem(key_node, here, f"is given twice (first: {self.marks[here].where})")
                continue
            self.marks[here] = Mark(self.where(key_node), dotted(here))
            value = self.value(value_node, here)
            if value is not _BROKEN:
                result[key_node.value] = value
        return result

    def sequence(self, node: yaml.SequenceNode, path: KeyPath) -> list[Any]:
        result: list[Any] = []
        for item_node in node.value:
            here = (*path, len(result))
            self.marks[here] = Mark(self.where(item_node), dotted(here))
            value = self.value(item_node, here)
            if value is not _BROKEN:
                result.append(value)
        return result

    def problem(self, node: yaml.Node, path: KeyPath, text: str) -> object:
        self.problems.append(f"{Mark(self.where(node), dotted(path))}: {text}")
        return _BROKEN


def _parse(text: str, source: str, with_lines: bool) -> tuple[Any, _Tree]:
    tree = _Tree(source, with_lines)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and with_lines else ""
        words = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise InputError(f"{source}{line}: not valid YAML: {' '.join(words.split())}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # PyYAML does not catch all of its own
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"{source}: not valid YAML: {reason}") from None
    return (None if node is None else tree.value(node)), tree


def parse_value(text: str, source: str) -> Any:
    """Return the value of a command-line setting, read as YAML. Raises InputError that begins with `source`."""
    value, tree = _parse(text, source, with_lines=False)
    if tree.nodes == 0:
        raise InputError(f"{source}: has no value (write none if that is meant)")
    if tree.problems:
        raise InputError("\n".join(tree.problems))
    return value


def parse_config(text: str, source: str) -> Config:
    """Parse a config from YAML text. Raises InputError when it is not YAML, or not a mapping of keys."""
    data, tree = _parse(text, source, with_lines=True)
    if data is _BROKEN:
        raise InputError("\n".join(tree.problems))
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"is {shown(data)}"
        raise InputError(f"{source}: {found}; expected keys and values, such as `name: mine`")
    return Config(data, source, tree.marks, tuple(tree.problems))


def read_config(path: Path) -> Config:
    """Read a config from a YAML file. Raises InputError, in one line, when it cannot be read or parsed."""
    name = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    try:
        if path.is_dir():
            raise InputError(f"{name}: is a folder; expected a YAML file")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{name}: is too large for a config (over {_MAX_BYTES >> 20} MiB); expected a YAML file")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name}: is not a text file; expected YAML in UTF-8") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    return parse_config(text, name)
