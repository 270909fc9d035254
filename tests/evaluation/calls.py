"""Evaluations for tests, as a study with one job."""

from __future__ import annotations

from typing import Any

from memsim.asr.corpora import Corpus, with_unwritable
from memsim.asr.recogniser import skeleton
from memsim.evaluation.result import Evaluation
from memsim.evaluation.run import run_study
from memsim.evaluation.speech import SpeechTask
from memsim.evaluation.study import Point, Study
from memsim.evaluation.target import CheckpointNetworks, Target
from memsim.hardware import HardwareSpec
from memsim.storage.checkpoint import Checkpoint, load_checkpoint


def prepare(
    checkpoint: Checkpoint,
    *,
    spec: HardwareSpec | None = None,
    seed: int | None = None,
    reference: Checkpoint | None = None,
) -> Target:
    """The networks of `checkpoint` on `spec`, or as they are in a mapped file."""
    return CheckpointNetworks(checkpoint, reference).target(spec, seed)


def evaluate(target: Target, corpus: Corpus, *, trials: int = 1, loss: bool = False) -> Evaluation:
    """The result of `trials` chips of `target`."""
    corpus = with_unwritable(corpus, target.template.tokens)
    task = SpeechTask.of(target.template, corpus, loss=loss)
    study = Study(
        task, CheckpointNetworks(load_checkpoint(target.path)), (Point({}, target.spec),), trials, target.seed
    )
    return run_study(study, target=target)[0][1]


def study_of(
    checkpoint: Checkpoint, corpus: Corpus, points: tuple[Point, ...], reference: Checkpoint | None = None, **rest: Any
) -> Study:
    """A study of speech."""
    return Study(SpeechTask.of(skeleton(checkpoint), corpus), CheckpointNetworks(checkpoint, reference), points, **rest)
