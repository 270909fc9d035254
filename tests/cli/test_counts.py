"""`memsim eval` builds networks, scores transcripts and computes intervals once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import memsim.asr.bootstrap
import memsim.asr.scoring
from memsim.asr.architectures import Architecture
from memsim.asr.recogniser import Recogniser

EVAL = ("--data", "demo", "--limit", "6", "--bits", "3")


@pytest.fixture
def counts(monkeypatch) -> Counter[str]:
    """Counts of networks built, transcripts made and scored, and intervals computed."""
    found: Counter[str] = Counter()

    def wrap(owner: object, name: str, what: str, amount) -> None:
        wrapped = getattr(owner, name)

        def counting(*args, **options):
            result = wrapped(*args, **options)
            found[what] += amount(args, result)
            return result

        monkeypatch.setattr(owner, name, counting)

    class Counting:
        def __init__(self, architecture: Architecture) -> None:
            self._architecture = architecture

        def __getattr__(self, name: str):
            return getattr(self._architecture, name)

        def build(self, config):
            found["networks"] += 1
            return self._architecture.build(config)

    find = memsim.asr.recogniser.find_architecture
    monkeypatch.setattr(memsim.asr.recogniser, "find_architecture", lambda name: Counting(find(name)))
    wrap(Recogniser, "transcribe", "made", lambda args, texts: len(texts))
    wrap(memsim.asr.scoring, "count_errors", "scored", lambda args, errors: len(errors))
    compared: dict[tuple[int, ...], object] = {}  # with the texts, so that no other has their `id`

    def new(args, result) -> int:
        """Texts of a network that are compared with another network's, which is done once for each pair."""
        pair = tuple(map(id, args))
        assert pair not in compared
        compared[pair] = args
        return len(args[0])

    wrap(memsim.asr.scoring, "score", "against_each_other", new)
    for name in ("wer_interval", "compare", "mean_changes"):
        wrap(memsim.asr.bootstrap, name, name, lambda args, result: 1)
    return found


@pytest.fixture
def tiny(tiny_recogniser: Path) -> str:
    return str(tiny_recogniser)


def test_plain(memsim, tiny, counts):
    assert memsim("eval", tiny, *EVAL, "--trials", "2", "--json", "r.json").status == 0
    # the full-precision network, of which the others are made; texts are scored against the corpus, and against those
    # of the network that theirs was made from
    assert counts["networks"] == 1
    assert counts["made"] == counts["scored"] - counts["against_each_other"] == 24
    assert (counts["wer_interval"], counts["compare"]) == (3, 2)


def test_a_reference_and_a_mapped_file(memsim, tiny, counts):
    assert memsim("map", tiny, "--bits", "3", "-o", "m.safetensors").status == 0
    counts.clear()
    assert memsim("eval", "m.safetensors", *EVAL, "--reference", tiny).status == 0
    assert counts["networks"] == 2
    assert counts["made"] == counts["scored"] - counts["against_each_other"] == 18


def test_everything_at_once(memsim, tiny, counts):
    wanted = ("--ablate", "--sensitivity", "--budget", "--report", "r.html", "--hypotheses", "h.jsonl", "--worst", "2")
    assert memsim("eval", tiny, *EVAL, *wanted, "--json", "r.json").status == 0
    assert counts["networks"] == 1
    heard_for_the_cost, run_for_the_whole_chip = 6, 2
    heard = counts["made"] - heard_for_the_cost - run_for_the_whole_chip
    assert counts["scored"] - counts["against_each_other"] == heard
    assert (counts["wer_interval"], counts["compare"], counts["mean_changes"]) == (3, 2, 1)


def test_a_sweep(memsim, tiny, counts):
    done = memsim("eval", tiny, *EVAL, "--set", "adc.bits=4,8", "--results", "r.jsonl", "--json", "r.json")
    assert done.status == 0
    assert counts["networks"] == 1
    # the points share the full-precision and the digital network
    assert counts["made"] == counts["scored"] - counts["against_each_other"] == 24
    assert (counts["wer_interval"], counts["compare"]) == (4, 4)


def test_merging(memsim, tiny, counts):
    for number in (1, 2):
        assert memsim("eval", tiny, *EVAL, "--shard", f"{number}/2", "--results", f"{number}.jsonl").status == 0
    counts.clear()
    assert memsim("eval", "--merge", "?.jsonl", "--json", "r.json", "--report", "r.html").status == 0
    assert counts["networks"] == counts["made"] == 0
    assert counts["scored"] - counts["against_each_other"] == 18
    assert (counts["wer_interval"], counts["compare"]) == (3, 2)
