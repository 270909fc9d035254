"""Chips as data: shipped files, prices and their scaling, and problems."""

from __future__ import annotations

import pytest
import yaml

from memsim.chip.architecture import Chip, load_chip
from memsim.chip.prices import energy_factor, supply_volts
from memsim.config.resources import configs_root
from memsim.errors import InputError

SHIPPED = sorted(path.stem for path in (configs_root() / "chips").glob("*.yaml"))


def test_what_ships() -> None:
    assert SHIPPED == ["isaac", "pcm-64-core"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_chips_round_trip_and_order_their_prices(name: str) -> None:
    chip = load_chip(name)
    assert chip.name == name
    assert load_chip(chip.to_dict()) == chip
    low, nominal, high = (chip.prices(level) for level in ("low", "nominal", "high"))
    assert all(low[key] <= nominal[key] <= high[key] for key in nominal)
    assert all(price.source for price in chip.priced().values())


def test_isaac_writes_out_every_key() -> None:
    document = yaml.safe_load((configs_root() / "chips" / "isaac.yaml").read_text())
    assert document.keys() | {"public"} == Chip.model_fields.keys()
    for section in ("core", "network", "links", "digital", "accelerator"):
        assert document[section].keys() == type(getattr(load_chip("isaac"), section)).model_fields.keys()


def test_digital_prices_follow_the_node_and_others_do_not() -> None:
    chip = load_chip("isaac")
    smaller = chip.with_settings({"node_nanometres": 14})
    before, after = chip.prices(), smaller.prices()
    # 0.5 pJ at 45 nm and 1 V; F V^2 with 0.95 V at 32 nm and 0.8 V at 14 nm
    assert before["digital.int8_joules_per_mac"] == pytest.approx(0.5e-12 * 32 / 45 * 0.95**2)
    assert after["digital.int8_joules_per_mac"] == pytest.approx(0.5e-12 * 14 / 45 * 0.8**2)
    assert after["digital.square_millimetres"] == pytest.approx(1.5 * (14 / 45) ** 2)
    assert after["core.adc_joules_per_step"] == before["core.adc_joules_per_step"]


def test_supply_voltages_between_nodes() -> None:
    assert supply_volts(45) == 1.0
    assert supply_volts(55) == pytest.approx(1.05)
    assert energy_factor(45, 45) == 1
    assert energy_factor(45, 22) * energy_factor(22, 7) == pytest.approx(energy_factor(45, 7))


def test_every_problem_is_named() -> None:
    with pytest.raises(InputError) as raised:
        load_chip({"base": "isaac", "node_nanometres": 2, "core": {"arays": 3, "driver_joules": {"low": 1.0}}})
    assert str(raised.value).splitlines()[0] == "chip: node_nanometres: 2.0 is out of range (3 to 180)"
    assert "core.driver_joules.nominal: 3.9e-13 is not within low (1) and high (8e-13)" in str(raised.value)
    assert "chip: core.arays: unknown key (nearest: core.arrays)" in str(raised.value)


def test_a_chip_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"isac: no such file, .* \(nearest: isaac; available: isaac, pcm-64-core\)"):
        load_chip("isac")
