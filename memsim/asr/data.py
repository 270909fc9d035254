"""Batches of features: shuffled and cached for training, a function of the utterances alone for evaluation."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memsim.asr.audio import duration_seconds, read_audio
from memsim.asr.corpora import Corpus, Unheard
from memsim.asr.features import FeatureConfig, Features, extractor, longest_seconds, perturb_speed
from memsim.asr.tokens import Tokens
from memsim.asr.utterances import Utterance
from memsim.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

BATCH_SECONDS = 60.0
"""The longest batch of an evaluation, padding included."""


@dataclass(frozen=True)
class Batch:
    """Padded features of several utterances."""

    key: str
    """The key under which the batch's read noise is drawn."""
    indices: tuple[int, ...]
    """The numbers of the utterances."""
    features: Tensor
    """[batch, frames, mel_bins], or waveforms [batch, samples]."""
    lengths: Tensor
    """[batch], in frames or samples."""


class FeatureSource:
    """A source of the features of utterances, which keeps up to `cache_bytes` of them in memory.

    Log-mel features are rounded to 16 bits, cached or not, so that the cache changes the time alone. A full cache
    drops nothing: passes over a corpus come in another order each time, so no choice would be better. Several threads
    may call it at once.
    """

    def __init__(self, config: Features, *, cache_bytes: float = 0) -> None:
        self._sample_rate_hz = config.sample_rate_hz
        self._extract = extractor(config)
        self._dtype = torch.float16 if isinstance(config, FeatureConfig) else torch.float32
        self._cache: dict[tuple[Utterance, float], Tensor] = {}
        self._bytes_left = cache_bytes
        self._lock = threading.Lock()

    def __call__(self, utterance: Utterance, speed: float = 1.0) -> Tensor:
        """Return the features [frames, mel_bins], or the waveform [samples], at `speed` times the recorded speed.

        Raises InputError when the audio cannot be read.
        """
        key = (utterance, speed)
        if key in self._cache:
            return self._cache[key].float()
        waveform = read_audio(utterance, self._sample_rate_hz)
        features = self._extract(perturb_speed(waveform, self._sample_rate_hz, speed)).to(self._dtype)
        with self._lock:
            if key not in self._cache and features.nbytes <= self._bytes_left:
                self._bytes_left -= features.nbytes
                self._cache[key] = features
        return features.float()


def encode_text(tokens: Tokens, utterance: Utterance) -> Tensor:
    """Return the token ids of an utterance's text, int64 [tokens].

    Raises InputError that names the utterance, for a character or word without a token.
    """
    try:
        return torch.tensor(tokens.encode(utterance.text), dtype=torch.long)
    except InputError as error:
        raise InputError(f"{utterance.audio}: {utterance.id}: {error}") from None


def with_unheard(corpus: Corpus, features: Features) -> Corpus:
    """Return `corpus` with the ends of utterances that a recogniser with these `features` does not hear.

    Raises InputError where audio cannot be read.
    """
    if (longest := longest_seconds(features)) is None:
        return corpus
    beyond = {u.id: duration_seconds(u) - longest for u in corpus.utterances}
    unheard = {name: round(seconds, 3) for name, seconds in beyond.items() if seconds > 0}
    return replace(corpus, unheard=Unheard(longest, unheard) if unheard else None)


def pad(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad [frames, mel_bins] or [samples] each to a batch [batch, ...], and return it with the lengths [batch]."""
    return pad_sequence(list(features), batch_first=True), torch.tensor([len(f) for f in features])


def bucket(durations_seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Group indices into batches of similar length, each at most `batch_seconds` long with its padding.

    An utterance that is longer makes a batch of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(durations_seconds)), key=lambda i: (durations_seconds[i], i)):
        longest = durations_seconds[index]
        if not groups or longest * (len(groups[-1]) + 1) > batch_seconds:
            groups.append([])
        groups[-1].append(index)
    return groups


def evaluation_batches(
    utterances: Sequence[Utterance],
    features: FeatureSource,
    batch_seconds: float = BATCH_SECONDS,
    *,
    first: int = 0,
    every: int = 1,
) -> Iterator[Batch]:
    """Yield batches that are a function of the utterances alone, the shortest first.

    Utterances of equal duration keep their order.

    Args:
        utterances: the speech.
        features: their features.
        batch_seconds: the longest batch, padding included.
        first: the number of the first batch of a share of the batches.
        every: a share has one in `every` batches.
    """
    for group in bucket([duration_seconds(u) for u in utterances], batch_seconds)[first::every]:
        yield evaluation_batch(utterances, group, features)


def evaluation_batch(utterances: Sequence[Utterance], group: Sequence[int], features: FeatureSource) -> Batch:
    """Return the batch of the utterances numbered `group`, whose key is a hash of their ids."""
    padded, lengths = pad([features(utterances[i]) for i in group])
    key = hashlib.blake2b("\n".join(utterances[i].id for i in group).encode(), digest_size=8).hexdigest()
    return Batch(key, tuple(group), padded, lengths)


def training_batches(
    durations_seconds: Sequence[float], speeds: Sequence[float], batch_seconds: float, generator: torch.Generator
) -> list[list[tuple[int, float]]]:
    """Draw an epoch: batches of (index, speed) in random order, each utterance at one of `speeds`.

    Lengths are jittered by 10 % before they are grouped, so that batches differ from epoch to epoch; a batch may be
    that much longer than `batch_seconds`.
    """
    count = len(durations_seconds)
    choice = torch.randint(len(speeds), (count,), generator=generator).tolist()
    jitter = torch.empty(count).uniform_(0.9, 1.1, generator=generator).tolist()
    drawn = [speeds[i] for i in choice]
    groups = bucket([d / s * j for d, s, j in zip(durations_seconds, drawn, jitter, strict=True)], batch_seconds)
    order = torch.randperm(len(groups), generator=generator).tolist()
    return [[(i, drawn[i]) for i in groups[g]] for g in order]


def loaded_ahead(load: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield `load` of each item, in order; with `threads`, the next ones are loaded while one is being used."""
    if not threads:
        yield from map(load, items)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
