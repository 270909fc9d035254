from __future__ import annotations

from pathlib import Path

import pytest

from memsim.config import resources
from memsim.config.resources import ASSETS, configs_root, find_config
from memsim.errors import InputError


def test_what_ships_is_there() -> None:
    assert (ASSETS / "demo" / "manifest.tsv").is_file()
    assert {"hardware", "devices", "models", "qat"} <= {path.name for path in configs_root().iterdir()}


@pytest.mark.parametrize(("kind", "name"), [("models", "conformer-small"), ("qat", "float"), ("hardware", "physical")])
def test_a_shipped_name_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # a folder of that name is no config
    assert find_config(kind, name) == configs_root() / kind / f"{name}.yaml"


def test_a_file_comes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "float").write_text("mine")
    assert find_config("qat", "float") == Path("float")
    assert find_config("qat", tmp_path / "float") == tmp_path / "float"


def test_other_suffixes() -> None:
    found = find_config("devices", "synaptogen", suffixes=(".safetensors",))
    assert found.name == "synaptogen.safetensors"


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        find_config("models", "conformer-large")
    assert str(caught.value) == (
        "conformer-large: no such file, and no shipped models config of that name "
        f"(available: {', '.join(sorted(path.stem for path in (configs_root() / 'models').glob('*.yaml')))})"
    )


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        ("hardware", "physicall", "physical"),
        ("hardware", "Physical", "physical"),
        ("hardware", "physical.yaml", "physical"),
        ("hardware", "writeverify", "write-verify"),
        ("models", "conformer-smal", "conformer-small"),
        ("qat", "robst", "robust"),
        ("hardware", "mine", "the file mine.yaml"),
        ("hardware", "Mine.yml", "the file mine.yaml"),
        ("qat", "yours", "the file yours.yml"),
        ("models", "sub/ours", "the file sub/ours.yaml"),
        ("hardware", "./mine", "the file mine.yaml"),
        ("hardware", "zzz", None),
        ("hardware", "notes", None),
    ],
)
def test_what_may_have_been_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, nearest: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for file in ("mine.yaml", "yours.yml", "sub/ours.yaml", "notes.txt"):
        (tmp_path / file).touch()
    with pytest.raises(InputError) as caught:
        find_config(kind, name)
    assert (f"(nearest: {nearest}; available: " if nearest else "(available: ") in str(caught.value)


def test_a_device_model_that_may_have_been_meant(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").touch()
    (tmp_path / "mine.yaml").touch()  # the numbers of one, for people
    with pytest.raises(InputError, match=r"nearest: the file .*/mine\.safetensors; available: .*synaptogen"):
        find_config("devices", tmp_path / "mine", suffixes=(".safetensors",))


@pytest.mark.parametrize("name", ["", "../models/conformer-small", "models/conformer-small", "no\0name"])
def test_names_lead_nowhere_else(name: str) -> None:
    with pytest.raises(InputError):
        find_config("models", name)


def test_an_unknown_kind() -> None:
    with pytest.raises(InputError, match=r"\(available: \)"):
        find_config("lampshades", "green")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; expected a YAML file"):
        find_config("models", tmp_path)


@pytest.mark.parametrize("length", [300, 253], ids=["too long", "too long with its ending"])
def test_a_name_that_no_file_can_have(length: int) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        find_config("models", "x" * length)


def test_an_installed_package_has_its_configs_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memsim" / "configs" / "qat").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "memsim" / "configs" / "qat" / "mine.yaml").touch()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "memsim")
    assert find_config("qat", "mine") == tmp_path / "memsim" / "configs" / "qat" / "mine.yaml"
