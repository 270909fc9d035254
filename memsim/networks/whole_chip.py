"""The cost of a recogniser on a whole chip, from the operations of one utterance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from memsim.asr.input_rates import RATE_SECONDS, operations_of, vectors_per_audio_second
from memsim.asr.recogniser import Recogniser
from memsim.chip.architecture import DEFAULT_CHIP, Chip, load_chip
from memsim.chip.chip_cost import ChipCost
from memsim.chip.workload import workload_of
from memsim.hardware import HardwareSpec
from memsim.nn.layer_cost import LayerCost
from memsim.nn.plan import DigitalLayer, MappedLayer


def chip_of(spec: HardwareSpec) -> Chip:
    """Load the chip that `spec` names, `isaac` where it names none. Raises InputError where it cannot be read."""
    return load_chip(spec.chip or DEFAULT_CHIP)


def whole_chip(
    recogniser: Recogniser,
    chip: Chip,
    mapped: Iterable[MappedLayer],
    digital: Iterable[DigitalLayer],
    costs: Iterable[LayerCost],
    rates: Mapping[str, float] | None = None,
) -> ChipCost:
    """Estimate the cost of `recogniser` on `chip`, for an utterance of RATE_SECONDS.

    Args:
        recogniser: the network, mapped or not, which is run on that utterance.
        chip: the architecture.
        mapped: the layers on arrays.
        digital: the layers that stay digital.
        costs: the costs of the layers on arrays, which hold the energy of their cells.
        rates: the input vectors of each matrix in a second of audio, where they have been counted.
    """
    if rates is None:
        rates = vectors_per_audio_second(recogniser)
    return ChipCost.of(chip, workload_of(operations_of(recogniser), rates, RATE_SECONDS, mapped, digital, costs))
