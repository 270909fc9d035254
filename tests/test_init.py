"""The exports of memsim, each with a docstring and an example that runs."""

from __future__ import annotations

import doctest
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import memsim
from memsim.device import DeviceModel
from tests.tools.example_measurements import feature_table, write

NAMES = [name for name in memsim.__all__ if name != "__version__"]


def test_what_is_exported_is_listed_without_importing_it() -> None:
    assert set(memsim.__all__) <= set(dir(memsim))
    code = "import sys, memsim; print(set(memsim.__all__) <= set(dir(memsim)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
    with pytest.raises(AttributeError, match="no attribute 'map_modle'"):
        memsim.map_modle  # noqa: B018


def test_help_shows_what_is_exported() -> None:
    text = pydoc.render_doc(memsim, renderer=pydoc.plaintext)
    for name in NAMES:
        assert name in text
    assert "calibration=statistics" in text  # the examples


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, device: DeviceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memsim.fit.goodness.LEAST_GENERATED", 60_000)
    write([feature_table(device, 16, 20, 1)], tmp_path / "cycles.csv")
    found = doctest.DocTestFinder(recurse=False).find(getattr(memsim, name), name, globs={"memsim": memsim})
    assert sum(len(test.examples) for test in found) > 0
    said: list[str] = []
    for test in found:
        assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)
