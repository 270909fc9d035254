"""`--set KEY=V1,V2`: commas that separate values, and the points of the grid."""

from __future__ import annotations

import pytest

from memsim.errors import InputError
from memsim.evaluation.sweep import sweep_points, values_of
from memsim.hardware import apply_settings, load_hardware


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
