"""Merging shards: errors for missing, unfinished, unrelated and repeated ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from memsim.crossbar.read import ClipCounts
from memsim.errors import InputError, Stopped
from memsim.evaluation.merge import merge
from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.run import run_study
from tests.evaluation.conftest import Counting


@pytest.fixture
def shard(study, tmp_path):
    """Makes the file of a shard of a study of one chip."""

    def make(number, count=3, stop_after=None, **changes):
        name = "".join(c if c.isalnum() else "-" for c in str(changes))
        path = tmp_path / f"{number}-of-{count}{name.strip('-')}.jsonl"
        listener = Counting(stop_after)
        given = {"settings": ("adc.bits=8",), "trials": 1} | changes
        run_study(
            study(**given), shard=(number, count), results=path, listener=listener, stop_request=listener.stop_request
        )
        return path

    return make


def error_of(paths):
    with pytest.raises(InputError) as error:
        merge(paths)
    return str(error.value)


def test_what_is_wrong_with_shards_is_said(shard, tmp_path):
    one, three = shard(1), shard(3)
    assert error_of([one, three]) == f"{tmp_path}: of 3 shards, 2 not found; --shard makes them"
    assert error_of([three]) == f"{tmp_path}: of 3 shards, 1, 2 not found; --shard makes them"

    copy = tmp_path / "copy.jsonl"
    copy.write_text(one.read_text())
    assert error_of([one, three, copy]) == f"{one} and {copy}: both are shard 1/3"

    other = shard(2, seed=1)
    assert f"{other}: belongs to another study than {one} (seed 1, not 0)" == error_of([one, other, three])
    assert f"{shard(2, 2)}: belongs to another study than {one} (2 shards, not 3)" in error_of([one, shard(2, 2)])
    assert "(2 trials, not 1)" in error_of([one, shard(2, trials=2)])
    assert "(2 points, not 1)" in error_of([one, shard(2, settings=("adc.bits=8,3",))])
    assert "(other hardware)" in error_of([one, shard(2, settings=("adc.bits=3",))])

    with pytest.raises(Stopped):
        shard(2, stop_after=1)
    two = tmp_path / "2-of-3.jsonl"
    assert error_of([one, two, three]) == f"{two}: not finished; run the command that wrote it again"
    shard(2)
    assert len(merge([one, two, three])) == 1

    lines = two.read_text().splitlines()
    lost = [line for line in lines if json.loads(line).get("role") != "chip"]
    two.write_text("\n".join(lost) + "\n")
    assert "lacks transcripts of chip, trial 0" in error_of([one, two, three])


def test_the_whole_twice_is_said(study, tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        run_study(study(("adc.bits=8",), trials=1), results=path)
    assert error_of(paths) == f"{paths[0]} and {paths[1]}: both are the whole study"
    assert len(merge(paths[:1])) == 1


def test_a_file_that_claims_endless_chips_or_none(study, tmp_path):
    path = tmp_path / "a.jsonl"
    run_study(study(("adc.bits=8",), trials=1), results=path)
    header, *lines = path.read_text().splitlines()
    for wrong, said in (
        ({"trials": 2**63}, "lacks transcripts of chip, trial 1"),
        ({"trials": 0}, "is not a results file of memsim eval, or is damaged"),
        ({"points": []}, "is not a results file of memsim eval, or is damaged"),
    ):
        path.write_text("\n".join([json.dumps(json.loads(header) | wrong), *lines]) + "\n")
        assert said in error_of([path])


def test_parts_of_one_network_must_be_of_the_same_layers():
    one, other = (PartialResult({i: "a"}, 1.0, {layer: ClipCounts(1, 2, 3, 4)}) for i, layer in enumerate("ab"))
    with pytest.raises(InputError, match="different chips or layers"):
        PartialResult.joined([one, other])
    assert PartialResult.joined([one, replace(other, clips=one.clips)]).clips["a"] == ClipCounts(2, 4, 6, 8)


def test_there_are_files():
    assert error_of([]) == "no results files to merge"
