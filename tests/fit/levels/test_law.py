"""Laws of change: density, distribution, quantiles, moments and draws agree, whatever the numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.fit.levels.law import Form, Law

FORMS = [
    Form(tail="gaussian"),
    Form(tail="laplace", location="log", scale="log", skewed=True),
    Form(tail="student", scale="sqrt"),
    Form(tail="two_laplaces", location="log", scale="sqrt", skewed=True),
    Form(relative=True, tail="gaussian", location="log", scale="log"),
    Form(tail="gaussian_laplace", location="log", scale="sqrt", skewed=True),
]
KNOTS = torch.tensor([10.0, 40.0, 90.0], dtype=torch.float64)


def law_of(form: Form, seed: int) -> Law:
    """A law with numbers by chance."""
    generator = np.random.default_rng(seed)
    size = 0.02 if form.relative else 1.0
    ranges = {"m0": (-2, 2), "m1": (-0.5, 0.5), "b0": (0.3, 2), "b1": (0.1, 0.6)}
    by_knot = {}
    for name in form.parts:
        low, high = ranges.get(name, (-0.6, 0.6))
        scale = size if name in ranges else 1.0
        by_knot[name] = torch.from_numpy(scale * generator.uniform(low, high, len(KNOTS)))
    numbers = {"freedom": 4.5, "factor": 5.0}
    scalars = {name: torch.tensor(numbers[name], dtype=torch.float64) for name in form.scalars}
    return Law(form, KNOTS, by_knot, scalars, 0.5)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_law_is_one_distribution(form: Form, seed: int) -> None:
    law = law_of(form, seed)
    n = 200_000
    for start, time in ((10.0, 0.5), (33.0, 40.0), (120.0, 1e4)):
        g, seconds = (torch.full((n,), value, dtype=torch.float64) for value in (start, time))
        drawn = law.draw(g, seconds, np.random.default_rng(5))
        change = drawn.numpy() - start
        mean, spread = (float(each[0]) for each in law.moments(g[:1], seconds[:1]))
        assert change.mean() == pytest.approx(mean, abs=5 * spread / n**0.5)
        assert change.std() == pytest.approx(spread, rel=0.04)
        for probability in (0.01, 0.3, 0.5, 0.95):
            at = law.quantile(g[:1], seconds[:1], probability)[0]
            assert np.mean(drawn.numpy() < at) == pytest.approx(probability, abs=0.006)
            assert law.cdf(g[:1], seconds[:1], torch.tensor([at]))[0] == pytest.approx(probability, abs=1e-6)
        low, high = (law.quantile(g[:1], seconds[:1], p)[0] for p in (1e-6, 1 - 1e-6))
        x = torch.linspace(float(low), float(high), 100_001, dtype=torch.float64)
        density = law.log_density(torch.full_like(x, start), torch.full_like(x, time), x).exp()
        assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(FORMS), st.floats(0, 200), st.floats(0, 1e6))
def test_the_distribution_rises(seed: int, form: Form, start: float, time: float) -> None:
    law = law_of(form, seed)
    now = torch.linspace(0.5, 200, 50, dtype=torch.float64)
    g, seconds = (torch.full_like(now, max(value, 1e-3)) for value in (start, time))
    below = law.cdf(g, seconds, now)
    assert (np.diff(below) >= -1e-12).all()
    assert (below >= 0).all()
    assert (below <= 1).all()


def test_nothing_is_known_before_the_first_time() -> None:
    law = law_of(FORMS[1], 3)
    g = torch.tensor([20.0], dtype=torch.float64)
    early, first = (law.moments(g, torch.tensor([t], dtype=torch.float64)) for t in (1e-6, law.first_seconds))
    assert early == first


def test_a_gaussian_drift_is_a_power_law() -> None:
    law = law_of(FORMS[4], 0)
    flat = {**law.by_knot, "m0": torch.zeros(3), "b0": torch.full((3,), 1e-9), "m1": torch.full((3,), -0.05)}
    law = dataclasses.replace(law, by_knot={name: values.double() for name, values in flat.items()})
    g, t = torch.tensor([30.0], dtype=torch.float64), torch.tensor([500.0], dtype=torch.float64)
    assert law.quantile(g, t, 0.5)[0] == pytest.approx(30 * 1000**-0.05)
