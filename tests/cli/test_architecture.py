"""External networks on the command line: the guide's example, bundles, and refusals."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchaudio
from safetensors.torch import load_file, save_file

from memsim.asr.architectures import ARCHITECTURES
from memsim.asr.corpora import load_corpus
from memsim.storage.checkpoint import load_checkpoint

HEADING = "## A network of your own\n"
GUIDE = (Path(__file__).parents[2] / "configs" / "models" / "README.md").read_text(encoding="utf-8")
SECTION = GUIDE.partition(HEADING)[2].partition("\n## ")[0]
CODE, CONFIG, RECIPE = re.findall(r"```(?:python|yaml)\n(.*?)```", SECTION, re.DOTALL)
COMMANDS = re.findall(r"^    memsim (.*)$", SECTION, re.MULTILINE)
OWN, BUNDLE = COMMANDS[:4], COMMANDS[4:]
NAMED = ("--architecture", "my_recogniser:GruCtc")
AB = ("--architecture-config", "ab.yaml")
CONFIGURED = (*NAMED, "--architecture-config", "my-recogniser.yaml")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the guide's example needs. The factory's module and registration are gone again afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_recogniser.py").write_text(CODE)
    (tmp_path / "my-recogniser.yaml").write_text(CONFIG)
    (tmp_path / "my-recipe.yaml").write_text(RECIPE.replace("epochs: 4", "epochs: 1\nquantisation: {hardware: none}"))
    rows = ["audio\ttext", *(f"{u.audio}\t{u.text}" for u in load_corpus("demo", limit=4).utterances)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    scope: dict = {}
    exec(CODE, scope)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(scope["GruCtc"](tokens=29).state_dict(), tmp_path / "gru.safetensors")
    yield tmp_path
    forget()


def forget() -> None:
    """As a new process would begin."""
    for name in [name for name in ARCHITECTURES if ":" in name]:
        del ARCHITECTURES[name]
    sys.modules.pop("my_recogniser", None)


def test_the_example_as_written(memsim, folder):
    said = []
    for line in OWN:
        forget()
        done = memsim(*shlex.split(line))
        assert done.status == 0, (line, done.err)
        said.append(done.said)
    assert "5 layers" in said[0]  # the projection and both layers of the GRU; `output*` stays digital
    assert "uncalibrated" not in said[0]
    assert (
        "gru.mapped.safetensors on physical with weights.scale=per_tile, dac.method=mse, 4-bit weights, 5 layers"
        in said[1]
    )
    assert "best dev WER" in said[2]
    assert "gru-3.safetensors on physical, 3-bit weights" in said[3]
    mapped = load_checkpoint(folder / "gru.mapped.safetensors").metadata
    assert mapped["architecture"] == "my_recogniser:GruCtc"
    assert '"width":64' in mapped["architecture_config"]


def test_a_file_alone_runs_nobodys_code(memsim, folder):
    assert memsim("map", "gru.safetensors", *CONFIGURED, "--calibrate", "dev.tsv").status == 0
    forget()
    (folder / "my_recogniser.py").write_text("raise SystemExit('code was run')\n")
    for command in (("eval", "gru.mapped.safetensors", "--data", "dev.tsv"), ("eval", "--data", "dev.tsv")):
        refused = memsim(*command)
        assert refused.status == 2
        assert "made by my_recogniser:GruCtc" in refused.err
        assert "say --architecture my_recogniser:GruCtc" in refused.err
    assert "my_recogniser" not in sys.modules


def test_the_same_network_evaluated_mapped_and_unmapped(memsim, folder):
    """A file that is mapped on evaluation gives what the mapped file does."""
    hardware = ("--hardware", "physical", "--bits", "4")
    assert memsim("map", "gru.safetensors", *CONFIGURED, *hardware, "--calibrate", "dev.tsv").status == 0
    mapped = memsim(
        "eval", "gru.mapped.safetensors", *CONFIGURED, "--data", "dev.tsv", "--reference", "gru.safetensors"
    )
    assert mapped.status == 0, mapped.err
    assert "full precision" in mapped.out
    refused = memsim("eval", "gru.safetensors", *CONFIGURED, *hardware, "--data", "dev.tsv")
    assert "holds no input statistics" in refused.err
    ideal = memsim("eval", "gru.safetensors", *CONFIGURED, "--hardware", "ideal", "--data", "dev.tsv")
    assert ideal.status == 0, ideal.err


WRONG_OUTPUT = """
import torch
from torch import nn

class Wrong(nn.Module):
    def __init__(self, tokens, how):
        super().__init__()
        self.how, self.layer = how, nn.Linear(40, tokens)

    def forward(self, features, lengths):
        logits = self.layer(features)
        log_probs = logits.log_softmax(-1)
        return {
            "logits": (logits, lengths),
            "alone": log_probs,
            "narrow": (log_probs[..., :-1], lengths),
            "lengths": (log_probs, lengths.float()),
            "long": (log_probs, lengths + 1000),
        }[self.how]

def not_a_module(tokens): return "no network"
def fails(tokens): return {}["width"]
number = 3
"""


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("logits", "so not log-probabilities"),
        ("alone", "forward returned a Tensor; expected log-probabilities"),
        ("narrow", ", 28]; expected log-probabilities"),
        ("lengths", "of torch.float32"),
        ("long", "frames; expected"),
    ],
)
def test_what_a_recogniser_must_return(memsim, folder, how, found):
    (folder / "wrong.py").write_text(WRONG_OUTPUT)
    (folder / "wrong.yaml").write_text(CONFIG.replace("{width: 64}", f"{{how: {how}}}"))
    weight = {"layer.weight": torch.randn(29, 40), "layer.bias": torch.randn(29)}
    save_file(weight, folder / "wrong.safetensors")
    named = ("--architecture", "wrong:Wrong", "--architecture-config", "wrong.yaml")
    refused = memsim("eval", "wrong.safetensors", *named, "--hardware", "ideal", "--data", "dev.tsv")
    sys.modules.pop("wrong")
    assert refused.status == 2
    assert "--architecture wrong:Wrong" in refused.err
    assert found in refused.said


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--architecture", "no_such_module:X"), "no_such_module cannot be imported (No module named"),
        (("--architecture", "my_recogniser:Missing"), "my_recogniser has no Missing"),
        (("--architecture", "my_recogniser:"), "has no name after the colon"),
        (("--architecture", ":X"), "cannot be imported"),
        (("--architecture", "wrong:number"), "is a int, not a function"),
        (("--architecture", "WAV2VEC2_BASE"), "unknown architecture 'WAV2VEC2_BASE' (known: conformer_ctc"),
        (("--architecture-config", "my-recogniser.yaml"), "--architecture-config: is the config of an --architecture"),
        (NAMED, "the meaning of the outputs is unknown; give `characters`"),
        ((*NAMED, "--architecture-config", "twice.yaml"), "twice.yaml:1: characters: 'a' stands for more than one"),
        ((*NAMED, "--architecture-config", "typo.yaml"), "typo.yaml:1: optionz: unknown key (nearest: options)"),
        ((*NAMED, "--architecture-config", "other.yaml"), "other.yaml:1: architecture: is conformer_ctc, but"),
        ((*NAMED, "--architecture-config", "depth.yaml"), "does not take the arguments tokens, depth"),
        (("--architecture", "wrong:not_a_module", *AB), "made a str; expected a torch"),
        ((*NAMED, *AB), "output.weight is [29, 64], not [3, 64]"),
        (("--architecture", "wrong:fails", *AB), "wrong:fails: failed: KeyError: 'width' (wrong.py, line"),
        (("--architecture", "typing_error:X"), "typing_error cannot be imported (SyntaxError: invalid syntax"),
        (
            ("--architecture", "unknown:X"),
            "cannot be imported (NameError: name 'nm' is not defined (unknown.py, line 1)",
        ),
    ],
)
def test_bad_input_is_one_line(memsim, folder, arguments, found):
    for name, text in {
        "wrong.py": WRONG_OUTPUT,
        "typing_error.py": "x = = 1",
        "unknown.py": "nm.Linear",
        "twice.yaml": 'characters: "aba"',
        "typo.yaml": "optionz: {}",
        "other.yaml": "architecture: conformer_ctc",
        "depth.yaml": 'characters: "ab"\noptions: {depth: 3}',
        "ab.yaml": 'characters: "ab"',
    }.items():
        (folder / name).write_text(text)
    refused = memsim("eval", "gru.safetensors", *arguments, "--hardware", "ideal", "--data", "dev.tsv")
    sys.modules.pop("wrong", None)
    assert refused.status == 2
    assert found in refused.said
    assert len(refused.err.strip().splitlines()) == 1


def test_a_file_and_the_command_line_must_agree(memsim, folder):
    assert memsim("map", "gru.safetensors", *CONFIGURED, "--calibrate", "dev.tsv").status == 0
    (folder / "wide.yaml").write_text(CONFIG.replace("64", "65"))
    (folder / "same.py").write_text("from my_recogniser import GruCtc")
    common = ("eval", "gru.mapped.safetensors", "--data", "dev.tsv")
    assert memsim(*common, *CONFIGURED).status == 0
    other = memsim(*common, *NAMED, "--architecture-config", "wide.yaml")
    assert "its options is not that of --architecture-config; leave it out" in other.said
    renamed = memsim(*common, "--architecture", "same:GruCtc")
    assert "is a my_recogniser:GruCtc, not a same:GruCtc as --architecture says" in renamed.said
    assert memsim("eval", "demo-float", *NAMED, "--data", "dev.tsv").status == 2


def test_a_device_model_is_no_network(memsim, folder):
    synaptogen = Path(__file__).parents[2] / "configs" / "devices" / "synaptogen.safetensors"
    refused = memsim("map", synaptogen, *CONFIGURED)
    assert refused.status == 2
    assert "synaptogen.safetensors: a device model, which has no --architecture" in refused.said


def test_training_names_one_network(memsim, folder):
    command = ("qat", "--bits", "float", "--data", "train.tsv", "--dev", "dev.tsv", "-o", "out.safetensors")
    both = memsim(*command, *NAMED, "--model", "conformer-small")
    assert "--model conformer-small --architecture my_recogniser:GruCtc: both name the network" in both.said
    alone = memsim(*command, "--architecture-config", "my-recogniser.yaml")
    assert "is the config of an --architecture" in alone.said


# Bundles

SMALL = """
parameters:
  extractor_conv_layer_config: [[16, 10, 5], [16, 8, 8], [16, 8, 8]]
  encoder_embed_dim: 16
  encoder_pos_conv_kernel: 8
  encoder_pos_conv_groups: 4
  encoder_num_layers: 2
  encoder_num_heads: 2
  encoder_ff_interm_features: 32
"""


def save_bundle(path: Path, name: str, **changes) -> torch.nn.Module:
    """Random weights, in the file that `get_model()` of the bundle would give."""
    bundle = getattr(torchaudio.pipelines, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchaudio.models.wav2vec2_model(**{**bundle._params, **changes}).eval()
    prefix = "model." if bundle._normalize_waveform else ""
    save_file({f"{prefix}{key}": value.contiguous() for key, value in model.state_dict().items()}, path)
    return model


@pytest.mark.parametrize("name", ["WAV2VEC2_ASR_BASE_960H", "HUBERT_ASR_LARGE", "VOXPOPULI_ASR_BASE_10K_DE"])
def test_a_bundle_by_name(memsim, folder, name):
    import yaml

    (folder / "small.yaml").write_text(SMALL)
    save_bundle(folder / "wav2vec2.safetensors", name, **yaml.safe_load(SMALL)["parameters"])
    named = ("--architecture", name, "--architecture-config", "small.yaml")
    options = ("--bits", "8", "--calibrate", "dev.tsv", "--json", "map.json")
    mapped = memsim("map", "wav2vec2.safetensors", *named, *options)
    assert mapped.status == 0, mapped.err
    layers = [layer["name"] for layer in json.loads((folder / "map.json").read_text())["layers"]]
    assert len(layers) == 3 + 1 + 1 + 2 * 6 + 1  # extractor, projection, positions, transformer, output
    assert any(layer.endswith("pos_conv_embed.conv") for layer in layers)  # whose weight is computed from two tensors
    stored = load_file(folder / "wav2vec2.mapped.safetensors")
    assert not any("parametrizations" in key for key in stored)
    done = memsim("eval", "wav2vec2.mapped.safetensors", "--data", "dev.tsv", "--json", "eval.json")
    assert done.status == 0, done.err
    direct = memsim("eval", "wav2vec2.safetensors", *named, "--hardware", "ideal", "--data", "dev.tsv")
    assert direct.status == 0, direct.err


def test_a_bundle_is_trained_on_waveforms(memsim, folder):
    (folder / "small.yaml").write_text(SMALL)
    (folder / "quick.yaml").write_text("{base: paper, epochs: 1}")
    named = ("--architecture", "WAV2VEC2_ASR_BASE_960H", "--architecture-config", "small.yaml")
    data = ("--data", "train.tsv", "--dev", "dev.tsv", "--config", "quick.yaml", "--bits", "4")
    done = memsim("qat", *data, *named, "-o", "tuned.safetensors")
    assert done.status == 0, done.err
    assert "WAV2VEC2_ASR_BASE_960H: " in done.said
    stored = load_checkpoint(folder / "tuned.safetensors").metadata
    assert stored["architecture"] == "wav2vec2_ctc"
    assert '"encoder_num_layers":2' in stored["architecture_config"]
    evaluated = memsim("eval", "tuned.safetensors", "--bits", "4", "--data", "dev.tsv")
    assert evaluated.status == 0, evaluated.err


def test_a_file_that_is_not_the_bundles(memsim, folder):
    save_file({"encoder.weight": torch.zeros(3, 3)}, folder / "other.safetensors")
    named = ("--architecture", "WAV2VEC2_ASR_BASE_960H")
    refused = memsim("eval", "other.safetensors", *named, "--hardware", "ideal", "--data", "dev.tsv")
    assert refused.status == 2
    assert "other.safetensors: tensors do not fit the architecture" in refused.said


def test_the_guides_bundle_commands_name_a_bundle():
    assert all("WAV2VEC2_ASR_BASE_960H" in line or "wav2vec2.mapped.safetensors" in line for line in BUNDLE)
    assert len(BUNDLE) == 2


@pytest.mark.slow
def test_the_bundle_in_its_real_size(folder):
    """The guide's lines, but for little data and few bits: 94 million weights on 380 million cells.

    Each is a process of its own, whose memory (5 GB) is free again for the next.
    """
    save_bundle(folder / "wav2vec2.safetensors", "WAV2VEC2_ASR_BASE_960H")
    for line in BUNDLE:
        arguments = shlex.split(line.replace("demo", "dev.tsv").replace("--bits 8", "--bits 3"))
        command = [sys.executable, "-m", "memsim", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "wav2vec2.mapped.safetensors on physical with weights.scale=per_tile, dac.method=mse, 3-bit weights" in said
    assert "real-time factor of the simulation" in said
