"""The device file of kind `levels` that fitted laws make."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import yaml
from scipy.special import ndtr

from memsim.fit.arrays import Floats
from memsim.fit.levels.goodness import CellPath
from memsim.fit.levels.law import Law

EXTRAPOLATED_DECADES = 2
"""The decades beyond the last measured time to which tables are written; beyond them, means and spreads go on."""
PROBABILITIES = np.round(ndtr(np.array([-3.3, -2.8, -2.3, -1.8, -1.4, -1.0, -0.6, -0.3])), 5)
PROBABILITIES = np.concatenate([PROBABILITIES, [0.5], 1 - PROBABILITIES[::-1]])
"""The probabilities of quantile tables; between them lines are straight in the normal score."""
_STEPS = 3
"""The steps of a table from knot to knot: moments and quantiles are not linear in the numbers of a law."""
_REACH = 10
_FOLDED = 2.0
"""A drift whose mean exponent is at least so many spreads is written as a power law: few cells would turn round."""


def rounded(values: Any, digits: int = 5) -> Any:
    """Return numbers with so many significant digits, as plain values."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim:
        return [rounded(value, digits) for value in array]
    return float(f"{float(array):.{digits}g}")


def programming_section(law: Law) -> dict[str, Any]:
    """Return the section of a law of the programming error, by the target."""
    at = conductances(law)
    mean, spread = law.moments(at, torch.ones_like(at))
    section = {"mean": _table(at, mean), "spread": _table(at, spread)}
    return section | _shape(law, np.array([1.0]), 0.0)


def time_sections(law: Law, path: CellPath, start_seconds: float, last_seconds: float) -> dict[str, Any]:
    """Return the sections `drift` and `relaxation` of a law of change.

    A Gaussian law of ln g with a mean and a spread that are linear in ln t is a drift, beside a relaxation that is what
    it has at the first time; all others are a relaxation. The clock of a device begins at the start of the cells.
    """
    if _is_drift(law):
        early = {"m1": torch.zeros_like(law.knots), "b1": torch.zeros_like(law.knots)}
        drift = {
            "exponent_mean": _table(law.knots, -law.by_knot["m1"]),
            "exponent_spread": _table(law.knots, law.by_knot["b1"]),
            "reference_seconds": rounded(law.first_seconds),
            "by": "programmed",
        }
        first = Law(law.form, law.knots, {**law.by_knot, **early}, law.scalars, law.first_seconds)
        at = conductances(law)
        mean, spread = first.moments(at, torch.full_like(at, law.first_seconds))
        relaxation = {"mean": _table(at, mean), "spread": _table(at, spread), "path": "redrawn"}
        return {"drift": drift, "relaxation": relaxation}
    seconds = grid_seconds(law.first_seconds, start_seconds, last_seconds)
    at = conductances(law)
    moments = [law.moments(at, torch.full_like(at, float(t))) for t in seconds + start_seconds]
    grids = {
        name: {
            "grid": {
                "microsiemens": rounded(at),
                "seconds": rounded(seconds),
                "values": rounded(np.stack([np.asarray(moment[k]) for moment in moments])),
            },
            "beyond": "extrapolate",
        }
        for k, name in enumerate(("mean", "spread"))
    }
    own_path = {"path": path.kind} | ({"path_seconds": rounded(path.seconds)} if path.kind == "increments" else {})
    return {"relaxation": grids | _shape(law, seconds, start_seconds) | own_path}


def grid_seconds(first_seconds: float, start_seconds: float, last_seconds: float) -> Floats:
    """Return times since the start, one a decade, from the first that is known to beyond the last by two decades."""
    first = first_seconds / 10 if start_seconds > 0 else first_seconds
    last = (last_seconds - start_seconds) * 10**EXTRAPOLATED_DECADES
    return np.geomspace(first, last, max(2, round(np.log10(last / first)) + 1))


def conductances(law: Law) -> torch.Tensor:
    """Return the conductances of a table of a law: its knots, and others between them.

    Beyond the knots a law is constant. A law of ln g changes g in proportion to g, so its table has two points more:
    one near 0, and one at `_REACH` times the last knot.
    """
    knots = law.knots
    steps = torch.arange(_STEPS, dtype=knots.dtype) / _STEPS
    between = (knots[:-1, None] + steps * knots.diff()[:, None]).reshape(-1)
    beyond = (knots[:1] / 1000, _REACH * knots[-1:]) if law.form.relative else (knots[:0], knots[:0])
    return torch.cat([beyond[0], between, knots[-1:], beyond[1]])


def _is_drift(law: Law) -> bool:
    form = law.form
    if not (form.relative and form.tail == "gaussian" and form.location == "log" and form.scale == "log"):
        return False
    return bool((-law.by_knot["m1"] >= _FOLDED * law.by_knot["b1"]).all())


def _table(at: torch.Tensor, values: torch.Tensor) -> Any:
    if len(at) == 1:
        return rounded(values[0])
    return {"table": {"at": rounded(at), "values": rounded(values)}}


def _shape(law: Law, seconds: Floats, start_seconds: float) -> dict[str, Any]:
    """Return the shape of the standardised change: a word, Student's law, or quantiles by conductance and time."""
    form = law.form
    if not form.skewed and not form.relative and form.tail in ("gaussian", "laplace"):
        return {} if form.tail == "gaussian" else {"shape": "laplace"}
    if not form.skewed and form.tail == "student":
        return {"shape": {"student": rounded(law.scalars["freedom"])}}
    conductance, values = conductances(law), []
    for t in seconds + start_seconds:
        at = torch.full_like(conductance, float(t))
        mean, spread = law.moments(conductance, at)
        quantiles = [torch.from_numpy(law.quantile(conductance, at, float(p))) for p in PROBABILITIES]
        values.append(torch.stack([(q - conductance - mean) / spread for q in quantiles], dim=1).numpy())
    return {
        "shape": {
            "quantile_grid": {
                "probabilities": rounded(PROBABILITIES),
                "microsiemens": rounded(conductance),
                "seconds": rounded(seconds),
                "values": rounded(np.stack(values), 3),
            }
        }
    }


def device_yaml(document: dict[str, Any], remarks: list[str]) -> str:
    """Return a device file: `remarks` as comments, and the keys."""
    comments = "".join(f"# {line}\n" for line in remarks)
    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)
    return comments + text
