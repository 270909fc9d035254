"""The placement of matrices on the cores of chips, and the bytes that it sends through the network and over links.

Arrays are taken core after core and chip after chip, in the order of the network. Arrays that share ADCs (a pair and
its copies) stay together; all slices and row tiles of a column tile follow each other, so that their sums stay in a
core where they can. The cores of a chip are a grid, filled row by row, with its digital part in the middle, from which
every input vector comes and to which every result goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from memsim.chip.architecture import Chip
from memsim.chip.workload import MatrixWork
from memsim.errors import InputError
from memsim.units import counted


@dataclass(frozen=True)
class CoreShare:
    """The part of a matrix that one core holds: arrays, and the rows and columns of the matrix on them."""

    core: int
    arrays: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Traffic:
    """The bytes that an input vector of a matrix causes: times hops in networks, and times links between chips."""

    byte_hops: float
    link_bytes: float
    most_bytes_of_core: float
    hops: int  # of the longest way in and out
    links: int


@dataclass(frozen=True)
class PlacedMatrix:
    """A matrix with the cores of each of its replicas."""

    work: MatrixWork
    replicas: tuple[tuple[CoreShare, ...], ...]

    @property
    def arrays(self) -> int:
        """The arrays of all replicas."""
        return len(self.replicas) * self.work.tiling.tiles

    @property
    def home(self) -> int:
        """The core in which the first replica adds up its results."""
        return self.replicas[0][0].core


@dataclass(frozen=True)
class Placement:
    """Matrices on chips. Cores are numbered through all chips."""

    chip: Chip
    matrices: tuple[PlacedMatrix, ...]

    @cached_property
    def by_name(self) -> dict[str, PlacedMatrix]:
        """The matrices by name."""
        return {placed.work.name: placed for placed in self.matrices}

    @cached_property
    def _before(self) -> dict[str, PlacedMatrix]:
        """The matrix before each; the first is before itself."""
        return {
            own.work.name: before for before, own in zip(self.matrices[:1] + self.matrices, self.matrices, strict=False)
        }

    @property
    def arrays(self) -> int:
        """The arrays that hold weights."""
        return sum(placed.arrays for placed in self.matrices)

    @property
    def cores(self) -> int:
        """The cores in use."""
        return 1 + max((share.core for p in self.matrices for shares in p.replicas for share in shares), default=-1)

    @property
    def chips(self) -> int:
        """The chips in use; at least one."""
        return max(1, math.ceil(self.cores / self.chip.cores))

    @property
    def array_utilisation(self) -> float:
        """The fraction of the arrays of the cores in use that hold weights."""
        return self.arrays / max(1, self.cores * self.chip.core.arrays)

    @property
    def cell_utilisation(self) -> float:
        """The fraction of the cells of arrays in use that hold a weight."""
        cells = sum(p.arrays * p.work.tiling.rows * p.work.tiling.cols for p in self.matrices)
        used = math.fsum(
            p.arrays * p.work.tiling.rows * p.work.tiling.cols * p.work.tiling.utilisation for p in self.matrices
        )
        return used / cells if cells else 0.0

    def traffic(self, placed: PlacedMatrix) -> Traffic:
        """Return the bytes for an input vector, the mean over replicas."""
        return self._traffics[placed.work.name]

    @cached_property
    def _traffics(self) -> dict[str, Traffic]:
        return {placed.work.name: self._mean_traffic(placed) for placed in self.matrices}

    def _mean_traffic(self, placed: PlacedMatrix) -> Traffic:
        parts = [self._of_replica(placed.work, shares) for shares in placed.replicas]
        count = len(parts)
        return Traffic(
            math.fsum(part.byte_hops for part in parts) / count,
            math.fsum(part.link_bytes for part in parts) / count,
            max(part.most_bytes_of_core for part in parts),
            max(part.hops for part in parts),
            max(part.links for part in parts),
        )

    def crossing_bytes(self, placed: PlacedMatrix) -> float:
        """Return the bytes that cross from chip to chip to bring an input vector to the home chip of its matrix."""
        before = self._before[placed.work.name]
        links = abs(self._place(before.home)[0] - self._place(placed.home)[0])
        return links * placed.work.inputs * placed.work.input_bytes

    def link_bytes(self, placed: PlacedMatrix) -> float:
        """Return the bytes over links for an input vector, those within the matrix included."""
        return self.crossing_bytes(placed) + self.traffic(placed).link_bytes

    def _place(self, core: int) -> tuple[int, int, int]:
        """Return the chip, the row and the column of a core."""
        chip, own = divmod(core, self.chip.cores)
        side = math.ceil(math.sqrt(self.chip.cores))
        return chip, own // side, own % side

    def _hops(self, core: int, other: int | None) -> int:
        """Return the hops between two cores of a chip, or from a core to the digital part (None)."""
        _, row, column = self._place(core)
        if other is None:
            side = math.ceil(math.sqrt(self.chip.cores))
            to = (math.ceil(self.chip.cores / side) // 2, side // 2)
        else:
            to = self._place(other)[1:]
        return abs(row - to[0]) + abs(column - to[1])

    def _of_replica(self, work: MatrixWork, shares: tuple[CoreShare, ...]) -> Traffic:
        home, byte_hops, link_bytes, most, hops, links = shares[0].core, 0.0, 0.0, 0.0, 0, 0
        for share in shares:
            inputs, away = share.rows * work.input_bytes, abs(self._place(share.core)[0] - self._place(home)[0])
            sums = 0 if share.core == home else share.columns * work.sum_bytes
            way = self._hops(share.core, None)
            byte_hops += inputs * way
            if away:  # to the digital part of its chip, over links, to the home chip
                byte_hops += sums * (way + self._hops(home, None))
                link_bytes += away * (inputs + sums)
            elif sums:
                byte_hops += sums * self._hops(share.core, home)
            most, hops, links = max(most, inputs + sums), max(hops, way), max(links, away)
        byte_hops += work.outputs * work.input_bytes * self._hops(home, None)
        return Traffic(byte_hops, link_bytes, most, hops + self._hops(home, None), links)


class _Filler:
    """Cores that are filled one after the other."""

    def __init__(self, arrays_per_core: int) -> None:
        self.core, self.free, self._size = 0, arrays_per_core, arrays_per_core

    def take(self, arrays: int) -> int:
        """Return the core of `arrays` that stay together."""
        if arrays > self.free:
            self.core, self.free = self.core + 1, self._size
        self.free -= arrays
        return self.core


def place(chip: Chip, matrices: Iterable[MatrixWork], replicas: Mapping[str, int] | None = None) -> Placement:
    """Place `matrices` with the number of `replicas` of each, by default one.

    Raises InputError where a core is too small.
    """
    filler, placed = _Filler(chip.core.arrays), []
    for work in matrices:
        together = 2 * work.tiling.copies
        if together > chip.core.arrays:
            raise InputError(
                f"chip {chip.name}: a core has {counted(chip.core.arrays, 'array')}, but {work.name} needs {together} "
                f"that share ADCs (a pair of {counted(work.tiling.copies, 'copy', 'copies')}); more core.arrays, or "
                "fewer weights.copies"
            )
        copies = tuple(_shares(work, filler) for _ in range((replicas or {}).get(work.name, 1)))
        placed.append(PlacedMatrix(work, copies))
    return Placement(chip, tuple(placed))


def _shares(work: MatrixWork, filler: _Filler) -> tuple[CoreShare, ...]:
    """Place one replica of a matrix."""
    tiling, together = work.tiling, 2 * work.tiling.copies
    arrays: dict[int, int] = {}
    rows: dict[int, dict[tuple[int, int], int]] = {}
    columns: dict[int, dict[tuple[int, int], int]] = {}
    for index, (pack, inputs, outputs) in enumerate(tiling.all_packs()):
        width, height = inputs.stop - inputs.start, outputs.stop - outputs.start
        for col_tile in range(-(-height // pack.cols)):
            for row_tile in range(-(-width // pack.rows)):
                for _ in range(tiling.slices):
                    core = filler.take(together)
                    arrays[core] = arrays.get(core, 0) + together
                    rows.setdefault(core, {})[index, row_tile] = min(pack.rows, width - row_tile * pack.rows)
                    columns.setdefault(core, {})[index, col_tile] = min(pack.cols, height - col_tile * pack.cols)
    return tuple(CoreShare(c, arrays[c], sum(rows[c].values()), sum(columns[c].values())) for c in arrays)
