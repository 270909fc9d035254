"""The cost of a network on a whole chip, from the operations of a run in which they are counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from memsim.chip.architecture import DEFAULT_CHIP, Chip, load_chip, require_chip
from memsim.chip.chip_cost import ChipCost
from memsim.chip.workload import workload_of
from memsim.errors import naming
from memsim.hardware import HardwareSpec
from memsim.nn.layer_cost import LayerCost
from memsim.nn.plan import DigitalLayer, MappedLayer
from memsim.nn.sample_run import SampleRun


def chip_of(spec: HardwareSpec) -> Chip:
    """Load the chip that `spec` names, `isaac` where it names none. Raises InputError where it cannot be read."""
    name = spec.chip or DEFAULT_CHIP
    with naming("chip"):
        require_chip(name)
    return load_chip(name)


def whole_chip(
    sample: SampleRun,
    chip: Chip,
    mapped: Iterable[MappedLayer],
    digital: Iterable[DigitalLayer],
    costs: Iterable[LayerCost],
    vectors: Mapping[str, float] | None = None,
) -> ChipCost:
    """Estimate the cost of a network on `chip`.

    Args:
        sample: the run of the network, mapped or not, whose work is counted.
        chip: the architecture.
        mapped: the layers on arrays.
        digital: the layers that stay digital.
        costs: the costs of the layers on arrays, which hold the energy of their cells.
        vectors: the input vectors of each matrix for a unit of the sample, where they have been counted.
    """
    vectors = sample.vectors() if vectors is None else vectors
    amount = sample.amount
    return ChipCost.of(chip, workload_of(sample.operations(), vectors, amount, mapped, digital, costs, sample.per))
