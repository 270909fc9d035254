"""The energy, time and area of a chip, measured while it recognises speech."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource, evaluation_batches
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import Progress, transcribe
from memsim.asr.utterances import Utterance
from memsim.chip.chip_cost import ChipCost
from memsim.evaluation.target import Target
from memsim.networks.whole_chip import chip_of, whole_chip
from memsim.nn.chip import mapping_of
from memsim.nn.layer_cost import Cost, LayerCost

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
        work = matrix.work
        watts = float(work.cell_watts) / work.vectors if work.vectors and matrix.states is not None else None
        layers.append(LayerCost.of(matrix, work.vectors / seconds, watts))
    spread = mapping.spec.cost.audio_seconds_per_programming
    return Cost(tuple(layers), "audio_second", spread, seconds, _whole_chip(target, layers))


def _whole_chip(target: Target, layers: Sequence[LayerCost]) -> ChipCost:
    """Estimate the whole chip, for the inputs of the digital twin."""
    recogniser = replace(target.template, model=target.digital, decoder=None)
    plan = mapping_of(target.digital).plan
    mapped = [layer.on(target.spec) for layer in plan.mapped]
    return whole_chip(recogniser, chip_of(target.spec), mapped, plan.digital, layers)


def _hear(recogniser: Recogniser, utterances: Sequence[Utterance], progress: Progress) -> None:
    """Run the network on utterances one at a time: in batches, some would be padded."""
    batches = evaluation_batches(utterances, FeatureSource(recogniser.features), batch_seconds=0.0)
    for done, batch in enumerate(batches, start=1):
        transcribe(recogniser, [batch])
        progress("cost", done / len(utterances))
