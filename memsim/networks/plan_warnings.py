"""Warnings about a plan: globs that match nothing, reads that disturb cells, and bits that differ from training."""

from __future__ import annotations

from memsim.crossbar.disturb import disturb_risk
from memsim.hardware import HardwareSpec
from memsim.networks.programming import is_full_precision, stored_statistics, trained_scales_of
from memsim.nn.plan import Plan, fits_tiles, unmatched_globs
from memsim.storage.checkpoint import Checkpoint
from memsim.units import counted

FEW_BITS = 5
"""The bits of a weight up to which rounding to the nearest level may destroy a network (configs/models/README.md)."""


def plan_warnings(plan: Plan, spec: HardwareSpec, checkpoint: Checkpoint) -> list[str]:
    """Return all warnings about the plan of `checkpoint` on the chip `spec`, one line each."""
    return [*glob_warnings(plan, spec), *disturbance_warnings(plan, spec), *bits_warnings(plan, checkpoint)]


def glob_warnings(plan: Plan, spec: HardwareSpec) -> list[str]:
    """Return a warning for each glob of the spec that matches no layer."""
    return [f"hardware {spec.name}: {glob}: matches no layer" for glob in unmatched_globs(plan, spec)]


def disturbance_warnings(plan: Plan, spec: HardwareSpec) -> list[str]:
    """Return a warning for each read voltage that changes the cells it reads, with the fraction of the cells."""
    specs = {spec.for_layer(layer.name) for layer in plan.mapped}
    risks = {risk for resolved in specs if (risk := disturb_risk(resolved)) is not None}
    ignored = "; read_disturb: none leaves this out" if spec.read_disturb is None else ""
    return [
        f"hardware {spec.name}: a read at {risk.volts:g} V SETs {risk.hrs_set:.2%} of the HRS cells and moves "
        f"{risk.lrs_reset:.2%} of the LRS cells{ignored}; a lower dac.vmax_volts or dac.polarity: two_phase "
        "disturbs less"
        for risk in sorted(risks, key=lambda risk: risk.volts)
        if not risk.is_negligible
    ]


def bits_warnings(plan: Plan, checkpoint: Checkpoint) -> list[str]:
    """Return warnings about layers that get other weight bits or tiles than they were trained for, or had no training.

    A checkpoint that was trained in full precision has none.
    """
    trained = trained_scales_of(checkpoint)
    warnings = []
    known = [layer for layer in plan.mapped if layer.name in trained]
    other = [layer for layer in known if trained[layer.name].bits != layer.tiling.bits]
    if other:
        name, bits = other[0].name, other[0].tiling.bits
        warnings.append(
            f"{counted(len(other), 'layer has', 'layers have')} other weight bits than they were trained for ({name}: "
            f"{bits}, not {trained[name].bits}): their scales are fitted anew"
        )
    others = [layer for layer in known if layer not in other and not fits_tiles(layer, trained[layer.name])]
    if others:
        name, rows = others[0].name, others[0].spec.tile.rows
        warnings.append(
            f"{counted(len(others), 'layer has', 'layers have')} tiles of other rows than in training "
            f"({name}: {rows}, not {trained[name].tile_rows}): their scales are fitted anew"
        )
    untrained = [layer for layer in plan.mapped if trained and layer.name not in trained]
    if untrained:
        name, bits = untrained[0].name, untrained[0].tiling.bits
        warnings.append(
            f"{counted(len(untrained), 'layer was', 'layers were')} trained in full precision ({name}: {bits} bits "
            "now): their scales are fitted; digital globs of the hardware keep layers off the arrays"
        )
    return warnings


def rounding_warnings(plan: Plan, checkpoint: Checkpoint) -> list[str]:
    """Return a warning where weights of full precision are to be rounded to few bits, though data could fit them.

    A checkpoint of memsim's own, which holds statistics of its inputs, has none.
    """
    few = [layer for layer in plan.mapped if layer.tiling.bits <= FEW_BITS]
    can_run = "architecture" in checkpoint.metadata and checkpoint.kind == "model"
    if not few or not can_run or not is_full_precision(checkpoint) or stored_statistics(checkpoint):
        return []
    return [
        f"weights of {counted(len(few), 'layer')} are rounded to {FEW_BITS} bits or fewer, which can destroy a "
        "network: with --calibrate DATA they are fitted to its inputs, for which some utterances are enough; "
        "--mapping nearest says that rounding is meant"
    ]
