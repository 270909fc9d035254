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
from memsim.device.cycles.cells import draw_cycles
from memsim.device.cycles.model import HRS, LRS
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
    assert "38 checks: " in done.out
    assert "wrote mine.safetensors, mine.yaml, report/report.html" in done.said
    facts = json.loads(Path("mine.json").read_text())
    assert facts["process"]["order"] == 3
    assert len(facts["goodness"]["checks"]) == 38
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
    assert sum(line.count(mark) for line in done.out.splitlines() for mark in "✓≈⚠") == 38


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
        (
            ["cycles.csv", "-o", "mine.yaml"],
            "mine.yaml: YAML is for tables of levels, with columns conductance (or resistance) and time or target, "
            "which --column conductance_uS=THEIRS and so on tell where they have other names; the "
            "model of a table of cycles is a .safetensors file",
        ),
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


def test_failed_sets_are_a_population_of_the_model(memsim: Callable, table: Table, tmp_path: Path) -> None:
    """Where the LRS of failed cycles is the HRS, the model has their share, and all else as if they were left out."""
    lrs = table["lrs_ohms"].copy()
    failed = np.random.default_rng(0).random(len(lrs)) < 0.03
    lrs[failed] = table["hrs_ohms"][failed]
    write([table | {"lrs_ohms": lrs}], tmp_path / "failed.csv")
    done = memsim("fit-device", "failed.csv", "-o", "a.safetensors", "--order", "2", "--json", "a.json")
    assert done.status == 0, done.err
    assert f"{failed.sum()} of {len(lrs):,} SETs ({failed.mean():.2%}) failed" in done.said
    share, *quantiles = load_device("a.safetensors").failures[0].tolist()
    assert share == pytest.approx(failed.mean())
    assert 10 ** quantiles[-1] == pytest.approx(table["hrs_ohms"][failed].max(), rel=1e-4)
    checks = json.loads(Path("a.json").read_text())["goodness"]["checks"]
    (spread,) = [each for each in checks if (each["feature"], each["quantity"]) == ("LRS", "conductance, spread (uS)")]
    assert spread["measured"] > 1.5 * np.std(1e6 / table["lrs_ohms"])  # failures are in it
    assert spread["verdict"] != "warn"
    lrs[failed] = np.nan
    write([table | {"lrs_ohms": lrs}], tmp_path / "left_out.csv")
    assert memsim("fit-device", "left_out.csv", "-o", "b.safetensors", "--order", "2", "--quiet").status == 0
    ours, theirs = (load_device(f"{name}.safetensors") for name in "ab")
    assert theirs.failures is None
    assert torch.equal(ours.mixture_means, theirs.mixture_means)
    assert torch.equal(ours.var[2], theirs.var[2])


def test_a_wide_lrs_is_log_normal(memsim: Callable, table: Table, tmp_path: Path) -> None:
    """With a spread of 0.15 decades a Gaussian would come near 0 ohm; no cell that is drawn does."""
    z = (table["lrs_ohms"] - table["lrs_ohms"].mean()) / table["lrs_ohms"].std()
    write([table | {"lrs_ohms": 4e3 * 10 ** (0.15 * z)}], tmp_path / "wide.csv")
    done = memsim("fit-device", "wide.csv", "-o", "a.safetensors", "--order", "2", "--quiet")
    assert done.status == 0, done.err
    device = load_device("a.safetensors")
    assert device.lrs_is_log10
    ohms = draw_cycles(device, torch.arange(20_000), 1, 2)[LRS]
    assert ohms.min() >= 1 / device.reference_conductances_siemens[0] * (1 - 1e-5)
    assert ohms.log10().std() == pytest.approx(0.15, rel=0.2)


def test_one_cycle_of_many_cells(memsim: Callable, tmp_path: Path) -> None:
    """The spread from device to device is fitted; what cycles would tell is refused, or the base model's."""
    base = load_device("synaptogen")
    drawn = draw_cycles(base, torch.arange(300), 3, 1)[:, :, 0].double().numpy()
    rows = "".join(f"{hrs}\t{1.3e6 / lrs}\n" for hrs, _, lrs, _ in drawn.T)
    (tmp_path / "once.tsv").write_text("HRS\tLRS\nohm\tuS\n" + rows)
    options = ("--column", "device=row", "--from-base", "us,ur")
    refused = memsim("fit-device", "once.tsv", "-o", "a.safetensors", *options, "--quiet")
    assert refused.status == 2
    assert "--from-base cycles takes from the base model" in refused.err
    options = (*options, "--from-base", "cycles")
    done = memsim("fit-device", "once.tsv", "-o", "a.safetensors", *options, "--report", "report")
    assert done.status == 0, done.err
    assert "1 cycle a device at most: how cells change from cycle to cycle, and how much, is that of" in done.said
    device = load_device("a.safetensors")
    assert device.order == base.order
    ours = draw_cycles(device, torch.arange(20_000), 1, 1)[:, :, 0].double().numpy()
    assert np.median(ours[LRS]) == pytest.approx(np.median(drawn[LRS]) / 1.3, rel=0.01)
    assert ours[LRS].std() == pytest.approx(drawn[LRS].std() / 1.3, rel=0.12)
    assert np.log10(ours[HRS]).std() == pytest.approx(np.log10(drawn[HRS]).std(), rel=0.12)


def test_cells_that_were_read_at_some_cycles_only(memsim: Callable, table: Table, tmp_path: Path) -> None:
    some = {name: values[table["cycle"] <= 6] for name, values in table.items()}
    some["cycle"] = 10 ** (some["cycle"] - 1)
    write([some], tmp_path / "some.csv")
    refused = memsim("fit-device", "some.csv", "-o", "a.safetensors")
    assert "or take the changes from cycle to cycle from the base model (--from-base cycles)" in refused.said
    done = memsim("fit-device", "some.csv", "-o", "a.safetensors", "--from-base", "cycles", "--quiet")
    assert done.status == 0, done.err


def test_many_files_and_a_matrix(memsim: Callable, table: Table, tmp_path: Path) -> None:
    """A file for each device, or a row for each device, give the fit of one table."""
    (tmp_path / "cells").mkdir()
    rows = []
    for device in range(24):
        own = table["device"] == device
        columns = {name: values[own] for name, values in table.items() if name not in ("device", "cycle")}
        write([columns], tmp_path / "cells" / f"cell{device}.csv")
        pairs = zip(columns["hrs_ohms"], columns["lrs_ohms"], strict=True)
        rows.append(",".join(f"{value:.9g}" for pair in pairs for value in pair))
    (tmp_path / "matrix.csv").write_text("\n".join(rows) + "\n")
    small = {name: values for name, values in table.items() if name in ("device", "cycle", "hrs_ohms", "lrs_ohms")}
    write([small], tmp_path / "table.csv")
    options = ("--order", "1", "--components", "1", "--from-base", "us,ur", "--quiet")
    names = ("--columns", "hrs_ohms,lrs_ohms,...")
    done = [
        memsim("fit-device", "matrix.csv", "-o", "a.safetensors", *names, *options),
        memsim("fit-device", "table.csv", "-o", "b.safetensors", *options),
    ]
    assert [each.status for each in done] == [0, 0], [each.err for each in done]
    first, second = (load_device(f"{name}.safetensors") for name in "ab")
    torch.testing.assert_close(first.mixture_means, second.mixture_means, rtol=1e-5, atol=0)
    seen = memsim("fit-device", "cells", "--inspect")
    assert "24 devices, 60 cycles each" in seen.said
    assert "without a column of cycles, each row is a device's next cycle" in seen.said


def test_an_overflow_of_an_instrument_is_no_value(memsim: Callable, table: Table, tmp_path: Path) -> None:
    hrs = table["hrs_ohms"].copy()
    hrs[::50] = 9.91e37
    write([table | {"hrs_ohms": hrs}], tmp_path / "overflow.csv")
    done = memsim("fit-device", "overflow.csv", "--inspect", "--json", "-")
    assert json.loads(done.out)["features"]["HRS"]["missing"] == pytest.approx(0.02, abs=0.001)
    assert json.loads(done.out)["notes"][0].startswith("29 values of hrs_ohms are an instrument's mark of an overflow")
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
