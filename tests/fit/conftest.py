"""Measurements with known truth, made once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from memsim.device import DeviceModel
from memsim.fit import Measurements, read_measurements
from memsim.fit.arrays import Floats
from memsim.fit.mixture import Mixture, mixture_moments
from tests.tools.example_measurements import Table, feature_table, write

DEVICES, CYCLES = 128, 600


@pytest.fixture(scope="session")
def table(device: DeviceModel) -> Table:
    return feature_table(device, DEVICES, CYCLES, 11)


@pytest.fixture(scope="session")
def measured(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    path = tmp_path_factory.mktemp("measured") / "measured.parquet"
    write([table], path)
    return read_measurements(path)


def moments(mixture: Mixture) -> tuple[Floats, Floats]:
    """(mean, covariance) of a fitted mixture."""
    return mixture_moments(mixture.weights, mixture.means, mixture.cholesky)


def small_csv(path: Path, rows: list[str], header: str = "device,cycle,hrs_ohms,us_volts,lrs_ohms,ur_volts") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path
