"""Running a recogniser over speech: in full precision, quantised, and on simulated chips."""

from __future__ import annotations

from dataclasses import replace

from memsim.asr.corpora import Corpus, with_unwritable
from memsim.asr.running import Progress
from memsim.evaluation.result import GREEDY, CheckpointFacts, Evaluation, Trial
from memsim.evaluation.runner import Runner
from memsim.evaluation.target import EvaluationTarget


def evaluate(
    target: EvaluationTarget,
    corpus: Corpus,
    *,
    trials: int = 1,
    loss: bool = False,
    device: str = "cpu",
    progress: Progress = lambda name, done: None,
) -> Evaluation:
    """WER of `target` on `corpus`: full precision where there is one, digital, and `trials` chips.

    With `loss` also the mean loss a character. Raises InputError when a transcript then has one without a token.
    """
    recogniser = target.recogniser
    corpus = with_unwritable(corpus, recogniser.tokens)
    runner = Runner.make(recogniser, corpus, device, progress, loss=loss)
    full_precision = None
    if target.full_precision is not None:
        full_precision = runner.score(target.full_precision, "full precision")
    digital = runner.score(replace(recogniser, model=target.digital), "digital")
    results = []
    for trial in range(trials):
        chip = replace(recogniser, model=target.chip(trial))
        part = runner.part(chip, runner.groups, runner.counted(f"chip {trial + 1} of {trials}"))
        results.append(Trial.of(part, corpus, runner.seconds))
    checkpoint, kind = CheckpointFacts.of(target.checkpoint), recogniser.kind
    return Evaluation(
        checkpoint, corpus, runner.seconds, kind.loss_name, GREEDY, full_precision, digital, tuple(results)
    )
