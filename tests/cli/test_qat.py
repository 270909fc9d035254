"""`memsim qat --bits float` end to end: a tiny model on a little speech, then map and eval what it wrote."""

from __future__ import annotations

import json

import pytest

from memsim.asr.corpora import load_corpus

MODEL = """
architecture: conformer_ctc
frontend: [{channels: 2, stride_time: 2, stride_frequency: 2}, {channels: 2, stride_time: 2, stride_frequency: 4}]
width: 8
blocks: 1
heads: 2
feed_forward_width: 16
kernel_frames: 3
"""
RECIPE = """
model: model.yaml
epochs: 2
batch_seconds: 10
learning_rate: [[0, 1.0e-3], [1, 1.0e-3]]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.yaml").write_text(MODEL)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    rows = [f"{u.audio}\t{u.text}" for u in load_corpus("demo", limit=8).utterances]
    (tmp_path / "few.tsv").write_text("\n".join(["audio\ttext", *rows]) + "\n")
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
    assert {"out.safetensors", "out.last.safetensors", "out.csv"} <= {path.name for path in folder.iterdir()}
    log = (folder / "out.csv").read_text().splitlines()
    assert log[0] == "epoch,seconds,learning_rate,train_loss,dev_wer,dev_cer,is_best,too_short"
    assert len(log) == 3
    assert json.loads((folder / "result.json").read_text())["dev"]["wer"] > 0
    assert memsim("map", "out.safetensors", "--bits", "4", "--quiet") == (0, "", "")
    assert memsim("eval", "--data", "few.tsv", "--reference", "out.safetensors").status == 0

    again = memsim(*command)
    assert again.status == 2
    assert "out.safetensors: exists already; --force overwrites it" in again.err


def test_init_goes_on_from_a_checkpoint(memsim, folder):
    command = ("qat", "--bits", "float", "--data", "few.tsv", "--dev", "few.tsv", "--config", "recipe.yaml", "--quiet")
    assert memsim(*command, "-o", "first.safetensors").status == 0
    assert memsim(*command, "-o", "second.safetensors", "--init", "first.safetensors").status == 0
    losses = [float((folder / f"{name}.csv").read_text().splitlines()[1].split(",")[3]) for name in ("first", "second")]
    assert losses[1] < losses[0]  # in the first epoch already
    (folder / "model.yaml").write_text(MODEL.replace("width: 8", "width: 12"))
    refused = memsim(*command, "-o", "third.safetensors", "--init", "first.safetensors")
    assert refused.status == 2
    assert "--init first.safetensors: is not a" in refused.err
    assert "width differ" in refused.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bits", "3"], "--bits 3: quantization-aware training is not built yet"),
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
