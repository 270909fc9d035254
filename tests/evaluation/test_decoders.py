from __future__ import annotations

from dataclasses import replace

import pytest

from memsim.asr.corpora import load_corpus
from memsim.asr.tokens import CharacterTokens
from memsim.config.resources import ASSETS
from memsim.errors import InputError
from memsim.evaluation.decoders import GridPoint, Tuning, find_log_prior, hypotheses
from memsim.evaluation.target import with_decoder
from memsim.hardware import load_hardware
from memsim.storage.checkpoint import load_checkpoint
from tests.evaluation.calls import evaluate, prepare

CHECKPOINT = ASSETS / "checkpoints" / "demo-float.safetensors"
ALL_DIGITAL = {"weights.bits": 8, "digital": ["output*", "frontend.*", "blocks.[1-5].*"]}


@pytest.fixture(scope="module")
def target():
    return prepare(load_checkpoint(CHECKPOINT), spec=load_hardware("ideal").with_settings(ALL_DIGITAL))


def points(*values: tuple[float, float, float, float]) -> tuple[GridPoint, ...]:
    return tuple(GridPoint(*value) for value in values)


@pytest.mark.parametrize(
    ("grid", "best"),
    [
        (points((0, 0, 0.2, 0.1), (1, 0, 0.1, 0.3)), (1, 0)),
        (points((0, 0, 0.1, 0.3), (1, 0, 0.1, 0.2)), (1, 0)),
        (points((2, 0, 0.1, 0.1), (1, 0.5, 0.1, 0.1), (1, 0, 0.1, 0.1)), (1, 0)),
    ],
)
def test_the_best_pair(grid: tuple[GridPoint, ...], best: tuple[float, float]) -> None:
    chosen = Tuning(load_corpus("demo", limit=1), grid).best
    assert (chosen.lm_weight, chosen.prior_weight) == best


class Constant:
    """A decoder that hears the same in everything."""

    def __call__(self, model, log_probs, lengths) -> list[str]:
        return ["yes"] * len(lengths)


def test_every_system_is_decoded_alike(target) -> None:
    corpus = load_corpus("demo", limit=2)
    decoded = with_decoder(target, Constant())  # type: ignore[arg-type]
    result = evaluate(decoded, corpus)
    scores = [result.full_precision, result.digital, *(trial.score for trial in result.trials)]
    assert [score.hypotheses for score in scores] == [("yes", "yes")] * 3
    rows = list(hypotheses(result, decoded))
    assert [row["hypothesis"] for row in rows] == ["yes"] * 6
    assert [row["system"] for row in rows] == ["full precision"] * 2 + ["digital"] * 2 + ["chip of seed 0"] * 2
    with pytest.raises(ValueError, match="need beam search"):
        list(hypotheses(result, decoded, nbest=2))


def test_a_reference_with_other_tokens_cannot_share_the_search(target) -> None:
    other = replace(target, full_precision=replace(target.full_precision, tokens=CharacterTokens((" ", "a"))))
    with pytest.raises(InputError, match="the full-precision reference has other tokens"):
        with_decoder(other, Constant())  # type: ignore[arg-type]


def test_the_prior_in_the_checkpoint_comes_first(target) -> None:
    count = len(target.template.tokens)
    stored = f"[{', '.join(['-1.0'] * count)}]"
    demo = load_checkpoint(CHECKPOINT)
    checkpoint = replace(demo, metadata={**demo.metadata, "log_prior": stored})
    log_prior, source = find_log_prior(checkpoint, target.template.tokens, None)  # type: ignore[arg-type]
    assert (log_prior.tolist(), source) == ([-1.0] * count, "checkpoint")
