"""Hardware specs: shipped ones, users' ones, and errors in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsim.config.resources import configs_root
from memsim.config.schema import models_in
from memsim.errors import InputError
from memsim.hardware import (
    EFFECTS,
    OVERRIDABLE,
    CalibratedAdc,
    Cost,
    Cycling,
    FixedAdc,
    HardwareSpec,
    IncrementalReset,
    Multilevel,
    Noise,
    SinglePulse,
    Verify,
    VerifyAdc,
    WriteVerify,
    apply_settings,
    load_hardware,
)
from memsim.hardware.options import choose_hardware
from memsim.hardware.spec import _SCHEMA

SHIPPED = sorted(path.stem for path in (configs_root() / "hardware").glob("*.yaml"))


def problems(source: str | Path | dict[Any, Any]) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_hardware(source)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes YAML files into a fresh working folder, and gives their names back."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "x.yaml") -> str:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


# --- what ships ------------------------------------------------------------------------------------------------------


def test_the_promised_specs_ship():
    promised = {"ideal", "paper", "physical", "write-verify", "incremental-reset", "multilevel"}
    assert promised <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spec_loads_and_round_trips(name):
    spec = load_hardware(name)
    assert spec.name == name
    assert spec.weights.bits is None  # the checkpoint's own
    again = load_hardware(json.loads(spec.to_json()))
    assert again == spec
    assert again.sha256() == spec.sha256()
    assert hash(again) == hash(spec)


@pytest.mark.parametrize("name", ["ideal", "paper", "physical"])
def test_basic_specs_write_out_every_key(name):
    """They are the users' documentation. Kinds and sections that are not in use need not appear."""
    lines = (configs_root() / "hardware" / f"{name}.yaml").read_text().splitlines()
    for key in HardwareSpec.model_fields:
        assert any(line.startswith(f"{key}:") for line in lines), key
    for section in ("tile", "weights", "dac", "adc", "programming", "read_noise"):
        value = getattr(load_hardware(name), section)
        for key in type(value).model_fields if value is not None else ():
            assert any(line.strip(" #").startswith(f"{key}:") for line in lines), f"{section}.{key}"


def test_physical_writes_out_what_circuits_cost():
    document = yaml.safe_load((configs_root() / "hardware" / "physical.yaml").read_text())
    assert document["cost"].keys() == Cost.model_fields.keys()
    for section in ("dac", "adc", "cell"):
        assert document["cost"][section].keys() == type(getattr(Cost(), section)).model_fields.keys()


def test_costs_that_cannot_be():
    adc = {"joules_per_step": -1.0, "columns_per_adc": 0}
    found = problems({"cost": {"adc": adc, "cell": {"read_joules": "lots"}}})
    assert found == [
        "hardware: cost.adc.joules_per_step: -1.0 is out of range (at least 0)",
        "hardware: cost.adc.columns_per_adc: 0 is out of range (1 to 65536)",
        "hardware: cost.cell.read_joules: expected simulated or a number (at least 0), got 'lots'",
    ]


@pytest.mark.parametrize(("name", "scheme"), [("write-verify", WriteVerify), ("incremental-reset", IncrementalReset)])
def test_closed_loop_specs_write_out_the_defaults_of_their_scheme(name, scheme):
    """They explain its keys. All else is physical's."""
    spec = load_hardware(name)
    default = scheme(scheme=name.replace("-", "_"))
    assert spec.programming == default
    assert {**spec.to_dict(), "name": "", "programming": {}} == {
        **load_hardware("physical").to_dict(),
        "name": "",
        "programming": {},
    }
    lines = (configs_root() / "hardware" / f"{name}.yaml").read_text().splitlines()
    for key in [*scheme.model_fields, *Verify.model_fields, *Noise.model_fields, *VerifyAdc.model_fields]:
        assert any(f"{key}:" in line for line in lines), key


def test_multilevel_is_incremental_reset_with_two_bits_a_cell():
    spec, below = load_hardware("multilevel"), load_hardware("incremental-reset")
    assert spec.weights == Multilevel(encoding="multilevel", cell_bits=2)
    assert spec.with_settings({"weights.encoding": "binary_planes", "name": below.name}) == below


def test_physical_is_the_default():
    assert HardwareSpec(name="physical") == load_hardware("physical") == load_hardware({"name": "physical"})


def test_ideal_is_ideal():
    spec = load_hardware("ideal")
    assert (spec.cell, spec.dac, spec.adc, spec.read_noise) == ("ideal", None, None, None)


def test_paper_has_the_published_numbers():
    spec = load_hardware("paper")
    assert spec.dac.vmax_volts == 0.6
    assert spec.adc == FixedAdc(range="fixed", precision_bits=4, range_bits=4)
    assert spec.gain_per_ampere == 8020
    assert spec.programming.history == "zero"
    assert spec.programming.cycling == Cycling(rounds=1, pulses_per_round=50, vmax_volts=2.0)
    published, real = 2.718 * 1e-8, 1.602e-19 * 1e8  # e [C] x bandwidth [Hz]
    assert spec.read_noise.shot_scale == pytest.approx((published / real) ** 0.5, rel=1e-3)


def test_paper_positional_moves_bits_of_the_layers_on_positional_encodings():
    spec, paper = load_hardware("paper-positional"), load_hardware("paper")
    own, published = spec.for_layer("encoder.layers.3.self_attn.linear_pos").adc, paper.adc
    assert own != published
    assert own.precision_bits + own.range_bits == published.precision_bits + published.range_bits
    other = spec.for_layer("encoder.layers.3.self_attn.linear_q")
    assert other.is_same_hardware(paper)


def test_spec_does_not_import_torch():
    code = "import sys, memsim.hardware; memsim.hardware.load_hardware('physical'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("none", ["none", "None", "null", "~"])
def test_none_is_none(write, none):
    assert load_hardware(write(f"adc: {none}\nread_noise: {none}")).adc is None


def test_the_word_none_is_none_in_a_mapping():
    assert load_hardware({"adc": "none", "dac": {"bits": "none"}}).dac.bits is None


@pytest.mark.parametrize("number", ["1.0e8", "1e8", "1e+8", "1.e8", "100000000", "+1.0E8"])
def test_floats_in_any_spelling(write, number):
    assert load_hardware(write(f"read_noise: {{bandwidth_hz: {number}}}")).read_noise.bandwidth_hz == 1e8


def test_name_is_the_file_name_unless_given(write):
    assert load_hardware(write("{adc: none}", "mine.yaml")).name == "mine"
    assert load_hardware(write("name: other")).name == "other"
    assert load_hardware({}).name == "custom"


def test_specs_are_immutable():
    spec = load_hardware("physical")
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"


# --- base ------------------------------------------------------------------------------------------------------------


def test_base_by_name_and_by_file_recursively(write):
    write("base: paper\nadc: {precision_bits: 8}", "a.yaml")
    Path("sub").mkdir()
    Path("sub/b.yaml").write_text("base: ../a.yaml\nadc: {range_bits: 10}\nread_noise: none")
    spec = load_hardware("sub/b.yaml")
    assert spec.adc == FixedAdc(range="fixed", precision_bits=8, range_bits=10)
    assert spec.read_noise is None
    assert spec.gain_per_ampere == 8020
    assert spec.name == "b"
    assert "base" not in spec.to_dict()


def test_base_in_a_mapping():
    assert load_hardware({"base": "paper", "weights": {"bits": 3}}).weights.scale == "per_tensor"


def test_another_kind_of_adc_drops_the_keys_of_the_old_one(write):
    fixed = load_hardware(write("base: physical\nadc: {range: fixed, precision_bits: 2, range_bits: 6}"))
    assert fixed.adc == FixedAdc(range="fixed", precision_bits=2, range_bits=6)
    assert load_hardware(write("base: paper\nadc: {range: calibrated, bits: 6}")).adc == CalibratedAdc(bits=6)


def test_a_file_may_have_the_name_of_its_shipped_base(write):
    assert load_hardware(write("base: physical\nadc: none", "physical.yaml")).adc is None


def test_base_in_a_circle(write):
    write("base: b.yaml", "a.yaml")
    write("base: a.yaml", "b.yaml")
    (line,) = problems("a.yaml")
    assert "circle: a.yaml -> b.yaml -> a.yaml" in line
    assert line.startswith("a.yaml:1: base: b.yaml:1: base: ")


def test_base_that_is_missing_or_no_name(write):
    (line,) = problems(write("adc: none\nbase: nowhere"))
    assert line.startswith("x.yaml:2: base: nowhere: no such file")
    assert "physical" in line
    assert problems(write("base: 3")) == ["x.yaml:1: base: expected the name or file of another one"]


def test_errors_stand_where_the_bad_value_stands(write):
    write("name: a\nweights:\n  bits: 40\n  scale: per_channel\nadc: {bitz: 3}", "a.yaml")
    found = problems(write("# comment\nbase: a.yaml\nweights:\n  scale: per_row\n", "b.yaml"))
    assert found == [
        "a.yaml:3: weights.bits: 40 is out of range (2 to 16)",
        "a.yaml:5: adc.bitz: unknown key (nearest: adc.bits)",
        "b.yaml:4: weights.scale: expected per_channel or per_tensor or per_tile, got 'per_row'",
    ]


MISTAKES = {
    "adc: {bitz: 3}": "adc.bitz: unknown key (nearest: adc.bits)",
    "foo: 1": "foo: unknown key",
    "tile: {rows: 0}": "tile.rows: 0 is out of range",
    "faults: 0.1": "faults: expected a section of keys or none, got 0.1",
    "wires: {ohms: lots}": "wires.ohms: expected a number",
    "overrides: [{match: a, dac: {foo: 3}}]": "overrides[0].dac.foo: unknown key",
}


@pytest.mark.parametrize("base", ["physikal", "3", "nowhere.yaml", "sub", "broken.yaml", "round.yaml", "second.yaml"])
def test_a_bad_base_hides_no_other_mistake(write, base):
    write("a: [", "broken.yaml")
    write("base: round.yaml", "round.yaml")
    write("base: nowhere", "second.yaml")
    Path("sub").mkdir()
    found = problems(write(f"base: {base}\n" + "\n".join(MISTAKES)))
    assert found[0].startswith("x.yaml:1: base: ")
    for number, mistake in enumerate(MISTAKES.values(), start=2):
        assert sum(line.startswith(f"x.yaml:{number}: {mistake}") for line in found) == 1
    assert len(found) == 1 + len(MISTAKES)


def test_a_bad_base_is_no_reason_for_other_mistakes(write):
    """What a base may have given: other kinds of sections, keys that go together, keys that must be there."""
    text = "base: papr\nadc: {precision_bits: 3}\ndac: none\nretention: {exponent: 0.01}\nprogramming: {tries: 3}"
    (line,) = problems(write(text))
    assert line.startswith("x.yaml:1: base: papr: no such file")
    _, line = problems(write("base: papr\nadc: {range: calibrated, precision_bits: 3}"))
    assert line.startswith("x.yaml:2: adc.precision_bits: goes with range: fixed only")


def test_a_corrected_base_has_no_error(write):
    write("weights: {bits: 40}", "a.yaml")
    assert load_hardware(write("base: a.yaml\nweights: {bits: 4}", "b.yaml")).weights.bits == 4


def test_the_devices_of_a_spec_are_seen_from_its_folder(tmp_path):
    for name in ("mine.yaml", "law.yaml", "other.yaml"):
        (tmp_path / name).write_text("kind: levels\n")
    path = tmp_path / "spec.yaml"
    path.write_text(
        "cell: mine.yaml\nprogramming: {relaxation: law.yaml}\n"
        "overrides: [{match: a, programming: {relaxation: other.yaml}}, {match: b, programming: {relaxation: 0.1}}]\n"
    )
    spec = load_hardware(path)
    assert (spec.cell, spec.programming.relaxation) == (str(tmp_path / "mine.yaml"), str(tmp_path / "law.yaml"))
    assert [spec.for_layer(layer).programming.relaxation for layer in "ab"] == [str(tmp_path / "other.yaml"), 0.1]


def test_a_device_that_is_missing_is_reported_before_any_work():
    with pytest.raises(InputError, match=r"^programming\.relaxation: no\.yaml: no such file"):
        choose_hardware(None, settings=["programming.relaxation=no.yaml", "read_at_seconds=60"])


# --- what can be wrong -----------------------------------------------------------------------------------------------


def test_all_problems_at_once_each_with_its_line(write):
    found = problems(
        write(
            """\
name: 3
tile: 128
weights: {bits: "3"}
dac:
  bits: 8.0
  vmax_volts: 2.5
adc:
  range: fixd
  bitz: 8
gain_per_ampere: lots
programming:
  cycling: {rounds: 0}
read_noise:
  shot_scale: yes
  temperature: 300
digital: output*
vmax_volts: 0.4
quite_something: 1
"""
        )
    )
    assert found == [
        "x.yaml:1: name: expected text, got 3",
        "x.yaml:2: tile: expected a section of keys, got 128; its keys are rows, cols, packing",
        "x.yaml:3: weights.bits: expected an integer (2 to 16) or none, got '3'",
        "x.yaml:5: dac.bits: expected an integer (2 to 12) or none, got 8.0",
        "x.yaml:6: dac.vmax_volts: 2.5 is out of range (above 0 and at most 2)",
        "x.yaml:8: adc.range: expected calibrated or fixed, got 'fixd'",
        "x.yaml:9: adc.bitz: unknown key (nearest: adc.bits)",
        "x.yaml:10: gain_per_ampere: expected calibrated or a number (above 0), got 'lots'",
        "x.yaml:12: programming.cycling.rounds: 0 is out of range (1 to 1000)",
        "x.yaml:14: read_noise.shot_scale: expected a number (at least 0), got 'yes'",
        "x.yaml:15: read_noise.temperature: unknown key (nearest: read_noise.temperature_kelvin)",
        "x.yaml:16: digital: expected a list, got 'output*'",
        "x.yaml:17: vmax_volts: unknown key (nearest: dac.vmax_volts, programming.cycling.vmax_volts)",
        "x.yaml:18: quite_something: unknown key (known here: name, cell, tile, weights, dac, adc, gain_per_ampere,"
        " programming, wires, read_noise, read_disturb, faults, read_at_seconds, drift_compensation, retention, cost,"
        " chip, digital, embeddings, overrides)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adc: {bits: true}", "x.yaml:1: adc.bits: expected an integer (2 to 16), got true"),
        ("dac: {percentile: 50}", "x.yaml:1: dac.percentile: 50.0 is out of range (above 50 and at most 100)"),
        ("dac: {vmax_volts: .inf}", "x.yaml:1: dac.vmax_volts: expected a number (above 0 and at most 2), got inf"),
        ("read_noise: {shot_scale: .nan}", "x.yaml:1: read_noise.shot_scale: expected a number (at least 0), got nan"),
        ("gain_per_ampere: 0", "x.yaml:1: gain_per_ampere: 0.0 is out of range (above 0)"),
        (
            "programming: {set_volts: 2}",
            "x.yaml:1: programming.set_volts: 2.0 is out of range (at least -5 and below 0)",
        ),
        ("programming: none", "x.yaml:1: programming: expected a section of keys, got none"),
        ("cell: ''", "x.yaml:1: cell: String should have at least 1 character"),
        ("digital: [3]", "x.yaml:1: digital[0]: expected text, got 3"),
        ("weights: {copies: 0}", "x.yaml:1: weights.copies: 0 is out of range (1 to 1024)"),
        ("name: a\nname: b", "x.yaml:2: name: is given twice (first: x.yaml:1)"),
        ("tile: {rows: 1,\n rows: 2}", "x.yaml:2: tile.rows: is given twice (first: x.yaml:1)"),
        ("tile:\nadc: none", "x.yaml:1: tile: has no value (write none if that is meant)"),
        ("adc: !!python/name:os.system x", "the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed here"),
        ("? [a]\n: 3", "x.yaml:1: a key must be a word"),
        ("tile: &t {rows: *t}", "too large, or nested more than 30 deep"),
        ("name: !!int x", "x.yaml:1: name: 'x' is not of type int"),
        ("adc: {bits: 3", "x.yaml:1: not valid YAML"),
        ("adc: none\n\tdac: none", "x.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2", "x.yaml:2: not valid YAML: expected a single document"),
        ('a: "\\UFFFFFFFF"', "x.yaml: not valid YAML"),
        ("[" * 5000, "x.yaml:1: not valid YAML: nested more than 30 deep"),
        ("", "x.yaml: is empty"),
        ("# only a comment\n", "x.yaml: is empty"),
        ("- adc: none", "x.yaml: is a list; expected keys and values, such as `name: mine`"),
        ("physical", "x.yaml: is 'physical'; expected keys and values, such as `name: mine`"),
        (b"\x93NUMPY\x00\xff", "x.yaml: is not a text file"),
        (b"\x00\x01", "x.yaml: not valid YAML"),
        (b" " * (2 << 20), "x.yaml: is too large for a config"),
    ],
)
def test_one_line_for_one_mistake(write, text, expected):
    found = problems(write(text))
    assert len(found) == 1
    assert expected in found[0]


def test_aliases_cannot_expand_without_bound(write):
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 10)}]\n" for i in range(10))
    assert "too large" in problems(write(laughs))[0]


def test_files_that_are_not_there(write):
    (line,) = problems("fysical")
    assert line.startswith("fysical: no such file")
    assert ", ".join(SHIPPED) in line
    Path("folder").mkdir()
    assert problems("folder") == ["folder: is a folder; expected a YAML file"]
    assert problems(Path("folder")) == ["folder: is a folder; expected a YAML file"]
    for name in ("", "a\0b", "x" * 5000):
        assert len(problems(name)) == 1


def test_mapping_with_keys_that_are_not_text():
    assert problems({3: 4}) == ["hardware: a key must be text, not 3"]
    assert problems({"adc": {None: 4}}) == ["hardware: adc: a key must be text, not none"]


FIXED_KEYS = "gain_error, nonlinearity_codes, offset_error_codes, precision_bits, range_bits"
CALIBRATED_KEYS = "bits, gain_error, granularity, method, nonlinearity_codes, offset_error_codes, percentile"


def test_keys_of_the_other_kind_of_adc():
    assert problems({"adc": {"range": "fixed", "precision_bits": 4, "range_bits": 4, "bits": 8, "method": "max"}}) == [
        f"hardware: adc.bits: goes with range: calibrated only (range: fixed has {FIXED_KEYS})",
        f"hardware: adc.method: goes with range: calibrated only (range: fixed has {FIXED_KEYS})",
    ]
    assert problems({"adc": {"precision_bits": 4, "range": "calibrated"}}) == [
        f"hardware: adc.precision_bits: goes with range: fixed only (range: calibrated has {CALIBRATED_KEYS})"
    ]
    assert problems({"adc": {"range": "fixed"}}) == [
        "hardware: adc.precision_bits: missing; expected an integer (-8 to 16)",
        "hardware: adc.range_bits: missing; expected an integer (-8 to 16)",
    ]


def test_keys_of_another_scheme_or_encoding():
    assert problems({"base": "physical", "programming": {"tries": 3}}) == [
        "hardware: programming.tries: goes with scheme: write_verify only"
        " (scheme: single_pulse has cycling, exact, history, pulse_seconds, relaxation, reset_volts, set_volts)"
    ]
    (line,) = problems({"programming": {"scheme": "incremental_reset", "cycling": {"rounds": 1}}})
    assert line.startswith("hardware: programming.cycling: goes with scheme: single_pulse only")
    (line,) = problems({"programming": {"scheme": "single_pulse", "verify": {}}})
    assert line.startswith("hardware: programming.verify: goes with scheme: write_verify or scheme: incremental_reset")
    (line,) = problems({"weights": {"cell_bits": 2}})
    assert line.startswith("hardware: weights.cell_bits: goes with encoding: multilevel only")
    assert problems({"programming": {"scheme": "write_verify", "verify": {"read_volt": 1}}}) == [
        "hardware: programming.verify.read_volt: unknown key (nearest: programming.verify.read_volts)"
    ]
    assert problems({"programming": {"scheme": "incremental", "retries": 300}}) == [
        "hardware: programming.scheme: expected single_pulse or write_verify or incremental_reset, got 'incremental'",
        "hardware: programming.retries: 300 is out of range (0 to 20)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("low_level: 0.9", "low_level: 0.9 is not below high_level (0.85)"),
        ("start_volts: 1.5", "stop_volts: 1.45 is below start_volts (1.5)"),
        ("step_volts: 0", "step_volts: 0.0 is out of range (0.0001 to 1)"),
        ("tolerance: 0", "tolerance: 0.0 is out of range (above 0 and at most 1)"),
        ("relaxation: 0", "relaxation: 0.0 is out of range (above 0 and at most 0.5)"),
        (
            "verify: {adc: {full_scale: 1}}",
            "verify.adc.full_scale: 1.0 is out of range (1.25 to 10)",
        ),
        ("verify: {noise: {variance_product: float32}}", "verify.noise.variance_product: unknown key"),
    ],
)
def test_impossible_incremental_resets(write, text, expected):
    (line,) = problems(write(f"programming:\n  scheme: incremental_reset\n  {text}"))
    assert line.startswith("x.yaml:")
    assert f" programming.{expected}" in line


def test_several_levels_of_switching_cells_need_incremental_reset(write):
    text = "weights:\n  encoding: multilevel\n  cell_bits: {bits}\nprogramming: {{scheme: {scheme}}}"
    for scheme in ("single_pulse", "write_verify"):
        with pytest.raises(InputError) as error:
            choose_hardware(write(text.format(bits=3, scheme=scheme)))
        assert str(error.value) == (
            "weights.cell_bits: 3 bits per cell need programming: {scheme: incremental_reset};"
            f" {scheme} gives a cell of synaptogen two states"
        )
        assert choose_hardware(write(text.format(bits=1, scheme=scheme))).weights.cell_bits == 1
    spec = load_hardware(write(text.format(bits=4, scheme="incremental_reset")))
    assert spec.weights.cell_bits == 4
    ideal = load_hardware({"base": "ideal", "weights": {"encoding": "multilevel", "cell_bits": 4}})
    assert ideal.weights.cell_bits == 4  # ideal cells have as many levels as wanted
    assert spec.digital_twin().weights == spec.weights
    assert load_hardware({}).weights.cell_bits == 1


def test_changing_the_scheme_drops_the_keys_of_the_old_one():
    spec = apply_settings(load_hardware("paper"), ["programming.scheme=write_verify", "programming.tries=4"])
    assert spec.programming == WriteVerify(scheme="write_verify", history="zero", tries=4)
    back = apply_settings(spec, ["programming.scheme=single_pulse"])
    assert back.programming == SinglePulse(history="zero")


def test_fixed_adc_needs_a_bit():
    (line,) = problems({"adc": {"range": "fixed", "precision_bits": 2, "range_bits": -2}})
    assert line == "hardware: adc.range_bits: precision_bits + range_bits is 0: an ADC needs at least 1 bit"


def test_no_dac_needs_ideal_cells():
    (line,) = problems({"dac": None})
    assert line.startswith("hardware: dac: none works only with cell: ideal")
    assert "dac: {bits: none}" in line
    assert load_hardware({"dac": None, "cell": "ideal"}).dac is None


# --- layers ----------------------------------------------------------------------------------------------------------

LAYERED = """\
base: physical
digital: ["output*", "frontend.?"]
overrides:
  - match: "encoder.*"
    adc: {range: fixed, precision_bits: 4, range_bits: 4}
  - match: "encoder.*.linear_pos"
    adc: {precision_bits: 2}
    read_noise: none
"""


def test_later_overrides_win(write):
    spec = load_hardware(write(LAYERED))
    assert spec.for_layer("decoder.linear").adc == spec.adc
    assert spec.for_layer("encoder.0.ff").adc == FixedAdc(range="fixed", precision_bits=4, range_bits=4)
    both = spec.for_layer("encoder.0.linear_pos")
    assert both.adc == FixedAdc(range="fixed", precision_bits=2, range_bits=4)
    assert both.read_noise is None
    assert both.overrides == ()
    assert both.for_layer("encoder.0.linear_pos") == both
    assert spec.for_layer("encoder.1.linear_pos") is both


def test_override_that_stands_only_on_an_earlier_one_is_checked_with_it(write):
    spec = load_hardware(write(LAYERED))
    assert spec.for_layer("encoder.0.linear_pos").adc.precision_bits == 2
    lines = problems(write(LAYERED.replace("encoder.*.linear_pos", "*.linear_pos")))
    assert lines == [
        "x.yaml:7: overrides[1].adc.precision_bits: goes with range: fixed only"
        f" (range: calibrated has {CALIBRATED_KEYS})"
    ]


def test_overrides_are_validated_where_they_stand(write):
    found = problems(
        write(
            """\
overrides:
  - match: a
    adc: {bits: 40}
    dac: none
  - adc: 3
    cell: ideal
  - match: b
    weights: {encoding: multilevel}
    adcs: none
  - c
"""
        )
    )
    assert sorted(found) == sorted(
        [
            "x.yaml:5: overrides[1].match: missing; expected text",
            "x.yaml:5: overrides[1].adc: expected a section of keys or none, got 3; its keys are gain_error,"
            " offset_error_codes, nonlinearity_codes, range, bits, granularity, method, percentile, precision_bits,"
            " range_bits",
            "x.yaml:6: overrides[1].cell: unknown key (known here: match, weights, dac, adc, gain_per_ampere,"
            " programming, read_noise)",
            "x.yaml:9: overrides[2].adcs: unknown key (nearest: overrides[2].adc)",
            "x.yaml:10: overrides[3]: expected a section of keys, got 'c'; its keys are match, weights, dac, adc,"
            " gain_per_ampere, programming, read_noise",
            "x.yaml:3: overrides[0].adc.bits: 40 is out of range (2 to 16)",
        ]
    )
    (line,) = problems(write("overrides: [{match: a, dac: none}]"))
    assert line.startswith("x.yaml:1: overrides[0].dac: none works only with cell: ideal")


def test_contradicting_overrides_are_named_with_the_layer():
    spec = load_hardware(
        {
            "overrides": [
                {"match": "a*", "adc": {"range": "fixed", "precision_bits": 4, "range_bits": 4}},
                {"match": "*b", "adc": {"bits": 6}},
            ]
        }
    )
    assert spec.for_layer("xb").adc.bits == 6
    with pytest.raises(InputError, match=r"^hardware custom, layer ab: overrides\[1\]\.adc\.bits: goes with range"):
        spec.for_layer("ab")


def test_overrides_round_trip_as_written(write):
    spec = load_hardware(write(LAYERED))
    assert spec.to_dict()["overrides"][1] == {
        "match": "encoder.*.linear_pos",
        "adc": {"precision_bits": 2},
        "read_noise": None,
    }
    assert load_hardware(json.loads(spec.to_json())) == spec
    assert set(OVERRIDABLE) < set(HardwareSpec.model_fields)


def test_digital_globs(write):
    spec = load_hardware(write(LAYERED))
    assert spec.is_digital("output.linear") == "output*"
    assert spec.is_digital("frontend.0") == "frontend.?"
    assert spec.is_digital("frontend.10") is None
    assert spec.is_digital("Output") is None


def test_digital_twin_keeps_weights_and_dac(write):
    spec = load_hardware(write(LAYERED + '  - match: "last"\n    dac: {bits: 4}\n    weights: {bits: 2}\n'))
    twin = spec.digital_twin()
    assert (twin.weights, twin.dac, twin.tile, twin.digital) == (spec.weights, spec.dac, spec.tile, spec.digital)
    for layer in ("encoder.0.linear_pos", "last", "other"):
        exact = twin.for_layer(layer)
        assert (exact.cell, exact.adc, exact.read_noise, exact.gain_per_ampere) == ("ideal", None, None, "calibrated")
        assert exact.dac == spec.for_layer(layer).dac
        assert exact.weights == spec.for_layer(layer).weights
    assert load_hardware("paper").digital_twin().programming == HardwareSpec(name="x").programming


def test_steps_lead_from_quantised_weights_to_the_whole_spec(write):
    spec = load_hardware(write(LAYERED)).with_settings(
        {
            "programming.relaxation": 0.1,
            "read_disturb": "settle",
            "faults": {},
            "retention.age_seconds": 9,
            "wires.ohms": 1,
        }
    )
    steps = spec.steps()
    assert list(steps) == list(EFFECTS)
    assert steps["read_noise"] is spec
    assert spec.up_to("read_noise").is_same_hardware(spec)
    assert steps["dac"] == spec.digital_twin()
    sections = ("dac", "read_disturb", "retention", "faults", "wires", "adc", "read_noise")
    for index, effect in enumerate(EFFECTS):
        step = steps[effect]
        for layer in ("encoder.0.linear_pos", "xb", "other"):
            own, whole = step.for_layer(layer), spec.for_layer(layer)
            assert own.weights == whole.weights
            for section in sections:
                wanted = getattr(whole, section) if EFFECTS.index(section) <= index else None
                assert getattr(own, section) == wanted, (effect, layer, section)
            assert own.cell == (whole.cell if index >= 2 else "ideal")
            assert own.programming.exact == (effect == "iv")
            assert (own.programming.relaxation is None) == (index < 3)


def test_steps_that_change_nothing_are_left_out():
    assert list(load_hardware("ideal").steps()) == ["quantisation"]
    assert load_hardware("ideal").steps()["quantisation"].name == "ideal"
    assert list(load_hardware("physical").steps()) == ["quantisation", "dac", "iv", "programming", "adc", "read_noise"]
    exact = apply_settings(load_hardware("physical"), ["programming.exact=true", "read_noise=none"])
    assert list(exact.steps()) == ["quantisation", "dac", "iv", "adc"]
    assert exact.steps()["adc"] is exact
    # ideal cells have no programming, gain and noise, whatever the spec says of them
    assert list(apply_settings(load_hardware("paper"), ["cell=ideal", "adc=none"]).steps()) == ["quantisation", "dac"]
    assert list(apply_settings(load_hardware("physical"), ["cell=ideal"]).steps()) == ["quantisation", "dac", "adc"]


def test_steps_follow_overrides_of_another_scheme():
    overrides = [{"match": "a", "programming": {"scheme": "incremental_reset", "relaxation": 0.1}}]
    spec = load_hardware({"base": "paper", "overrides": overrides})
    exact = spec.up_to("iv").for_layer("a").programming
    assert (exact.scheme, exact.exact, exact.relaxation) == ("incremental_reset", True, None)
    assert spec.up_to("iv").for_layer("a").gain_per_ampere == 8020
    assert spec.up_to("dac").for_layer("a").programming == HardwareSpec(name="x").programming
    assert spec.up_to("programming").for_layer("a").programming == spec.for_layer("a").programming


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings():
    spec = load_hardware("physical")
    changed = apply_settings(spec, ["adc.bits=6", "read_noise.bandwidth_hz=1e6", "digital=[out*, in*]", "cell=ideal"])
    assert changed.adc.bits == 6
    assert changed.read_noise.bandwidth_hz == 1e6
    assert changed.digital == ("out*", "in*")
    assert apply_settings(changed, ["cell=synaptogen", "adc=none"]).adc is None
    assert spec.with_settings({"weights.bits": 3, "dac": {"bits": 4}}).dac.vmax_volts == 0.4
    assert spec.adc.bits == 8
    assert apply_settings(spec, []) == spec
    assert changed.sha256() != spec.sha256()


def test_a_section_that_was_none_starts_from_its_defaults():
    assert apply_settings(load_hardware("ideal"), ["adc.bits=6"]).adc == CalibratedAdc(bits=6)


@pytest.mark.parametrize("order", [1, -1])
def test_settings_change_the_kind_of_adc_in_any_order(order):
    texts = ["adc.range=fixed", "adc.precision_bits=4", "adc.range_bits=4"][::order]
    assert apply_settings(load_hardware("physical"), texts).adc == load_hardware("paper").adc


def test_overrides_beat_settings(write):
    spec = apply_settings(load_hardware(write(LAYERED)), ["read_noise.shot_scale=2"])
    assert spec.for_layer("x").read_noise.shot_scale == 2
    assert spec.for_layer("encoder.1.linear_pos").read_noise is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("adc.bitz=6", "--set adc.bitz=6: adc.bitz: unknown key (nearest: adc.bits)"),
        ("adc.bits=60", "--set adc.bits=60: adc.bits: 60 is out of range (2 to 16)"),
        ("adc.bits=", "--set adc.bits=: has no value (write none if that is meant)"),
        ("adc.bits", "--set adc.bits: expected KEY=VALUE, such as --set adc.bits=6"),
        ("=6", "--set =6: expected KEY=VALUE, such as --set adc.bits=6"),
        ("adc.bits=[", "--set adc.bits=[: not valid YAML: while parsing a flow node expected the node content"),
        ("dac={bitz: 3}", "--set dac={bitz: 3}: dac.bitz: unknown key (nearest: dac.bits)"),
        ("dac={bits: 3, bits: 4}", "--set dac={bits: 3, bits: 4}: bits: is given twice"),
        ("dac=none", "--set dac=none: dac: none works only with cell: ideal"),
        ("cell.x=3", "--set cell.x=3: cell: expected text, got a section of keys"),
        ("base=paper", "--set base=paper: base is for files; choose the spec to start from with --hardware"),
        ("cost=1", "--set cost=1: cost: expected a section of keys, got 1"),
    ],
)
def test_bad_settings_name_the_flag(setting, expected):
    with pytest.raises(InputError) as caught:
        apply_settings(load_hardware("physical"), [setting])
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


SECTIONS = sorted({key for key, hints in _SCHEMA.keys.items() if any(map(models_in, hints)) and key != ("overrides",)})


@pytest.mark.parametrize("section", [".".join(key) for key in SECTIONS])
@pytest.mark.parametrize("value", ["2.6e6", "8", "word", "true", "[1]"])
def test_a_section_that_is_given_a_value_names_its_keys(section, value):
    above = "programming.scheme=write_verify" if section.startswith("programming.verify") else "adc.bits=8"
    above = "programming.cycling.rounds=1" if section == "programming.cycling" else above
    with pytest.raises(InputError) as caught:
        apply_settings(load_hardware("physical"), [above, f"{section}={value}"])
    line, _, listed = str(caught.value).partition("; its keys are ")
    assert line.startswith(f"--set {section}={value}: {section}: expected ")
    keys = {key[-1] for key in _SCHEMA.keys if key[:-1] == tuple(section.split("."))}
    assert keys
    assert set(listed.split(", ")) == keys


def test_settings_from_another_flag():
    with pytest.raises(InputError, match=r"^--bits 40: weights\.bits: 40 is out of range"):
        load_hardware("physical").with_settings({"weights.bits": "40"}, flag="--bits {value}")


# --- garbage ---------------------------------------------------------------------------------------------------------

WORDS = sorted({step for key in _SCHEMA.keys for step in key} | {"base", "none", "fixed", "calibrated", "cell_bits"})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
KEYS = st.sampled_from(WORDS) | st.text(max_size=4) | st.integers()
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=25
)
SECTIONS = st.dictionaries(
    st.sampled_from(WORDS), st.dictionaries(st.sampled_from(WORDS), TREES, max_size=4) | TREES, max_size=6
)
OVERRIDES = st.fixed_dictionaries({"overrides": st.lists(SECTIONS.map(lambda tree: {"match": "*"} | tree), max_size=3)})


def attempt(source: Any) -> None:
    """Loads or raises InputError, whose every line names where; what loads round-trips."""
    try:
        spec = load_hardware(source)
    except InputError as error:
        lines = str(error).splitlines()
        assert len(lines) == len(set(lines)) > 0
        assert all(": " in line for line in lines)
    else:
        assert load_hardware(json.loads(spec.to_json())) == spec


@given(st.dictionaries(KEYS, TREES, max_size=6) | SECTIONS | OVERRIDES)
@settings(deadline=None, max_examples=300)
def test_any_mapping_loads_or_is_bad_input(mapping):
    attempt(mapping)


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [*WORDS, ": ", "\n", "  ", "- ", "{", "}", "[", "]", ", ", "&a ", "*a", "!!", '"', "|", "8", "?"]
        ),
        max_size=30,
    ).map("".join)
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_loads_or_is_bad_input(write, text):
    attempt(write(text))


@given(st.binary(max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_load_or_are_bad_input(write, content):
    attempt(write(content))


@given(st.text(max_size=30))
@settings(deadline=None)
def test_any_setting_applies_or_is_bad_input(value):
    for setting in (value, f"adc.bits={value}", f"adc.{value}=3", f"digital={value}"):
        message = "--set applies"
        try:
            apply_settings(load_hardware({}), [setting])
        except InputError as error:
            message = str(error)
        assert message.startswith("--set ")
