"""`memsim.config.schema` and `memsim.config.yaml_file` for configs other than the hardware spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Discriminator, Field, model_validator

from memsim.config.schema import Schema, Section, Within, problem
from memsim.config.yaml_file import Config, parse_config, parse_value
from memsim.errors import InputError


class Cosine(Section):
    kind: Literal["cosine"]
    warmup_steps: Annotated[int, Within(low=0)] = 0


class Constant(Section):
    kind: Literal["constant"]


class Layer(Section):
    size: Annotated[int, Within(1, 64)]


class Training(Section):
    epochs: Annotated[int, Within(low=1)]
    rate: Annotated[float, Within(above=0, below=1)] = 1e-3
    schedule: Annotated[Cosine | Constant, Discriminator("kind")] = Constant(kind="constant")
    layers: Annotated[tuple[Layer, ...], Field(strict=False)] = ()
    tags: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _rules(self) -> Training:
        if self.epochs == 13:
            raise ValueError("13 brings bad luck")
        if len(self.layers) > 1:
            raise problem("one layer is plenty", key="layers")
        return self


SCHEMA = Schema(Training)


def problems(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        SCHEMA.validate(parse_config(text, "t.yaml"))
    return str(caught.value).splitlines()


def test_a_good_config():
    training = SCHEMA.validate(
        parse_config("epochs: 3\nrate: 1e-2\nlayers: [{size: 4}]\ntags: {any: [thing]}", "t.yaml")
    )
    assert training == Training(epochs=3, rate=0.01, layers=(Layer(size=4),), tags={"any": ["thing"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "rate: 1",
            [
                "t.yaml: epochs: missing; expected an integer (at least 1)",
                "t.yaml:1: rate: 1.0 is out of range (above 0 and below 1)",
            ],
        ),
        ("epochs: 13", ["t.yaml: 13 brings bad luck"]),
        ("epochs: 1\nlayers:\n  - size: 1\n  - size: 2", ["t.yaml:2: layers: one layer is plenty"]),
        ("epochs: 1\nlayers:\n  - size: 1\n  - size: 65", ["t.yaml:4: layers[1].size: 65 is out of range (1 to 64)"]),
        ("epochs: 1\nlayers:\n  - {}", ["t.yaml:3: layers[0].size: missing; expected an integer (1 to 64)"]),
        (
            "epochs: 1\nlayers: [{sizes: 1, size: 2}]",
            ["t.yaml:2: layers[0].sizes: unknown key (nearest: layers[0].size)"],
        ),
        (
            "rate: 2\nsize: 1\nepochs: 0",
            [
                "t.yaml:1: rate: 2.0 is out of range (above 0 and below 1)",
                "t.yaml:2: size: unknown key (nearest: layers.size)",
                "t.yaml:3: epochs: 0 is out of range (at least 1)",
            ],
        ),
        ("epochs: 1\nrate: on", ["t.yaml:2: rate: expected a number (above 0 and below 1), got 'on'"]),
        (
            "epochs: 1\nschedule: {kind: constant, warmup_steps: 1}",
            ["t.yaml:2: schedule.warmup_steps: goes with kind: cosine only"],
        ),
    ],
)
def test_problems(text, expected):
    assert problems(text) == expected


def test_merge_is_by_section_and_keeps_marks():
    base = parse_config("epochs: 1\nschedule: {kind: cosine, warmup_steps: 5}\nlayers: [{size: 99}]", "a.yaml")
    over = Config.from_mapping({"schedule": {"warmup_steps": -1}}, "--set x")
    merged = SCHEMA.merge(base, over)
    assert merged.data["schedule"] == {"kind": "cosine", "warmup_steps": -1}
    assert base.data["schedule"]["warmup_steps"] == 5
    assert SCHEMA.check(merged)[1] == [
        "--set x: schedule.warmup_steps: -1 is out of range (at least 0)",
        "a.yaml:3: layers[0].size: 99 is out of range (1 to 64)",
    ]
    switched = SCHEMA.merge(base, Config.from_mapping({"schedule": {"kind": "constant"}}, "--set x"))
    assert switched.data["schedule"] == {"kind": "constant"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("010", 10),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("True", True),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("none", None),
        ("'none'", None),
        ("[1, {a: none}]", [1, {"a": None}]),
        ('""', ""),
    ],
)
def test_values_as_people_mean_them(text, value):
    assert parse_value(text, "--set x") == value
    assert type(parse_value(text, "--set x")) is type(value)


@pytest.mark.parametrize("text", ["", "  ", "# nothing", "!!set {a}", "1" * 5000])
def test_values_that_are_none_of_these(text):
    with pytest.raises(InputError, match=r"^--set x: "):
        parse_value(text, "--set x")


@pytest.mark.parametrize(
    ("within", "text"),
    [
        (Within(2, 16), "2 to 16"),
        (Within(above=0, high=2), "above 0 and at most 2"),
        (Within(low=-5, below=0), "at least -5 and below 0"),
        (Within(low=1), "at least 1"),
    ],
)
def test_bounds_read_well(within, text):
    assert str(within) == text
