"""A training that is stopped or killed anywhere ends, after resuming, with the same bits as an uninterrupted one."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

from memsim.asr.corpora import Corpus
from memsim.errors import InputError, Stopped
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from memsim.training import loop
from memsim.training.hooks import Hooks, Moment
from memsim.training.loop import Job
from memsim.training.optimiser import averaged
from memsim.training.state import Best, EpochResult, Progress, Trained
from tests.training.tones import (
    DROPOUT,
    PLAIN,
    RANDOM,
    Killed,
    KilledAt,
    Watching,
    fresh,
    hooks_of,
    job,
    run,
    same,
    weights,
)

SHORT = RANDOM.model_copy(update={"epochs": 2})  # 3 steps an epoch
STEPS = 6


def after(steps: int, watching: Watching, number: int = signal.SIGTERM) -> Callable[[], int | None]:
    """Asks to stop once this run has done so many steps."""
    return lambda: number if len(watching.losses) >= steps else None


@pytest.fixture(scope="module")
def make(corpus: Corpus) -> Callable[[Path], Job]:
    def make(out: Path, **changes: object) -> Job:
        torch.rand(3)
        config = SHORT.model_copy(update=changes)
        return job(corpus, out, config, recogniser=fresh(DROPOUT), hooks=hooks_of(prepare=with_ramp, before_step=ramp))

    return make


def with_ramp(recogniser, utterances, source) -> nn.Module:  # type: ignore[no-untyped-def]
    """A parameter drawn here, and buffers: infinite (as an observer's range begins), and set at each step."""
    output = recogniser.model.output
    output.register_parameter("scale", nn.Parameter(torch.randn(2, 2)))
    output.register_buffer("ramp", torch.full((), -torch.inf))
    output.register_forward_hook(lambda module, inputs, result: result * module.scale.mean() + module.ramp.clamp_min(0))
    return recogniser.model


def ramp(model: nn.Module, moment: Moment) -> None:
    model.output.ramp.fill_(moment.fraction + 0.01 * torch.rand(()).item())


@pytest.fixture(scope="module")
def uninterrupted(make: Callable[[Path], Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "m.safetensors"
    assert len(run(make(out)).losses) == STEPS
    return out


def assert_same_results(out: Path, uninterrupted: Path) -> None:
    assert same(out, uninterrupted)
    assert same(out.with_name("m.last.safetensors"), uninterrupted.with_name("m.last.safetensors"))
    assert load_checkpoint(out).metadata == load_checkpoint(uninterrupted).metadata
    rows = [list(csv.DictReader(path.with_suffix(".csv").open())) for path in (out, uninterrupted)]
    for row in (*rows[0], *rows[1]):
        assert float(row.pop("seconds")) > 0
    assert rows[0] == rows[1]
    assert not out.with_name("m.resume.safetensors").exists()


# --- stopped and killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(STEPS))
def test_stopped_after_any_step(make: Callable[[Path], Job], uninterrupted: Path, tmp_path: Path, steps: int) -> None:
    out = tmp_path / "m.safetensors"
    watching = Watching()
    epoch = 1 if steps <= 3 else 2  # after the third step, the first epoch is yet to be evaluated
    place = f"stopped in epoch {epoch}, after {steps - 3 * (epoch - 1)} of its batches"
    with pytest.raises(Stopped, match=rf"{place}; .*m\.resume\.safetensors holds the state, --resume continues"):
        run(make(out), watching, stop_request=after(steps, watching))
    assert len(watching.losses) == steps
    resumed = run(make(out), resume=True)
    assert resumed.begun == [steps]
    assert len(resumed.losses) == STEPS - steps
    assert_same_results(out, uninterrupted)


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
def test_killed_at_any_step(make: Callable[[Path], Job], uninterrupted: Path, tmp_path: Path, steps: int) -> None:
    out = tmp_path / "m.safetensors"
    with pytest.raises(Killed):
        run(make(out), KilledAt(steps))
    assert run(make(out), resume=True).begun == [3 * ((steps - 1) // 3)]  # the state of the last epoch's end
    assert_same_results(out, uninterrupted)


def test_within_a_long_epoch_the_state_is_saved_too(
    make: Callable[[Path], Job], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    out = tmp_path / "m.safetensors"
    with pytest.raises(Killed):
        run(make(out), KilledAt(5))
    assert run(make(out), resume=True).begun == [4]
    assert_same_results(out, uninterrupted)


@pytest.mark.parametrize("number", range(1, 11))
def test_killed_before_any_file_is_put_in_its_place(
    make: Callable[[Path], Job], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A state; an epoch's best, last, log and state, twice; the best with its statistics."""
    out = tmp_path / "m.safetensors"
    replaced: list[str] = []
    original = Path.replace

    def replace_(source: Path, target: Path) -> Path:
        replaced.append(target.name)
        if len(replaced) == number:
            raise Killed
        return original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_)
        with pytest.raises(Killed):
            run(make(out))
    files = ["m.safetensors", "m.last.safetensors", "m.csv", "m.resume.safetensors"]
    assert replaced == ["m.resume.safetensors", *files, *files, "m.safetensors"][:number]
    assert not list(tmp_path.glob(".*"))
    run(make(out), resume=True)
    assert_same_results(out, uninterrupted)


def test_stopped_while_dev_is_evaluated(make: Callable[[Path], Job], uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    asked = 0

    def stop_request() -> int | None:
        nonlocal asked
        asked += 1
        return signal.SIGTERM if asked > 4 else None  # before the first step and after each; then for a dev batch

    with pytest.raises(Stopped, match="in epoch 1, after 3 of its batches"):
        run(make(out), stop_request=stop_request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.resume.safetensors", "m.tensorboard"]
    assert run(make(out), resume=True).begun == [3]
    assert_same_results(out, uninterrupted)


def test_stopped_again_and_again(make: Callable[[Path], Job], uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    for _ in range(STEPS):
        watching = Watching()
        with pytest.raises(Stopped):
            run(make(out), watching, resume=True, stop_request=after(1, watching))
    run(make(out), resume=True)
    assert_same_results(out, uninterrupted)


@pytest.mark.parametrize("changes", [{"optimiser": "radam"}, {"accumulate": 2}, {"precision": "bfloat16"}])
def test_other_recipes_resume_too(make: Callable[[Path], Job], tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "whole").mkdir()
    whole, out = tmp_path / "whole" / "m.safetensors", tmp_path / "m.safetensors"
    run(make(whole, **changes))
    watching = Watching()
    with pytest.raises(Stopped):
        run(make(out, **changes), watching, stop_request=after(4, watching))
    run(make(out, **changes), resume=True)
    assert_same_results(out, whole)


def test_ctrl_c_is_told_apart(make: Callable[[Path], Job], tmp_path: Path) -> None:
    for number, by_keyboard in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        with pytest.raises(Stopped) as stopped:
            run(make(tmp_path / "m.safetensors"), resume=True, stop_request=lambda: number)  # noqa: B023
        assert stopped.value.by_keyboard is by_keyboard


# --- what may be resumed ---------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(make: Callable[[Path], Job], tmp_path: Path) -> Path:
    out = tmp_path / "m.safetensors"
    watching = Watching()
    with pytest.raises(Stopped):
        run(make(out), watching, stop_request=after(4, watching))
    return out


def test_a_state_is_not_used_unasked(make: Callable[[Path], Job], stopped: Path) -> None:
    before = stopped.with_name("m.resume.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"m\.resume\.safetensors: a stopped training lies here; --resume continues"):
        run(make(stopped))
    assert stopped.with_name("m.resume.safetensors").read_bytes() == before


def test_a_state_is_that_of_one_training(make: Callable[[Path], Job], stopped: Path, corpus: Corpus) -> None:
    right = make(stopped)
    other_text = replace(corpus.utterances[0], text="a")
    other_warp = SHORT.augment.model_copy(update={"frequency_warp": 0.3})
    for wrong, named in (
        (make(stopped, augment=other_warp), r"recipe\.augment\.frequency_warp: 0\.1, not 0\.3"),
        (make(stopped, epochs=7, weight_decay=0.5), r"recipe\.epochs: 2, not 7; recipe\.weight_decay: 0\.01, not 0\.5"),
        (replace(right, seed=5), "seed: 0, not 5"),
        (replace(right, provenance={**right.provenance, "init_sha256": "abc"}), "init_sha256: none, not abc"),
        (replace(right, corpora=[replace(corpus, utterances=corpus.utterances[:3])]), "train_sha256: .*, not"),
        (replace(right, dev=replace(corpus, utterances=(other_text,))), "dev_sha256: .*, not"),
        (replace(right, recogniser=fresh()), r"architecture_config\.dropout: 0\.2, not 0\.0"),
    ):
        with pytest.raises(InputError, match=rf"m\.resume\.safetensors: is the state of another training \({named}"):
            run(wrong, resume=True)
    run(right, resume=True)


def test_a_state_that_does_not_fit_the_model(make: Callable[[Path], Job], stopped: Path) -> None:
    plain = replace(make(stopped), hooks=Hooks())
    with pytest.raises(InputError, match=r"does not fit the model: output\.ramp is unexpected"):
        run(plain, resume=True)


def test_other_files_in_its_place(make: Callable[[Path], Job], stopped: Path) -> None:
    state = stopped.with_name("m.resume.safetensors")
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"m\.resume\.safetensors: not a complete safetensors file"):
        run(make(stopped), resume=True)
    save_checkpoint(state, {"w": torch.zeros(1)}, {"kind": "model"})
    with pytest.raises(InputError, match=r"m\.resume\.safetensors: is not the state of a training"):
        run(make(stopped), resume=True)


def test_what_is_finished_is_not_done_again(make: Callable[[Path], Job], uninterrupted: Path) -> None:
    before = uninterrupted.read_bytes()
    again = run(make(uninterrupted), resume=True)
    assert again.losses == again.begun == []
    assert again.best.dev == json.loads(load_checkpoint(uninterrupted).metadata["best"])["dev"]
    assert uninterrupted.read_bytes() == before
    with pytest.raises(InputError, match=r"m\.safetensors: exists already and is not of this training \(seed: 0, not"):
        run(replace(make(uninterrupted), seed=3), resume=True)


def test_killed_between_its_end_and_the_state_s(
    make: Callable[[Path], Job], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.safetensors"

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "m.resume.safetensors":
            raise Killed
        original(path, missing_ok)

    original = Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            run(make(out))
    assert run(make(out), resume=True).losses == []
    assert_same_results(out, uninterrupted)


def test_a_checkpoint_whose_training_lost_its_state(make: Callable[[Path], Job], stopped: Path) -> None:
    stopped.with_name("m.resume.safetensors").unlink()
    with pytest.raises(InputError, match=r"m\.safetensors: is of a training that cannot go on without its state"):
        run(make(stopped), resume=True)


def test_the_checkpoint_of_an_unfinished_training_can_be_used(stopped: Path) -> None:
    checkpoint = load_checkpoint(stopped)
    assert checkpoint.kind == "model"
    assert "best" not in checkpoint.metadata
    assert weights(stopped).keys() == weights(stopped.with_name("m.last.safetensors")).keys()


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"run": '{"seed": [0]}'}, "the state of a training is damaged; --force starts anew"),
        ({}, {"progress": '{"epoch": "x"}'}, "the state of a training is damaged; --force starts anew"),
        ({"optimiser/step/bias": None}, {}, r"does not fit the optimiser: of bias it has exp_avg, exp_avg_sq, not"),
        (
            {"optimiser/exp_avg/bias": torch.ones(2)},
            {},
            r"does not fit the optimiser: exp_avg/bias is .*\[2\], not \[3\]",
        ),
        ({"other/bias": torch.ones(2)}, {}, "other/bias is no part of a training's state"),
    ],
)
def test_a_damaged_state_is_said_in_one_line(
    tensors: dict[str, torch.Tensor | None], metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    model, path = nn.Linear(2, 3), tmp_path / "m.resume.safetensors"
    trained = Trained(model, averaged(model, 0.5), torch.optim.AdamW(model.parameters()))
    model(torch.ones(1, 2)).sum().backward()
    trained.optimiser.step()
    trained.save(path, {"seed": "0"}, Progress(1))
    assert trained.load(path, {"seed": "0"}) == Progress(1)
    whole = load_checkpoint(path)
    changed = {name: tensor for name, tensor in {**whole.tensors(), **tensors}.items() if tensor is not None}
    save_checkpoint(path, changed, whole.metadata | metadata)
    with pytest.raises(InputError, match=rf"m\.resume\.safetensors: {message}") as caught:
        trained.load(path, {"seed": "0"})
    assert "\n" not in str(caught.value)


# --- progress --------------------------------------------------------------------------------------------------------

NUMBERS = st.floats(0, 1e9)
RESULTS = st.builds(EpochResult, *[st.integers(1, 99), *[NUMBERS] * 6, st.booleans(), st.integers(0, 99)])


@given(
    st.builds(
        Progress,
        epoch=st.integers(1, 99),
        batches=st.integers(0, 99),
        seconds=NUMBERS,
        loss_sum=NUMBERS,
        best=st.none() | st.builds(Best, st.integers(1, 99), st.dictionaries(st.sampled_from(["wer", "cer"]), NUMBERS)),
        results=st.lists(RESULTS, max_size=3),
    )
)
def test_progress_is_kept_exactly(progress: Progress) -> None:
    assert TypeAdapter(Progress).validate_json(json.dumps(asdict(progress))) == progress


def test_an_epoch_begins_with_nothing() -> None:
    progress = Progress(3, 7, 30, 1.5, 2.5, 3.5, 4)
    progress.next_epoch()
    assert progress == Progress(4, 0, 30)
    assert PLAIN.epochs > 4
