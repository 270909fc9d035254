"""Out-of-memory errors are one line with the flag that helps; other errors of torch are unchanged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from memsim.cli import _is_out_of_memory as is_out_of_memory
from memsim.cli import app


def too_much_for_torch() -> None:
    torch.empty(1 << 50)


def too_much_for_numpy() -> None:
    np.empty(1 << 55)


def too_much_for_python() -> None:
    bytearray(1 << 60)


def too_much_for_a_gpu() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 4.00 GiB. Process 1 has ..."
    )


TOO_MUCH = {
    too_much_for_torch: "4503599627370496 bytes",
    too_much_for_numpy: "256. PiB",
    too_much_for_a_gpu: "2.50 GiB",
}


@pytest.mark.parametrize("fail", [*TOO_MUCH, too_much_for_python])
@pytest.mark.parametrize(
    ("arguments", "module", "remedy"),
    [
        (("map", "demo-float"), "memsim.mapping.plan_checkpoint", "--exclude GLOB"),
        (("eval", "demo-float", "--data", "demo", "--limit", "1"),
         "memsim.evaluation.evaluate.load_corpus", "--jobs 1"),
        (("qat", "--bits", "float", "--data", "librispeech", "-o", "o.safetensors"),
         "memsim.training.train.load_train_config", "in the recipe (--config FILE) a larger `accumulate`"),
        (("fit-device", "m.csv", "-o", "o.safetensors"), "memsim.fit.inspection.read_measurements", "--order"),
        (("lm", "--data", "demo", "-o", "lm.arpa"), "memsim.asr.language_model.load_corpus", "--order 2"),
    ],
)  # fmt: skip
def test_one_line_names_the_flag(
    memsim: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[], None],
    arguments: tuple[str, ...],
    module: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(module, lambda *_, **__: fail())
    status, out, err = memsim(*arguments)  # type: ignore[misc]
    assert (status, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("memsim: out of memory (")
    assert remedy in line
    assert TOO_MUCH.get(fail, "MemoryError") in line


def test_every_command_has_a_remedy() -> None:
    assert {command.name for command in app.registered_commands} == {"map", "eval", "qat", "fit-device", "lm"}


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
