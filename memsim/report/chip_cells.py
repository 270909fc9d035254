"""Cells and sentences on whole chips, from results as `--json` writes them, for consoles and pages alike."""

from __future__ import annotations

from memsim.report.cells import UNITS, Result
from memsim.units import counted, si

NAMES = {
    "dac": "DACs and drivers",
    "adc": "ADCs",
    "cells": "cells",
    "sums": "sums, scales, activations",
    "buffers": "buffers of cores",
    "network": "network",
    "links": "links between chips",
    "products": "digital products",
    "operations": "digital operations",
    "memory": "memory of digital parts",
    "dram": "DRAM",
    "leakage": "leakage",
}
"""The circuits in words."""


def unit_of(chip: Result) -> str:
    """Return the unit that the estimate is for: a second of audio, or an example."""
    return "example" if "examples" in chip else "audio_second"


def interval_text(value: Result, unit: str) -> str:
    """Return `25.0 µJ (10.6 µJ to 91.6 µJ)`."""
    return f"{si(value['nominal'], unit)} ({si(value['low'], unit)} to {si(value['high'], unit)})"


def area_text(value: Result) -> str:
    """Return an area and its interval."""
    return f"{value['nominal']:.3g} mm² ({value['low']:.3g} to {value['high']:.3g})"


def chip_head(chip: Result) -> list[str]:
    """Return the titles of the columns of `chip_rows`."""
    return [
        f"whole chip, {UNITS[unit_of(chip)]}",
        chip["name"],
        *(f"int{other['bits']} digital" for other in chip["digital"]),
    ]


def chip_rows(chip: Result) -> list[list[str]]:
    """Return the energy of each circuit on the chip and on the digital alternatives; of `all` with intervals last."""
    columns = [chip["joules_by_circuit"], *(other["joules_by_circuit"] for other in chip["digital"])]
    rows = []
    for circuit, name in NAMES.items():
        values = [column.get(circuit) for column in columns]
        if any(values):
            rows.append([name, *("" if value is None else si(value, "J") for value in values)])
    sides = [chip, *chip["digital"]]
    return [
        *rows,
        ["all", *(si(side["joules"]["nominal"], "J") for side in sides)],
        *([end, *(si(side["joules"][end.split()[0]], "J") for side in sides)] for end in ("low prices", "high prices")),
        ["mm²", *(f"{side['square_millimetres']['nominal']:.3g}" for side in sides)],
        _times_row(chip),
    ]


def _times_row(chip: Result) -> list[str]:
    """Return the time of a unit on each side."""
    if unit_of(chip) == "example":
        own, others = chip["schedule"]["seconds_per_example"]["1"], [o["seconds_per_example"] for o in chip["digital"]]
        return ["time", *(si(seconds, "s") for seconds in (own, *others))]
    factors = [chip["schedule"]["real_time_factor"]["1"], *(other["real_time_factor"] for other in chip["digital"])]
    return ["real-time factor", *(f"{factor:.2g}" for factor in factors)]


def verdict_text(chip: Result) -> str:
    """Say whether the analog chip takes less energy than the digital alternative, and how sure that is."""
    ratio, bits = chip["ratio_to_digital"], chip["digital"][0]["bits"]
    times = f"{ratio['nominal']:.3g} times the energy of int{bits} digital ({ratio['low']:.3g} to {ratio['high']:.3g})"
    said = "wins" if ratio["nominal"] < 1 else "loses"
    if not chip["cells_are_known"]:
        judged = "loses all the same" if ratio["nominal"] > 1 else "may win or lose"
        return f"the analog chip without its cells, whose energy is unknown, takes {times}: it {judged}"
    if ratio["high"] < 1 or ratio["low"] > 1:
        said += " at all prices"
    else:
        said += " at nominal prices, but not at all prices"
    return f"the analog chip {said}: {times}"


def placement_text(chip: Result) -> str:
    """Say how much of the chip is used."""
    own = chip["placement"]
    return (
        f"{counted(own['arrays'], 'array')} in {counted(own['cores'], 'core')} on {counted(own['chips'], 'chip')} of "
        f"{chip['name']} ({chip['node_nanometres']:g} nm): {own['array_utilisation']:.0%} of the arrays of these cores "
        f"and {own['cell_utilisation']:.0%} of their cells are used"
    )


def schedule_text(chip: Result) -> str:
    """Say how long an utterance or a batch takes, what limits the throughput, and what one more replica brings."""
    times, is_audio = chip["schedule"], unit_of(chip) == "audio_second"
    one, *others = times["real_time_factor" if is_audio else "seconds_per_example"].items()
    (count, of_many) = others[-1]
    latency = si(times["latency_seconds"], "s")
    if is_audio:
        said = f"an utterance of {chip['audio_seconds']:.3g} s takes {latency} (real-time factor {one[1]:.2g}, and "
        said += f"{of_many:.2g} with {count} at once)"
    else:
        said = f"a batch of {counted(round(chip['examples']), 'example')} takes {latency} ({si(one[1], 's')} an "
        said += f"example, and {si(of_many, 's')} with {count} such batches at once)"
    said += f"; bottleneck: {times['bottleneck']}"
    if (gain := times["one_more_replica"]) is not None:
        throughput = "audio_seconds_per_second" if is_audio else "examples_per_second"
        faster = gain[throughput] / times[throughput] - 1
        sooner = 1 - gain["latency_seconds"] / times["latency_seconds"]
        brings = f": {faster:+.1%} throughput, {-sooner:+.1%} time"
        if max(abs(faster), abs(sooner)) < 0.0005:
            brings = " brings nothing"
        said += f"; one more replica of {gain['name']} ({counted(gain['arrays'], 'array')}){brings}"
    return said


def break_even_text(chip: Result) -> str:
    """Say at which ADC energy, use of conversions and array size the analog chip wins or loses."""
    if not chip["cells_are_known"]:
        return "break-even: unknown without the energy of the cells"
    own = chip["break_even"]
    price = own["adc_joules_per_step"]
    adc = "at no ADC energy" if price is None else f"with ADCs of {si(price, 'J')} a step"
    better = [tile["size"] for tile in own["tiles"] if tile["ratio_to_digital"] < 1]
    sizes = f"arrays of {', '.join(map(str, better))}" if better else "no array size of " + ", ".join(
        str(tile["size"]) for tile in own["tiles"]
    )  # fmt: skip
    return (
        f"break-even with int{chip['digital'][0]['bits']} digital: {adc} (nominal "
        f"{si(own['nominal_adc_joules_per_step'], 'J')}); an ADC conversion serves {own['macs_per_conversion']:.3g} "
        f"multiplications and would have to serve {own['needed_macs_per_conversion']:.3g}; {sizes} win"
        f"{'' if better else 's'} (energy alone)"
    )


def public_text(chip: Result) -> str:
    """Return the energies of processors by public figures."""
    return "; ".join(f"{name}: {interval_text(value, 'J')}" for name, value in chip["public"].items())


def tornado_rows(chip: Result, count: int) -> list[list[str]]:
    """Return the prices that matter most, with the energy at both ends of their ranges."""
    return [
        [
            price["price"],
            si(price["low"], "J"),
            si(price["high"], "J"),
            f"{price['ratio_low']:.3g}",
            f"{price['ratio_high']:.3g}",
        ]
        for price in chip["tornado"][:count]
    ]


TORNADO_HEAD = ["price", "energy at low", "at high", "ratio at low", "at high"]


def energy_head(point: Result) -> list[str]:
    """Return the titles of `energy_cells`; none where a point of a sweep has no cost."""
    chip = point.get("cost", {}).get("chip")
    if chip is None:
        return []
    unit = "J / example" if unit_of(chip) == "example" else "J / s of audio"
    return [unit, f"times int{chip['digital'][0]['bits']} digital"]


def energy_cells(point: Result) -> list[str]:
    """Return the energy of a point of a sweep on the whole chip, and as a multiple of the digital alternative."""
    chip = point.get("cost", {}).get("chip")
    if chip is None:
        return []
    return [si(chip["joules"]["nominal"], "J"), f"{chip['ratio_to_digital']['nominal']:.3g}"]
