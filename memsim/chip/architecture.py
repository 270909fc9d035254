"""The architecture of a chip as data: cores of arrays, networks, links, digital parts, and their prices.

    chip = load_chip("isaac")          # a shipped name (configs/chips), a YAML file, or a mapping
    chip.prices("high")["core.adc_joules_per_step"]

configs/chips/isaac.yaml has every key with a comment. A mapped file carries the chip of its spec unless it is a shipped
one: `embedded_chip` packs it, and `adopt_chip` makes `load_chip` find it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic.types import Strict

from memsim.arguments import require_types
from memsim.chip.prices import AreaPrice, Level, Node, Price
from memsim.config.bases import Bases
from memsim.config.json_input import parse_json_object
from memsim.config.schema import Schema, Section, Within
from memsim.config.yaml_file import Config
from memsim.errors import InputError, naming
from memsim.storage.carried import CarriedModels
from memsim.storage.checkpoint import Checkpoint

Count = Annotated[int, Within(1, 1 << 24)]
Bytes = Annotated[int, Within(1, 1 << 40)]
Positive = Annotated[float, Within(above=0)]
Prices = Mapping[str, float]
"""Prices of a chip by dotted key, such as `core.adc_joules_per_step`."""

DEFAULT_CHIP = "isaac"
"""The shipped chip of a hardware spec that names none."""

EMBEDDED = "embedded_chip"
"""The key of the metadata, an object in JSON, of a chip that a mapped file carries."""


class CoreSection(Section):
    """A core: arrays with their converters, a buffer, and a digital unit that adds, scales and activates.

    With `pairs: subtracted`, the currents of a pair of arrays and of its copies meet before one ADC; with `apart`,
    every array has ADCs of its own. A drive of one bit needs no DAC beside its driver. `cell_joules` is the energy of a
    cell in one read; none takes that of the simulated currents.
    """

    arrays: Count
    pairs: Literal["subtracted", "apart"] = "subtracted"
    columns_per_adc: Count
    read_seconds: Positive
    adc_seconds: Annotated[float, Within(low=0)]
    adc_joules_per_step: Price
    adc_square_micrometres: AreaPrice
    dac_joules_per_step: Price
    dac_square_micrometres_per_step: AreaPrice
    driver_joules: Price
    row_square_micrometres: AreaPrice
    cell_joules: Price | None = None
    cell_square_micrometres: AreaPrice
    accumulate_joules: Price
    output_joules: Price
    buffer_joules_per_byte: Price
    square_millimetres: AreaPrice


class NetworkSection(Section):
    """The network of a chip, a grid of cores with the digital part in its middle."""

    bytes_per_second: Positive
    seconds_per_hop: Positive
    joules_per_byte_hop: Price


class LinksSection(Section):
    """The links from each chip to the next."""

    bytes_per_second: Positive
    seconds: Positive
    joules_per_byte: Price
    square_millimetres: AreaPrice


class DigitalSection(Section):
    """The digital part of each chip: products that are not on arrays, and all other operations.

    `precision` is that of its products. Special operations are exponentials, square roots and the like.
    """

    precision: Literal["int4", "int8", "float16"] = "int8"
    macs_per_second: Positive
    operations_per_second: Positive
    int4_joules_per_mac: Price
    int8_joules_per_mac: Price
    float16_joules_per_mac: Price
    elementwise_joules: Price
    special_joules: Price
    memory_joules_per_byte: Price
    memory_square_millimetres_per_megabyte: AreaPrice
    square_millimetres: AreaPrice


class AcceleratorSection(Section):
    """The digital accelerator that a chip is compared with, which has the same digital prices.

    Its `rows` x `rows` multipliers keep weights while input vectors stream past. Weights are in SRAM as far as
    `sram_bytes` reaches; the rest is read from DRAM whenever its layer runs. Both hold for the weights in the digital
    part of a chip, too.
    """

    rows: Count
    clock_hz: Positive
    sram_bytes: Bytes
    dram_bytes_per_second: Positive
    dram_joules_per_byte: Price
    square_millimetres: AreaPrice


class PublicSection(Section):
    """A processor of which the energy of a multiplication and addition is known from public figures."""

    name: str
    joules_per_mac: Price


WEIGHT_BYTES = {"int4": 0.5, "int8": 1.0, "float16": 2.0}
"""The bytes of a digital weight by precision."""


class Chip(Section):
    """The architecture of a chip (configs/chips/*.yaml); `load_chip` makes it.

    `powered: computing` counts leakage while an utterance is computed, `always` all the time. `chunk_seconds` limits
    attention to chunks; none needs the whole utterance. `replicas: spare` programs the arrays that are left over on the
    last chip with copies of the busiest layers.
    """

    name: str
    node_nanometres: Node
    cores: Count
    powered: Literal["computing", "always"] = "computing"
    chunk_seconds: Positive | None = None
    replicas: Literal["spare"] | None = None
    core: CoreSection
    network: NetworkSection
    links: LinksSection
    digital: DigitalSection
    leakage_watts_per_square_millimetre: Price
    accelerator: AcceleratorSection
    public: Annotated[tuple[PublicSection, ...], Strict(False), Field()] = ()

    def priced(self) -> dict[str, Price]:
        """Return every price by its dotted key; those of `public` by the name of the processor."""
        found: dict[str, Price] = {}

        def collect(section: BaseModel, path: str) -> None:
            for key in type(section).model_fields:
                value = getattr(section, key)
                if isinstance(value, Price):
                    found[path + key] = value
                elif isinstance(value, Section):
                    collect(value, f"{path}{key}.")

        collect(self, "")
        return found | {f"public.{processor.name}": processor.joules_per_mac for processor in self.public}

    def prices(self, level: Level = "nominal") -> dict[str, float]:
        """Return every price at the `level` of its range, scaled to the node of the chip."""
        return {key: price.at(level, self.node_nanometres) for key, price in self.priced().items()}

    def sram_share(self, weights: int, weight_bytes: float) -> float:
        """Return the fraction of digital weights that SRAM holds."""
        stored = weights * weight_bytes
        return min(1.0, self.accelerator.sram_bytes / stored) if stored else 1.0

    def with_settings(self, settings: Mapping[str, Any]) -> Chip:
        """Return a copy with dotted keys set; sections are merged. Raises InputError where a value is impossible."""
        config = Config.from_mapping(self.to_dict(), f"chip {self.name}")
        for key, value in settings.items():
            tree: Any = value
            for step in reversed(key.split(".")):
                tree = {step: tree}
            config = _SCHEMA.merge(config, Config.from_mapping(tree, f"{key}={value}"))
        return _SCHEMA.validate(config)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `load_chip` makes an equal chip."""
        return self.model_dump(mode="json")


_SCHEMA = Schema(Chip)
_BASES = Bases("chips", _SCHEMA, lambda data, folder: None)


def load_chip(source: Chip | str | Path | Mapping[str, Any]) -> Chip:
    """Load the chip of that name (shipped in configs/chips), in that YAML file, or in that mapping.

    Its `base` is resolved. Raises InputError, which lists every problem with its file, line and key.
    """
    if isinstance(source, Chip):
        return source
    if isinstance(source, Mapping):
        return _SCHEMA.validate(_BASES.resolve(Config.from_mapping({"name": "custom", **source}, "chip")))
    require_types(load_chip, locals())
    if (name := str(source)) in _carried:
        return _carried[name]
    return _SCHEMA.validate(_BASES.read(source))


_carried: CarriedModels[Chip] = CarriedModels("chips", "chip")


def require_chip(name: str) -> None:
    """Raise InputError where there is no chip of that name and no such file."""
    if name not in _carried:
        _carried.find(name)


def embedded_chip(name: str) -> tuple[str, dict[str, str]]:
    """Return the name and the metadata that embed a chip in a file; a shipped one needs its name only."""
    if _carried.is_shipped(name):
        return name, {}
    chip = load_chip(name)
    own_name, description = _carried.described({"name": chip.name, "architecture": json.dumps(chip.to_dict())}, {})
    return own_name, {EMBEDDED: json.dumps(description)}


def adopt_chip(checkpoint: Checkpoint) -> None:
    """Make the chip that `checkpoint` carries, if any, available to `load_chip`.

    Raises InputError where it is damaged.
    """
    if EMBEDDED not in checkpoint.metadata:
        return
    where = f"{checkpoint.path}: its chip"
    damaged = InputError(f"{where} is damaged; map the checkpoint again")
    try:
        description = parse_json_object(checkpoint.metadata[EMBEDDED], where)
    except InputError:
        raise damaged from None

    def made(name: str, metadata: dict[str, str]) -> Chip:
        with naming(where):
            return load_chip(parse_json_object(metadata.get("architecture", ""), "architecture"))

    _carried.adopt(description, {}, made, damaged)
