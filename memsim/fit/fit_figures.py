"""Figures of a fit, each one panel as SVG: measurements in grey, the model in blue."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from memsim.device import DeviceModel
from memsim.device.cycles.model import HRS, LRS
from memsim.fit.arrays import Floats, Ints
from memsim.fit.fit import Fit
from memsim.fit.goodness import CROSS_LAGS, PROBABILITIES, STANDARD_ERRORS, Distribution, Goodness, SeriesStatistics
from memsim.fit.measurements import NAMES, Measurements
from memsim.report.drawing import BAND, BLUE, GREY, RED, drawing
from memsim.units import counted

MEASURED, MODEL = GREY, BLUE
_UNITS = ("ohm", "V", "ohm", "V")
_TRACES = 25


def _axis(distribution: Distribution) -> str:
    """Return the label of an axis: `HRS (log10 ohm)`."""
    scale = "log10 " if distribution.is_log10 else ""
    return f"{NAMES[distribution.feature]} ({scale}{_UNITS[distribution.feature]})"


def histogram(distribution: Distribution) -> bytes:
    """Draw the densities of a feature over all cycles of all devices."""
    with drawing() as panel:
        axes, edges = panel.axes, distribution.edges
        axes.stairs(distribution.measured_density, edges, fill=True, color=BAND, label="measured")
        axes.stairs(distribution.generated_density, edges, color=MODEL, linewidth=1.6, label="model")
        axes.set(xlabel=_axis(distribution), yticks=[], title=f"{NAMES[distribution.feature]}: distribution")
        panel.legend()
    return panel.svg


def quantiles(distribution: Distribution) -> bytes:
    """Draw the model's quantiles against the measured ones, 0.05 % to 99.95 %."""
    with drawing() as panel:
        axes = panel.axes
        x, y = distribution.measured_quantiles, distribution.generated_quantiles
        axes.plot([x[0], x[-1]], [x[0], x[-1]], color=MEASURED, linewidth=1, label="equal")
        axes.plot(x, y, ".", color=MODEL, markersize=4, label="0.05 % to 99.95 %")
        inner = (PROBABILITIES >= 0.01) & (PROBABILITIES <= 0.99)
        for mark in (x[inner][0], x[inner][-1]):
            axes.axvline(mark, color=BAND, linestyle=":", linewidth=1)
        label = _axis(distribution)
        axes.set(
            xlabel=f"measured {label}", ylabel="model", title=f"{NAMES[distribution.feature]}: Q-Q (dotted: 1 and 99 %)"
        )
        panel.legend()
    return panel.svg


def autocorrelation(goodness: Goodness, series: SeriesStatistics, i: int) -> bytes:
    """Draw the autocorrelation of the feature of index `i`, with a band of three standard errors."""
    with drawing() as panel:
        _lagged(panel.axes, series, i, i, np.arange(1, len(series.measured_correlogram.mean)))
        panel.axes.set(xlabel="lag (cycles)", title=f"{NAMES[goodness.features[i]]}: autocorrelation")
        panel.legend()
    return panel.svg


def cross_correlations(goodness: Goodness, series: SeriesStatistics) -> list[tuple[str, bytes]]:
    """Draw the cross-correlation of each pair of features; return (names, figure) of each."""
    figures = []
    most = min(CROSS_LAGS, len(series.measured_correlogram.mean) - 1)
    for i, j in combinations(range(len(goodness.features)), 2):
        first, second = NAMES[goodness.features[i]], NAMES[goodness.features[j]]
        with drawing(2.5) as panel:
            _lagged(panel.axes, series, i, j, np.arange(-most, most + 1))
            panel.axes.set(xlabel=f"cycles from {second} to {first}", title=f"{first} and {second}: cross-correlation")
            panel.legend()
        figures.append((f"{first} and {second}", panel.svg))
    return figures


def _lagged(axes: Axes, series: SeriesStatistics, i: int, j: int, lags: Ints) -> None:
    """Draw the correlation of the features of indices `i` and `j` over `lags`."""

    def values(of: Floats) -> Floats:
        return np.asarray(np.where(lags >= 0, of[np.abs(lags), i, j], of[np.abs(lags), j, i]))

    measured = series.measured_correlogram
    mean, error = values(measured.mean), STANDARD_ERRORS * values(measured.standard_error)
    axes.fill_between(lags, mean - error, mean + error, color=BAND, linewidth=0)
    axes.plot(lags, mean, color=MEASURED, linewidth=1, label="measured")
    axes.plot(lags, values(series.generated_correlogram.mean), color=MODEL, linewidth=1.4, label="model")
    axes.axhline(0, color=MEASURED, linewidth=0.5)


def device_correlations(goodness: Goodness, series: SeriesStatistics) -> list[tuple[str, bytes]]:
    """Draw the correlation matrices over devices, measured and of the model; return (title, figure) of each."""
    labels = [f"{kind} {NAMES[feature]}" for kind in ("mean", "std") for feature in goodness.features]
    figures = []
    for title, matrix in (
        (f"measured, {counted(goodness.measured_devices, 'device')}", series.measured_device_correlations),
        (f"model, {counted(goodness.generated_devices, 'device')}", series.generated_device_correlations),
    ):
        with drawing(3.9) as panel:
            axes = panel.axes
            axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
            for (row, column), value in np.ndenumerate(matrix):
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
            axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
            axes.set_yticks(range(len(labels)), labels, fontsize=8)
            axes.grid(False)
            axes.set_title(title)
        figures.append((title, panel.svg))
    return figures


def current_voltage(fit: Fit, measurements: Measurements) -> bytes:
    """Draw the envelopes, cells at the 1, 50 and 99 % quantiles of both states, and some measured sweeps."""
    model = fit.model
    peak = model.reset_full_volts
    with drawing(3.4) as panel:
        axes = panel.axes
        if measurements.traces is not None:
            some = measurements.traces
            peak = max(peak, float(np.nanmax(np.abs(some.volts)))) if len(some) else peak
            for volts, amperes in zip(some.volts[:_TRACES], some.amperes[:_TRACES], strict=True):
                axes.plot(volts, 1e6 * amperes, color=MEASURED, linewidth=0.4, alpha=0.35)
            axes.plot([], [], color=MEASURED, linewidth=0.8, label="measured")
        volts = torch.linspace(-peak, peak, 121, dtype=torch.float64)
        for state, style in ((LRS, "-"), (HRS, "--")):
            for r in _states(model, measurements, state):
                axes.plot(volts, 1e6 * model.current_amperes(volts, r), style, color=MODEL, linewidth=1.1)
            axes.plot([], [], style, color=MODEL, label=f"model, {NAMES[state]}")
        envelopes = model.llrs_current_amperes(volts), model.hhrs_current_amperes(volts)
        for curve, name in zip(envelopes, ("LLRS", "HHRS"), strict=True):
            axes.plot(volts, 1e6 * curve, ":", color=RED, linewidth=1.1)
            axes.text(float(volts[-1]), 1e6 * float(curve[-1]), f" {name}", color=RED, fontsize=8, va="center")
        axes.set(xlabel="U (V)", ylabel="I (µA)", title="I-V: model at 1, 50 and 99 % of each state")
        panel.legend()
    return panel.svg


def _states(model: DeviceModel, measurements: Measurements, state: int) -> list[torch.Tensor]:
    """Return the states r at the 1, 50 and 99 % quantiles of a measured resistance; none if it was not measured."""
    values = measurements.y[state][np.isfinite(measurements.y[state])].astype(np.float64)
    if not len(values):
        return []
    ohms = np.quantile(values, [0.01, 0.5, 0.99])
    return list(model.state_of_resistance(torch.from_numpy(10**ohms if state == HRS else ohms)))


def order_selection(fit: Fit) -> bytes:
    """Draw the information criteria of the cycle-to-cycle process against its order."""
    orders = sorted(fit.criteria)
    with drawing(2.5) as panel:
        axes = panel.axes
        for which, (name, colour) in enumerate((("AIC", BAND), ("BIC", MODEL))):
            values = [fit.criteria[order][which] for order in orders]
            axes.plot(orders, values, "o-", color=colour, markersize=4, label=name)
        axes.set(xlabel="order p of the cycle-to-cycle process", ylabel="a cycle (lower is better)", title="order")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend()
    return panel.svg


def component_selection(fit: Fit) -> bytes:
    """Draw the information criterion of the device mixture against its number of components."""
    tried = sorted(fit.mixture.bic)
    with drawing(2.5) as panel:
        axes = panel.axes
        axes.plot(tried, [fit.mixture.bic[k] for k in tried], "o-", color=BAND, markersize=4)
        chosen = len(fit.mixture.weights)
        axes.plot([chosen], [fit.mixture.bic[chosen]], "o", color=MODEL, label=f"chosen: {chosen}")
        axes.set(xlabel="components of the device mixture", ylabel="BIC (lower is better)", title="components")
        axes.set_xticks(tried)
        panel.legend()
    return panel.svg
