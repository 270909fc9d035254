"""The energy, time and area of a chip, measured while it recognises speech or computes a batch of examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from memsim.arguments import require_types
from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource, evaluation_batches
from memsim.asr.input_rates import sample_utterance
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import Progress, transcribe
from memsim.asr.utterances import Utterance
from memsim.chip.chip_cost import ChipCost
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.power import Work
from memsim.errors import InputError
from memsim.evaluation.module_batches import examples_of
from memsim.evaluation.target import Target
from memsim.networks.whole_chip import chip_of, whole_chip
from memsim.nn.batches import MISFITS, described, run_batch
from memsim.nn.calibration import evaluating
from memsim.nn.chip import ChipMapping, mapping_of
from memsim.nn.layer_cost import Cost, LayerCost
from memsim.nn.sample_run import SampleRun

COST_UTTERANCES = 24
"""The number of utterances, evenly taken, on which the cost of a chip is measured, about."""


def chip_cost(
    target: Target, corpus: Corpus, *, device: str = "cpu", progress: Progress = lambda name, done: None
) -> Cost:
    """Measure the cost of the target's first chip on some utterances of `corpus`, one at a time."""
    every = max(1, len(corpus.utterances) // COST_UTTERANCES)
    utterances = corpus.utterances[::every]
    chip = target.chip(0).to(device)
    mapping = mapping_of(chip)
    mapping.reads.count_work = True
    try:
        _hear(replace(target.template, model=chip), utterances, progress)
    finally:
        mapping.reads.count_work = False
        mapping.release()
    seconds = math.fsum(duration_seconds(utterance) for utterance in utterances)
    layers: list[LayerCost] = []
    for matrix in mapping.layers.values():
        layers.append(LayerCost.of(matrix, matrix.work.vectors / seconds, _mean_watts(matrix)))
    spread = mapping.spec.cost.audio_seconds_per_programming
    return Cost(tuple(layers), "audio_second", spread, seconds, chip=_whole_chip(target, layers))


def _mean_watts(matrix: MappedMatrix) -> float | None:
    """Return the power of the cells for a mean vector, summed over its phases; None where there are no currents."""
    work = matrix.work
    return float(work.cell_watts) / work.vectors if work.vectors and matrix.states is not None else None


def _whole_chip(target: Target, layers: Sequence[LayerCost]) -> ChipCost:
    """Estimate the whole chip, for the inputs of the digital twin."""
    recogniser = replace(target.template, model=target.digital, decoder=None)
    plan = mapping_of(target.digital).plan
    mapped = [layer.on(target.spec) for layer in plan.mapped]
    return whole_chip(sample_utterance(recogniser), chip_of(target.spec), mapped, plan.digital, layers)


def estimate_cost(chip: nn.Module, batch: Any, *, examples: int | None = None) -> Cost:
    """Estimate energy, time and area of a network on a chip for an example of `batch`, beside a digital accelerator.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> batch = torch.randn(16, 64)
    >>> cost = memsim.estimate_cost(memsim.map_model(model, "physical", bits=4, calibration=[batch]), batch)
    >>> cost.per, cost.examples, round(cost.chip.workload.macs)
    ('example', 16, 37888)

    Args:
        chip: a network on arrays, as `map_model` returns it. The whole chip around the arrays is that of its spec.
        batch: what the network computes at once, such as a calibration batch of `map_model`: its argument, a tuple of
            arguments, or a mapping of named ones. Times are those of the whole batch, one after the other on one chip;
            a batch of one example has the latency of an input alone.
        examples: the number of examples in it, by default the first dimension of its first tensor.

    Raises InputError for a network that is not on arrays, and for a batch that does not fit it.
    """
    require_types(estimate_cost, locals())
    mapping = getattr(chip, "mapping", None)
    if not isinstance(mapping, ChipMapping):
        raise InputError("chip: is not on arrays; estimate_cost takes what memsim.map_model returns")
    amount = examples_of(batch, "batch") if examples is None else examples
    if amount < 1:
        raise InputError(f"examples: {amount}; a batch has at least one")

    def compute() -> None:
        with torch.inference_mode(), mapping.batch("cost"):
            run_batch(chip, batch)

    architecture = chip_of(mapping.spec)
    sample = SampleRun(chip, compute, amount, "example", described(batch))
    with evaluating(chip), _new_work(mapping):
        try:
            vectors = sample.vectors()
        except MISFITS as error:
            if isinstance(error, InputError):
                raise
            said = str(error).split("\n")[0]
            raise InputError(f"batch: the network fails on {described(batch)}: {said}") from error
        layers = [LayerCost.of(matrix, vectors[name], _mean_watts(matrix)) for name, matrix in mapping.layers.items()]
        whole = whole_chip(sample, architecture, mapping.mapped, mapping.digital, layers, vectors)
    mapping.release()
    spread = mapping.spec.cost.audio_seconds_per_programming
    return Cost(tuple(layers), "example", spread, examples=amount, batch=sample.batch, chip=whole)


@contextmanager
def _new_work(mapping: ChipMapping) -> Iterator[None]:
    """Count the work of matrices from 0 in the block, and go on with the count of before when it ends."""
    before = [(matrix, matrix.work) for matrix in mapping.layers.values()]
    for matrix, _ in before:
        matrix.work = Work()
    try:
        yield
    finally:
        for matrix, work in before:
            matrix.work = work


def _hear(recogniser: Recogniser, utterances: Sequence[Utterance], progress: Progress) -> None:
    """Run the network on utterances one at a time: in batches, some would be padded."""
    batches = evaluation_batches(utterances, FeatureSource(recogniser.features), batch_seconds=0.0)
    for done, batch in enumerate(batches, start=1):
        transcribe(recogniser, [batch])
        progress("cost", done / len(utterances))
