"""The groups of options refuse options without effect, in one line that names the option."""

from __future__ import annotations

import pytest

import memsim
from memsim.errors import InputError


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: memsim.Decoding("viterbi"), "--decoder viterbi: expected greedy or beam"),
        (lambda: memsim.Decoding(beam_size=9), "--beam-size: not used by greedy decoding; add --decoder beam"),
        (lambda: memsim.Decoding("beam", lm_weight=1.0), "--lm-weight: there is no language model"),
        (lambda: memsim.Decoding("beam", tune=True, prior_weight=0.0), "--tune: chooses the weights"),
        (lambda: memsim.Sharing(jobs=0), "--jobs 0: there must be at least 1"),
        (lambda: memsim.Sharing(shard="2/8"), "--shard 2/8: name the file of its results"),
        (lambda: memsim.Sharing(shard="9/8", results="r"), "--shard 9/8: expected I/N"),
    ],
)
def test_what_means_nothing_is_refused(make, said: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(said)


def test_a_single_point_is_wanted_by_all_but_loss_and_cost() -> None:
    memsim.Findings(loss=True, budget=None, cost=None).require_single_point()
    memsim.Findings(cost=True).require_single_point(shared=False)
    with pytest.raises(InputError, match="--cost: not with shards or torchrun"):
        memsim.Findings(cost=True).require_single_point(shared=True)
    for name in ("budget", "ablate", "sensitivity", "hypotheses"):
        with pytest.raises(InputError, match=f"--{name}: only for a single point"):
            memsim.Findings(**{name: True}).require_single_point()
