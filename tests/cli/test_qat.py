"""`memsim qat --bits float` end to end: a tiny model on a little speech, then map and eval what it wrote."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memsim.crossbar.statistics import PREFIX
from memsim.device.file import find_device
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from memsim.training.training_files import TrainingFiles
from tests.cli.speech import TINY_MODEL, few_utterances

REPOSITORY = Path(__file__).resolve().parents[2]

RECIPE = """
model: model.yaml
epochs: 2
batch_seconds: 10
learning_rate: [[0, 1.0e-3], [1, 1.0e-3]]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.yaml").write_text(TINY_MODEL)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    few_utterances(tmp_path, 8)
    return tmp_path


def test_what_was_trained_can_be_mapped_and_evaluated(memsim, folder):
    command = ("qat", "--bits", "float", "--data", "few.tsv", "--config", "recipe.yaml", "-o", "out.safetensors")
    refused = memsim(*command)
    assert refused.status == 2
    assert "has no dev split of its own; name a dev set with --dev DATA" in refused.err
    command = (*command, "--dev", "few.tsv")
    done = memsim(*command, "--json", "result.json")
    assert done.status == 0, done.err
    assert "epoch 2/2: loss" in done.said
    assert "best dev WER" in done.said
    written = {path.name for path in folder.iterdir() if path.name.startswith("out")}
    assert written == {"out.safetensors", "out.last.safetensors", "out.csv", "out.tensorboard"}
    log = (folder / "out.csv").read_text().splitlines()
    assert log[0] == "epoch,seconds,learning_rate,train_loss,extra_loss,dev_wer,dev_cer,is_best,too_short,dev_loss"
    assert len(log) == 3
    result = json.loads((folder / "result.json").read_text())
    assert result["dev"]["wer"] > 0
    assert result["best_epoch"] in (1, 2)
    assert memsim("map", "out.safetensors", "--bits", "4", "--quiet") == (0, "", "")
    assert memsim("eval", "--data", "few.tsv", "--reference", "out.safetensors").status == 0

    again = memsim(*command)
    assert again.status == 2
    assert "out.safetensors: exists already; --force overwrites it" in again.err


COMMAND = ("qat", "--bits", "float", "--data", "few.tsv", "--dev", "few.tsv", "--config", "recipe.yaml")


def test_init_goes_on_from_a_checkpoint(memsim, folder):
    assert memsim(*COMMAND, "-o", "first.safetensors", "--quiet") == (0, "", "")
    assert memsim(*COMMAND, "-o", "second.safetensors", "--init", "first.safetensors").status == 0
    losses = [float((folder / f"{name}.csv").read_text().splitlines()[1].split(",")[3]) for name in ("first", "second")]
    assert losses[1] < losses[0]  # in the first epoch already
    checkpoint = load_checkpoint(folder / "first.safetensors")
    assert load_checkpoint(folder / "second.safetensors").metadata["init_sha256"] == checkpoint.sha256

    # A file of somebody else with the same tensors has no tokens: they are those of the training data.
    weights = {name: tensor for name, tensor in checkpoint.tensors().items() if not name.startswith(PREFIX)}
    save_file(weights, folder / "foreign.safetensors")
    assert memsim(*COMMAND, "-o", "third.safetensors", "--init", "foreign.safetensors", "--quiet") == (0, "", "")
    columns = [(folder / f"{name}.csv").read_text().splitlines()[1].split(",")[2:] for name in ("second", "third")]
    assert columns[0] == columns[1]


LSTM = """
architecture: lstm_transducer
frontend: [{channels: 2, stride_time: 2, stride_frequency: 2}, {channels: 2, stride_time: 2, stride_frequency: 4}]
width: 8
layers: 1
hidden: 4
prediction: {embedding: 4, hidden: 4}
joiner_width: 4
"""


def test_another_model_than_the_recipe_s(memsim, folder):
    (folder / "lstm.yaml").write_text(LSTM)
    command = (*COMMAND, "--model", "lstm.yaml", "-o", "lstm.safetensors")
    done = memsim(*command)
    assert done.status == 0, done.err
    assert "lstm.yaml: " in done.said
    metadata = load_checkpoint(folder / "lstm.safetensors").metadata
    assert metadata["architecture"] == "lstm_transducer"
    assert json.loads(metadata["recipe"])["model"] == "lstm.yaml"
    assert memsim("map", "lstm.safetensors", "--bits", "4", "--quiet") == (0, "", "")
    evaluated = memsim("eval", "--data", "few.tsv", "--reference", "lstm.safetensors", "--limit", "2")
    assert evaluated.status == 0, evaluated.err
    refused = memsim(*COMMAND, "-o", "second.safetensors", "--init", "lstm.safetensors")
    assert (refused.status, refused.err) == (
        2,
        "memsim: --init lstm.safetensors: is of architecture lstm_transducer, model.yaml of conformer_ctc; "
        "--model names another\n",
    )
    unknown = memsim(*COMMAND, "--model", "nothing", "-o", "second.safetensors")
    assert unknown.status == 2
    assert "lstm-transducer-small" in unknown.err


def test_a_transducer_starts_from_the_encoder_of_a_ctc_recogniser(memsim, folder):
    (folder / "still.yaml").write_text(RECIPE.replace("1.0e-3", "1.0e-30"))
    transducer = TINY_MODEL.replace("conformer_ctc", "conformer_transducer")
    (folder / "transducer.yaml").write_text(transducer + "prediction: {embedding: 4, hidden: 4}\njoiner_width: 4\n")
    assert memsim(*COMMAND, "-o", "ctc.safetensors", "--quiet") == (0, "", "")
    still = (*COMMAND[:-1], "still.yaml")
    given, ctc = ("--init-encoder", "ctc.safetensors"), load_checkpoint(folder / "ctc.safetensors")
    assert memsim(*still, "--model", "transducer.yaml", *given, "-o", "t.safetensors", "--quiet") == (0, "", "")
    written = load_checkpoint(folder / "t.safetensors")
    assert written.metadata["init_encoder_sha256"] == ctc.sha256
    encoder = [name for name in ctc.names if name.startswith(("frontend.", "blocks."))]
    assert len(encoder) > 20
    for name in encoder:
        torch.testing.assert_close(written.tensors([name])[name], ctc.tensors([name])[name], msg=name)

    def refusal(*more):
        refused = memsim(*COMMAND, "-o", "refused.safetensors", *more)
        assert refused.status == 2
        assert len(refused.err.splitlines()) == 1
        return refused.err

    assert "both name the start; leave one out" in refusal(*given, "--init", "ctc.safetensors")
    (folder / "lstm.yaml").write_text(LSTM)
    message = refusal("--model", "lstm.yaml", *given)
    assert (
        "its encoder, of architecture conformer_ctc, is not that of lstm_transducer; --model names another" in message
    )
    (folder / "wide.yaml").write_text((folder / "transducer.yaml").read_text().replace("width: 8", "width: 12", 1))
    assert "is not the encoder of wide.yaml: width differs; " in refusal("--model", "wide.yaml", *given)
    (folder / "other.yaml").write_text((folder / "transducer.yaml").read_text() + "features: {min_hz: 100.0}")
    message = refusal("--model", "other.yaml", *given)
    assert message.endswith("is not the encoder of other.yaml: features differs\n")


def test_init_from_another_model_names_what_differs(memsim, folder):
    assert memsim(*COMMAND, "-o", "first.safetensors", "--quiet") == (0, "", "")

    def refusal(*more):
        refused = memsim(*COMMAND, "-o", "second.safetensors", "--init", *more)
        assert refused.status == 2
        assert len(refused.err.splitlines()) == 1
        assert not (folder / "second.safetensors").exists()
        return refused.err

    assert refusal("first.safetensors", "--text-style", "rwth") == (
        "memsim: --init first.safetensors: was trained on transcripts of text style kaldi; use --text-style kaldi\n"
    )
    weights = load_checkpoint(folder / "first.safetensors").tensors()
    tokens = len(weights["output.bias"])
    save_file({"output.bias": weights["output.bias"][1:], "more": torch.zeros(1)}, folder / "part.safetensors")
    message = refusal("part.safetensors")
    assert "--init part.safetensors: is not a model.yaml: frontend.convolutions.0.weight is missing;" in message
    assert "more)" in message
    save_file({**weights, "output.bias": weights["output.bias"][1:]}, folder / "fewer.safetensors")
    message = refusal("fewer.safetensors")
    assert message.endswith(f"is not a model.yaml: output.bias is [{tokens - 1}], not [{tokens}]\n")
    (folder / "model.yaml").write_text(TINY_MODEL.replace("width: 8", "width: 12", 1))
    message = refusal("first.safetensors")
    assert "--init first.safetensors: is not a model.yaml: width differs; " in message
    assert "blocks.0.attention.key.bias is [8], not [12]" in message or "is [8, 8], not [12, 12]" in message
    (folder / "model.yaml").write_text(TINY_MODEL + "features: {min_hz: 100.0}")
    assert refusal("first.safetensors").endswith("is not a model.yaml: features differs\n")
    assert memsim("map", "demo-float", "--bits", "3", "-o", "chip.mapped.safetensors", "--quiet").status == 0
    assert "is mapped and has its own bits; leave --bits out" in refusal("chip.mapped.safetensors")
    device = str(find_device("synaptogen"))
    assert refusal(device) == f"memsim: --init {device}: a device model, not a recogniser; use it with --cell\n"


# --- stopping and resuming -------------------------------------------------------------------------------------------

LONGER = """
model: model.yaml
epochs: 12
batch_seconds: 10
learning_rate: [[0, 1.0e-3], [1, 1.0e-3]]
average_decay: 0.9
"""


def rows(path):
    return [line.split(",") for line in path.read_text().splitlines()] if path.exists() else []


def start(folder, *arguments):
    """`memsim` in a process of its own, with as many threads as the tests have."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "memsim", *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_terminated_and_resumed_it_ends_as_if_nothing_had_been(memsim, folder):
    (folder / "recipe.yaml").write_text(LONGER)
    log, state = folder / "out.csv", folder / "out.resume.safetensors"
    assert memsim(*COMMAND, "-o", "whole.safetensors", "--quiet") == (0, "", "")

    process = start(folder, *COMMAND, "-o", "out.safetensors")
    wait_for(process, lambda: len(rows(log)) > 2)
    time.sleep(random.Random(5).uniform(0, 0.1))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert state.exists()

    refused = memsim(*COMMAND, "-o", "out.safetensors")
    assert refused.status == 2
    assert "a stopped training lies here; --resume continues it, --force starts anew" in refused.err

    done = len(rows(log))
    process = start(folder, *COMMAND, "-o", "out.safetensors", "--resume")
    wait_for(process, lambda: len(rows(log)) > done)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "memsim: stopped in epoch" in said
    assert "out.resume.safetensors holds the state, --resume continues" in said
    assert 3 < len(rows(log)) < 13

    finished = memsim(*COMMAND, "-o", "out.safetensors", "--resume", "--json", "result.json")
    assert finished.status == 0
    assert "resumed in epoch" in finished.err
    for name in ("{}.safetensors", "{}.last.safetensors"):
        assert (folder / name.format("out")).read_bytes() == (folder / name.format("whole")).read_bytes()
    without_seconds = [[[*row[:1], *row[2:]] for row in rows(folder / f"{name}.csv")] for name in ("out", "whole")]
    assert without_seconds[0] == without_seconds[1]
    assert [row[0] for row in rows(log)[1:]] == [str(epoch) for epoch in range(1, 13)]
    assert not state.exists()

    # The next job of a chain finds nothing left to do.
    result = (folder / "result.json").read_text()
    again = memsim(*COMMAND, "-o", "out.safetensors", "--resume", "--json", "result.json")
    assert again.status == 0
    assert "best dev WER" in again.err
    assert (folder / "result.json").read_text() == result


def test_ctrl_c_saves_and_force_begins_anew(memsim, folder):
    state = folder / "out.resume.safetensors"

    def interrupt():
        while not state.exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    (folder / "recipe.yaml").write_text(LONGER.replace("epochs: 12", "epochs: 1000"))
    thread = threading.Thread(target=interrupt)
    thread.start()
    stopped = memsim(*COMMAND, "-o", "out.safetensors")
    thread.join()
    assert stopped.status == 130
    assert "memsim: stopped in epoch" in stopped.err

    (folder / "recipe.yaml").write_text(LONGER.replace("epochs: 12", "epochs: 1"))
    refused = memsim(*COMMAND, "-o", "out.safetensors", "--resume")
    assert refused.status == 2
    assert "is the state of another training (recipe.epochs: 1000, not 1); --force starts anew" in refused.err
    refused = memsim(*COMMAND, "-o", "out.safetensors", "--resume", "--force")
    assert "--resume continues what --force would overwrite; give one of them" in refused.err
    assert memsim(*COMMAND, "-o", "out.safetensors", "--force").status == 0
    assert not state.exists()
    for name in ("out.safetensors", "out.last.safetensors", "out.csv"):
        (folder / name).unlink()
    refused = memsim(*COMMAND, "-o", "out.safetensors")
    assert refused.status == 2
    assert "out.tensorboard: exists already; --force overwrites it" in refused.err


def test_two_trainings_do_not_write_the_same_files(memsim, folder):
    command = (*COMMAND, "-o", "out.safetensors")
    with TrainingFiles(folder / "out.safetensors").held():
        for more in ((), ("--resume",), ("--force",)):
            refused = memsim(*command, *more)
            assert (refused.status, refused.out) == (2, "")
            assert refused.err == "memsim: out.safetensors: another training is writing it; name another file\n"
    (folder / ".out.safetensors.lock").touch()  # of a process that was killed
    assert memsim(*command).status == 0
    assert not list(folder.glob(".out*"))


def test_a_state_is_not_a_model(memsim, folder):
    save_checkpoint(folder / "m.resume.safetensors", {"model/w": torch.zeros(2, 2)}, {"kind": "training"})
    for command in (
        ("map", "m.resume.safetensors"),
        (*COMMAND, "-o", "o.safetensors", "--init", "m.resume.safetensors"),
    ):
        refused = memsim(*command)
        assert refused.status == 2
        assert "the state of a stopped training; name the checkpoint that lies beside it" in refused.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bits", "float", "-o", "out.pt"], "out.pt: expected a name that ends in .safetensors"),
        (
            ["--bits", "float", "--config", "nosuch"],
            "nosuch: no such file, and no shipped qat config",
        ),
        (["--bits", "float", "--config", "bad.yaml"], "bad.yaml:2: epochz: unknown key (nearest: epochs)"),
        (["--bits", "float", "--data", "nosuch"], "no such corpus"),
    ],
)
def test_bad_input_is_one_line(memsim, folder, arguments, said):
    (folder / "bad.yaml").write_text(
        RECIPE.replace("epochs", "epochz").replace("model: model.yaml", "model: model.yaml", 1).strip()
    )
    defaults = {"--data": "few.tsv", "--dev": "few.tsv", "-o": "out.safetensors"}
    given = [item for pair in defaults.items() if pair[0] not in arguments for item in pair]
    done = memsim("qat", *arguments, *given)
    assert done.status == 2
    assert said in done.err
    assert not (folder / "out.safetensors").exists()


def test_few_bits_are_trained_for_and_mapped(memsim, folder):
    """Three bits with a tiny copy of the robust recipe, from full precision, then `map` and `eval`."""
    assert memsim(*COMMAND, "-o", "first.safetensors", "--quiet") == (0, "", "")
    quantised = "quantisation: {hardware: {spread_ramp: 0.5}, teacher: {weight: 0.5}}\n"
    (folder / "few-bits.yaml").write_text(RECIPE.replace("epochs: 2", "epochs: 4") + quantised)
    data = ("--data", "few.tsv", "--dev", "few.tsv", "--init", "first.safetensors")
    command = ("qat", *data, "--config", "few-bits.yaml", "--hardware", "physical", "-o", "three.safetensors")
    assert memsim(*command, "--bits", "3").status == 0
    losses = [float(row.split(",")[3]) for row in (folder / "three.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    done = memsim("map", "three.safetensors", "--json", "map.json")
    assert done.status == 0
    assert "uncalibrated" not in done.err
    assert {layer["bits"] for layer in json.loads((folder / "map.json").read_text())["layers"]} == {3}
    assert memsim("eval", "three.mapped.safetensors", "--data", "few.tsv").status == 0
    assert memsim("eval", "three.safetensors", "--data", "few.tsv", "--hardware", "paper").status == 0
    budget = ("map", "three.safetensors", "--budget", "-o", "budget.mapped.safetensors", "--json", "budget.json")
    assert memsim(*budget, "--quiet").status == 0
    of_map = json.loads((folder / "budget.json").read_text())["budget"]
    assert of_map["against"] == "quantised"  # the weights that rounding is trained for are nothing to compare with
    assert of_map["effects"][0]["effect"] == "dac"
    command = (
        "eval",
        "three.safetensors",
        "--data",
        "few.tsv",
        "--budget",
        "--ablate",
        "--json",
        "eval.json",
        "--quiet",
    )
    assert memsim(*command).status == 0
    of_eval = json.loads((folder / "eval.json").read_text())
    assert of_eval["budget"] == of_map
    assert of_eval["ablation"][0]["effect"] == "quantisation"
    other = memsim("map", "three.safetensors", "--bits", "4", "-o", "four.mapped.safetensors")
    assert "layers have other weight bits than they were trained for (" in other.said
    assert ": 4, not 3): their scales are fitted anew" in other.said
    assert memsim("eval", "three.safetensors", "--data", "few.tsv", "--bits", "3").said.count("fitted anew") == 0
    assert memsim("eval", "three.safetensors", "--data", "few.tsv", "--bits", "2").said.count("fitted anew") == 1
    more = memsim("map", "three.safetensors", "--set", "digital=[]", "--dry-run")
    assert "layers were trained in full precision (" in more.said
    assert "layers were trained in full precision (" not in other.said
    # the start of another training, in full precision: its quantisers are left behind
    again = ("qat", "--bits", "float", "--config", "recipe.yaml", *data[:4], "--init", "three.safetensors")
    assert memsim(*again, "-o", "back.safetensors").status == 0
    assert not [name for name in load_checkpoint(folder / "back.safetensors").names if "quantiser" in name]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--bits", "1"), "--bits 1: expected 2 to 16, or float"),
        (("--bits", "three"), "--bits three: expected 2 to 16, or float"),
        (("--bits", "float", "--hardware", "physical"), "full precision has no hardware"),
        (("--bits", "float", "--config", "robust"), "is for quantised weights; choose their --bits"),
        (("--bits", "3", "--config", "float"), "is a recipe for full precision"),
        (("--bits", "3", "--config", "robust"), "learns from a teacher; name it with --init CHECKPOINT"),
    ],
)
def test_bits_and_recipe_must_fit(memsim, folder, arguments, found):
    done = memsim("qat", "--data", "few.tsv", "--dev", "few.tsv", "-o", "out.safetensors", *arguments)
    assert done.status == 2
    assert found in done.err
