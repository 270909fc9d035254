"""Runs of a recogniser over batches of speech, for its outputs, transcripts, calibration inputs and prior."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from memsim.asr.corpora import Corpus, load_corpus
from memsim.asr.data import Batch, FeatureSource, evaluation_batches, pad
from memsim.asr.features import longest_seconds
from memsim.asr.prior import measure_log_prior
from memsim.asr.recogniser import Recogniser
from memsim.asr.tokens import Tokens
from memsim.asr.utterances import Utterance
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.nn.batches import Progress as Progress
from memsim.nn.calibration import CalibrationData
from memsim.nn.chip import ChipMapping
from memsim.nn.finite import first_not_finite

STATISTICS_UTTERANCES = 200
STATISTICS_WINDOWS = 16
"""The number of utterances in place of it where each is filled up with silence to the same length, such as 30 s."""
SENSITIVITY_UTTERANCES = 16
SOON_SECONDS, LONG_SECONDS = 5.0, 60.0
REMEDY = "fewer with --calibration-utterances N"
"""The hint beside the progress of a calibration pass that, SOON_SECONDS after its begin, will take LONG_SECONDS."""
PRIOR_UTTERANCES = 2000


def outputs(recogniser: Recogniser, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Yield each batch with the network's outputs [batch, frames', ...] and their numbers of frames [batch].

    Raises FloatingPointError that names the first layer whose output holds NaN or Inf, where the outputs hold NaN.
    """
    device = _device(recogniser.model)

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        begin_batch(recogniser.model, batch)
        with torch.inference_mode():
            return recogniser.kind.encode(recogniser.model, batch.features.to(device), batch.lengths.to(device))

    for batch in batches:
        encoded, frames = run(batch)
        if encoded.isnan().any():
            where = first_not_finite(recogniser.model, lambda: run(batch))  # noqa: B023 - called at once
            raise FloatingPointError(f"{where or 'the features'}: the first place whose output holds NaN or Inf")
        yield batch, encoded, frames


def begin_batch(model: nn.Module, batch: Batch) -> None:
    """Key the read noise of a mapped `model` by the batch that it is about to compute."""
    mapping = getattr(model, "mapping", None)
    if isinstance(mapping, ChipMapping):
        mapping.begin_batch(batch.key)


def transcribe(recogniser: Recogniser, batches: Iterable[Batch]) -> dict[int, str]:
    """Return the transcripts of the utterances of `batches`, by the utterances' numbers."""
    texts: dict[int, str] = {}
    for batch, encoded, frames in outputs(recogniser, batches):
        texts |= zip(batch.indices, recogniser.transcribe(encoded, frames), strict=True)
    return texts


def hypotheses(recogniser: Recogniser, batches: Iterable[Batch]) -> dict[int, list[int]]:
    """Return the token ids that greedy decoding finds for the utterances of `batches`, by the utterances' numbers."""
    found: dict[int, list[int]] = {}
    for batch, encoded, frames in outputs(recogniser, batches):
        with torch.inference_mode():
            ids = recogniser.kind.hypotheses(recogniser.model, encoded, frames, recogniser.tokens)
        found |= zip(batch.indices, ids, strict=True)
    return found


def _device(model: nn.Module) -> torch.device:
    tensor: torch.Tensor = next(iter(model.state_dict().values()))
    return tensor.device


def calibration_data(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    source: FeatureSource,
    progress: Callable[..., None] = lambda *state: None,
    count: int = STATISTICS_UTTERANCES,
) -> CalibrationData:
    """Return calibration data of `count` utterances, evenly spaced, one at a time, so that there is no padding.

    The utterances are transcribed, so that layers that only decoding calls are measured, too. The losses, of up to 16
    utterances, are those of the network's own transcripts. `progress` is that of a `Listener`. Raises InputError where
    `count` is below 1.
    """
    if count < 1:
        raise InputError(f"calibration_utterances {count}: expected at least 1")
    device = _device(recogniser.model)
    chosen = _evenly(utterances, count)
    passes = itertools.count(1)

    def run(model: nn.Module) -> None:
        name = f"calibration, pass {next(passes)}"
        begun = time.monotonic()
        for done, utterance in enumerate(chosen, start=1):
            features, lengths = pad([source(utterance)])
            encoded, frames = recogniser.kind.encode(model, features.to(device), lengths.to(device))
            recogniser.kind.transcribe(model, encoded, frames, recogniser.tokens)
            seconds = time.monotonic() - begun
            is_long = seconds > SOON_SECONDS and seconds / done * len(chosen) > LONG_SECONDS
            progress(name, done / len(chosen), REMEDY if is_long else "", len(chosen), "utterances")

    def losses(model: nn.Module) -> Iterator[Tensor]:
        kind = recogniser.kind
        for utterance in _evenly(chosen, SENSITIVITY_UTTERANCES):
            features, lengths = (part.to(device) for part in pad([source(utterance)]))
            with torch.no_grad():
                encoded, frames = kind.encode(model, features, lengths)
                (text,) = kind.transcribe(model, encoded, frames, recogniser.tokens)
            targets = [ids_of(text, recogniser.tokens).to(device)]
            if not len(targets[0]):
                continue
            encoded, frames = kind.encode_for_training(model, features, lengths)
            loss = kind.losses(kind.outputs(model, encoded, frames, targets), targets)
            # the squared gradient of a sum over n tokens is n times that of one token, of which the loss is a mean
            yield loss[0] * math.sqrt(len(targets[0]))

    return CalibrationData(recogniser.model, run, losses=losses)


def ids_of(text: str, tokens: Tokens) -> Tensor:
    """Return the token ids of `text`; none where the tokens do not spell it, as phonemes of what a network wrote."""
    try:
        return torch.tensor(tokens.encode(text), dtype=torch.long)
    except (InputError, KeyError):
        return torch.empty(0, dtype=torch.long)


def corpus_for_calibration(recogniser: Recogniser, data: str, root: Path | None) -> Corpus:
    """Load the corpus `data` for calibration, of which the split dev is taken where it names none.

    Raises InputError where it cannot be read.
    """
    return load_corpus(data, root=root, text_style=recogniser.text_style)


def input_statistics(
    recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource, *, with_moments: bool = False
) -> dict[str, InputStatistics]:
    """Return the statistics of the inputs of all matrices that can be mapped, measured on `calibration_data`.

    They are of 200 utterances at most, or of 16 that are filled up to the same length. `with_moments`, they have the
    inputs' second moments, which need more rows: they are of 200 utterances at most.
    """
    few = longest_seconds(recogniser.features) is not None and not with_moments
    count = STATISTICS_WINDOWS if few else STATISTICS_UTTERANCES
    return calibration_data(recogniser, utterances, source, count=count).statistics(with_moments=with_moments)


def output_prior(recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource) -> Tensor:
    """Return the log prior [tokens] of a CTC network's outputs on about 2000 utterances, evenly spaced."""
    batches = evaluation_batches(_evenly(utterances, PRIOR_UTTERANCES), source)
    return measure_log_prior((log_probs, lengths) for _, log_probs, lengths in outputs(recogniser, batches))


def _evenly(utterances: Sequence[Utterance], count: int) -> Sequence[Utterance]:
    """Return `count` of the utterances, evenly spaced; all where there are fewer."""
    return [utterances[i * len(utterances) // count] for i in range(count)] if count < len(utterances) else utterances
