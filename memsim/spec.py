"""The hardware spec: what a chip is, from cells to converters, as data.

    spec = load_hardware("physical")                                # a shipped name, a YAML file, or a mapping
    spec = apply_settings(spec, ["adc.bits=6", "read_noise=none"])  # what --set does
    spec.for_layer("encoder.0.linear_pos").adc                      # the overrides of that layer applied

The defaults of every section are those of the shipped spec `physical`; `configs/hardware/physical.yaml` writes them out
with a comment for each key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, Tag, model_serializer, model_validator
from pydantic.types import Strict

from memsim.config.bases import Bases, seen_from
from memsim.config.changes import Changes, difference, flat, title
from memsim.config.resources import configs_root
from memsim.config.schema import Schema, Section, Within, kind_of, problem
from memsim.config.yaml_file import Config, parse_value
from memsim.errors import InputError

Percentile = Annotated[float, Within(above=50, high=100)]
Names = Annotated[tuple[str, ...], Strict(False)]  # a YAML list, kept as an immutable tuple


class Tile(Section):
    """Cells of one crossbar: `rows` word lines (inputs) by `cols` bit lines (outputs).

    `packing` is how the groups of a convolution lie on them: several on the diagonal of a tile, or each on its own.
    """

    rows: Annotated[int, Within(1, 65536)] = 128
    cols: Annotated[int, Within(1, 65536)] = 128
    packing: Literal["diagonal", "separate"] = "diagonal"


class Weights(Section):
    """How a weight becomes cells: what every encoding has."""

    bits: Annotated[int, Within(2, 16)] | None = None  # None: those the checkpoint was trained for, else 8
    scale: Literal["per_channel", "per_tensor"] = "per_channel"
    scale_method: Literal["mse", "minmax"] = "mse"
    copies: Annotated[int, Within(1, 1024)] = 1


class BinaryPlanes(Weights):
    """A pair of two-level cells for each bit of the magnitude."""

    encoding: Literal["binary_planes"] = "binary_planes"

    @property
    def cell_bits(self) -> int:
        return 1


class Multilevel(Weights):
    """A pair of cells of 2^cell_bits levels for each `cell_bits` bits of the magnitude."""

    encoding: Literal["multilevel"]
    cell_bits: Annotated[int, Within(1, 4)] = 2


Encoding = Annotated[
    Annotated[BinaryPlanes, Tag("BinaryPlanes")] | Annotated[Multilevel, Tag("Multilevel")],
    kind_of("encoding", BinaryPlanes, Multilevel),
]


class Dac(Section):
    """How an input becomes a row voltage. `method` chooses, from calibration, the input that drives full scale."""

    bits: Annotated[int, Within(2, 12)] | None = 8  # None: voltages are not quantised
    vmax_volts: Annotated[float, Within(above=0, high=2)] = 0.4
    transfer: Literal["uniform", "linearised"] = "uniform"
    level_grid: Literal["programmable", "uniform"] = "programmable"  # read by transfer linearised
    polarity: Literal["signed", "two_phase"] = "signed"
    slice_bits: Annotated[int, Within(1, 11)] | None = None  # None: all at once
    range: Literal["per_layer", "per_vector"] = "per_layer"
    method: Literal["percentile", "max", "mse"] = "percentile"  # read by range per_layer
    percentile: Percentile = 99.99  # read by method percentile

    @model_validator(mode="after")
    def _levels_need_bits(self) -> Dac:
        if self.bits is None and self.transfer == "linearised":
            raise problem("linearised chooses the voltage of each level; give dac.bits", key="transfer")
        if self.slice_bits is not None and (self.bits is None or self.slice_bits >= self.bits):
            magnitude = "none" if self.bits is None else f"{self.bits - 1}, besides the sign"
            raise problem(f"slices of {self.slice_bits} bits of an input that has {magnitude}", key="slice_bits")
        return self


class AdcImperfections(Section):
    """What real converters add. Gain and offset errors are standard deviations over converters, one at each column."""

    gain_error: Annotated[float, Within(0, 1)] = 0.0
    offset_error_codes: Annotated[float, Within(0, 1000)] = 0.0
    nonlinearity_codes: Annotated[float, Within(-100, 100)] = 0.0  # largest deviation from the straight line


class CalibratedAdc(AdcImperfections):
    """An ADC whose full scale is chosen from calibration, for each layer, plane or tile."""

    range: Literal["calibrated"] = "calibrated"
    bits: Annotated[int, Within(2, 16)] = 8
    granularity: Literal["layer", "plane", "tile"] = "plane"
    method: Literal["percentile", "max", "mse"] = "percentile"
    percentile: Percentile = 99.99  # read by method percentile


class FixedAdc(AdcImperfections):
    """An ADC with steps of 2^-precision_bits and a range of +-2^(range_bits - 1), in units of (weight 1 x input 1)."""

    range: Literal["fixed"]
    precision_bits: Annotated[int, Within(-8, 16)]
    range_bits: Annotated[int, Within(-8, 16)]

    @model_validator(mode="after")
    def _has_a_bit(self) -> FixedAdc:
        if self.bits < 1:
            raise problem(f"precision_bits + range_bits is {self.bits}: an ADC needs at least 1 bit", key="range_bits")
        return self

    @property
    def bits(self) -> int:
        return self.precision_bits + self.range_bits


Adc = Annotated[
    Annotated[CalibratedAdc, Tag("CalibratedAdc")] | Annotated[FixedAdc, Tag("FixedAdc")],
    kind_of("range", CalibratedAdc, FixedAdc),
]


class Cycling(Section):
    """Random switching before programming: each pulse is one voltage from U(-vmax, vmax) for the whole tile."""

    rounds: Annotated[int, Within(1, 1000)] = 1
    pulses_per_round: Annotated[int, Within(1, 100_000)] = 50
    vmax_volts: Annotated[float, Within(above=0, high=5)] = 2.0


Fraction = Annotated[float, Within(0, 1)]


class Faults(Section):
    """Cells and lines that do not work, as fractions of all."""

    stuck_lrs: Fraction = 0.0
    stuck_hrs: Fraction = 0.0
    dead_rows: Fraction = 0.0
    dead_cols: Fraction = 0.0

    @model_validator(mode="after")
    def _a_cell_is_stuck_once(self) -> Faults:
        if self.stuck_lrs + self.stuck_hrs > 1:
            raise problem("with stuck_lrs more than all cells are stuck", key="stuck_hrs")
        return self


class Retention(Section):
    """How long before the reads the cells were programmed, and how they drift. Not fitted to measurements."""

    age_seconds: Annotated[float, Within(low=0)]
    exponent: Annotated[float, Within(0, 1)] = 0.005
    exponent_std: Annotated[float, Within(0, 1)] = 0.0
    reference_seconds: Annotated[float, Within(above=0)] = 1.0


class Wires(Section):
    """Resistive lines: `ohms` of each segment, from a driver to the first cell, from cell to cell, and to ground.

    `nodal` solves for every read; `effective` foresees it with matrices, 100 times as fast, to 0.1 % or so.
    """

    ohms: Annotated[float, Within(above=0, high=100)]
    solve: Literal["nodal", "effective"] = "nodal"


class Noise(Section):
    """Johnson and shot noise. The scales multiply the standard deviations; 1 is physics."""

    bandwidth_hz: Annotated[float, Within(above=0)] = 1.0e8
    temperature_kelvin: Annotated[float, Within(low=0)] = 300.0
    shot_scale: Annotated[float, Within(low=0)] = 1.0
    johnson_scale: Annotated[float, Within(low=0)] = 1.0


class ReadNoise(Noise):
    """Noise of the reads that compute."""

    variance_product: Literal["float32", "bfloat16"] = "float32"  # bfloat16 approximates, for speed


class VerifyAdc(Section):
    """An ADC for verify reads; currents beyond `full_scale`, a fraction of the mean LRS current, read as full scale."""

    bits: Annotated[int, Within(2, 16)] = 8
    full_scale: Annotated[float, Within(1.25, 10)] = 1.5


class Verify(Section):
    """How a programmer measures a single cell."""

    read_volts: Annotated[float, Within(above=0, high=1)] = 0.3
    read_seconds: Annotated[float, Within(above=0)] = 1.0e-7
    noise: Noise | None = Noise()
    adc: VerifyAdc | None = None


class Programming(Section):
    """How cells get their states: what every scheme has. `relaxation` is the standard deviation of what a cell's
    current changes by after programming, as a fraction of it; the fitted data do not contain it. `exact` gives every
    cell the mean state of its level, to see what the spread costs.
    """

    set_volts: Annotated[float, Within(low=-5, below=0)] = -2.0
    reset_volts: Annotated[float, Within(above=0, high=5)] = 2.0
    pulse_seconds: Annotated[float, Within(above=0)] = 1.0e-6
    history: Literal["stationary", "zero"] = "stationary"
    relaxation: Annotated[float, Within(above=0, high=0.5)] | None = None
    exact: bool = False


class SinglePulse(Programming):
    """RESET of all cells, then one SET pulse to those that hold a 1; no verify."""

    scheme: Literal["single_pulse"] = "single_pulse"
    verify: ClassVar[None] = None
    cycling: Cycling | None = None


class WriteVerify(Programming):
    """Cells whose current is off what their level has on average are cycled again, at most `tries` times in all.

    `tolerance` is a fraction of the mean LRS current.
    """

    scheme: Literal["write_verify"]
    verify: Verify = Verify()
    tolerance: Annotated[float, Within(above=0, high=1)] = 0.03
    tries: Annotated[int, Within(1, 100)] = 10


class IncrementalReset(Programming):
    """SET, then rising partial-RESET pulses to the cells still above target, each verified; cells that end outside the
    tolerance are cycled and tried again.

    Levels and tolerance are fractions of the mean LRS current, levels at the verify voltage.
    """

    scheme: Literal["incremental_reset"]
    verify: Verify = Verify()
    start_volts: Annotated[float, Within(above=0, high=2)] = 0.6
    step_volts: Annotated[float, Within(low=1.0e-4, high=1)] = 0.005
    stop_volts: Annotated[float, Within(above=0, high=2)] = 1.45
    low_level: Annotated[float, Within(low=0, high=1)] = 0.2
    high_level: Annotated[float, Within(low=0, high=1.25)] = 0.85
    tolerance: Annotated[float, Within(above=0, high=1)] = 0.015
    retries: Annotated[int, Within(0, 20)] = 3

    @model_validator(mode="after")
    def _rises(self) -> IncrementalReset:
        if self.start_volts > self.stop_volts:
            raise problem(f"{self.stop_volts} is below start_volts ({self.start_volts})", key="stop_volts")
        if self.low_level >= self.high_level:
            raise problem(f"{self.low_level} is not below high_level ({self.high_level})", key="low_level")
        return self


Scheme = Annotated[
    Annotated[SinglePulse, Tag("SinglePulse")]
    | Annotated[WriteVerify, Tag("WriteVerify")]
    | Annotated[IncrementalReset, Tag("IncrementalReset")],
    kind_of("scheme", SinglePulse, WriteVerify, IncrementalReset),
]


Amount = Annotated[float, Within(low=0)]
Joules = Literal["simulated"] | Amount


class DacCost(Section):
    """A row's DAC of b bits has 2^b steps; besides its conversion, the row's driver takes `driver_joules` a pulse."""

    joules_per_step: Amount = 1.1e-15
    driver_joules: Amount = 3.9e-13
    seconds: Amount = 1.0e-9
    square_micrometres_per_step: Amount = 1.7
    arrays_per_dac: Annotated[int, Within(1, 65536)] = 1  # that take the same input


class AdcCost(Section):
    """A conversion to b bits takes 2^b steps. `columns_per_adc` take turns at one."""

    joules_per_step: Amount = 1.0e-14
    seconds: Amount = 8.3e-10
    square_micrometres: Amount = 1500.0
    columns_per_adc: Annotated[int, Within(1, 65536)] = 128


class CellCost(Section):
    """Of one cell. Energies are those of a pulse: `simulated` is current x voltage x time, as the cells conduct."""

    read_joules: Joules = "simulated"
    read_seconds: Amount = 1.0e-7
    write_joules: Joules = "simulated"  # times come from programming.pulse_seconds
    square_micrometres: Amount = 0.077


class Cost(Section):
    """Energy, time and area of the circuits: estimates, which change no result. What they are taken from is said in
    configs/hardware/physical.yaml.
    """

    dac: DacCost = DacCost()
    adc: AdcCost = AdcCost()
    cell: CellCost = CellCost()
    audio_seconds_per_programming: Annotated[float, Within(above=0)] = 86400.0


Gain = Literal["calibrated"] | Annotated[float, Within(above=0)]


class Override(Section):
    """What differs in the layers that `match`; a section names only the keys that change."""

    match: Annotated[str, Field(min_length=1)]
    weights: dict[str, Any] | None = None
    dac: dict[str, Any] | None = None
    adc: dict[str, Any] | None = None
    gain_per_ampere: Gain = "calibrated"
    programming: dict[str, Any] | None = None
    read_noise: dict[str, Any] | None = None

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in type(self).model_fields if key in self.model_fields_set}


OVERRIDABLE = tuple(key for key in Override.model_fields if key != "match")


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
"""What makes a product differ from the exact one, from weights and inputs to the cells to what is read of them."""

_LABELS = {"dac": "DAC", "iv": "I-V", "adc": "ADC"}

_IDEAL_CELL_EFFECTS = ("quantisation", "dac", "adc")
_OPTIONAL_EFFECTS = ("dac", "read_disturb", "retention", "faults", "wires", "adc", "read_noise")  # keys of the spec


def effect_label(effect: str) -> str:
    """One of EFFECTS as people write it."""
    return _LABELS.get(effect, effect.replace("_", " "))


class HardwareSpec(Section):
    """A chip, resolved (no `base` left) and immutable. Made by `load_hardware`.

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
    retention: Retention | None = None
    cost: Cost = Cost()
    digital: Names = ("output*", "frontend.*", "*.depthwise")  # as in arXiv 2505.24721
    embeddings: Names = ()  # on arrays, read with one-hot inputs
    overrides: Annotated[tuple[Override, ...], Strict(False)] = ()
    _changes: Changes | None = PrivateAttr(None)  # provenance, which is no part of the hardware or its hash
    _start: HardwareSpec | None = PrivateAttr(None)  # what it was made from, where the changes are not known yet

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
        for key in ("wires", "read_disturb", "faults", "retention"):
            if self.cell == "ideal" and getattr(self, key) is not None:
                raise problem("has no effect on ideal cells; name a device as cell, or write none", key=key)
        return self

    @model_validator(mode="after")
    def _several_levels_need_a_closed_loop(self) -> HardwareSpec:
        weights, scheme = self.weights, self.programming.scheme
        if weights.cell_bits > 1 and self.cell != "ideal" and scheme != "incremental_reset":
            raise problem(
                f"{weights.cell_bits} bits a cell need programming: {{scheme: incremental_reset}}; {scheme} gives"
                " a cell two states",
                key="weights.cell_bits",
            )
        return self

    def __hash__(self) -> int:
        return hash(self.sha256())

    def __eq__(self, other: object) -> bool:
        """Whether both are the same hardware under the same name, whatever they were made from."""
        fields = type(self).model_fields
        return isinstance(other, HardwareSpec) and all(getattr(self, key) == getattr(other, key) for key in fields)

    @property
    def changes(self) -> Changes:
        """What was changed of the spec that this one started from: by settings, and by a file of its `base`.

        Weight bits that were left open and have been chosen since are no change. Where nothing is known of the start,
        it is the shipped spec of the same name, if there is one.
        """
        if self._changes is not None:
            return self._changes
        if self._start is not None:
            return _added_up(self._start, self)
        shipped = _shipped(self.name)
        if shipped is None:
            return Changes()
        # a mapped file's cell is named with the hash of what it holds
        own = self.model_copy(update={"cell": re.sub(r"@[0-9a-f]{16}$", "", self.cell)})
        found = difference(own, shipped)
        if shipped.weights.bits is None:
            found.pop("weights.bits", None)
        return Changes(shipped.name, found)

    @property
    def title(self) -> str:
        """The name and the keys that were changed: `physical with adc.bits=6`."""
        return title(self.name, self.changes)

    def with_changes(self, changes: Changes) -> HardwareSpec:
        """A copy that says `changes` of where it comes from."""
        copy = self.model_copy()
        copy._changes = changes
        return copy

    def is_digital(self, layer: str) -> str | None:
        """The glob that keeps `layer` digital, or None."""
        return next((glob for glob in self.digital if fnmatchcase(layer, glob)), None)

    def has_embedding(self, layer: str) -> bool:
        """Whether the embedding `layer` is to be on arrays."""
        return any(fnmatchcase(layer, glob) for glob in self.embeddings)

    def for_layer(self, layer: str) -> HardwareSpec:
        """The spec of one layer: every override that matches its name applied, later ones last, and none left.

        Raises InputError if overrides that match together contradict each other.
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
        """A copy with dotted keys set: `{"adc.bits": 6, "dac": "{bits: 6}"}`; text is read as YAML, sections merge.

        Settings change the base values: an override still wins in the layers that it matches. Changing the kind of a
        section (`adc.range`) drops the keys of the other kind. `flag` is what errors call a setting.
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
        """The spec with its effects as far as `effect`, in the order of EFFECTS, and everything after it exact.

        Cells are ideal without their I-V characteristic; without programming each has the mean state of its level.
        """
        on = EFFECTS[: EFFECTS.index(effect) + 1]
        exact: dict[str, Any] = {key: None for key in _OPTIONAL_EFFECTS if key not in on}
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
        """The quantised digital result of the same spec: its weights and DAC, and everything after them exact."""
        return self.up_to("dac")

    def steps(self) -> dict[str, HardwareSpec]:
        """By effect, the spec with the effects up to it. Effects that change nothing are left out; the last is `self`.

        The first is quantisation, which no spec is without.
        """
        found: dict[str, HardwareSpec] = {}
        for effect in EFFECTS if self.cell != "ideal" else _IDEAL_CELL_EFFECTS:
            step = self.up_to(effect)
            if not any(step.is_same_hardware(earlier) for earlier in found.values()):
                found[effect] = step
        return found | {next(reversed(found)): self}

    def is_same_hardware(self, other: HardwareSpec) -> bool:
        """Whether the two differ in their names at most."""
        return self.to_dict() | {"name": other.name} == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `load_hardware` reads back to an equal spec."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def sha256(self) -> str:
        """Identifies the spec, its name included."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


_SCHEMA = Schema(HardwareSpec)


def _find_cell(data: dict[str, Any], folder: Path) -> None:
    seen_from(folder, data, "cell")


_BASES = Bases("hardware", _SCHEMA, _find_cell)


def load_hardware(source: str | Path | Mapping[str, Any]) -> HardwareSpec:
    """The spec of that name (shipped in configs/hardware), in that YAML file, or in that mapping, its `base` resolved.

    >>> memsim.load_hardware("physical").cell
    'synaptogen'
    >>> memsim.load_hardware({"base": "physical", "weights": {"bits": 3}}).weights.bits
    3

    A spec without a `name` takes its file's. Raises InputError that lists every problem with its file, line and key.
    """
    if isinstance(source, Mapping):
        config = _BASES.resolve(Config.from_mapping({"name": "custom", **source}, "hardware"))
    else:
        config = _BASES.read(source)
    return _loaded(config)


def _loaded(config: Config) -> HardwareSpec:
    """The spec of a config; it knows what it changes of its base, unless it is a shipped one."""
    spec = _build(config)
    if config.base is None or spec == _shipped(spec.name):
        return spec
    with suppress(InputError):  # a base that is no spec by itself
        spec._start = _loaded(config.base)
    return spec


@cache
def _shipped(name: str) -> HardwareSpec | None:
    """The shipped spec of that name, if there is one."""
    path = configs_root() / "hardware" / f"{name}.yaml"
    return _build(_BASES.read(path)) if re.fullmatch(r"[\w-]+", name) and path.is_file() else None


def _added_up(old: HardwareSpec, new: HardwareSpec) -> Changes:
    """The changes of `new`, which was made from `old`."""
    before = old.changes
    base = before.base or old.name
    changed = {**before.changed, **difference(new, old)}
    changed.pop("name", None)
    reference = _shipped(base)
    # without what was set back, or belongs to another kind of a section
    kept = difference(new, reference) if reference is not None else flat(new.to_dict())
    return Changes(base, {key: value for key, value in kept.items() if key in changed})


def apply_settings(spec: HardwareSpec, settings: Iterable[str]) -> HardwareSpec:
    """`spec` with the KEY=VALUE texts of `--set`, a key once; see `HardwareSpec.with_settings`."""
    pairs: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: expected KEY=VALUE, such as --set adc.bits=6")
        if key.strip() in pairs:
            raise InputError(f"--set {setting}: {key.strip()} is set twice; leave one out")
        pairs[key.strip()] = value
    return spec.with_settings(pairs)


def _override(config: Config, chosen: Iterable[int]) -> Config:
    """`config` with its overrides of those positions applied, and none left."""
    resolved = config.part((), (key for key in config.data if key != "overrides"))
    for index in chosen:
        resolved = _SCHEMA.merge(resolved, config.part(("overrides", index), OVERRIDABLE))
    return resolved


def _build(config: Config) -> HardwareSpec:
    """Validates a spec and each of its overrides, the latter as a layer named like its glob would see it."""
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
