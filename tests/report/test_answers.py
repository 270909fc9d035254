"""The answers that reports open with."""

from __future__ import annotations

from typing import Any

import pytest

from memsim.report.answers import evaluation_answer, mapping_answer, outcome, sweep_answer
from memsim.report.page import opening
from tests.pages import Page


def interval(value: float, low: float, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def facts(
    mapped: float, low: float, high: float, *, digital: float = 0.10, full: float | None = None, **more: Any
) -> dict[str, Any]:
    """A result whose chips differ from their reference by `low` to `high`, absolute."""
    reference = digital if full is None else full
    difference = interval(mapped - reference, low, high)
    compared = {
        "difference": difference,
        "relative": {name: value / reference for name, value in difference.items() if value is not None},
    }
    intervals = {
        "confidence": 0.95,
        "wer": {"digital": interval(digital, 0.08, 0.12), "mapped": interval(mapped, 0.08, 0.3)},
        "to_digital": compared,
    }
    if full is not None:
        intervals["wer"]["full_precision"] = interval(full, 0.08, 0.12)
        intervals["to_full_precision"] = compared
    return {
        "intervals": intervals,
        "data": {"utterances": 80, "words": 467},
        "mapped": {"wer": {"mean": mapped, "std": 0.002, "min": mapped, "max": mapped}, "trials": [{}, {}, {}]},
    } | more


def said(result: dict[str, Any]) -> str:
    answer = evaluation_answer(result)
    return Page.of(str(opening(*answer))).text


def test_a_chip_that_works() -> None:
    result = facts(0.101, -0.01, 0.012, full=0.1, digital=0.104)
    assert outcome(result) == "pass"
    answer = evaluation_answer(result)
    assert answer.said == (
        "It works: WER 10.10 % on the chip against 10.00 % in full precision, which 80 utterances cannot tell apart."
    )
    details = dict(answer.details)
    assert (
        "Relative to full precision, +1.0 % (95% interval over 80 utterances, of these 3 chips: -10.0 to +12.0 %)"
        in (details["How sure"])
    )
    assert "From chip to chip (of 3), the WER varies by 0.20 % (std)" in details["How sure"]
    assert "are few" not in details["How sure"]
    assert details["What hurts most"] == "Rounding weights and inputs changes the WER by +0.40 %, the chip by -0.30 %."


def test_a_chip_that_loses() -> None:
    result = facts(0.15, 0.02, 0.08, full=0.1)
    assert outcome(result) == "warn"
    text = said(result)
    assert "It works with a loss: WER 15.00 % on the chip against 10.00 % in full precision, 50 % more errors." in text
    assert "80 utterances are few: more of them narrow this interval." in text


def test_a_chip_that_is_better() -> None:
    assert said(facts(0.08, -0.03, -0.01, full=0.1)).startswith("It works, and better than its reference: WER 8.00 %")


@pytest.mark.parametrize(
    ("unusable", "sentence"),
    [
        (("full_precision", "digital", "mapped"), "The network itself does not work on this data: full precision is"),
        (("digital", "mapped"), "It does not work, and the chip is not the reason: the rounded weights are unusable"),
        (
            ("mapped",),
            "It does not work on this chip, which is unusable (WER 100 %); the same rounded weights",
        ),
    ],
)
def test_a_ruined_network_and_what_ruined_it(unusable: tuple[str, ...], sentence: str) -> None:
    result = facts(1.0, 0.8, 0.95, full=0.1, unusable=dict.fromkeys(unusable, "WER 100 %"))
    assert outcome(result) == "fail"
    text = said(result)
    assert text.startswith(sentence)
    assert "Relative to" not in text


def test_without_a_reference() -> None:
    text = said(facts(0.1, -0.01, 0.01))
    assert "against 10.00 % digitally, with the same rounded weights, which 80 utterances cannot tell apart" in text
    assert "There is no full precision to compare with: --reference CHECKPOINT adds it." in text
    assert "Not measured: --ablate and --sensitivity find out." in text


def test_one_chip_and_an_unbounded_interval() -> None:
    result = facts(0.1, -0.01, 0.01, full=0.1)
    result["intervals"]["to_full_precision"]["relative"]["high"] = None
    result["mapped"] |= {"wer": {"mean": 0.1, "std": None}, "trials": [{}]}
    text = said(result)
    assert "to unbounded)" in text
    assert "One chip says nothing of the next one: --trials 5 measures the spread." in text


def test_a_measure_of_which_more_is_better() -> None:
    accuracy = {"key": "accuracy", "name": "accuracy", "lower_is_better": False, "in_percent": True}
    result = facts(0.7, -0.3, -0.1, full=0.9, measures=[accuracy])
    result["intervals"]["accuracy"] = result["intervals"].pop("wer")
    result["mapped"]["accuracy"] = result["mapped"].pop("wer")
    assert outcome(result) == "warn"
    assert "accuracy 70.00 % on the chip against 90.00 % in full precision, 22 % lower." in said(result)


def test_what_hurts_most_is_what_was_measured() -> None:
    steps = [
        {"effect": e, "wer": {"mean": w}} for e, w in (("quantisation", 0.1), ("programming", 0.13), ("adc", 0.12))
    ]
    effects = [{"effect": "programming", "added": 0.07}, {"effect": "adc", "added": 0.01}]
    budget = {"effects": effects, "error": 0.09, "layers": [{"name": "a", "error": 0.1}, {"name": "b", "error": 0.2}]}
    text = said(facts(0.12, -0.01, 0.03, full=0.1, ablation=steps, budget=budget))
    assert "Of the non-idealities, programming costs most: the WER changes by +3.00 %." in text
    assert "are 9.0 % off, to which programming adds most (7.0 %); the worst layer is b (20.0 %)" in text


def test_a_sweep_says_how_many_points_work_which_is_best_and_what_matters() -> None:
    def point(bits: int, adc: int, **values: Any) -> dict[str, Any]:
        return facts(**values) | {"settings": {"weights.bits": bits, "adc.bits": adc}}

    works = {"low": -0.01, "high": 0.02, "full": 0.1}
    points = [
        point(4, 8, mapped=0.10, **works),
        point(4, 5, mapped=0.11, **works),
        point(3, 8, mapped=0.15, low=0.02, high=0.08, full=0.1),
        point(2, 8, mapped=1.0, low=0.8, high=0.95, full=0.1, unusable={"mapped": "WER 100 %"}),
    ]
    answer = sweep_answer(points)
    assert answer.kind == "warn"
    assert answer.said == (
        "2 points of 4 do as well as full precision, as far as 80 utterances can tell; 1 loses; 1 is unusable. "
        "The best is weights.bits=4, adc.bits=8, with a WER of 10.00 %."
    )
    matters = dict(answer.details)["What matters most"]
    assert matters.startswith("weights.bits: WER from 10.50 % at 4 to 100.00 % at 2; adc.bits: WER from")
    assert sweep_answer(points[:2]).kind == "pass"
    assert sweep_answer(points[3:]).kind == "fail"


def test_a_mapping() -> None:
    layer = {"out_features": 30, "in_features": 30, "groups": 1, "tiles": 4}
    answer = mapping_answer({"layers": [layer, layer], "digital": [{"weights": 200}]})
    assert answer.said == "2 layers with 90.0 % of the weights of layers are on 8 arrays."
