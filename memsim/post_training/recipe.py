"""Mapping recipes, as in configs/mapping/*.yaml."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field, model_validator
from pydantic.types import Strict

from memsim.arguments import require_types
from memsim.config.bases import Bases
from memsim.config.schema import Schema, Section, Within, problem
from memsim.config.yaml_file import Config
from memsim.errors import InputError
from memsim.hardware import HardwareSpec


class FeedbackConfig(Section):
    """The keys of error feedback: see `memsim.post_training.feedback`."""

    damping: Annotated[float, Within(above=0, high=10)] = 0.01  # added to the moments, relative to their mean diagonal
    order: Literal["importance", "given"] = "importance"  # of the inputs; importance: the largest second moment first
    read_back: Literal["rows"] | None = None  # rows: the cells of an input are read before the next are programmed
    passes: Annotated[int, Within(0, 100)] = 0  # of coordinate descent on the levels afterwards
    refit_scales: bool = False  # least squares for the levels that were found


class InputScalesConfig(Section):
    """The keys of input scales: see `memsim.post_training.inputs`."""

    strength: Annotated[float, Within(0, 1)] = 0.5  # 0: scales by the weights alone, 1: by the inputs alone
    powers_of_two: bool = False  # scales that are shifts of binary numbers


Several = Annotated[tuple[int, ...], Strict(False), Field(min_length=1)]


class AllotConfig(Section):
    """The keys of an allotment of bits, copies and digital layers: see `memsim.nn.allotment`."""

    budget: Literal["cells_per_weight", "bits_per_weight", "picojoules_per_mac"]
    at_most: Annotated[float, Within(above=0)]  # the mean over the weights on arrays, or over their multiplications
    bits: Several = (3, 4, 5, 6)  # those that a layer may get
    copies: Several = (1,)
    digital: Annotated[float, Within(0, 0.5)] = 0.0  # the largest share of the weights in layers that stay digital

    @model_validator(mode="after")
    def _are_in_range(self) -> AllotConfig:
        for key, values, low, high in (("bits", self.bits, 2, 16), ("copies", self.copies, 1, 1024)):
            if wrong := [value for value in values if not low <= value <= high]:
                raise problem(f"{wrong[0]} is out of range ({low} to {high})", key=key)
            if len(set(values)) < len(values):
                raise problem("holds a value twice", key=key)
        return self


class MappingRecipe(Section):
    """How trained weights become levels on arrays (configs/mapping/*.yaml); `load_mapping` makes it."""

    name: str
    scale: Literal["per_tile", "per_channel", "per_tensor"] | None = None  # none: the spec's weights.scale
    scale_error: Literal["weights", "inputs"] = "weights"  # the error that the search for scales minimises
    input_range: Literal["percentile", "max", "mse"] | None = None  # none: the spec's dac.method
    feedback: FeedbackConfig | None = None  # none: weights are rounded one by one
    input_scales: InputScalesConfig | None = None  # none: inputs reach the DAC as large as they are
    rotation: Literal["hadamard"] | None = None  # of blocks of a tile's inputs
    digital_rows: Annotated[float, Within(0, 0.5)] = 0.0  # the share of the inputs whose product is computed digitally
    offsets: bool = False  # added to the outputs digitally: what levels leave out of their mean
    trim: Literal["column", "tile"] | None = None  # none: results are not corrected after programming
    allot: AllotConfig | None = None  # none: layers have the bits and copies of the hardware

    @property
    def needs_moments(self) -> bool:
        """Whether it needs the second moments of the layers' inputs."""
        return self.scale_error == "inputs" or self.feedback is not None or self.offsets

    @property
    def needs_inputs(self) -> bool:
        """Whether it needs to know the layers' inputs."""
        changed = self.trim is not None or self.input_scales is not None or self.digital_rows > 0
        return self.needs_moments or changed or self.allot is not None

    @property
    def changes_inputs(self) -> bool:
        """Whether inputs go through a digital transform before the DAC."""
        return self.input_scales is not None or self.rotation is not None or self.digital_rows > 0

    @property
    def reads_back(self) -> bool:
        """Whether the levels depend on what the cells of one chip became."""
        return self.feedback is not None and self.feedback.read_back is not None

    @property
    def needs_chip(self) -> bool:
        """Whether every chip is fitted for itself."""
        return self.reads_back or self.trim is not None

    def on(self, spec: HardwareSpec, settings: Sequence[str] = (), bits: int | None = None) -> HardwareSpec:
        """Return `spec` with the scales and the method of input ranges that the recipe names.

        Raises InputError where the spec has none of that kind, where one of the `settings` (`KEY=VALUE`) sets them,
        too, where scales are to be searched or refitted but the spec gives them by the largest weight, and where `bits`
        or a setting gives the bits or copies that the recipe allots.
        """
        named = {setting.partition("=")[0].strip(): f"--set {setting}" for setting in settings}
        named |= {} if bits is None else {"weights.bits": f"--bits {bits}"}
        for key in ("weights.bits", "weights.copies") if self.allot is not None else ():
            if key in named:
                raise InputError(
                    f"--mapping {self.name} {named[key]}: the recipe allots the {key.partition('.')[2]} of each layer; "
                    "leave one out"
                )
        if spec.weights.scale_method == "minmax":
            if self.scale_error != "weights":
                raise InputError(
                    f"mapping {self.name}: scale_error: {self.scale_error} chooses scales by a search, but hardware "
                    f"{spec.name} has weights.scale_method: minmax; set it to mse, or scale_error to weights"
                )
            if self.feedback is not None and self.feedback.refit_scales:
                raise InputError(
                    f"mapping {self.name}: feedback.refit_scales: true changes scales, but hardware {spec.name} has "
                    "weights.scale_method: minmax; set it to mse, or feedback.refit_scales to false"
                )
        changes: dict[str, str] = {} if self.scale is None else {"weights.scale": self.scale}
        if self.input_range is not None and spec.dac is not None:
            changes["dac.method"] = self.input_range
        for twice in (key for key in changes if key in named):
            raise InputError(f"--mapping {self.name} {named[twice]}: both name {twice}; leave one out")
        now = {"weights.scale": spec.weights.scale, "dac.method": None if spec.dac is None else spec.dac.method}
        changes = {key: value for key, value in changes.items() if now[key] != value}
        return spec.with_settings(changes, flag=f"mapping {self.name}") if changes else spec

    @property
    def without_allotment(self) -> MappingRecipe:
        """The same recipe for hardware whose layers have their bits and copies already."""
        return self.model_copy(update={"allot": None})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `load_mapping` makes an equal recipe."""
        return self.model_dump(mode="json")

    @property
    def identity(self) -> str:
        """The name and a hash of the keys: `feedback 1b2c3d4e`."""
        keys = {key: value for key, value in self.to_dict().items() if key != "name"}
        return f"{self.name} {hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:8]}"


class Measurements(TypedDict):
    """The measurements of a run of calibration data beside the distributions of inputs."""

    with_moments: bool
    with_sensitivity: bool


def measurements(recipes: Iterable[MappingRecipe]) -> Measurements:
    """Return the measurements that `recipes` need."""
    recipes = list(recipes)
    return {
        "with_moments": any(recipe.needs_moments for recipe in recipes),
        "with_sensitivity": any(recipe.allot is not None for recipe in recipes),
    }


NEAREST = MappingRecipe(name="nearest")
"""The recipe that rounds every weight to the nearest level."""


def load_mapping(source: MappingRecipe | str | Path | Mapping[str, Any] | None) -> MappingRecipe:
    """Load the recipe of that name (shipped in configs/mapping), in that YAML file, or in that mapping.

    Its `base` is resolved. None is `nearest`. A recipe without a `name` takes its file's; one in a mapping is called
    `custom`. Raises InputError, which lists every problem with its file, line and key.
    """
    if source is None:
        return NEAREST
    if isinstance(source, MappingRecipe):
        return source
    if isinstance(source, Mapping):
        return _SCHEMA.validate(_BASES.resolve(Config.from_mapping({"name": "custom", **source}, "mapping")))
    require_types(load_mapping, locals())
    if str(source) == "":  # such as an unset variable of a script
        raise InputError("--mapping: the name is empty; leave it out, or name a recipe")
    return _SCHEMA.validate(_BASES.read(source))


def default_mapping(spec: HardwareSpec, settings: Sequence[str], *, is_calibrated: bool) -> MappingRecipe:
    """Return the recipe of whoever names none: `feedback` where data calibrate a network in full precision.

    Elsewhere (not `is_calibrated`), and where the largest weight gives scales, it is `nearest`. Keys of `spec`
    that `settings` (`KEY=VALUE`) give stay as given, even those that the recipe would set.
    """
    named = {setting.partition("=")[0].strip() for setting in settings}
    if not is_calibrated or spec.weights.scale_method == "minmax" or "weights.scale_method" in named:
        return NEAREST
    own = {"scale": "weights.scale", "input_range": "dac.method"}
    return load_mapping("feedback").model_copy(update={key: None for key, set_ in own.items() if set_ in named})


_SCHEMA = Schema(MappingRecipe)
_BASES = Bases("mapping", _SCHEMA, lambda data, folder: None)
