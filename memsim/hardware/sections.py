"""The sections of a hardware spec and their bounds.

The defaults are those of the shipped spec `physical`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_serializer, model_validator
from pydantic.types import Strict

from memsim.config.schema import Section, Within, kind_of, problem

Percentile = Annotated[float, Within(above=50, high=100)]
Names = Annotated[tuple[str, ...], Strict(False)]  # a YAML list, kept as an immutable tuple


class Tile(Section):
    """The size of one crossbar array: `rows` word lines (inputs) by `cols` bit lines (outputs).

    With `packing: diagonal`, several groups of a convolution share a tile on its diagonal; with `separate`, each group
    has its own tiles.
    """

    rows: Annotated[int, Within(1, 65536)] = 128
    cols: Annotated[int, Within(1, 65536)] = 128
    packing: Literal["diagonal", "separate"] = "diagonal"


class Weights(Section):
    """The keys of every encoding of weights as cells."""

    bits: Annotated[int, Within(2, 16)] | None = None  # None: the checkpoint's own, else 8
    scale: Literal["per_channel", "per_tensor", "per_tile"] = "per_channel"
    scale_method: Literal["mse", "minmax"] = "mse"
    copies: Annotated[int, Within(1, 1024)] = 1


class BinaryPlanes(Weights):
    """The encoding with a pair of two-level cells for each bit of the magnitude."""

    encoding: Literal["binary_planes"] = "binary_planes"

    @property
    def cell_bits(self) -> int:
        """The bits that a cell holds."""
        return 1


class Multilevel(Weights):
    """The encoding with a pair of cells of 2^cell_bits levels for each `cell_bits` bits of the magnitude."""

    encoding: Literal["multilevel"]
    cell_bits: Annotated[int, Within(1, 4)] = 2


class Analog(Weights):
    """The encoding of a whole weight as the difference of two conductances, one of which is that of 0."""

    encoding: Literal["analog"]

    @property
    def cell_bits(self) -> int:
        """The bits that a cell holds: the whole magnitude; at least 1 where the weight bits are open."""
        return 1 if self.bits is None else self.bits - 1


Encoding = Annotated[
    Annotated[BinaryPlanes, Tag("BinaryPlanes")]
    | Annotated[Multilevel, Tag("Multilevel")]
    | Annotated[Analog, Tag("Analog")],
    kind_of("encoding", BinaryPlanes, Multilevel, Analog),
]


class Dac(Section):
    """The conversion of an input to a row voltage.

    `method` chooses the input at full scale from the calibration inputs.
    """

    bits: Annotated[int, Within(2, 12)] | None = 8  # None: voltages are not quantised
    vmax_volts: Annotated[float, Within(above=0, high=2)] = 0.4
    transfer: Literal["uniform", "linearised"] = "uniform"
    level_grid: Literal["programmable", "uniform"] = "programmable"  # for transfer linearised
    polarity: Literal["signed", "two_phase"] = "signed"
    slice_bits: Annotated[int, Within(1, 11)] | None = None  # None: all at once
    range: Literal["per_layer", "per_vector"] = "per_layer"
    method: Literal["percentile", "max", "mse"] = "percentile"  # for range per_layer
    percentile: Percentile = 99.99  # for method percentile

    @model_validator(mode="after")
    def _levels_need_bits(self) -> Dac:
        if self.bits is None and self.transfer == "linearised":
            raise problem("linearised chooses the voltage of each code; give dac.bits", key="transfer")
        if self.slice_bits is not None and (self.bits is None or self.slice_bits >= self.bits):
            magnitude = (
                "an input is not quantised" if self.bits is None else f"an input has {self.bits - 1}, and a sign"
            )
            raise problem(f"{self.slice_bits} bits per slice, but {magnitude}", key="slice_bits")
        return self


class AdcImperfections(Section):
    """The errors of real converters: of gain and offset (standard deviations over columns) and of linearity."""

    gain_error: Annotated[float, Within(0, 1)] = 0.0
    offset_error_codes: Annotated[float, Within(0, 1000)] = 0.0
    nonlinearity_codes: Annotated[float, Within(-100, 100)] = 0.0  # largest deviation from the straight line


class CalibratedAdc(AdcImperfections):
    """An ADC whose full scale is chosen by calibration, for each layer, plane or tile."""

    wider: ClassVar[str] = "adc.method: max"
    """The change of the spec that gives the ADC a larger full scale."""

    range: Literal["calibrated"] = "calibrated"
    bits: Annotated[int, Within(2, 16)] = 8
    granularity: Literal["layer", "plane", "tile"] = "plane"
    method: Literal["percentile", "max", "mse"] = "percentile"
    percentile: Percentile = 99.99  # for method percentile


class FixedAdc(AdcImperfections):
    """An ADC with steps of 2^-precision_bits and a range of +-2^(range_bits - 1), as in arXiv 2505.24721.

    Both are in units of (weight 1 x full-scale input).
    """

    range: Literal["fixed"]
    precision_bits: Annotated[int, Within(-8, 16)]
    range_bits: Annotated[int, Within(-8, 16)]

    @model_validator(mode="after")
    def _has_a_bit(self) -> FixedAdc:
        if self.bits < 1:
            raise problem(f"precision_bits + range_bits is {self.bits}: an ADC needs at least 1 bit", key="range_bits")
        return self

    @property
    def bits(self) -> int:
        """The bits of the ADC, sign included."""
        return self.precision_bits + self.range_bits

    @property
    def wider(self) -> str:
        """The change of the spec that gives the ADC a larger full scale."""
        return f"more than adc.range_bits {self.range_bits}"


Adc = Annotated[
    Annotated[CalibratedAdc, Tag("CalibratedAdc")] | Annotated[FixedAdc, Tag("FixedAdc")],
    kind_of("range", CalibratedAdc, FixedAdc),
]


class Cycling(Section):
    """Random switching before programming, as in arXiv 2505.24721.

    Each pulse is one voltage, drawn from U(-vmax, vmax), for the whole tile.
    """

    rounds: Annotated[int, Within(1, 1000)] = 1
    pulses_per_round: Annotated[int, Within(1, 100_000)] = 50
    vmax_volts: Annotated[float, Within(above=0, high=5)] = 2.0


Fraction = Annotated[float, Within(0, 1)]


class Faults(Section):
    """The fractions of stuck cells and of dead lines."""

    stuck_lrs: Fraction = 0.0
    stuck_hrs: Fraction = 0.0
    dead_rows: Fraction = 0.0
    dead_cols: Fraction = 0.0

    @model_validator(mode="after")
    def _a_cell_is_stuck_once(self) -> Faults:
        if self.stuck_lrs + self.stuck_hrs > 1:
            raise problem("together with stuck_lrs, more than all cells are stuck", key="stuck_hrs")
        return self


class Retention(Section):
    """A law of drift until the reads, at `read_at_seconds`, which is not fitted to measurements.

    `age_seconds` is an older place of that time.
    """

    age_seconds: Annotated[float, Within(low=0)] | None = None
    exponent: Annotated[float, Within(0, 1)] = 0.005
    exponent_std: Annotated[float, Within(0, 1)] = 0.0
    reference_seconds: Annotated[float, Within(above=0)] = 1.0


class Wires(Section):
    """Line resistance: `ohms` of each segment, from a driver to the first cell, from cell to cell, and to ground.

    `nodal` solves for the IR drop of every read; `effective` predicts it with matrices, 100 times as fast, to about
    0.1 % of full scale.
    """

    ohms: Annotated[float, Within(above=0, high=100)]
    solve: Literal["nodal", "effective"] = "nodal"


class Noise(Section):
    """Johnson and shot noise; the scales multiply the standard deviations, and 1 is the physical value."""

    bandwidth_hz: Annotated[float, Within(above=0)] = 1.0e8
    temperature_kelvin: Annotated[float, Within(low=0)] = 300.0
    shot_scale: Annotated[float, Within(low=0)] = 1.0
    johnson_scale: Annotated[float, Within(low=0)] = 1.0


class ReadNoise(Noise):
    """The noise of the reads that compute products."""

    variance_product: Literal["float32", "bfloat16"] = "float32"  # bfloat16 approximates, for speed


class VerifyAdc(Section):
    """The ADC of verify reads; `full_scale` is a fraction of the mean LRS current, at which larger currents clip."""

    bits: Annotated[int, Within(2, 16)] = 8
    full_scale: Annotated[float, Within(1.25, 10)] = 1.5


class Verify(Section):
    """The measurement of a single cell by a programmer."""

    read_volts: Annotated[float, Within(above=0, high=1)] = 0.3
    read_seconds: Annotated[float, Within(above=0)] = 1.0e-7
    noise: Noise | None = Noise()
    adc: VerifyAdc | None = None


class Programming(Section):
    """The keys of every programming scheme.

    `relaxation` is the standard deviation of the change of a cell's current after programming, as a fraction of the
    current, or the name or file of a device whose law of relaxation holds for these cells, too; the data that the
    shipped cycles were fitted to do not contain it. `exact` gives every cell the mean state of its level, which shows
    the effect of the spread.
    """

    set_volts: Annotated[float, Within(low=-5, below=0)] = -2.0
    reset_volts: Annotated[float, Within(above=0, high=5)] = 2.0
    pulse_seconds: Annotated[float, Within(above=0)] = 1.0e-6
    history: Literal["stationary", "zero"] = "stationary"
    relaxation: Annotated[float, Within(above=0, high=0.5)] | Annotated[str, Field(min_length=1)] | None = None
    exact: bool = False


class SinglePulse(Programming):
    """The scheme of a RESET of all cells and one SET pulse to those that hold a 1, without verify."""

    scheme: Literal["single_pulse"] = "single_pulse"
    verify: ClassVar[None] = None
    cycling: Cycling | None = None


class WriteVerify(Programming):
    """The scheme that cycles a cell again while its current is outside the tolerance, at most `tries` times in all.

    The target is the mean current of the cell's level. `tolerance` is a fraction of the mean LRS current.
    """

    scheme: Literal["write_verify"]
    verify: Verify = Verify()
    tolerance: Annotated[float, Within(above=0, high=1)] = 0.03
    tries: Annotated[int, Within(1, 100)] = 10


class IncrementalReset(Programming):
    """The scheme of a SET and rising partial-RESET pulses, each verified, until a cell is at its target.

    A cell that ends outside the tolerance is cycled and tried again. Levels and tolerance are fractions of the mean LRS
    current at the verify voltage.
    """

    scheme: Literal["incremental_reset"]
    verify: Verify = Verify()
    start_volts: Annotated[float, Within(above=0, high=2)] = 0.6
    step_volts: Annotated[float, Within(low=1.0e-4, high=1)] = 0.005
    stop_volts: Annotated[float, Within(above=0, high=2)] = 1.45
    low_level: Annotated[float, Within(low=0, high=1)] = 0.2
    high_level: Annotated[float, Within(low=0, high=1.25)] = 0.85
    tolerance: Annotated[float, Within(above=0, high=1)] = 0.015
    retries: Annotated[int, Within(0, 20)] = 3

    @model_validator(mode="after")
    def _rises(self) -> IncrementalReset:
        if self.start_volts > self.stop_volts:
            raise problem(f"{self.stop_volts} is below start_volts ({self.start_volts})", key="stop_volts")
        if self.low_level >= self.high_level:
            raise problem(f"{self.low_level} is not below high_level ({self.high_level})", key="low_level")
        return self


Scheme = Annotated[
    Annotated[SinglePulse, Tag("SinglePulse")]
    | Annotated[WriteVerify, Tag("WriteVerify")]
    | Annotated[IncrementalReset, Tag("IncrementalReset")],
    kind_of("scheme", SinglePulse, WriteVerify, IncrementalReset),
]


Amount = Annotated[float, Within(low=0)]
Joules = Literal["simulated"] | Amount


class DacCost(Section):
    """The cost of a row's DAC, where b bits have 2^b steps, and of its driver, which takes `driver_joules` a pulse."""

    joules_per_step: Amount = 1.1e-15
    driver_joules: Amount = 3.9e-13
    seconds: Amount = 1.0e-9
    square_micrometres_per_step: Amount = 1.7
    arrays_per_dac: Annotated[int, Within(1, 65536)] = 1  # arrays with the same input


class AdcCost(Section):
    """The cost of an ADC, where b bits take 2^b steps, and which `columns_per_adc` columns share in turns."""

    joules_per_step: Amount = 1.0e-14
    seconds: Amount = 8.3e-10
    square_micrometres: Amount = 1500.0
    columns_per_adc: Annotated[int, Within(1, 65536)] = 128


class CellCost(Section):
    """The cost of a cell and of a pulse on it; `simulated` energy is current x voltage x time of the simulated cell."""

    read_joules: Joules = "simulated"
    read_seconds: Amount = 1.0e-7
    write_joules: Joules = "simulated"  # for pulses of programming.pulse_seconds
    square_micrometres: Amount = 0.077


class Cost(Section):
    """Estimates of energy, time and area of the circuits, which change no result.

    configs/hardware/physical.yaml has their sources.
    """

    dac: DacCost = DacCost()
    adc: AdcCost = AdcCost()
    cell: CellCost = CellCost()
    audio_seconds_per_programming: Annotated[float, Within(above=0)] = 86400.0


Gain = Literal["calibrated"] | Annotated[float, Within(above=0)]


class Override(Section):
    """The keys that differ in the layers that `match`; a section names only the keys that change."""

    match: Annotated[str, Field(min_length=1)]
    weights: dict[str, Any] | None = None
    dac: dict[str, Any] | None = None
    adc: dict[str, Any] | None = None
    gain_per_ampere: Gain = "calibrated"
    programming: dict[str, Any] | None = None
    read_noise: dict[str, Any] | None = None

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in type(self).model_fields if key in self.model_fields_set}


OVERRIDABLE = tuple(key for key in Override.model_fields if key != "match")
"""The sections and keys that an override may change."""
