"""The keys in which a spec differs from the spec that it is named after."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.config.changes import Changes, title, without
from memsim.config.resources import configs_root
from memsim.errors import InputError
from memsim.evaluation.partial_results import ChipFacts
from memsim.hardware import apply_settings, load_hardware
from memsim.nn.plan import with_bits

SHIPPED = sorted(path.stem for path in (configs_root() / "hardware").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_spec_is_itself(name: str) -> None:
    spec = load_hardware(name)
    assert spec.title == name
    assert not spec.changes.changed


@pytest.mark.parametrize(
    ("settings", "titled"),
    [
        (["adc.bits=6"], "physical with adc.bits=6"),
        (["adc.bits=6", "dac.bits=none"], "physical with dac.bits=none, adc.bits=6"),
        (["adc.bits=8"], "physical"),  # as it was
        (["retention.age_seconds=2.6e6"], "physical with retention.age_seconds=2.6e6"),
        (["retention={age_seconds: 10, exponent_std: 1e-4}"], None),
        (["faults.stuck_lrs=0.01"], "physical with faults.stuck_lrs=0.01"),
        (["read_noise=none"], "physical with read_noise=none"),
        (["programming.relaxation=0.02"], "physical with programming.relaxation=0.02"),
        (["programming.scheme=write_verify"], "physical with programming.scheme=write_verify"),
        (
            ["adc={range: fixed, precision_bits: 4, range_bits: 5}"],
            "physical with adc.range=fixed, adc.precision_bits=4, adc.range_bits=5",
        ),
        (["weights.bits=4"], "physical with weights.bits=4"),
        (["digital=[]"], "physical with digital=[]"),
        (["overrides=[{match: a*, adc: {bits: 5}}]"], "physical with overrides=[{match: a*, adc: {bits: 5}}]"),
        (["cost.adc.columns_per_adc=8"], "physical with cost.adc.columns_per_adc=8"),
        (["programming.exact=true"], "physical with programming.exact=true"),
    ],
)
def test_settings_are_named(settings: list[str], titled: str | None) -> None:
    spec = apply_settings(load_hardware("physical"), settings)
    if titled is None:
        assert spec.changes.changed == {"retention.age_seconds": 10.0, "retention.exponent_std": 1e-4}
        return
    if len(settings) == 1:
        assert spec.title == titled
    assert set(spec.title.split(" with ")[-1].split(", ")) == set(titled.split(" with ")[-1].split(", "))


def test_what_is_set_back_is_no_change() -> None:
    spec = apply_settings(load_hardware("best"), ["adc.bits=6", "dac.bits=6"])
    assert apply_settings(spec, ["adc.bits=8"]).title == "best with dac.bits=6"
    assert apply_settings(spec, ["adc.bits=8", "dac.bits=8"]).title == "best"
    fixed = apply_settings(spec, ["adc={range: fixed, precision_bits: 4, range_bits: 4}"])
    assert "adc.bits" not in fixed.changes.changed


def test_bits_that_were_left_open_are_no_change() -> None:
    from memsim.nn.plan import Plan, chosen_bits

    spec = load_hardware("physical")
    chosen = chosen_bits(spec, Plan((), ()))
    assert (chosen.weights.bits, chosen.title) == (8, "physical")
    asked = spec.with_settings({"weights.bits": 3})
    assert chosen_bits(asked, Plan((), ())).title == "physical with weights.bits=3"
    assert load_hardware(with_bits(spec, 3).to_dict()).title == "physical"  # as of an older file


def test_the_base_of_a_file_tells(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: physical\nadc: {bits: 6}\n")
    (tmp_path / "child.yaml").write_text("base: mine.yaml\ndac: {bits: 6}\n")
    (tmp_path / "named.yaml").write_text("name: best\nbase: best\nadc: {bits: 6}\n")
    (tmp_path / "copy.yaml").write_text("name: physical\nadc: {bits: 6}\n")
    (tmp_path / "own.yaml").write_text("adc: {bits: 6}\n")
    titles = {path.stem: load_hardware(path).title for path in tmp_path.glob("*.yaml")}
    assert titles == {
        "mine": "mine (physical with adc.bits=6)",
        "child": "child (physical with dac.bits=6, adc.bits=6)",
        "named": "best with adc.bits=6",
        "copy": "physical with adc.bits=6",
        "own": "own",
    }
    assert apply_settings(load_hardware(tmp_path / "own.yaml"), ["adc.bits=5"]).title == "own with adc.bits=5"
    changed = apply_settings(load_hardware(tmp_path / "mine.yaml"), ["read_noise=none"])
    assert changed.title == "mine (physical with adc.bits=6, read_noise=none)"
    assert load_hardware({"base": "paper", "dac": {"bits": 6}}).title == "custom (paper with dac.bits=6)"


def test_a_base_that_is_no_spec_by_itself_still_serves(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("dac: none\n")  # needs ideal cells
    (tmp_path / "whole.yaml").write_text("base: part.yaml\ncell: ideal\n")
    assert load_hardware(tmp_path / "whole.yaml").title == "whole"


def test_where_it_comes_from_is_no_part_of_the_hardware() -> None:
    spec = apply_settings(load_hardware("physical"), ["adc.bits=6"])
    plain = load_hardware(spec.to_dict())
    other = spec.with_changes(Changes("elsewhere", {"adc.bits": 6}))
    assert spec == plain == other
    assert spec.sha256() == plain.sha256() == other.sha256()
    assert len({spec, plain, other}) == 1
    assert spec != load_hardware("physical")
    for kept in (
        pickle.loads(pickle.dumps(other)),
        copy.deepcopy(other),
        with_bits(other, 3).with_changes(other.changes),
    ):
        assert kept.title == "physical (elsewhere with adc.bits=6)"
    chip = ChipFacts(3, other, 1, 1, (4,))
    assert ChipFacts.from_dict(chip.to_dict()).spec.title == other.title
    older = {key: value for key, value in chip.to_dict().items() if key != "changes"}
    assert ChipFacts.from_dict(older).spec.title == "physical with adc.bits=6"


@pytest.mark.parametrize("values", [{}, {"base": 3, "changed": {}}, {"base": None, "changed": ["adc.bits"]}])
def test_no_changes_are_one_line(values: dict) -> None:
    with pytest.raises(InputError, match="the changes of the hardware must be a base's name"):
        Changes.from_dict(values)


def test_swept_keys_are_left_to_their_columns() -> None:
    changes = Changes("physical", {"adc.bits": 4, "adc.method": "max", "dac.bits": 6, "adcs": 1})
    assert without(changes, "adc.bits").changed == {"adc.method": "max", "dac.bits": 6, "adcs": 1}
    assert without(changes, "adc").changed == {"dac.bits": 6, "adcs": 1}


def test_long_values_are_cut() -> None:
    said = title("mine", Changes(None, {"digital": [f"layer.{number}" for number in range(100)]}))
    assert said.startswith("mine with digital=[layer.0, layer.1")
    assert len(said) < 100


@given(st.lists(st.sampled_from(["adc.bits=6", "adc.bits=7", "dac.bits=6", "wires.ohms=2", "read_noise=none"])))
def test_the_order_of_settings_does_not_matter(settings: list[str]) -> None:
    spec = load_hardware("physical")
    for setting in settings:
        spec = apply_settings(spec, [setting])
    wanted = {key: value for key, _, value in (setting.partition("=") for setting in settings)}
    assert spec.changes.changed.keys() == wanted.keys()
