"""Division of the work: everything runs once, and no worker has much more than others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.errors import InputError
from memsim.evaluation.study import IMBALANCE, divided, parts_each, share
from memsim.evaluation.task import System

COUNTS = st.integers(1, 40)


@given(chips=COUNTS, workers=COUNTS)
def test_the_fewest_parts_that_are_fair(chips, workers):
    def most(parts):
        return -(-chips * parts // workers)

    parts = parts_each(chips, workers)
    assert most(parts) <= IMBALANCE * chips * parts / workers
    assert all(most(fewer) > IMBALANCE * chips * fewer / workers for fewer in range(1, parts))


@pytest.mark.parametrize(
    ("chips", "workers", "parts"), [(10, 1, 1), (10, 5, 1), (10, 4, 2), (1, 4, 4), (3, 2, 2), (100, 7, 1), (2, 6, 3)]
)
def test_parts_each(chips, workers, parts):
    assert parts_each(chips, workers) == parts


@given(chips=COUNTS, batches=COUNTS, workers=COUNTS, references=st.integers(0, 3))
def test_shares_are_everything_once(chips, batches, workers, references):
    systems = [System("digital", str(i)) for i in range(references)]
    systems += [System("chip", "", trial) for trial in range(chips)]
    items = divided(systems, batches, workers)
    shares = [share(items, worker, workers) for worker in range(workers)]
    dealt = [(item.system, batch) for mine in shares for item in mine for batch in item.batches]
    assert sorted(dealt, key=repr) == sorted(((n, b) for n in systems for b in range(batches)), key=repr)
    assert all(item.batches for item in items)
    chip_units = [sum(item.system.role == "chip" for item in mine) for mine in shares]
    assert max(chip_units) - min(chip_units) <= 1
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for mine in shares:
        assert [items.index(item) for item in mine] == sorted(items.index(item) for item in mine)


def test_points_that_differ_behind_the_dac_share_their_digital_network(study):
    facts = study(("adc.bits=3,8", "weights.bits=2,3")).facts
    roles = [system.role for system in facts.systems()]
    assert (roles.count("full_precision"), roles.count("digital"), roles.count("chip")) == (1, 2, 8)
    assert len(set(facts.systems())) == len(roles)
    for point in facts.points:
        assert [system.role for system in facts.systems_of(point)] == ["full_precision", "digital", "chip", "chip"]


def test_the_same_hardware_twice_is_refused(study):
    with pytest.raises(InputError, match=r"^adc\.bits=8 and adc\.bits=8 are the same hardware$"):
        study(("adc.bits=8,+8",))


def test_there_is_a_trial(study):
    with pytest.raises(InputError, match="0 trials; there must be at least 1"):
        study(trials=0)
