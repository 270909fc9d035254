"""What commands say beside their results: prefixes of names, parts of a spec that do nothing or do harm, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.units import counted

if TYPE_CHECKING:
    from memsim.asr.corpora import Corpus
    from memsim.evaluation.result import Evaluation
    from memsim.nn.plan import Plan
    from memsim.spec import HardwareSpec
    from memsim.storage.checkpoint import Checkpoint

MOST_CLIPPED = 0.05
"""A layer that clips more of its conversions multiplies by something else than its matrix."""


def say_of_prefixes(checkpoint: Checkpoint) -> None:
    """The prefixes that wrappers of the network have left in the file, and that are left out."""
    from memsim.cli.progress import say

    if (note := checkpoint.prefix_note) is not None:
        say(note)


def warn_of_globs(plan: Plan, spec: HardwareSpec) -> None:
    """Warn of globs of the spec that match no layer of the checkpoint."""
    from memsim.cli.progress import warn
    from memsim.networks.plan_warnings import glob_warnings

    for message in glob_warnings(plan, spec):
        warn(message)


def warn_of_other_bits(plan: Plan, checkpoint: Checkpoint) -> None:
    """Warn of layers that were trained for other weight bits than they get, or for none though others were."""
    from memsim.cli.progress import warn
    from memsim.networks.plan_warnings import bits_warnings

    for message in bits_warnings(plan, checkpoint):
        warn(message)


def warn_of_disturbing_reads(plan: Plan, spec: HardwareSpec) -> None:
    """Warn of read voltages that change the cells they read."""
    from memsim.cli.progress import warn
    from memsim.networks.plan_warnings import disturbance_warnings

    for message in disturbance_warnings(plan, spec):
        warn(message)


def warn_of_transcripts(corpus: Corpus) -> None:
    """What a recogniser cannot write, as `with_unwritable` found it, and what was made simpler than it is."""
    from memsim.cli.progress import warn

    for message in corpus.warnings():
        warn(message)


def warn_of_clipping(result: Evaluation) -> None:
    """Layers whose converters clip many conversions, which the rate over all layers hides."""
    from memsim.cli.progress import warn
    from memsim.spec import FixedAdc

    for kind, layers in result.clipped_beyond(MOST_CLIPPED).items():
        (name, rate), *more = layers.items()
        others = f" ({counted(len(more), 'more layer')} above {MOST_CLIPPED:.0%})" if more else ""
        remedy = "dac.method: max and calibration on such data have room for them"
        if kind == "adc":
            adc = result.spec.for_layer(name).adc
            wider = f"more than adc.range_bits {adc.range_bits}" if isinstance(adc, FixedAdc) else "adc.method: max"
            remedy = f"{wider} has room for them, under `overrides` in some layers alone"
        warn(f"{name}: {rate:.1%} of the {kind.upper()}'s conversions are beyond full scale{others}; {remedy}")
