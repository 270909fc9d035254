"""`make bench`: tables and JSON of speeds, as ratios to nn.Linear in the same run where that says more than seconds.

    python -m tests.benchmarks [TABLE...] [--json FILE]

Machines are shared and noisy: runs are interleaved and medians are taken. Threads: OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import cuda
from tests.benchmarks.models import MANY_LAYERS, PAPER_SIZE
from tests.benchmarks.peers import PROGRAMMING_OF_PEERS, READS_OF_PEERS
from tests.benchmarks.programming import PROGRAMMING
from tests.benchmarks.reads import FEW_FRAMES, READS
from tests.benchmarks.scaling import SCALING
from tests.benchmarks.timing import Benchmark, Row
from tests.benchmarks.training import TRAINING
from tests.benchmarks.wires import WIRES

TABLES = {
    "reads": READS,
    "wires": WIRES,
    "few_frames": FEW_FRAMES,
    "programming": PROGRAMMING,
    "paper_size": PAPER_SIZE,
    "many_layers": MANY_LAYERS,
    "scaling": SCALING,
    **{f"cuda_{name}": table for name, table in cuda.TABLES.items()},
    "training": TRAINING,
    "peer_reads": READS_OF_PEERS,
    "peer_programming": PROGRAMMING_OF_PEERS,
}


def shown(benchmark: Benchmark, rows: list[Row]) -> Table:
    table = Table(title=f"{benchmark.title} ({torch.get_num_threads()} threads)", title_justify="left")
    for column in benchmark.columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(text(row.get(column), format_) for column, format_ in benchmark.columns.items()))
    return table


def text(value: object, format_: str) -> str:
    """A cell of a table; lists are spaced, None is empty."""
    if isinstance(value, list | tuple):
        return " ".join(format(part, format_) for part in value)
    return "" if value is None else format(value, format_)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="memsim's speed")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of all tables there")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.tables) - set(TABLES)):
        parser.error(f"no table {unknown[0]} (there are: {', '.join(TABLES)})")
    console, results = Console(width=120), {}
    for name in arguments.tables or TABLES:
        results[name] = list(TABLES[name].rows())
        console.print(shown(TABLES[name], results[name]))
    text = json.dumps(results)
    if arguments.json:
        arguments.json.write_text(f"{text}\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
