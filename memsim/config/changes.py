"""Changes of a config from the one that it started from, key by key, and the title that names them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memsim.config.schema import Section
from memsim.errors import InputError

_LONG = 60
"""The most characters of a value that a title shows."""


@dataclass(frozen=True)
class Changes:
    """The changed keys (dotted) of a config, with their new values as JSON has them."""

    base: str | None = None
    """The name of the config that was changed; None: the changed config has that name itself."""
    changed: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"base": self.base, "changed": dict(self.changed)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Changes:
        """Return the changes that `to_dict` gave. Raises InputError for anything else."""
        base, changed = values.get("base"), values.get("changed")
        if not isinstance(base, str | None) or not isinstance(changed, Mapping):
            raise InputError("the changes of the hardware must be a base's name and changed keys")
        return cls(base, changed)


def title(name: str, changes: Changes) -> str:
    """Return a title such as `physical with adc.bits=6`.

    A config with a name of its own has a title such as `mine (physical with adc.bits=6)`.
    """
    with_keys = ", ".join(f"{key}={setting_text(value)}" for key, value in changes.changed.items())
    if not with_keys:
        return name
    if changes.base in (None, name):
        return f"{name} with {with_keys}"
    return f"{name} ({changes.base} with {with_keys})"


def without(changes: Changes, *keys: str) -> Changes:
    """Return `changes` without some keys, such as those to which a sweep gives columns of their own."""
    left_out = tuple(f"{key}." for key in keys)  # a key itself, and a section with all keys in it
    return Changes(changes.base, {k: value for k, value in changes.changed.items() if not f"{k}.".startswith(left_out)})


def setting_text(value: object) -> str:
    """Return a value as `--set` takes it, cut where it is long."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:g}")
    text = value if isinstance(value, str) else json.dumps(value).replace('"', "")
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def difference(new: Section, old: Section) -> dict[str, Any]:
    """Return the dotted keys of `new` that differ from `old`, with their values in `new`.

    For a section that `old` lacks or has in another kind, these are the keys that are not at their defaults.
    """
    found: dict[str, Any] = {}
    plain = new.model_dump(mode="json")
    for key, info in type(new).model_fields.items():
        value = getattr(new, key)
        is_new = key not in type(old).model_fields
        before = info.get_default(call_default_factory=True) if is_new else getattr(old, key)
        if isinstance(value, Section):
            inner = difference(value, before if isinstance(before, Section) else _Nothing())
            if not isinstance(before, Section) and not inner:
                found[key] = plain[key]  # a new section with all keys at their defaults
            found |= {f"{key}.{name}": changed for name, changed in inner.items()}
        elif value != before or (is_new and info.is_required()):
            found[key] = plain[key]
    return found


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every key of a tree, dotted, with its value: sections and the keys in them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found[key] = value
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
    return found


class _Nothing(Section):
    """A section without a key."""
