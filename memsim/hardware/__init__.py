"""The hardware spec: a chip as data, from cells to converters.

    spec = load_hardware("physical")                                # a shipped name, a YAML file, or a mapping
    spec = apply_settings(spec, ["adc.bits=6", "read_noise=none"])  # as --set does
    spec.for_layer("encoder.0.linear_pos").adc                      # with the overrides of that layer

The defaults of every section are those of the shipped spec `physical`; `configs/hardware/physical.yaml` has them with a
comment for each key.
"""

from memsim.hardware.sections import (
    OVERRIDABLE,
    Adc,
    AdcImperfections,
    Analog,
    BinaryPlanes,
    CalibratedAdc,
    Cost,
    Cycling,
    Dac,
    Faults,
    FixedAdc,
    IncrementalReset,
    Multilevel,
    Noise,
    Percentile,
    Programming,
    ReadNoise,
    Retention,
    Scheme,
    SinglePulse,
    Tile,
    Verify,
    VerifyAdc,
    Weights,
    Wires,
    WriteVerify,
)
from memsim.hardware.spec import EFFECTS, HardwareSpec, apply_settings, effect_label, load_hardware

__all__ = [
    "EFFECTS",
    "OVERRIDABLE",
    "Adc",
    "AdcImperfections",
    "Analog",
    "BinaryPlanes",
    "CalibratedAdc",
    "Cost",
    "Cycling",
    "Dac",
    "Faults",
    "FixedAdc",
    "HardwareSpec",
    "IncrementalReset",
    "Multilevel",
    "Noise",
    "Percentile",
    "Programming",
    "ReadNoise",
    "Retention",
    "Scheme",
    "SinglePulse",
    "Tile",
    "Verify",
    "VerifyAdc",
    "Weights",
    "Wires",
    "WriteVerify",
    "apply_settings",
    "effect_label",
    "load_hardware",
]
