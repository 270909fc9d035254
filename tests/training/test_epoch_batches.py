from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.corpora import Corpus
from memsim.training.epoch_batches import TrainingSet, share
from tests.training.tones import RANDOM, fresh


def tones(corpus: Corpus, seed: int = 0) -> TrainingSet:
    return TrainingSet(corpus.utterances, fresh(), RANDOM, seed)


def test_every_epoch_and_seed_has_batches_of_its_own(corpus: Corpus) -> None:
    made = [tones(corpus, seed).batches(epoch) for seed in (0, 1) for epoch in range(1, 6)]
    assert tones(corpus).batches(3) == made[2]
    assert len({str(batches) for batches in made}) == 10
    for batches in made:
        assert sorted(i for batch in batches for i, _ in batch) == [0, 1, 2, 3]


def test_an_utterance_is_augmented_alike_in_whatever_batch(corpus: Corpus) -> None:
    data = tones(corpus)
    together = data.load(1, [(0, 1.0), (2, 0.9)])
    assert [utterance.id for utterance in together.utterances] == ["u0", "u2"]
    assert [target.tolist() for target in together.targets] == [[2, 3], [2, 1, 3]]
    alone = data.load(1, [(2, 0.9)])
    assert torch.equal(alone.features[0], together.features[1, : alone.lengths[0]])
    assert (alone.features == 0).any()  # something was masked
    assert not torch.equal(alone.features, data.load(2, [(2, 0.9)]).features)
    assert not torch.equal(alone.features, tones(corpus, 1).load(1, [(2, 0.9)]).features)


def test_the_copies_of_an_utterance_are_augmented_differently(corpus: Corpus) -> None:
    data = TrainingSet([corpus.utterances[0]] * 2, fresh(), RANDOM, 0)
    one, other = data.load(1, [(0, 1.0), (1, 1.0)]).features
    assert not torch.equal(one, other)


BATCHES = st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0.9, 1.0])), min_size=1, max_size=20, unique=True)


@given(BATCHES, st.integers(1, 5), st.integers(1, 6))
def test_the_shares_of_a_batch_are_the_batch(batch: list[tuple[int, float]], pieces: int, workers: int) -> None:
    shares = [share(batch, pieces, rank, workers) for rank in range(workers)]
    computed = [item for s in shares for piece in s.pieces for item in piece if s.weight]
    assert sorted(computed) == sorted(batch)
    sizes = [sum(map(len, s.pieces)) for s in shares]
    assert max(sizes) - min(sizes) <= 1
    for s in shares:
        assert s.batch_size == len(batch)
        assert 1 <= len(s.pieces) <= pieces
        assert all(s.pieces)
        assert s.weight in (0, 1)


def test_one_process_computes_a_batch_as_it_is() -> None:
    batch = [(3, 1.0), (1, 0.9), (2, 1.1)]
    assert share(batch, 1, 0, 1).pieces == (batch,)
    assert share(batch[:1], 1, 1, 2) == share(batch[:1], 3, 5, 8)  # nothing is left for these
    assert share(batch[:1], 1, 1, 2).weight == 0


def test_moving_a_batch_keeps_what_it_holds(corpus: Corpus) -> None:
    batch = tones(corpus).load(1, [(0, 1.0)])
    moved = batch.to(torch.device("meta"))
    assert (moved.features.device.type, moved.lengths.device.type) == ("meta", "meta")
    assert moved.targets is batch.targets
    assert moved.utterances == batch.utterances


def test_an_empty_text_has_no_tokens(corpus: Corpus) -> None:
    data = TrainingSet([replace(corpus.utterances[0], text="")], fresh(), RANDOM, 0)
    (target,) = data.load(1, [(0, 1.0)]).targets
    assert target.dtype == torch.long
    assert target.shape == (0,)


def test_the_cache_is_as_large_as_the_recipe_says(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from memsim.asr import data as data_module

    read: list[str] = []
    original = data_module.read_audio
    monkeypatch.setattr(data_module, "read_audio", lambda u, hz: (read.append(u.id), original(u, hz))[1])
    one_fits = 1.5 * len(tones(corpus).source(corpus.utterances[0])) * 16 * 2 / 1e9
    for gigabytes, reads in ((0.0, 4), (one_fits, 3), (1.0, 2)):
        read.clear()
        config = RANDOM.model_copy(update={"feature_cache_gigabytes": gigabytes})
        data = TrainingSet(corpus.utterances, fresh(), config, 0)
        for _ in range(2):
            data.load(1, [(0, 1.0), (1, 1.0)])
        assert len(read) == reads
