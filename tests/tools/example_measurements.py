"""Make measurements for `memsim fit-device` from a device model, so that the truth is known.

    python tests/tools/example_measurements.py example.csv
    python tests/tools/example_measurements.py sweeps.parquet --sweeps --devices 64 --cycles 200
    python tests/tools/example_measurements.py configs/devices/cycling.csv.gz --matrix --devices 24 --cycles 50 \
        --failed-sets 0.015
    python tests/tools/example_measurements.py configs/devices/sweeps.csv.gz --analyser --devices 16 --cycles 4 \
        --step-volts 0.06

Writes CSV, Parquet or NPZ: a table of features (device, cycle, hrs_ohms, us_volts, lrs_ohms, ur_volts), or the samples
of I-V sweeps 0 -> Vneg -> 0 -> Vpos -> 0 (device, cycle, time_seconds, voltage_volts, current_amperes) with noise and,
if asked for, a current compliance. `--missing` leaves cycles out, in a table of features single values, too. With
`--matrix`, a row of a text file is a device, with its HRS and LRS in turn, as some laboratories write them; with
`--analyser`, it holds the samples of sweeps as a parameter analyser writes them.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from memsim.device import Cells, DeviceModel, load_device
from memsim.device.cycles.cells import draw_cycles

Table = dict[str, NDArray[Any]]
FEATURES = ("hrs_ohms", "us_volts", "lrs_ohms", "ur_volts")
STEP_SECONDS = 1e-6
BLOCK_SAMPLES = 1 << 22  # of sweeps that are made and written at a time


def feature_table(device: DeviceModel, devices: int, cycles: int, seed: int) -> Table:
    """One row a device and cycle."""
    drawn = draw_cycles(device, torch.arange(devices), seed, cycles).numpy()
    table: Table = {
        "device": np.repeat(np.arange(devices), cycles),
        "cycle": np.tile(np.arange(1, cycles + 1), devices),
    }
    return table | {name: drawn[i].reshape(-1) for i, name in enumerate(FEATURES)}


def protocol(
    negative_volts: float = -1.5, positive_volts: float = 1.5, step_volts: float = 0.02
) -> NDArray[np.float64]:
    """[samples] one sweep 0 -> Vneg -> 0 -> Vpos -> 0."""
    corners = [0.0, negative_volts, 0.0, positive_volts, 0.0]
    legs = [
        np.linspace(start, stop, round(abs(stop - start) / step_volts), endpoint=False)
        for start, stop in itertools.pairwise(corners)
    ]
    return np.concatenate([*legs, [0.0]])


@dataclass(frozen=True)
class Sweeps:
    """Some successive cycles of all devices: what was measured, and what it should give."""

    first_cycle: int
    volts: NDArray[np.float64]  # [samples] of each sweep
    currents: NDArray[np.float32]  # [cycles, devices, samples] amperes
    features: NDArray[np.float32]  # [4, devices, cycles] HRS (ohm), US (V), LRS (ohm), UR (V)

    def table(self) -> Table:
        """One row a sample; cycle after cycle, of all devices."""
        cycles, devices, samples = self.currents.shape
        cycle = np.arange(self.first_cycle, self.first_cycle + cycles)
        seconds = STEP_SECONDS * (cycle[:, None] * samples + np.arange(samples))
        return {
            "device": np.tile(np.repeat(np.arange(devices, dtype=np.int32), samples), cycles),
            "cycle": np.repeat(cycle.astype(np.int32), devices * samples),
            "time_seconds": np.repeat(seconds[:, None], devices, axis=1).reshape(-1),
            "voltage_volts": np.tile(self.volts.astype(np.float32), cycles * devices),
            "current_amperes": self.currents.reshape(-1),
        }


def sweeps(
    device: DeviceModel,
    devices: int,
    cycles: int,
    seed: int,
    *,
    volts: NDArray[np.float64] | None = None,
    noise_amperes: float = 1e-7,
    compliance_amperes: float = np.inf,
) -> Iterator[Sweeps]:
    """Cells taken through whole sweeps; some cycles at a time, of all devices."""
    volts = protocol() if volts is None else volts
    cells, generator = Cells(device, torch.arange(devices), seed), torch.Generator().manual_seed(seed)
    at_once = max(1, BLOCK_SAMPLES // (devices * len(volts)))
    for first in range(0, cycles, at_once):
        count = min(at_once, cycles - first)
        currents = np.empty((count, devices, len(volts)), dtype=np.float32)
        features = np.empty((4, devices, count), dtype=np.float32)
        for cycle in range(count):
            features[:, :, cycle] = cells.features
            for sample, u in enumerate(volts.tolist()):
                cells.apply(u)
                current = cells.current_amperes(u)
                current += noise_amperes * torch.randn(devices, generator=generator)
                currents[cycle, :, sample] = current.clamp_(min=-compliance_amperes)
        yield Sweeps(first + 1, volts, currents, features)


def with_failed_sets(table: Table, share: float, rng: np.random.Generator) -> Table:
    """A table of features in which a share of the SETs fails: the LRS is the HRS."""
    fails = rng.random(len(table["device"])) < share
    return table | {"lrs_ohms": np.where(fails, table["hrs_ohms"], table["lrs_ohms"])}


def matrix_text(table: Table) -> str:
    """A row a device without names, HRS and LRS in turn in kilohm, with decimal commas, below a comment."""
    lines = ["# HRS and LRS in turn, kOhm; one device a row; drawn from synaptogen, not measured"]
    for device in np.unique(table["device"]):
        own = table["device"] == device
        pairs = zip(table["hrs_ohms"][own], table["lrs_ohms"][own], strict=True)
        lines.append(";".join(f"{value / 1e3:.3g}".replace(".", ",") for pair in pairs for value in pair))
    return "\n".join([*lines, ""])


def analyser_text(table: Table) -> str:
    """Samples of sweeps below a preamble, each row with a word before it and its numbers after that."""
    lines = ["SetupTitle, I/V sweep, drawn from synaptogen, not measured", "PrimitiveTest, I/V, in V and A"]
    lines.append("DataName, Device, Cycle, V1, I1")
    columns = (table[name] for name in ("device", "cycle", "voltage_volts", "current_amperes"))
    lines += [f"DataValue, {d}, {c}, {u:.2f}, {i:.2e}" for d, c, u, i in zip(*columns, strict=True)]
    return "\n".join([*lines, ""])


def without_some(table: Table, share: float, rng: np.random.Generator) -> Table:
    """A table without a share of its cycles; in one of features, as many single values are missing as well."""
    changes = np.diff(table["device"], prepend=-1).astype(bool) | np.diff(table["cycle"], prepend=-1).astype(bool)
    cycle_of_row = np.cumsum(changes) - 1
    kept = (rng.random(cycle_of_row[-1] + 1) >= share)[cycle_of_row]
    table = {name: column[kept] for name, column in table.items()}
    for name in FEATURES:
        if name in table:
            table[name] = np.where(rng.random(kept.sum()) < share, np.nan, table[name])
    return table


def write(tables: Iterable[Table], path: Path) -> None:
    """One table below the other, as the suffix says: .csv, .parquet or .npz (which is put together in memory)."""
    if path.suffix == ".npz":
        parts = list(tables)
        np.savez(path, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        return
    open_writer = pyarrow.parquet.ParquetWriter if path.suffix == ".parquet" else pyarrow.csv.CSVWriter
    writer = None
    for table in map(pa.table, tables):
        writer = writer or open_writer(path, table.schema)
        writer.write_table(table)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--sweeps", action="store_true", help="samples of I-V sweeps, not features")
    parser.add_argument("--matrix", action="store_true", help="a device a row: its HRS and LRS in turn (.csv.gz)")
    parser.add_argument(
        "--analyser", action="store_true", help="samples of I-V sweeps as an instrument has them (.csv.gz)"
    )
    parser.add_argument("--failed-sets", type=float, default=0.0, help="share of the SETs that fail")
    parser.add_argument("--devices", type=int, default=128)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--cell", default="synaptogen", help="device model to draw from: a shipped name or a file")
    parser.add_argument("--missing", type=float, default=0.0, help="share of the cycles to leave out")
    parser.add_argument("--noise-amperes", type=float, default=1e-7, help="of each current of a sweep")
    parser.add_argument("--compliance-amperes", type=float, default=np.inf, help="of the negative half of a sweep")
    parser.add_argument("--step-volts", type=float, default=0.02, help="between the samples of a sweep")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device, seed = load_device(arguments.cell), arguments.seed
    tables: Iterable[Table]
    if arguments.sweeps or arguments.analyser:
        blocks = sweeps(
            device,
            arguments.devices,
            arguments.cycles,
            seed,
            volts=protocol(step_volts=arguments.step_volts),
            noise_amperes=arguments.noise_amperes,
            compliance_amperes=arguments.compliance_amperes,
        )
        tables = (block.table() for block in blocks)
        if arguments.analyser:
            text = analyser_text(next(iter(tables)))  # few sweeps are one block
            arguments.out.write_bytes(gzip.compress(text.encode(), mtime=0))
            return
    else:
        table = feature_table(device, arguments.devices, arguments.cycles, seed)
        if arguments.failed_sets:
            table = with_failed_sets(table, arguments.failed_sets, np.random.default_rng(seed))
        if arguments.matrix:
            arguments.out.write_bytes(gzip.compress(matrix_text(table).encode(), mtime=0))
            return
        tables = [table]
    if arguments.missing:
        rng = np.random.default_rng(seed)
        tables = (without_some(table, arguments.missing, rng) for table in tables)
    write(tables, arguments.out)


if __name__ == "__main__":
    main()
