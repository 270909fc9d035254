"""`--set KEY=V1,V2`: commas that separate values, and the points of the grid."""

from __future__ import annotations

import pytest

from memsim.errors import InputError
from memsim.evaluation.sweep import is_sweep, mapped_points, recipes_of, sweep_points, values_of
from memsim.hardware import apply_settings, load_hardware
from memsim.post_training.recipe import load_mapping


def on_physical(settings):
    return apply_settings(load_hardware("physical"), settings)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("adc.bits=4,6,8", ["4", "6", "8"]),
        ("adc.bits=4", ["4"]),
        ("adc.bits = 4, none", ["4", "none"]),
        ("digital=['output*', 'frontend.*']", ["['output*', 'frontend.*']"]),
        ("digital=[a],[a, b],[]", ["[a]", "[a, b]", "[]"]),
        ("adc={bits: 6, method: max},{bits: 4}", ["{bits: 6, method: max}", "{bits: 4}"]),
        ("name='a,b'", ["'a,b'"]),
        ('name="a,b",c', ['"a,b"', "c"]),
        ("cell=mine.safetensors,synaptogen", ["mine.safetensors", "synaptogen"]),
        ("adc=[1,2", ["[1,2"]),  # for YAML to complain of
        ("nothing", [""]),
    ],
)
def test_commas_outside_of_brackets_and_quotes_separate_values(setting, values):
    assert values_of(setting)[1] == values


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("adc.bits=4,,6", "--set adc.bits=4,,6: a value between the commas is empty"),
        ("adc.bits=4,", "a value between the commas is empty"),
        ("adc.bits=4,6,4", "--set adc.bits=4,6,4: has the value 4 twice"),
        ("adc.bits=4,99", "--set adc.bits=99"),
        ("adc.bitz=4,6", "unknown key (nearest: adc.bits)"),
        ("adc=[1,2", "not valid YAML"),
        ("nothing", "expected KEY=VALUE"),
    ],
)
def test_what_cannot_be_read_is_said(setting, said):
    with pytest.raises(InputError) as error:
        sweep_points([setting], on_physical)
    assert said in str(error.value)


def test_the_grid_goes_through_the_last_key_first():
    points = sweep_points(["adc.bits=4,6", "dac.vmax_volts=0.3", "weights.bits=2,3"], on_physical)
    assert [dict(point.settings) for point in points] == [
        {"adc.bits": 4, "weights.bits": 2},
        {"adc.bits": 4, "weights.bits": 3},
        {"adc.bits": 6, "weights.bits": 2},
        {"adc.bits": 6, "weights.bits": 3},
    ]
    assert [point.spec.weights.bits for point in points] == [2, 3, 2, 3]
    assert {point.spec.dac.vmax_volts for point in points} == {0.3}
    without, _ = sweep_points(["read_noise=none,{bandwidth_hz: 2.0e8}"], on_physical)
    assert (without.settings, without.spec.read_noise) == ({"read_noise": None}, None)


def test_a_list_is_a_value():
    (point,) = sweep_points(["digital=['output*', 'blocks.0.*']"], on_physical)
    assert point.settings == {}
    assert list(point.spec.digital) == ["output*", "blocks.0.*"]
    few, many = sweep_points(["digital=[a],[a, b]"], on_physical)
    assert (few.settings, many.settings) == ({"digital": ["a"]}, {"digital": ["a", "b"]})


def test_settings_apply_in_the_order_given():
    points = sweep_points(["adc.bits=4,6", "adc={bits: 5}"], on_physical)
    assert [point.spec.adc.bits for point in points] == [5, 5]


def test_recipes_are_swept_with_the_settings(tmp_path):
    assert [recipe.name for recipe in recipes_of("nearest, feedback")] == ["nearest", "feedback"]
    assert [recipe.name for recipe in recipes_of(None)] == ["nearest"]
    file = tmp_path / "a,b.yaml"
    file.write_text("base: feedback\n")
    assert [recipe.name for recipe in recipes_of(str(file))] == ["a,b"]
    assert is_sweep([], "nearest,feedback")
    assert not is_sweep([], "feedback")
    points = mapped_points(recipes_of("nearest,feedback"), "ideal", None, None, ["weights.bits=3,4"])
    assert [dict(point.settings) for point in points] == [
        {"mapping": "nearest", "weights.bits": 3},
        {"mapping": "nearest", "weights.bits": 4},
        {"mapping": "feedback", "weights.bits": 3},
        {"mapping": "feedback", "weights.bits": 4},
    ]
    assert [point.spec.weights.scale for point in points] == ["per_channel"] * 2 + ["per_tile"] * 2
    same = mapped_points([*recipes_of("nearest"), load_mapping({"name": "x"})], "ideal", 3, None, [])
    assert len({point.facts.hardware for point in same}) == len({point.facts.digital for point in same}) == 2
    (alone,) = mapped_points(recipes_of("feedback"), "ideal", 3, None, [])
    assert (alone.settings, alone.recipe) == ({}, None)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("nearest,", "--mapping nearest,: a name between the commas is empty"),
        ("nearest,feedback,nearest", "has the recipe nearest twice"),
        ("nearest,feedbck", "nearest: feedback"),
    ],
)
def test_bad_lists_of_recipes(mapping, said):
    with pytest.raises(InputError) as error:
        recipes_of(mapping)
    assert said in str(error.value)
