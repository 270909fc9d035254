"""The choice of settings under a budget, against brute force."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.post_training.allotment import _MOST_STEPS, Allotment, LayerAllotment, cheapest_rise
from memsim.post_training.recipe import AllotConfig

_LAYER = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), min_size=1, max_size=4)


def _brute_force(layers, budget):
    """The least sum of rises within the budget; None where no choice is."""
    sums = [(sum(c for c, _ in chosen), sum(r for _, r in chosen)) for chosen in itertools.product(*layers)]
    return min((rise for cost, rise in sums if cost <= budget), default=None)


@settings(max_examples=200, deadline=None)
@given(st.lists(_LAYER, max_size=5), st.integers(-1, 100), st.sampled_from([1, 7]))
def test_it_is_the_least_of_all_choices(layers, budget, unit):
    costs = [[unit * cost for cost, _ in layer] for layer in layers]
    rises = [[rise / 8 for _, rise in layer] for layer in layers]
    found = cheapest_rise(costs, rises, unit * budget)
    least = _brute_force(layers, budget)
    if least is None:
        assert found is None
        return
    assert sum(cost[i] for cost, i in zip(costs, found, strict=True)) <= unit * budget
    assert sum(rise[i] for rise, i in zip(rises, found, strict=True)) == least / 8


def test_costs_without_a_large_common_divisor_are_rounded_up():
    costs = [[0, 1_000_003 * k, 1_999_993 * k] for k in range(1, 6)]
    rises = [[9.0 * k, 4.0 * k, 0.0] for k in range(1, 6)]
    budget = 12_000_001
    found = cheapest_rise(costs, rises, budget)
    assert budget > _MOST_STEPS
    assert found is not None
    assert sum(cost[i] for cost, i in zip(costs, found, strict=True)) <= budget
    layers = [list(zip(cost, rise, strict=True)) for cost, rise in zip(costs, rises, strict=True)]
    within = _brute_force(layers, budget - len(costs) * budget // _MOST_STEPS)
    assert sum(rise[i] for rise, i in zip(rises, found, strict=True)) <= within


def test_among_equal_rises_the_cheaper_setting_is_chosen():
    assert cheapest_rise([[2, 4, 6], [2, 4, 6]], [[1.0, 1.0, 1.0], [3.0, 2.0, 2.0]], 100) == [0, 1]


def test_what_is_shown():
    config = AllotConfig(budget="cells_per_weight", at_most=6)
    layers = {"a": LayerAllotment(3, 1, 0.1), "b": LayerAllotment(4, 2, 0.1), "c": LayerAllotment(None, rise=0.0)}
    assert str(Allotment(config, 5.5, True, layers)) == (
        "allotted 3 bits to 1 layer, 4 bits in 2 copies to 1 layer, 1 layer kept digital: "
        "5.5 of at most 6 cells per weight"
    )
