"""Mapping recipes: shipped ones load, and bad ones are explained."""

from __future__ import annotations

from pathlib import Path

import pytest

import memsim
from memsim.config.resources import configs_root
from memsim.errors import InputError
from memsim.post_training.recipe import NEAREST, MappingRecipe, load_mapping

RECIPES = sorted(path.stem for path in (configs_root() / "mapping").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes(name: str) -> None:
    recipe = load_mapping(name)
    assert recipe == load_mapping(configs_root() / "mapping" / f"{name}.yaml") == load_mapping(recipe.to_dict())
    assert recipe.name == name
    text = (configs_root() / "mapping" / f"{name}.yaml").read_text()
    assert "\nbase: " in text or all(f"\n{key}:" in text for key in MappingRecipe.model_fields)


def test_none_is_nearest() -> None:
    assert load_mapping(None) == load_mapping("nearest") == NEAREST
    assert not NEAREST.needs_moments
    assert load_mapping({"scale_error": "inputs"}).needs_moments
    assert load_mapping({"feedback": {}}).needs_moments


def test_a_recipe_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: feedback\nfeedback: {damping: 0.1}\n")
    mine, shipped = load_mapping(tmp_path / "mine.yaml"), load_mapping("feedback")
    assert mine.name == "mine"
    assert mine.feedback is not None
    assert (mine.feedback.damping, mine.feedback.order, mine.scale) == (0.1, "importance", shipped.scale)
    assert load_mapping({"base": str(tmp_path / "mine.yaml"), "feedback": None}).feedback is None
    assert mine.identity != shipped.identity
    assert load_mapping({**shipped.to_dict(), "name": "x"}).identity.split()[1] == shipped.identity.split()[1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("feedbak: none", "1: feedbak: unknown key (nearest: feedback)"),
        ("feedback: {dampening: 1}", "1: feedback.dampening: unknown key (nearest: feedback.damping)"),
        ("feedback: {damping: 0}", "1: feedback.damping: 0.0 is out of range (above 0 and at most 10)"),
        ("feedback: {passes: -1}", "1: feedback.passes: -1 is out of range (0 to 100)"),
        ("feedback: {refit_scales: always}", "1: feedback.refit_scales: expected true or false, got 'always'"),
        ("scale: per_row", "1: scale: expected per_tile or per_channel or per_tensor or none, got 'per_row'"),
        ("scale_error: products", "1: scale_error: expected weights or inputs, got 'products'"),
        ("feedback: true", "1: feedback: expected a section of keys or none, got true; its keys are damping, order"),
        ("allot: {budget: cells, at_most: 5}", "1: allot.budget: expected cells_per_weight or bits_per_weight or"),
        ("allot: {budget: cells_per_weight}", "allot.at_most"),
        ("allot: {budget: cells_per_weight, at_most: 5, bits: [1, 4]}", "allot.bits: 1 is out of range (2 to 16)"),
        ("allot: {budget: cells_per_weight, at_most: 5, bits: [4, 4]}", "allot.bits: holds a value twice"),
        ("allot: {budget: cells_per_weight, at_most: 5, digital: 0.9}", "allot.digital: 0.9 is out of range"),
        ("base: nearst", " base: nearst: no such file"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_mapping(tmp_path / "m.yaml")
    assert found.strip() in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="nearest: feedback"):
        load_mapping("feedbck")
    with pytest.raises(InputError, match="the name is empty"):
        load_mapping("")


def test_it_sets_the_scales_of_the_hardware() -> None:
    spec = memsim.load_hardware("ideal")
    recipe = load_mapping({"scale": "per_tensor"})
    on = recipe.on(spec)
    assert on.weights.scale == "per_tensor"
    assert on.title == "ideal with weights.scale=per_tensor"
    ranges = load_mapping({"input_range": "mse"})
    assert ranges.on(spec) is spec  # without DACs
    assert ranges.on(memsim.load_hardware("best")).dac.method == "mse"
    with pytest.raises(InputError, match=r"both name dac\.method"):
        ranges.on(memsim.load_hardware("best"), ["dac.method=max"])
    assert recipe.on(on) is on
    assert NEAREST.on(spec) is spec
    with pytest.raises(InputError, match=r"both name weights\.scale"):
        recipe.on(spec, ["weights.scale=per_channel"])
    minmax = spec.with_settings({"weights.scale_method": "minmax"})
    with pytest.raises(InputError, match="scale_method: minmax"):
        load_mapping({"scale_error": "inputs"}).on(minmax)
    with pytest.raises(InputError, match=r"refit_scales: true changes scales, .*scale_method: minmax"):
        load_mapping({"feedback": {"refit_scales": True}}).on(minmax)
