"""The wheel and the source distribution: their contents, and runs where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from memsim import __version__

REPOSITORY = Path(__file__).resolve().parents[1]


def built(source: Path, out: Path, *kinds: str) -> Path:
    """The file that the build backend, which is installed here, makes of `source`."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *kinds, source]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return built(REPOSITORY, tmp_path_factory.mktemp("sdist"), "--sdist")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return built(REPOSITORY, tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the repository, those that are about to be added included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a checkout")
    return {name for name in done.stdout.splitlines() if (REPOSITORY / name).is_file()}


def test_the_wheel_holds_the_package_with_its_files_and_nothing_else(wheel, tracked):
    assert wheel.name == f"memsim-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 12_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = f"memsim-{__version__}.dist-info/"
    package = {name for name in tracked if name.startswith("memsim/")}
    configs = {f"memsim/{name}" for name in tracked if name.startswith("configs/")}
    assert {name for name in names if not name.startswith(information)} == package | configs
    assert {"memsim/py.typed", "memsim/assets/checkpoints/demo.safetensors", "memsim/assets/demo/manifest.tsv"} <= names
    about = {name.removeprefix(information) for name in names if name.startswith(information)}
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def test_the_metadata_say_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        information = f"memsim-{__version__}.dist-info"
        metadata = message_from_bytes(archive.read(f"{information}/METADATA"))
        entry_points = archive.read(f"{information}/entry_points.txt").decode()
        licences = archive.read(f"{information}/licenses/LICENSE").decode()
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_payload().startswith("# memsim")
    assert "memsim = memsim.cli:main" in entry_points
    assert "Synaptogen" in licences  # the notice of the device model's parameters


def test_the_source_distribution_holds_the_sources_and_nothing_else(sdist, tracked):
    top = f"memsim-{__version__}"
    assert sdist.name == f"{top}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(f"{top}/") for member in archive.getmembers() if member.isfile()}
    alone = {"Makefile", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml", ".gitignore"}
    folders = ("memsim/", "configs/", "tests/")
    assert names == {n for n in tracked if n.startswith(folders)} | alone | {"PKG-INFO"}


def test_the_source_distribution_makes_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = built(tmp_path / f"memsim-{__version__}", tmp_path / "out", "--wheel")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        contents = [{entry.filename: entry.CRC for entry in archive.infolist()} for archive in (one, other)]
    assert contents[0] == contents[1]


def interpreter(version: str) -> str | None:
    """A Python of this version, such as "3.12", among the commands or pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for command in (shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))):
        asked = [command, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if command and subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return command
    return None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_runs_in_an_empty_environment(wheel, tmp_path, version):
    """Its dependencies come from where pip gets them: some gigabytes."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version}")
    home = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", home], check=True)
    binaries = home / ("Scripts" if os.name == "nt" else "bin")
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MEMSIM_DATA", "MEMSIM_CHECKPOINT")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run(binaries / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    assert "No broken requirements" in run(binaries / "python", "-m", "pip", "check")
    assert run(binaries / "memsim", "--version").strip() == f"memsim {__version__}"
    where = run(binaries / "python", "-c", "import memsim; print(memsim.__file__)").strip()
    assert Path(where).is_relative_to(home)
    assert "wrote demo.mapped.safetensors" in run(binaries / "memsim", "map", "demo", "--hardware", "best")
    assert "mapped, 1 chip" in run(binaries / "memsim", "eval", "--data", "demo", "--limit", "4")
    run(binaries / "memsim", "eval", "demo", "--data", "demo", "--limit", "4", "--report", "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
    shutil.rmtree(home)
