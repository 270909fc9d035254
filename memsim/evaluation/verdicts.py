"""Judgements of results: unusable networks, lost texts, and laws whose numbers were not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from memsim.asr import scoring
from memsim.evaluation.task import Score, Task
from memsim.units import counted

UNUSABLE_WER = 1.0
"""The WER from which a network is unusable: with as many errors as words it is no better than silence."""

MIN_HITS = 0.1
"""The fraction of correct words below which a network is unusable."""

MOST = 0.5
"""The fraction of utterances or words that counts as most of them."""


def why_unusable(scores: Sequence[scoring.Score]) -> str | None:
    """Return why a network with these scores (one per chip) is too bad for ratios of its WER, or None."""
    wer = fmean(score.wer for score in scores)
    hits = fmean(score.hits / score.words for score in scores)
    if wer >= UNUSABLE_WER:
        return f"WER {wer:.1%}, as many errors as words or more"
    if hits < MIN_HITS:
        return f"{hits:.1%} of the words are right (WER {wer:.1%})"
    return None


def lost_text(found: scoring.Score, baseline: scoring.Score | None = None, baseline_name: str = "") -> dict[str, str]:
    """Find what is wrong with the texts of a network, by kind.

    The kinds are empty, repeated, babbling, short, lost, some babble, and some end early. `baseline` is a network that
    this one is made from, on the same utterances: words that it wrote can be lost, and texts end early only where it
    goes on.
    """
    texts = [" ".join(text.split()) for text in found.hypotheses]
    references = [" ".join(text.split()) for text in found.references]
    said: dict[str, str] = {}
    empty = texts.count("")
    if empty > MOST * len(texts):
        said["empty"] = f"{empty} of {counted(len(texts), 'transcript')} are empty"
    text, times = Counter(filter(None, texts)).most_common(1)[0] if empty < len(texts) else ("", 0)
    right = sum(text == own == reference for own, reference in zip(texts, references, strict=True))
    if times >= 2 and times > MOST * len(texts) and right < MOST * times:
        said["repeated"] = f"{times} of {len(texts)} transcripts are the same text, {_quoted(text)}"
    written = sum(len(text.split()) for text in texts)
    times_longer = max(written / found.words, sum(map(len, texts)) / max(found.characters, 1))
    if times_longer > scoring.BABBLE:
        said["babbling"] = f"the transcripts are {times_longer:.1f} times as long as their references (babbling)"
    if not said and written < MOST * found.words:
        said["short"] = (
            f"the transcripts have {counted(written, 'word')}, their references {found.words}: most words are lost"
        )
    if not said and baseline is not None and any(text.split() for text in baseline.hypotheses):
        kept = scoring.score(baseline.hypotheses, found.hypotheses)
        if kept.hits < (1 - MOST) * kept.words:
            lost = kept.words - kept.hits
            said["lost"] = f"{lost} of the {counted(kept.words, 'word')} of the {baseline_name} text are lost"
    if "babbling" not in said and found.babbling and (others := found.wer_without_babbling) is not None:
        said["some babble"] = (
            f"{counted(len(found.babbling), 'transcript is', 'transcripts are')} more than twice as long as the "
            f"reference (babbling); the others have a WER of {others:.2%}"
        )
    if not said and baseline is not None:
        early = [i for i in found.cut_short if i not in baseline.cut_short]
        if early:
            errors = found.substitutions + found.insertions + found.deletions
            said["some end early"] = (
                f"{counted(len(early), 'transcript has', 'transcripts have')} less than half of the reference's words "
                f"(cut short), where the {baseline_name} network goes on; {found.errors_of(early)} of the "
                f"{counted(errors, 'word error')} are theirs"
            )
    return said


def _quoted(text: str) -> str:
    return f"'{text[:40]}...'" if len(text) > 40 else f"'{text}'"


def warnings_of(
    task: Task | type[Task], full_precision: Score | None, digital: Score, chips: Mapping[int, Score]
) -> list[str]:
    """Return warnings about networks that are unusable or lose text; `chips` are scores by seed.

    Only the first failing network gets a remedy, because it is the one to repair first.
    """
    networks: list[tuple[str, Mapping[int, Score], Score | None, str]] = [
        ("digital, quantised", {0: digital}, full_precision, "full-precision"),
        ("mapped", chips, digital, "digital"),
    ]
    if full_precision is not None:
        networks.insert(0, ("full precision", {0: full_precision}, None, ""))
    warnings: list[str] = []
    for number, (name, scores, baseline, baseline_name) in enumerate(networks):
        by_kind: dict[str, dict[int, str]] = {}
        for seed, found in scores.items():
            reason = task.why_unusable([found])
            problems = {} if reason is None else {"unusable": f"unusable: {reason}"}
            for kind, problem in (problems | dict(task.problems(found, baseline, baseline_name))).items():
                by_kind.setdefault(kind, {})[seed] = problem
        sentences = [f"{name}{_chips(name, problems, scores)}" for problems in by_kind.values()]
        if sentences and not warnings:
            # without full precision it is unknown whether the bits are the cause
            sentences[-1] += f"; {task.remedies[name if number else 'full precision']}"
        warnings += sentences
    return warnings


def _chips(name: str, problems: Mapping[int, str], scores: Mapping[int, Any]) -> str:
    """Return the number of chips with a problem, and the problem of the first of them."""
    (seed, problem), *more = problems.items()
    if name != "mapped" or len(scores) == 1:
        return f": {problem}"
    return f", {1 + len(more)} of {len(scores)} chips, such as that of seed {seed}: {problem}"


def worst_layers(sensitivity: Mapping[str, Any], budget: Mapping[str, Any] | None = None) -> str:
    """Return a sentence on the layers that add most to the loss, from the two results as `--json` writes them."""
    loss, layers = f"{sensitivity['loss_name']} loss", sensitivity["layers"]
    worst = [layer for layer in layers if layer.get("may_be_worst")]
    beyond = sum(not layer["within_noise"] and layer["added"]["value"] > 0 for layer in layers if "added" in layer)
    if not worst:
        answer = f"no single layer adds to the {loss} beyond noise; use more {_items(sensitivity)}"
    else:
        names = ", ".join(layer["name"] for layer in worst[:5]) + f" and {len(worst) - 5} more" * (len(worst) > 5)
        which = (
            "the worst is"
            if len(worst) == 1
            else f"the worst, which cannot be told apart on these {_items(sensitivity)}, are"
        )
        adds = f"layer{'s' * (len(layers) > 1)} add{'s' * (beyond == 1)}"
        answer = f"{beyond} of {len(layers)} {adds} to the {loss} beyond noise; {which} {names}"
    if budget is None or not budget["layers"]:
        return answer
    largest = max(budget["layers"], key=lambda layer: layer["error"])
    if not largest["error"]:
        return f"{answer}. No layer's product has an error"
    return (
        f"{answer}. The largest product error is that of {largest['name']} ({largest['error']:.1%}). Product errors "
        "measure how wrong the outputs of a layer are; the loss measures what that costs the network"
    )


def _items(sensitivity: Mapping[str, Any]) -> str:
    """Return the items that the intervals of a sensitivity are over, such as `utterances`."""
    return str(sensitivity.get("over", "utterances")).partition(",")[0]


def noise_note(sensitivity: Mapping[str, Any]) -> str:
    """Explain the columns of a table of layers."""
    of = "per token" if _items(sensitivity) == "utterances" else f"of {_items(sensitivity)}"
    return (
        f"{sensitivity['loss_name']} loss: the mean {of}, by which layers are sorted; added loss: in % of the "
        f"digital network's loss, with a {sensitivity['confidence']:.0%} interval over {sensitivity['over']}; "
        "noise: the interval contains 0 (by chance, it does not for one harmless layer in 20)"
    )
