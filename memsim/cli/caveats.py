"""What commands say beside their results: prefixes of names, parts of a spec that do nothing or do harm, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.units import counted

if TYPE_CHECKING:
    from memsim.asr.corpora import Corpus
    from memsim.nn.plan import Plan
    from memsim.spec import HardwareSpec
    from memsim.storage.checkpoint import Checkpoint


def say_of_prefixes(checkpoint: Checkpoint) -> None:
    """The prefixes that wrappers of the network have left in the file, and that are left out."""
    from memsim.cli.progress import say

    if (wrapped := checkpoint.wrapped_by) is not None:
        say(f"{checkpoint.path.name}: names of its tensors have the prefix {wrapped}, which is left out")


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

    where = f"{corpus.name} {corpus.split}"
    if corpus.unwritable is not None:
        warn(f"{where}: {corpus.unwritable}")
    if corpus.simplified:
        marks = counted(corpus.simplified, "alternative or optional word", "alternatives and optional words")
        warn(f"{where}: {marks} in the transcripts: the first alternative and every optional word counts as said")
