"""`memsim fit-device` from end to end: its output, files and refusals, and the use of its device everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from memsim.device import load_device
from memsim.device.file import _adopted
from tests.tools.example_measurements import Table, feature_table, sweeps, write

ROWS = 24 * 60


@pytest.fixture(scope="module", autouse=True)
def fewer_cycles() -> object:
    """The judge and the rounds of a fit draw 60,000 cycles from the model, not one or two millions."""
    from memsim.fit import goodness

    patch = pytest.MonkeyPatch()
    patch.setattr(goodness, "LEAST_GENERATED", 60_000)
    patch.setattr("memsim.fit.twin.TWIN_CYCLES", 60_000)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def table() -> Table:
    return feature_table(load_device("synaptogen"), 24, 60, 8)


@pytest.fixture
def cycles(table: Table, tmp_path: Path) -> Path:
    write([table], tmp_path / "cycles.csv")
    return tmp_path / "cycles.csv"


def test_a_device_is_fitted_and_judged(memsim: Callable, cycles: Path) -> None:
    done = memsim(
        *("fit-device", "cycles.csv", "-o", "mine.safetensors", "--order", "3"),
        *("--report", "report", "--json", "mine.json", "--yaml"),
    )
    assert done.status == 0, done.err
    assert "mine: 24 devices of cycles.csv, order 3, 1 component, I-V curves of synaptogen" in done.said
    assert "34 checks: " in done.out
    assert "wrote mine.safetensors, mine.yaml, report/report.html" in done.said
    facts = json.loads(Path("mine.json").read_text())
    assert facts["process"]["order"] == 3
    assert len(facts["goodness"]["checks"]) == 34
    assert json.loads(Path("report/report.json").read_text()) == facts
    device = load_device("mine.safetensors")
    assert (device.name, device.order) == ("mine", 3)
    summary = yaml.safe_load(Path("mine.yaml").read_text())
    assert summary["mixture_weights"] == device.mixture_weights.tolist()
    assert summary["fit"]["rows"] == ROWS
    with safe_open("mine.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["fit"]) == facts["fit"]
    assert not {".tmp"} & {path.suffix for path in Path().iterdir()}


@pytest.mark.slow
def test_its_device_is_a_cell(memsim: Callable, cycles: Path) -> None:
    assert memsim("fit-device", "cycles.csv", "-o", "mine.safetensors", "--order", "2", "-q").status == 0
    mapped = memsim("map", "demo-float", "--bits", "3", "--cell", "mine.safetensors", "-o", "m.mapped.safetensors")
    assert mapped.status == 0, mapped.err
    done = memsim("eval", "m.mapped.safetensors", "--data", "demo", "--limit", "2", "--trials", "2", "--json", "1.json")
    assert done.status == 0, done.err
    assert "mapped, 2 chips" in done.out


def test_a_mapped_file_needs_its_device_file_no_more(memsim: Callable, cycles: Path) -> None:
    assert memsim("fit-device", "cycles.csv", "-o", "mine.safetensors", "--order", "2", "-q").status == 0
    assert memsim("map", "demo-float", "--bits", "3", "--cell", "mine.safetensors", "-o", "m.safetensors").status == 0
    assert b"cycles.csv" in Path("m.safetensors").read_bytes()[:200_000]  # where the cells come from
    arguments = ("eval", "m.safetensors", "--data", "demo", "--limit", "2", "--trials", "2")
    results = []
    for name in ("there", "gone"):
        done = memsim(*arguments, "--json", f"{name}.json")
        assert done.status == 0, done.err
        results.append(json.loads(Path(f"{name}.json").read_text())["mapped"])
        Path("mine.safetensors").unlink(missing_ok=True)
        _adopted.clear()  # as in a new process
    assert results[0] == results[1]
    done = memsim(*arguments, "--set", "adc.bits=7")  # its levels mapped again, on cells of its own
    assert done.status == 0, done.err


def test_quiet_and_json_on_standard_output(memsim: Callable, cycles: Path) -> None:
    done = memsim("fit-device", "cycles.csv", "-o", "a.safetensors", "--order", "2", "--json", "-")
    assert json.loads(done.out)["process"]["order"] == 2
    assert done.err == ""
    done = memsim("fit-device", "cycles.csv", "-o", "b.safetensors", "--order", "2", "--quiet")
    assert (done.out, done.err) == ("", "")
    first, second = (load_device(f"{name}.safetensors") for name in "ab")
    assert torch.equal(first.var[2], second.var[2])


def test_verbose_shows_every_check(memsim: Callable, cycles: Path) -> None:
    done = memsim("fit-device", "cycles.csv", "-o", "a.safetensors", "--order", "2", "--components", "1", "-v")
    assert sum(line.count(mark) for line in done.out.splitlines() for mark in "✓≈⚠") == 34


def test_inspect_says_what_is_there(memsim: Callable, cycles: Path) -> None:
    done = memsim("fit-device", "cycles.csv", "--inspect", "--json", "facts.json")
    assert done.status == 0, done.err
    assert "cycles.csv: features, 1,440 rows, 24 devices, 60 cycles each" in done.said
    facts = json.loads(Path("facts.json").read_text())
    assert facts["cycles_a_device"] == {"min": 60, "median": 60.0, "max": 60}
    assert facts["features"]["LRS"]["column"] == "lrs_ohms"
    assert facts["features"]["LRS"]["quantiles"][1] == pytest.approx(4520, rel=0.02)
    assert facts["features"]["HRS"]["quantiles"][1] == pytest.approx(75e3, rel=0.1)
    assert not list(Path().glob("*.safetensors"))


def test_inspect_of_other_conventions(memsim: Callable, table: Table, tmp_path: Path) -> None:
    """Positive SET voltages, other units and names, no UR: seen first, then mapped by options."""
    other = {
        "device": table["device"],
        "cycle": table["cycle"],
        "RH": table["hrs_ohms"] / 1e3,
        "us_mV": -1e3 * table["us_volts"],
        "lrs_log10_ohms": np.log10(table["lrs_ohms"]),
        "comment": table["cycle"],
    }
    write([other], tmp_path / "other.npz")
    options = ("--column", "hrs_kohm=RH", "--from-base", "ur")
    seen = memsim("fit-device", "other.npz", "--inspect", *options)
    assert f"a fit would refuse row 1: us_mV is {-table['us_volts'][0]:.2f}" in seen.said
    assert "--polarity positive or --polarity magnitude" in seen.said
    assert "not used: comment" in seen.said
    assert "ohm (x 1000)" in seen.said
    assert "ohm (10 ** value)" in seen.said
    assert memsim("fit-device", "other.npz", "-o", "x.safetensors", "--order", "2", *options).status == 2
    done = memsim(
        *("fit-device", "other.npz", "-o", "x.safetensors", "--order", "2", "--polarity", "magnitude"),
        *("--linear-lrs", "--reset-full-volts", "1.8", *options),
    )
    assert done.status == 0, done.err
    device = load_device("x.safetensors")
    assert (len(device.llrs), device.reset_full_volts) == (2, 1.8)
    assert (device.mixture_means[1] < 0).all()
    assert device.mixture_means[2].mean() == pytest.approx(4530, rel=0.05)


def test_sweeps(memsim: Callable, tmp_path: Path) -> None:
    blocks = sweeps(load_device("synaptogen"), 16, 30, 2)
    write((block.table() for block in blocks), tmp_path / "sweeps.parquet")
    seen = memsim("fit-device", "sweeps.parquet", "--inspect")
    assert "sweeps 0 -> -1.5 -> 0 -> 1.5 -> 0 V, 301 samples per cycle, read at 0.2 V" in seen.said
    assert "480 complete, 0 failed SET, 0 failed RESET, 0 incomplete" in seen.said
    done = memsim("fit-device", "sweeps.parquet", "-o", "swept.safetensors", "--order", "2")
    assert done.status == 0, done.err
    assert "I-V curves of 480 of the measured sweeps" in done.said
    assert load_device("swept.safetensors").reset_exponent == pytest.approx(3.06, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cycles.csv"], "-o DEVICE.safetensors is missing"),
        (["cycles.csv", "-o", "mine.pt"], "mine.pt: expected a name that ends in .safetensors"),
        (["cycles.csv", "-o", "cycles.csv"], "cycles.csv: expected a name that ends in .safetensors"),
        (["none.csv", "-o", "a.safetensors"], "none.csv: no such file"),
        (["cycles.csv", "-o", "a.safetensors", "--components", "many"], "--components many: expected auto"),
        (["cycles.csv", "-o", "a.safetensors", "--polarity", "up"], "--polarity up: expected negative, positive, magn"),
        (["cycles.csv", "-o", "a.safetensors", "--from-base", "vr"], "--from-base vr: expected hrs, us, lrs or ur"),
        (["cycles.csv", "-o", "a.safetensors", "--column", "hrs"], "--column hrs: expected NAME=THEIRS"),
        (["cycles.csv", "-o", "a.safetensors", "--base", "none"], "none: no such file, and no shipped devices config"),
        (["cycles.csv", "-o", "a.safetensors", "--read-volts", "-1"], "--read-volts -1: expected a voltage above 0"),
        (
            ["cycles.csv", "-o", "a.safetensors", "--report", "cycles.csv"],
            "cycles.csv: is a file; --report names a fol",
        ),
        (["cycles.csv", "-o", "a.safetensors", "--order", "13"], "0 of 24 devices have the 65 cycles that order 13"),
    ],
)
def test_bad_input_is_one_line_and_status_2(memsim: Callable, cycles: Path, arguments, message: str) -> None:
    done = memsim("fit-device", *arguments)
    assert done.status == 2
    assert message in done.said
    assert len([line for line in done.err.splitlines() if line.startswith("memsim: ")]) == 1
    assert not Path("a.safetensors").exists()


@pytest.mark.parametrize("share", [pytest.param(0.014, marks=pytest.mark.slow), 0.05])
def test_failed_sets_make_no_model(memsim: Callable, table: Table, tmp_path: Path, share: float) -> None:
    """Where the LRS of failed cycles is the HRS, cells drawn from the fit have resistances below zero."""
    lrs = table["lrs_ohms"].copy()
    failed = np.random.default_rng(0).random(len(lrs)) < share
    lrs[failed] = table["hrs_ohms"][failed]
    write([table | {"lrs_ohms": lrs}], tmp_path / "failed.csv")
    refused = memsim("fit-device", "failed.csv", "-o", "a.safetensors", "--order", "2", "--quiet")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "% of the cells drawn from the fitted model have an LRS at or below 0 ohm" in refused.err
    assert (
        f"in {failed.sum()} of {len(lrs):,} cycles LRS is near HRS, as where a SET fails: leave LRS empty in those"
        in (refused.err)
    )
    assert not Path("a.safetensors").exists()
    lrs[failed] = np.nan
    write([table | {"lrs_ohms": lrs}], tmp_path / "left_out.csv")
    assert memsim("fit-device", "left_out.csv", "-o", "a.safetensors", "--order", "2", "--quiet").status == 0


def test_an_overflow_of_an_instrument_is_no_value(memsim: Callable, table: Table, tmp_path: Path) -> None:
    hrs = table["hrs_ohms"].copy()
    hrs[::50] = 9.91e37
    write([table | {"hrs_ohms": hrs}], tmp_path / "overflow.csv")
    done = memsim("fit-device", "overflow.csv", "--inspect", "--json", "-")
    assert json.loads(done.out)["features"]["HRS"]["missing"] == pytest.approx(0.02, abs=0.001)
    assert memsim("fit-device", "overflow.csv", "-o", "a.safetensors", "--order", "2", "--quiet").status == 0


def test_files_are_not_overwritten(memsim: Callable, cycles: Path) -> None:
    Path("mine.safetensors").touch()
    Path("other.yaml").touch()
    assert "mine.safetensors: exists already" in memsim("fit-device", "cycles.csv", "-o", "mine.safetensors").said
    done = memsim("fit-device", "cycles.csv", "-o", "other.safetensors", "--yaml")
    assert "other.yaml: exists already" in done.said
    done = memsim("fit-device", "cycles.csv", "-o", "mine.safetensors", "--order", "1", "--force", "-q")
    assert done.status == 0
    assert load_device("mine.safetensors").order == 1
