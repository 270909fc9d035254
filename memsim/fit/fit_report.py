"""The report of a fit: one self-contained HTML page, and the same numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memsim.device import DeviceModel
from memsim.errors import InputError
from memsim.fit import fit_figures as figures
from memsim.fit.fit import Fit
from memsim.fit.fit_tables import MARKS, WORDS, answer_of_checks, size_of, summary, value_of
from memsim.fit.goodness import STANDARD_ERRORS, Check, Goodness
from memsim.fit.measurements import NAMES, Measurements
from memsim.report.page import Html, document, facts, group, heading, html, listing, note, opening, row, table
from memsim.report.page import figures as pictures
from memsim.storage.outputs import write_text
from memsim.units import counted
from memsim.version import __version__

HTML, JSON = "report.html", "report.json"


def to_dict(fit: Fit, goodness: Goodness, measurements: Measurements) -> dict[str, Any]:
    """Return the fit and its checks as plain values."""
    model, mixture = fit.model, fit.mixture
    rows = [*measurements.measured, *(4 + i for i in measurements.measured)]
    return {
        "memsim": __version__,
        "device": {"name": model.name, "source": model.source},
        "fit": fit.facts(measurements),
        "process": {
            "order": model.order,
            "spectral_radius": fit.spectral_radius,
            "correction_rounds": fit.rounds,
            "aic_bic_a_cycle": {str(order): list(values) for order, values in fit.criteria.items()},
        },
        "mixture": {
            "components": len(mixture.weights),
            "weights": mixture.weights.tolist(),
            "bic": {str(k): value for k, value in mixture.bic.items()},
            "noise_share_of_variance": {
                f"{'mu' if row < 4 else 'sigma'} {NAMES[row % 4]}": float(share)
                for row, share in zip(rows, mixture.noise_share, strict=True)
            },
        },
        "failures": _failures(model),
        "envelopes": {
            "source": fit.envelopes.source,
            "median_relative_error": fit.envelopes.error,
            "reset_full_volts": model.reset_full_volts,
            "reset_exponent": model.reset_exponent,
        },
        "goodness": goodness.to_dict(),
    }


def _failures(model: DeviceModel) -> dict[str, Any]:
    """Return the share of SETs and RESETs that fail, and the resistances that they leave; empty where none fails."""
    if model.failures is None:
        return {}
    return {
        pulse: {"share": share, "quantiles_log10_ohm": quantiles}
        for pulse, (share, *quantiles) in zip(("SET", "RESET"), model.failures.tolist(), strict=True)
    }


def require_folder(folder: Path, force: bool) -> None:
    """Raise InputError, before any work is done, if the report cannot be written to `folder`."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; --report names a folder")
    if not folder.exists() and not folder.absolute().parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist")
    for name in (HTML, JSON):
        if (folder / name).exists() and not force:
            raise InputError(f"{folder / name}: exists already; --force overwrites it")


def write_report(folder: Path, fit: Fit, goodness: Goodness, measurements: Measurements) -> Path:
    """Write `report.html` and `report.json` into `folder`, made if it does not exist; return the path of the page."""
    folder.mkdir(exist_ok=True)
    write_text(folder / JSON, json.dumps(to_dict(fit, goodness, measurements), indent=1) + "\n")
    write_text(folder / HTML, page(fit, goodness, measurements))
    return folder / HTML


def page(fit: Fit, goodness: Goodness, measurements: Measurements) -> str:
    """Return the report as an HTML page."""
    outcome = "warn" if goodness.warnings else "pass"
    distributions = [(NAMES[d.feature], d) for d in goodness.distributions]
    features, series = [(i, NAMES[feature]) for i, feature in enumerate(goodness.features)], goodness.series
    sections = {
        "Distributions": [(f"{name} histogram", figures.histogram(d)) for name, d in distributions],
        "Quantiles": [(f"{name} Q-Q", figures.quantiles(d)) for name, d in distributions],
    }
    if series is not None:
        sections |= {
            "Autocorrelations, cycle to cycle": [
                (f"{name} autocorrelation", figures.autocorrelation(goodness, series, i)) for i, name in features
            ],
            "Cross-correlations, cycle to cycle": figures.cross_correlations(goodness, series),
            "Correlations, device to device": figures.device_correlations(goodness, series),
            "Selection": [("orders", figures.order_selection(fit)), ("components", figures.component_selection(fit))],
        }
    sections |= {
        "Current and voltage": [("I-V curves", figures.current_voltage(fit, measurements))],
    }
    blocks = [
        opening(outcome, *answer_of_checks("model", goodness.checks, summary(goodness))),
        listing(fit.notes),
        _facts(fit, goodness, measurements),
        heading("Goodness of fit"),
        _table(goodness.checks),
        note(
            f"{MARKS['pass']} the model agrees with the measurements within the tolerance; {MARKS['noise']} it does "
            f"not, but so few devices scatter that much ({STANDARD_ERRORS:g} standard errors, from device to device); "
            f"{MARKS['warn']} it does not. The model: {counted(goodness.generated_devices, 'device')} of "
            f"{goodness.cycles:,} cycles drawn from it."
        ),
        *(block for title, shown in sections.items() if shown for block in (heading(title), pictures(shown))),
        note(f"Grey: measured, with bands of {STANDARD_ERRORS:g} standard errors. Blue: the model."),
    ]
    return document(f"{fit.model.name}: fitted to {measurements.path.name}", blocks)


def _facts(fit: Fit, goodness: Goodness, measurements: Measurements) -> Html:
    model = fit.model
    per_device = measurements.counts[list(goodness.features)][:, fit.devices]
    rows = {
        "measurements": f"{measurements.path.name}, {counted(measurements.rows, 'row')} of {measurements.layout.kind}, "
        f"sha256 {measurements.sha256[:16]}…",
        "devices": f"{len(fit.devices):,} of {len(measurements.devices):,}, "
        f"{int(per_device.min()):,} to {counted(int(per_device.max()), 'cycle')} each",
        "process": f"order {model.order}, spectral radius {fit.spectral_radius:.4f}",
        "device mixture": f"{counted(len(fit.mixture.weights), 'component')}, weights "
        + ", ".join(f"{weight:.3f}" for weight in fit.mixture.weights),
        "I-V curves": fit.envelopes.source
        + (f", median error {fit.envelopes.error:.2%}" if fit.envelopes.error is not None else ""),
        "RESET": f"full at {model.reset_full_volts:.4g} V, exponent {model.reset_exponent:.4g}",
    }
    return facts(rows)


def _table(checks: Iterable[Check]) -> Html:
    head = ("", "", "measured", "model", "difference", "tolerance", "std. error")
    rows: list[Html] = []
    feature = None
    for check in checks:
        if check.feature != feature:
            feature = check.feature
            rows.append(group("all features" if feature == "all" else feature, len(head)))
        cells = [
            f"{MARKS[check.verdict]} {WORDS[check.verdict]}",
            Html(f"{html(check.quantity)} <small>{html(check.where)}</small>"),
            value_of(check.measured),
            value_of(check.generated),
            size_of(check, check.error, signed=True),
            size_of(check, check.tolerance),
            size_of(check, check.standard_error),
        ]
        rows.append(row(cells, check.verdict, text=2))
    return table(head, rows, text=2, kind="checks")
