"""The whole hardware spec: loading, settings, the specs of single layers, and steps of non-idealities."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator
from pydantic.types import Strict

from memsim.arguments import require_types
from memsim.config.bases import Bases, seen_from
from memsim.config.changes import Changes, difference, flat, title
from memsim.config.resources import configs_root
from memsim.config.schema import Schema, Section, Within, problem
from memsim.config.yaml_file import Config, parse_value
from memsim.errors import InputError
from memsim.hardware.sections import (
    OVERRIDABLE,
    Adc,
    BinaryPlanes,
    CalibratedAdc,
    Cost,
    Dac,
    Encoding,
    Faults,
    Gain,
    Names,
    Override,
    ReadNoise,
    Retention,
    Scheme,
    SinglePulse,
    Tile,
    Wires,
)

EFFECTS = (
    "quantisation",
    "dac",
    "iv",
    "programming",
    "read_disturb",
    "retention",
    "faults",
    "wires",
    "adc",
    "read_noise",
)
"""The non-idealities that make a product differ from the exact one, in the order in which they act."""

_LABELS = {"dac": "DAC", "iv": "I-V", "adc": "ADC", "wires": "line resistance"}

_KEYS = {"retention": ("retention", "read_at_seconds", "drift_compensation")}
"""The keys of an effect with other names than its own."""

_IDEAL_CELL_EFFECTS = ("quantisation", "dac", "adc")
_OPTIONAL_EFFECTS = tuple(effect for effect in EFFECTS if effect not in ("quantisation", "iv", "programming"))


def effect_label(effect: str) -> str:
    """Return the name of one of EFFECTS for people: `dac` is `DAC`, `read_noise` is `read noise`."""
    return _LABELS.get(effect, effect.replace("_", " "))


class HardwareSpec(Section):
    """A chip, with its `base` resolved, and immutable; `load_hardware` makes it.

    >>> spec = memsim.load_hardware("physical").with_settings({"adc.bits": 6})
    >>> spec.adc.bits, spec.tile.rows
    (6, 128)
    """

    name: str
    cell: Annotated[str, Field(min_length=1)] = "synaptogen"
    tile: Tile = Tile()
    weights: Encoding = BinaryPlanes()
    dac: Dac | None = Dac()
    adc: Adc | None = CalibratedAdc()
    gain_per_ampere: Gain = "calibrated"
    programming: Scheme = SinglePulse()
    wires: Wires | None = None
    read_noise: ReadNoise | None = ReadNoise()
    read_disturb: Literal["settle"] | None = None
    faults: Faults | None = None
    read_at_seconds: Annotated[float, Within(low=0)] | None = None
    drift_compensation: Literal["layer", "column"] | None = None
    retention: Retention | None = None
    cost: Cost = Cost()
    chip: Annotated[str, Field(min_length=1)] | None = None  # the architecture around the arrays, for estimates of cost
    digital: Names = ("output*", "frontend.*", "*.depthwise")  # as in arXiv 2505.24721
    embeddings: Names = ()  # on arrays, read with one-hot inputs
    overrides: Annotated[tuple[Override, ...], Strict(False)] = ()
    _changes: Changes | None = PrivateAttr(None)  # provenance, which is not part of the hardware or its hash
    _start: HardwareSpec | None = PrivateAttr(None)  # the spec that it was made from, until the changes are worked out

    @model_validator(mode="after")
    def _voltages_have_a_full_scale(self) -> HardwareSpec:
        if self.dac is None and self.cell != "ideal":
            raise problem(
                f"none works only with cell: ideal; the voltages on {self.cell} cells need a full scale"
                " (for inputs that are not quantised write dac: {bits: none})",
                key="dac",
            )
        return self

    @model_validator(mode="after")
    def _ideal_cells_do_not_fail(self) -> HardwareSpec:
        for key in ("wires", "read_disturb", "faults", "read_at_seconds", "drift_compensation", "retention"):
            if self.cell == "ideal" and getattr(self, key) is not None:
                raise problem("has no effect on ideal cells; name a device as cell, or write none", key=key)
        return self

    @model_validator(mode="after")
    def _is_read_at_one_time(self) -> HardwareSpec:
        if self.retention is not None and self.retention.age_seconds is None and self.read_at_seconds is None:
            raise problem("says how cells drift, but not until when; give read_at_seconds", key="retention")
        if self.retention is not None and self.retention.age_seconds is not None and self.read_at_seconds is not None:
            raise problem("is an older place of read_at_seconds; give one of them", key="retention.age_seconds")
        return self

    @property
    def seconds_until_read(self) -> float:
        """The time from programming to the reads, 0 where nothing says it."""
        age = None if self.retention is None else self.retention.age_seconds
        return (self.read_at_seconds or 0.0) if age is None else age

    def __hash__(self) -> int:
        return hash(self.sha256())

    def __eq__(self, other: object) -> bool:
        """Whether both are the same hardware under the same name, whatever spec they started from."""
        fields = type(self).model_fields
        return isinstance(other, HardwareSpec) and all(getattr(self, key) == getattr(other, key) for key in fields)

    @property
    def changes(self) -> Changes:
        """The changes by settings, and by a file to its `base`, against the spec that this one started from.

        A choice of open weight bits is not a change. A spec of unknown start is compared with the shipped
        spec of its name, if there is one.
        """
        if self._changes is not None:
            return self._changes
        if self._start is not None:
            return _added_up(self._start, self)
        shipped = _shipped(self.name)
        if shipped is None:
            return Changes()
        # the name of a mapped file's device model ends in the hash of its content
        own = self.model_copy(update={"cell": re.sub(r"@[0-9a-f]{16}$", "", self.cell)})
        found = difference(own, shipped)
        if shipped.weights.bits is None:
            found.pop("weights.bits", None)
        return Changes(shipped.name, found)

    @property
    def title(self) -> str:
        """The name and the changed keys: `physical with adc.bits=6`."""
        return title(self.name, self.changes)

    def with_changes(self, changes: Changes) -> HardwareSpec:
        """Return a copy with `changes` as its provenance."""
        copy = self.model_copy()
        copy._changes = changes
        return copy

    def is_digital(self, layer: str) -> str | None:
        """Return the glob that keeps `layer` digital, or None."""
        return next((glob for glob in self.digital if fnmatchcase(layer, glob)), None)

    def has_embedding(self, layer: str) -> bool:
        """Whether the embedding `layer` is to be on arrays."""
        return any(fnmatchcase(layer, glob) for glob in self.embeddings)

    def for_layer(self, layer: str) -> HardwareSpec:
        """Return the spec of one layer, with every override that matches its name applied in order, and none left.

        Raises InputError where overrides that match together contradict each other.
        """
        chosen = tuple(index for index, override in enumerate(self.overrides) if fnmatchcase(layer, override.match))
        if chosen not in self._resolved:
            config = Config.from_mapping(self.to_dict(), f"hardware {self.name}, layer {layer}")
            self._resolved[chosen] = _SCHEMA.validate(_override(config, chosen))
        return self._resolved[chosen]

    @cached_property
    def _resolved(self) -> dict[tuple[int, ...], HardwareSpec]:
        return {}

    def with_settings(self, settings: Mapping[str, object], flag: str = "--set {key}={value}") -> HardwareSpec:
        """Return a copy with dotted keys set: `{"adc.bits": 6, "dac": "{bits: 6}"}`.

        Text is read as YAML, and sections are merged. Settings change the base values: an override still wins in the
        layers that it matches. A change of a section's kind (`adc.range`) drops the keys of the other kind. `flag` is
        the name of a setting in errors. Raises InputError for unknown keys and impossible values.
        """
        config = Config.from_mapping(self.to_dict(), f"hardware {self.name}")
        for key, value in settings.items():
            source = flag.format(key=key, value=value)
            if key.split(".")[0] == "base":
                raise InputError(f"{source}: base is for files; choose the spec to start from with --hardware")
            tree: Any = parse_value(value, source) if isinstance(value, str) else value
            for step in reversed(key.split(".")):
                tree = {step: tree}
            config = _SCHEMA.merge(config, Config.from_mapping(tree, source))
        changed = _build(config)
        changed._start = self
        return changed

    def up_to(self, effect: str) -> HardwareSpec:
        """Return the spec with its non-idealities up to `effect`, in the order of EFFECTS, and all later ones exact.

        Without `iv`, cells are ideal; without `programming`, each cell has the mean state of its level.
        """
        on = EFFECTS[: EFFECTS.index(effect) + 1]
        off = (key for effect in _OPTIONAL_EFFECTS if effect not in on for key in _KEYS.get(effect, (effect,)))
        exact: dict[str, Any] = dict.fromkeys(off)
        exact["chip"] = None  # it changes no result
        if "iv" not in on or self.cell == "ideal":
            exact |= {"cell": "ideal", "gain_per_ampere": "calibrated", "programming": {}}
        spec = self.to_dict() | exact | {"name": f"{self.name} (up to {effect})"}
        spec["overrides"] = [{key: o[key] for key in o if key not in exact} for o in spec["overrides"]]
        if effect == "iv":
            for part in (spec, *spec["overrides"]):
                if "programming" in part:
                    part["programming"] |= {"exact": True, "relaxation": None}
        return _build(Config.from_mapping(spec, f"hardware {self.name}"))

    def digital_twin(self) -> HardwareSpec:
        """Return the spec of the quantised digital result: the same weights and DAC, and all else exact."""
        return self.up_to("dac")

    def steps(self) -> dict[str, HardwareSpec]:
        """Return the specs with the non-idealities up to each, by its name, without those that change nothing.

        The first is quantisation, which every spec has, and the last is `self`.
        """
        found: dict[str, HardwareSpec] = {}
        for effect in EFFECTS if self.cell != "ideal" else _IDEAL_CELL_EFFECTS:
            step = self.up_to(effect)
            if not any(step.is_same_hardware(earlier) for earlier in found.values()):
                found[effect] = step
        return found | {next(reversed(found)): self}

    def is_same_hardware(self, other: HardwareSpec) -> bool:
        """Whether the two specs differ in nothing but their names."""
        return self.to_dict() | {"name": other.name} == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `load_hardware` makes an equal spec; without `chip` where it is none."""
        values = self.model_dump(mode="json")
        if self.chip is None:
            del values["chip"]
        return values

    def to_json(self) -> str:
        """Return canonical JSON: equal specs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def sha256(self) -> str:
        """Return a hash that identifies the spec and its name."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


_SCHEMA = Schema(HardwareSpec)


def _find_files(data: dict[str, Any], folder: Path) -> None:
    """Replace the devices and the chip that `data` name by the paths of their files in `folder`, where they are there.

    Nothing of `data` has been checked yet.
    """
    seen_from(folder, data, "cell")
    seen_from(folder, data, "chip")
    overrides = data.get("overrides")
    for section in (data, *(overrides if isinstance(overrides, list) else ())):
        if isinstance(section, dict) and isinstance(programming := section.get("programming"), dict):
            seen_from(folder, programming, "relaxation")


_BASES = Bases("hardware", _SCHEMA, _find_files)


def load_hardware(source: HardwareSpec | str | Path | Mapping[str, Any]) -> HardwareSpec:
    """Load the shipped spec of that name, a YAML file, or a mapping, and resolve its `base`.

    >>> memsim.load_hardware("physical").cell
    'synaptogen'
    >>> memsim.load_hardware({"base": "physical", "weights": {"bits": 3}}).weights.bits
    3

    A spec without a `name` takes the name of its file; a HardwareSpec is returned as it is. Raises InputError, which
    lists every problem with its file, line and key.
    """
    if isinstance(source, HardwareSpec):
        return source
    if not isinstance(source, Mapping):  # whose keys are checked one by one
        require_types(load_hardware, locals())
    if isinstance(source, Mapping):
        config = _BASES.resolve(Config.from_mapping({"name": "custom", **source}, "hardware"))
    else:
        config = _BASES.read(source)
    return _loaded(config)


def _loaded(config: Config) -> HardwareSpec:
    """Return the spec of a config, which knows its changes to its base unless it is a shipped one."""
    spec = _build(config)
    if config.base is None or spec == _shipped(spec.name):
        return spec
    with suppress(InputError):  # of a base that is incomplete without this file
        spec._start = _loaded(config.base)
    return spec


@cache
def _shipped(name: str) -> HardwareSpec | None:
    """Return the shipped spec of that name, if there is one."""
    path = configs_root() / "hardware" / f"{name}.yaml"
    return _build(_BASES.read(path)) if re.fullmatch(r"[\w-]+", name) and path.is_file() else None


def _added_up(old: HardwareSpec, new: HardwareSpec) -> Changes:
    """Return the changes of `new`, which was made from `old`, added to those of `old`."""
    before = old.changes
    base = before.base or old.name
    changed = {**before.changed, **difference(new, old)}
    changed.pop("name", None)
    reference = _shipped(base)
    # without keys that were set back or belong to another kind of a section
    kept = difference(new, reference) if reference is not None else flat(new.to_dict())
    return Changes(base, {key: value for key, value in kept.items() if key in changed})


def apply_settings(spec: HardwareSpec, settings: Iterable[str]) -> HardwareSpec:
    """Apply the KEY=VALUE texts of `--set` to `spec`: see `HardwareSpec.with_settings`.

    Raises InputError for text of another form and for a key that is set twice.
    """
    pairs: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: expected KEY=VALUE, such as --set adc.bits=6")
        if key.strip() in pairs:
            raise InputError(f"--set {setting}: {key.strip()} is set twice; leave one out")
        pairs[key.strip()] = value
    try:
        return spec.with_settings(pairs)
    except InputError as error:
        if any("," in value and value[0] not in "[{'\"" for value in pairs.values()):
            raise InputError(f"{error}; several values are a sweep, which memsim eval takes") from None
        raise


def _override(config: Config, chosen: Iterable[int]) -> Config:
    """Return `config` with its overrides at the positions `chosen` applied, and none left."""
    resolved = config.part((), (key for key in config.data if key != "overrides"))
    for index in chosen:
        resolved = _SCHEMA.merge(resolved, config.part(("overrides", index), OVERRIDABLE))
    return resolved


def _build(config: Config) -> HardwareSpec:
    """Validate a spec and each of its overrides, which is applied as to a layer with the name of its glob."""
    spec, problems = _SCHEMA.check(config)
    overrides = config.data.get("overrides")
    globs = {
        index: override["match"]
        for index, override in enumerate(overrides if isinstance(overrides, list) else ())
        if isinstance(override, dict) and isinstance(override.get("match"), str)
    }
    for index, glob in globs.items():
        earlier = [other for other in globs if other < index and fnmatchcase(glob, globs[other])]
        problems += _SCHEMA.check(_override(config, [*earlier, index]))[1]
    if spec is None or problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return spec
