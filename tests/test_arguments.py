"""Arguments of wrong types, in every public call: one line that names the argument, what it takes and what it got."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import memsim
from memsim.arguments import require_types

NETWORK = torch.nn.Linear(4, 2)
CALLS = [getattr(memsim, name) for name in memsim.__all__ if inspect.isfunction(getattr(memsim, name))]
GROUPS = [memsim.Decoding, memsim.Sharing, memsim.Findings]
NEEDED: dict[str, Any] = {
    "model": NETWORK, "spec": "ideal", "checkpoint": "demo", "batches": [torch.ones(1, 4)], "bits": 3,
    "out": "out.safetensors", "data": "demo", "measurements": "cycles.csv", "results": "results.jsonl",
    "chip": memsim.map_model(NETWORK, "ideal", bits=3), "batch": torch.ones(1, 4),
    "source": "ideal", "path": "file.safetensors", "tensors": {}, "metadata": {},
}  # fmt: skip


class Nothing:
    """A value that no argument takes."""


def _arguments() -> list[Any]:
    return [pytest.param(call, name, id=f"{call.__name__}-{name}")
            for call in (*CALLS, *GROUPS) for name in inspect.signature(call).parameters]  # fmt: skip


@pytest.mark.parametrize(("call", "name"), _arguments())
def test_every_argument_of_every_call_is_checked(call: Any, name: str) -> None:
    parameters = inspect.signature(call).parameters
    given = {key: NEEDED[key] for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    with pytest.raises(memsim.InputError, match=f"^{name}: expected .*, got <.*Nothing object at [^\n]*>$|a Nothing$"):
        call(**given | {name: Nothing()})


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        (memsim.evaluate, {"set": "adc.bits=6"},
         "set: expected a list of texts, got 'adc.bits=6'; write ['adc.bits=6']"),
        (memsim.evaluate, {"trials": "2"}, "trials: expected a whole number, got '2'"),
        (memsim.evaluate, {"trials": True}, "trials: expected a whole number, got True"),
        (memsim.evaluate, {"seed": 1.5}, "seed: expected a whole number or None, got 1.5"),
        (memsim.evaluate, {"decoding": "beam"}, "decoding: expected a Decoding or None, got 'beam'"),
        (memsim.evaluate, {"reference": NETWORK}, "reference: expected a text, a path or None, got "
         "Linear(in_features=4, out_features=2, bias=True)"),
        (memsim.evaluate, {"score": "accuracy"}, "score: expected a function or None, got 'accuracy'"),
        (memsim.map_checkpoint, {"checkpoint": "demo", "include": [3]}, "include: expected a list of texts, got [3]"),
        (memsim.map_checkpoint, {"checkpoint": "demo", "set": {"adc.bits": 6}},
         "set: expected a list of texts, got {'adc.bits': 6}"),
        (memsim.map_model, {"model": torch.nn.Sequential(*[NETWORK] * 3), "spec": NETWORK.double},
         "spec: expected a HardwareSpec, a text, a path or a mapping, got a method"),
        (memsim.save_checkpoint, {"path": "a.safetensors", "tensors": {"a": 1}, "metadata": {}},
         "tensors: expected a mapping, got {'a': 1}"),
    ],
)  # fmt: skip
def test_the_message_says_what_is_expected(call: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(memsim.InputError) as raised:
        call(**given)
    assert str(raised.value) == message


@pytest.mark.parametrize("order", [1, 7])
def test_an_order_that_kenlm_does_not_read_is_refused(order: int) -> None:
    with pytest.raises(memsim.InputError, match=f"^--order {order}: expected 2 to 6"):
        memsim.estimate_language_model("demo", order=order)


def test_no_hypotheses_are_no_list() -> None:
    with pytest.raises(memsim.InputError, match=r"^--nbest 0: there must be at least 1$"):
        memsim.Decoding(decoder="beam", nbest=0)


def test_what_serves_as_well_is_taken() -> None:
    one = np.int64(1)
    chip = memsim.map_model(NETWORK, Path("ideal"), seed=one, bits=np.int32(4), exclude=set[str]())
    assert chip.mapping.layers
    spec = memsim.load_hardware("paper")
    assert memsim.load_hardware(spec) is spec
    assert memsim.Decoding(decoder="beam", lexicon=Path("words.txt"), prior_weight=np.float32(1)).prior_weight == 1
    batches = [(torch.ones(3, 4), torch.zeros(3))]
    by_numpy, by_python = (
        memsim.evaluate(NETWORK, batches, score=lambda outputs, _: outputs[:, 0].abs(), seed=n, trials=n, bits=3 * n)
        for n in (one, 1)
    )
    assert json.dumps(by_numpy.to_dict()["seed"]) == json.dumps(by_python.to_dict()["seed"]) == "1"
    result = memsim.map_checkpoint("demo", "ideal", seed=one, bits=3 * one, dry_run=True)
    assert json.loads(json.dumps(result.to_dict()))["seed"] == 1


def test_types_that_cannot_be_told_are_taken() -> None:
    def call(anything: Any, either: int | Any) -> None:
        require_types(call, locals())

    call(Nothing(), Nothing())
