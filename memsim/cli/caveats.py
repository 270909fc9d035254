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
    """Globs of the spec that match no layer of the checkpoint."""
    from memsim.cli.progress import warn
    from memsim.nn.plan import unmatched_globs

    for glob in unmatched_globs(plan, spec):
        warn(f"hardware {spec.name}: {glob}: matches no layer")


def warn_of_other_bits(plan: Plan, checkpoint: Checkpoint) -> None:
    """Layers that were trained for other weight bits than they get, or for none though others were."""
    from memsim.cli.progress import warn
    from memsim.mapping import trained_scales_of

    trained = trained_scales_of(checkpoint)
    other = [layer for layer in plan.mapped if trained.get(layer.name, (layer.tiling.bits,))[0] != layer.tiling.bits]
    if other:
        name, bits = other[0].name, other[0].tiling.bits
        warn(
            f"{counted(len(other), 'layer has', 'layers have')} other weight bits than they were trained for ({name}: "
            f"{bits}, not {trained[name][0]}): their scales are fitted anew"
        )
    untrained = [layer for layer in plan.mapped if trained and layer.name not in trained]
    if untrained:
        name, bits = untrained[0].name, untrained[0].tiling.bits
        warn(
            f"{counted(len(untrained), 'layer was', 'layers were')} trained in full precision ({name}: {bits} bits "
            "now): their scales are fitted; digital globs of the hardware keep layers off the arrays"
        )


def warn_of_disturbing_reads(plan: Plan, spec: HardwareSpec) -> None:
    """Read voltages that change the cells they read, with the fraction of the cells."""
    from memsim.cli.progress import warn
    from memsim.crossbar.disturb import disturb_risk

    specs = {spec.for_layer(layer.name) for layer in plan.mapped}
    risks = {risk for resolved in specs if (risk := disturb_risk(resolved)) is not None}
    for risk in sorted(risks, key=lambda risk: risk.volts):
        if not risk.is_negligible:
            ignored = "; read_disturb: none leaves that out" if spec.read_disturb is None else ""
            warn(
                f"hardware {spec.name}: a read at {risk.volts:g} V SETs {risk.hrs_set:.2%} of the HRS cells and moves "
                f"{risk.lrs_reset:.2%} of the LRS cells{ignored}; a lower dac.vmax_volts or dac.polarity: two_phase "
                "disturbs less"
            )


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
