"""`memsim.fit_device` and `memsim.inspect_measurements`: results, files, messages and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import memsim
from memsim import DeviceFit, InputError
from memsim.device import DeviceModel, load_device
from memsim.fit import goodness
from memsim.listener import Listener
from tests.tools.example_measurements import Table, feature_table, write


class Remembering(Listener):
    def __init__(self) -> None:
        self.jobs: set[str] = set()
        self.warnings: list[str] = []

    def progress(self, name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
        self.jobs.add(name)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module", autouse=True)
def fewer_cycles() -> object:
    """The judge draws 60,000 cycles from the model, not two millions."""
    patch = pytest.MonkeyPatch()
    patch.setattr(goodness, "LEAST_GENERATED", 60_000)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def small_table(device: DeviceModel) -> Table:
    return feature_table(device, 24, 60, 8)


@pytest.fixture(scope="module")
def cycles(small_table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cycles") / "cycles.csv"
    write([small_table], path)
    return path


@pytest.fixture(scope="module")
def fitted(cycles: Path) -> DeviceFit:
    return memsim.fit_device(cycles, order=2, listener=Remembering())


def test_a_saved_fit_is_the_file_that_the_call_writes(fitted: DeviceFit, cycles: Path, tmp_path: Path) -> None:
    assert (fitted.files, fitted.model.name) == ((), "cycles")
    (tmp_path / "later").mkdir()
    at_once = memsim.fit_device(cycles, tmp_path / "mine.safetensors", order=2, yaml=True, listener=Remembering())
    later = fitted.save(tmp_path / "later" / "mine.safetensors", yaml=True)
    assert [path.name for path in at_once.files] == ["mine.safetensors", "mine.yaml"]
    for one, other in zip(at_once.files, later, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert load_device(later[0]).name == "mine"
    with pytest.raises(InputError, match="exists already; --force"):
        fitted.save(later[0])
    fitted.save(later[0], force=True)


def test_what_is_shown_is_what_the_command_prints(
    fitted: DeviceFit, cycles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memsim.cli import app

    monkeypatch.chdir(tmp_path)
    app(
        ["fit-device", str(cycles), "-o", "cycles.safetensors", "--order", "2", "--json", "f.json"],
        standalone_mode=False,
    )
    printed = capsys.readouterr().out.replace(" (--verbose shows all)", "")
    assert str(fitted).split("\n") == [line.rstrip() for line in printed.rstrip().split("\n")]
    assert fitted.to_dict() == json.loads(Path("f.json").read_text())
    app(["fit-device", str(cycles), "--inspect", "--json", "i.json"], standalone_mode=False)
    inspection = memsim.inspect_measurements(cycles)
    assert str(inspection) == capsys.readouterr().out.rstrip()
    assert inspection.to_dict() == json.loads(Path("i.json").read_text())


def test_reprs_are_short_and_notebooks_get_tables(fitted: DeviceFit, cycles: Path) -> None:
    assert repr(fitted).startswith("DeviceFit(cycles: 24 devices of cycles.csv, order 2, 1 component, I-V curves of")
    assert "38 checks: " in repr(fitted)
    inspection = memsim.inspect_measurements(cycles)
    assert repr(inspection) == "Inspection(cycles.csv: features, 1,440 rows, 24 devices, 60 cycles each)"
    for shown in (fitted, inspection):
        assert "<pre" in shown._repr_html_()
        assert "LRS" in shown._repr_html_()


def test_the_report_is_not_overwritten(fitted: DeviceFit, tmp_path: Path) -> None:
    page = fitted.write_report(tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == fitted.to_dict()
    with pytest.raises(InputError, match="exists already; --force"):
        fitted.write_report(tmp_path / "report")
    assert fitted.write_report(str(tmp_path / "report"), force=True) == page


def test_loaded_measurements_are_fitted_as_their_file(fitted: DeviceFit, cycles: Path) -> None:
    loaded = memsim.inspect_measurements(cycles).measurements
    assert memsim.fit_device(loaded, order=2, listener=Remembering()).to_dict() == fitted.to_dict()
    for option in ({"column": ["hrs_kohm=RH"]}, {"polarity": "positive"}, {"from_base": ["us"]}, {"read_volts": 0.3}):
        with pytest.raises(InputError, match="these measurements are loaded already"):
            memsim.fit_device(loaded, **option)


@pytest.mark.parametrize("column", [{"hrs_kohm": "RH"}, ["hrs_kohm=RH"], "hrs_kohm=RH"])
@pytest.mark.parametrize("from_base", [["ur"], "UR", ("ur",)])
def test_options_as_mappings_lists_and_texts(small_table: Table, tmp_path: Path, column, from_base) -> None:
    table = {name: values for name, values in small_table.items() if name not in ("hrs_ohms", "ur_volts")}
    write([table | {"RH": small_table["hrs_ohms"] / 1e3}], tmp_path / "t.npz")
    facts = memsim.inspect_measurements(tmp_path / "t.npz", column=column, from_base=from_base).to_dict()
    assert facts["features"]["HRS"]["column"] == "RH"
    assert list(facts["features"]) == ["HRS", "US", "LRS"]


def test_a_listener_hears_of_progress_and_warnings(cycles: Path) -> None:
    listener = Remembering()
    result = memsim.fit_device(cycles, order=1, components=1, listener=listener)
    assert listener.jobs == {"reading cycles.csv", "fitting", "judging"}
    assert listener.warnings == list(result.fit.notes)
    assert any("estimation noise" in message for message in listener.warnings)
    with pytest.warns(UserWarning, match="estimation noise"):
        memsim.fit_device(cycles, order=1, components=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"yaml": True}, "--yaml: the YAML file goes beside the device model; name that, too"),
        ({"order": 0}, "--order 0: expected a number from 1 to 50"),
        ({"order": 51}, "--order 51: expected a number from 1 to 50"),
        ({"components": 0}, "--components 0: expected auto, or a number from 1 to 50"),
        ({"components": "many"}, "--components many: expected auto"),
        ({"polarity": "up"}, "--polarity up: expected negative, positive, magnitude"),
        ({"column": ["hrs"]}, "--column hrs: expected NAME=THEIRS"),
        ({"from_base": ["vr"]}, "--from-base vr: expected hrs, us, lrs or ur"),
        ({"from_base": "hrs,us,lrs,ur"}, "--from-base hrs,us,lrs,ur: leaves nothing to fit"),
        ({"read_volts": -1.0}, "--read-volts -1: expected a voltage above 0"),
        ({"reset_full_volts": np.nan}, "--reset-full-volts nan: expected a voltage above 0"),
        ({"out": "mine.pt"}, "mine.pt: expected a name that ends in .safetensors"),
        ({"base": "none"}, "none: no such file, and no shipped devices config"),
    ],
)
def test_wrong_options_are_one_line(cycles: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        memsim.fit_device(cycles, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_way_is_said_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").touch()
    with pytest.raises(InputError, match="exists already; --force"):
        memsim.fit_device(tmp_path / "none.csv", tmp_path / "mine.safetensors")
