"""Maximum-likelihood fits of laws of change, and the choice among them by held-out likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from memsim.fit.arrays import Floats, Ints
from memsim.fit.levels.changes import Changes
from memsim.fit.levels.law import LEAST_FREEDOM, Form, Law, Location, Scale, Tail

CELLS_PER_KNOT = 5
"""The least number of cells for each knot of conductance."""
_KNOTS = (1, 2, 4, 6, 8, 12)
_MOST_CELLS = 3000
"""The number of cells that laws are compared on; the chosen one is fitted to all."""
_FEW_CELLS = 500
_ITERATIONS, _COMPARING_ITERATIONS = 200, 60
_PRIOR = 0.1
"""Strength of the pull of parameters to those of neighbouring knots, and of shapes to usual ones."""
_LEAST_SPREAD = 1e-4
"""The least spread, in the typical change: readings have a resolution."""
_TIMES: tuple[tuple[Location, Scale], ...] = tuple(product(("constant", "log"), ("constant", "log", "sqrt")))

_MOST_FACTOR = 15.0
"""The largest ratio of the wide law of two Laplaces to the narrow one: technology B has 7.5 (configs/devices).

Without it, readings that a meter cuts off at 0 make one level so narrow that the wide law runs away at all others.
"""

_FOLDS = 5
_CERTAIN = 100
"""From so many cells for each parameter on, laws are as wide as they were fitted: what is missing is below 1 %."""
_MOST_WIDENED = 3.0

_SKEWABLE: tuple[Tail, ...] = ("gaussian", "laplace", "two_laplaces", "gaussian_laplace")

Report = Callable[[float], None]


def fit_law(changes: Changes, form: Form, knots: int, iterations: int = _ITERATIONS) -> Law:
    """Return the law of `form` with most likelihood for `changes`, over at most `knots` knots."""
    start, seconds, now = changes.tensors()
    places = place_knots(changes, knots)
    size = form.size(len(places))
    x = np.log(changes.now / changes.start) if form.relative else changes.now - changes.start
    unit, first_seconds = _typical(x), changes.first_seconds
    span = max(float(np.log(changes.seconds.max() / first_seconds)), 1.0)
    raw = torch.zeros(size, dtype=torch.float64)
    named = _named(raw, form, len(places))
    named["b0"].fill_(0.5)  # b1 begins at 0.7
    raw.requires_grad_()
    optimiser = torch.optim.LBFGS(
        [raw], max_iter=iterations, history_size=20, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        law = _law(raw, form, places, unit, span, first_seconds)
        value = (_penalty(raw, form, len(places)) - law.log_density(start, seconds, now).sum()) / len(changes)
        value.backward()
        return value.detach()

    optimiser.step(loss)
    return _law(raw.detach(), form, places, unit, span, first_seconds)


def widened(law: Law, changes: Changes, knots: int, seed: int) -> Law:
    """Return a law fitted to `changes` with its spread wider by as much as that of cells that are not fitted.

    A fit to few cells follows them, and its spread is too narrow for others. The factor is the one with most likelihood
    for each fifth of the cells under a law of the same kind that is fitted to the rest of them, and at least 1. It
    counts the cells' uncertainty of all parameters; where they have enough cells it is left at 1.
    """
    cells = np.random.default_rng(seed).permutation(np.unique(changes.cells))
    if len(cells) > _CERTAIN * law.form.size(len(law.knots)):
        return law
    folds = []
    for fold in np.array_split(cells, _FOLDS):
        is_held = np.isin(changes.cells, fold)
        rest = fit_law(changes.where(~is_held), law.form, knots, _COMPARING_ITERATIONS)
        folds.append((rest, changes.where(is_held).tensors()))
    factors = np.geomspace(1.0, _MOST_WIDENED, 111)
    likelihoods = [sum(float(rest.wider(f).log_density(*held).sum()) for rest, held in folds) for f in factors]
    return law.wider(float(factors[int(np.argmax(likelihoods))]))


def place_knots(changes: Changes, knots: int) -> Tensor:
    """Return conductances [<= knots], rising, with about as many cells between neighbours.

    Where cells share their conductances, as the targets of programming, these are knots, or some of them: nothing would
    be known of the law at knots between them.
    """
    _, first = np.unique(changes.cells, return_index=True)
    starts = changes.start[first]
    count = max(1, min(knots, len(starts) // CELLS_PER_KNOT))
    edges = (0.5,) if count == 1 else np.linspace(0.01, 0.99, count)
    levels = np.unique(starts)
    if len(levels) <= count:
        places = levels
    else:
        places = np.unique(
            np.quantile(starts, edges, method="linear" if len(levels) == len(starts) else "inverted_cdf")
        )
    apart = np.concatenate([[True], np.diff(places) > 1e-6 * max(abs(places[-1]), 1e-12)])
    return torch.from_numpy(places[apart].astype(float))


def _typical(x: Floats) -> float:
    spread = float(np.median(np.abs(x - np.median(x))))
    return 1.5 * spread if spread > 0 else max(float(np.std(x)), 1e-6)


def _named(raw: Tensor, form: Form, knots: int) -> dict[str, Tensor]:
    """Return views of the parameters by name, [K] each, and [1] of scalars."""
    sizes = [knots] * len(form.parts) + [1] * len(form.scalars)
    return dict(zip((*form.parts, *form.scalars), raw.split(sizes), strict=True))


def _law(raw: Tensor, form: Form, places: Tensor, unit: float, span: float, first_seconds: float) -> Law:
    """Return the law of unconstrained parameters `raw`, in the typical change `unit` and the range `span` of u."""
    named = _named(raw, form, len(places))
    as_values: Mapping[str, Callable[[Tensor], Tensor]] = {
        "m0": lambda v: unit * v,
        "m1": lambda v: unit / span * v,
        "b0": lambda v: unit * (softplus(v) + _LEAST_SPREAD),
        "b1": lambda v: unit / (math.sqrt(span) if form.scale == "sqrt" else span) * softplus(v),
        "skew": lambda v: v,
        "share0": lambda v: v - 1.5,
        "share1": lambda v: v / span,
        "freedom": lambda v: LEAST_FREEDOM + softplus(v + 2.0)[0],
        "factor": lambda v: (1.0 + torch.exp(v + 1.0)[0]).clamp(max=_MOST_FACTOR),
    }
    values = {name: as_values[name](v) for name, v in named.items()}
    scalars = {name: values.pop(name) for name in form.scalars}
    return Law(form, places, values, scalars, first_seconds)


def _penalty(raw: Tensor, form: Form, knots: int) -> Tensor:
    named = _named(raw, form, knots)
    rough = sum((values.diff().square().sum() for values in named.values()), torch.zeros(()))
    shapes = ("skew", "share0", "share1", "freedom", "factor")
    return _PRIOR * (rough + sum(named[name].square().sum() for name in shapes if name in named))


@dataclass(frozen=True)
class Candidate:
    """A law that was tried: its kind, its knots, and the score that held-out cells give it.

    Attributes:
        score: mean log-likelihood a reading; the held-out last time has half of the weight.
        standard_error: of the difference to the best candidate of its stage, over cells.
        chosen: whether it was chosen in its stage.
    """

    stage: str
    form: Form
    knots: int
    score: float
    standard_error: float
    chosen: bool


@dataclass(frozen=True)
class Choice:
    """The law that was chosen, and all that were tried."""

    form: Form
    knots: int
    candidates: tuple[Candidate, ...]


def choose(
    changes: Changes, seed: int, *, in_time: bool = True, relative: bool = True, report: Report = lambda done: None
) -> Choice:
    """Choose the kind of law and the number of knots for `changes` by the likelihood of held-out cells.

    Half of the cells are fitted and the others are scored, and the reverse if there are few. With `in_time` and three
    groups of times or more, the last one is not fitted either, and has half of the weight of the score. First the best
    dependence on time is taken; then the best tails, and under these the best dependence on time once more, which
    outliers may have decided before; and then the best number of knots. Laws of ln g, tried if `relative`, are
    Gaussian: heavier tails have no mean.
    """
    halves = _halves(changes, seed)
    groups = np.unique(changes.group)
    last = int(groups[-1]) if in_time and len(groups) >= 3 else None
    trains, helds = [], []
    for fitted, scored in halves:
        train = changes.where(np.isin(changes.cells, fitted))
        trains.append(train if last is None else train.where(train.group != last))
        helds.append(changes.where(np.isin(changes.cells, scored)))
    weights = [_weights(held, last) / len(halves) for held in helds]
    cells = np.concatenate([held.cells for held in helds])
    most = max(1, len(halves[0][0]) // CELLS_PER_KNOT)
    default = min(6, most)
    scores: dict[tuple[Form, int], Floats] = {}
    tried: list[Candidate] = []

    def stage(name: str, options: Iterable[tuple[Form, int]], done: float) -> tuple[Form, int]:
        options = list(dict.fromkeys(options))
        for k, option in enumerate(options):
            if option not in scores:
                parts = []
                for train, held, weight in zip(trains, helds, weights, strict=True):
                    law = fit_law(train, *option, _COMPARING_ITERATIONS)
                    parts.append(np.asarray(law.log_density(*held.tensors())) * weight)
                scores[option] = np.concatenate(parts)
            report(done + (k + 1) / len(options) / 4)
        best = max(options, key=lambda option: float(scores[option].sum()))
        errors = {option: _standard_error(scores[best] - scores[option], cells) for option in options}
        tried.extend(Candidate(name, *o, float(scores[o].sum()), errors[o], o == best) for o in options)
        return best

    kinds = [
        Form(tail="laplace"),
        Form(tail="gaussian"),
        *([Form(True, tail="gaussian")] if relative and changes.positive else []),
    ]
    times = _TIMES if len(np.unique(trains[0].group)) > 1 else _TIMES[:1]
    options = ((replace(kind, location=m, scale=b), default) for kind, (m, b) in product(kinds, times))
    form, _ = stage("time", options, 0.0)
    tails = ((tail, skewed) for tail in _SKEWABLE for skewed in (False, True))
    shapes: list[tuple[Tail, bool]] = [("gaussian", False)] if form.relative else [*tails, ("student", False)]
    options = ((replace(form, tail=tail, skewed=skewed), default) for tail, skewed in shapes)
    form, _ = stage("tails", options, 1 / 4)
    options = ((replace(form, location=m, scale=b), default) for m, b in times)
    form, _ = stage("time under these tails", options, 1 / 2)
    _, knots = stage("knots", ((form, k) for k in _KNOTS if k <= most), 3 / 4)
    return Choice(form, knots, tuple(tried))


def _halves(changes: Changes, seed: int) -> list[tuple[Ints, Ints]]:
    """Return pairs (cells to fit, cells to score)."""
    ids = np.random.default_rng(seed).permutation(np.unique(changes.cells))[:_MOST_CELLS]
    first, second = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    return [(first, second)] if len(ids) > _FEW_CELLS else [(first, second), (second, first)]


def _weights(held: Changes, last: int | None) -> Floats:
    """Return weights [n] with sum 1, half of it for the group `last`, if there is one."""
    if last is None:
        return np.full(len(held), 1 / max(len(held), 1))
    is_last = held.group == last
    counts = np.array([max((~is_last).sum(), 1), max(is_last.sum(), 1)])
    return np.asarray(0.5 / counts[is_last.astype(int)])


def _standard_error(differences: Floats, cells: Ints) -> float:
    """Return the standard error of the sum of weighted differences, which are independent between cells alone."""
    _, place = np.unique(cells, return_inverse=True)
    sums = np.bincount(place, differences)
    return float(np.sqrt(len(sums)) * np.std(sums))
