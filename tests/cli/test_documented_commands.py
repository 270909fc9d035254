"""All commands of the README and the guides, run in the order of the text.

Corpora, long trainings, large networks, wide sweeps and many chips have small stand-ins: the demo's speech in
TED-LIUM's layout, two utterances, two chips, two values of a key, one epoch, a small random Whisper.
test_architecture.py runs the commands of configs/models.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
import yaml

from memsim.asr.corpora import load_corpus
from memsim.config.resources import configs_root
from memsim.evaluation.sweep import values_of
from tests.asr.hugging_face_folders import save_folder
from tests.cli.speech import librispeech_of_demo, tedlium_of_demo
from tests.documents import DOCUMENTS, REPOSITORY, commands, name_of

ELSEWHERE = {
    r"make demo": "installs; its commands are test_the_makefile_s_demo's",
    r"make (test|test-slow|coverage|bench)": "is what runs this, or takes as long",
    r"python tests/tools/an4_corpus\.py .*": "needs CMU's archive; test_an4_corpus.py makes one",
    r"(python -m venv|pip install) .*": "installs; test_package.py does, from the wheel",
    r"sbatch .*": "tests/test_slurm.py has a scheduler for it",
    r".*\| lmplz .*": "KenLM's lmplz is no part of memsim; its stand-in is `memsim lm`",
    r"python tests/tools/synthesise_speech\.py .*": "needs speech engines; its stand-in is the demo's speech",
}
"""Commands, as patterns, that are not run here, and why."""

RECIPE_CHANGES = {"epochs": 1, "batch_seconds": 30, "precision": "float32"}
MAPPINGS = {
    "no-rotation": {"rotation": "none"},
    "rounding": {"feedback": "none"},
    "mixed-5": {"allot": {"budget": "cells_per_weight", "at_most": 5}},
    "mixed-4.5": {"allot": {"budget": "cells_per_weight", "at_most": 4.5}},
}
"""The recipes of the guide of mapping, which says what is in them."""
TINY_MODEL = {
    "architecture": "conformer_ctc",
    "frontend": [{"channels": 2, "stride_time": 2, "stride_frequency": 2}, {"channels": 2, "stride_time": 2}],
    "width": 8,
    "blocks": 1,
    "heads": 2,
    "feed_forward_width": 12,
    "kernel_frames": 3,
}


@pytest.fixture
def folder(tmp_path, tiny_recogniser, memsim):
    """What the commands take for granted."""
    for corpus in ("CORPORA", "AN4"):
        tedlium_of_demo(tmp_path / corpus)
    save_folder(tmp_path / "whisper-tiny.en", "whisper")
    librispeech_of_demo(tmp_path / "ROOT", "part-train", "part-dev", "part-test")
    (tmp_path / "recipes").mkdir()
    for path in configs_root().glob("qat/*.yaml"):
        (tmp_path / "recipes" / path.name).write_text(yaml.safe_dump({"base": path.stem, **RECIPE_CHANGES}))
    for name, change in MAPPINGS.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"base": "feedback", **change}))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY_MODEL))
    rows = ["audio\ttext", *(f"{u.audio}\t{u.text}" for u in load_corpus("demo", limit=4).utterances)]
    for name in (
        "last12.tsv",
        "SYNTH/manifest.tsv",
        "SYNTH5000/manifest.tsv",
        "SYNTH5000/first2000.tsv",
        "HELDOUT/manifest.tsv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    for name in ("runs", "tests/figures", "memsim/assets/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(tiny_recogniser, tmp_path / "model.safetensors")
    guide = (configs_root() / "hardware" / "README.md").read_text()
    (tmp_path / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)[0])
    guide = (configs_root() / "qat" / "README.md").read_text()
    (tmp_path / "wide-range.yaml").write_text(re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)[1])
    (tmp_path / "configs" / "devices").mkdir(parents=True, exist_ok=True)
    for sample in (configs_root() / "devices").glob("*.csv*"):
        shutil.copy(sample, tmp_path / "configs" / "devices")
    measure = [sys.executable, str(REPOSITORY / "tests" / "tools" / "example_measurements.py"), "cycles.csv"]
    subprocess.run([*measure, "--devices", "32", "--cycles", "120"], cwd=tmp_path, check=True)
    lexicon = ("--write-lexicon", "CORPORA/TEDLIUM_release2/TEDLIUM.152k.dic", "--lexicon", "cmudict", "--data", "demo")
    assert memsim("lm", *lexicon, "--quiet").status == 0
    return tmp_path


def _smaller_sweep(setting: str) -> str:
    """`KEY=V1,V2,...` with its first and its last value, or one of structured values."""
    key, values = values_of(setting)
    return f"{key}={','.join(values[:1] if '{' in setting else dict.fromkeys((values[0], values[-1])))}"


def shorter(verb: str, words: list[str]) -> list[str]:
    """The arguments of `memsim VERB`, for two utterances and chips, or one epoch."""
    words = list(words)
    if "--calibrate" in words:
        words += ["--calibration-utterances", "2"]
    if verb == "eval" and "--merge" not in words:
        words += ["--limit", "2"]
        words = [_smaller_sweep(word) if before == "--set" else word for before, word in pairwise(["", *words])]
        if "--trials" in words:
            words += ["--trials", "2"]
        if "--jobs" in words:
            words += ["--jobs", "2"]
        if "--tune" in words:
            words += ["--beam-size", "20"]
    if verb == "qat":
        words = ["SYNTH/manifest.tsv" if word == "demo" else word for word in words]
        recipe = words[words.index("--config") + 1] if "--config" in words else "robust"
        recipe = "float" if "--config" not in words and "float" in words else recipe
        words += ["--config", f"recipes/{recipe}.yaml"]
        if recipe.startswith("tedlium2"):  # 42 million parameters
            words += ["--model", "tiny.yaml"]
    if verb == "fit-device":
        words += ["--order", "5"]
    return [*words, *([] if "--verbose" in words else ["--quiet"]), "--force"]  # the two contradict each other


TOOLS = {
    "readme_results.py": [
        "--hardware",
        "physical",
        "--bits",
        "3",
        "--trials",
        "1",
        "--checkpoint",
        "model.safetensors",
    ],
    "chip_costs.py": ["--network", "bundled", "--arrays", "512"],
    "frontier.py": [],
    "guide_figures.py": [],
    "example_measurements.py": ["--devices", "32", "--cycles", "120"],
    "bundle_checkpoint.py": [],
    "example_levels.py": ["--cells", "100"],
    "measure_statistics.py": [],
    "qat_sweep.py": ["--tables"],
    "wer_by_time.py": ["--table", "wer-by-time.csv"],
}
"""What makes a tool's example short."""


@pytest.mark.slow
@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.parent.name != "models"], ids=name_of)
def test_the_commands_run(document, memsim, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for line in commands(document):
        if any(re.fullmatch(pattern, line) for pattern in ELSEWHERE):
            if "lmplz" in line:
                assert memsim("lm", "--data", "tedlium2", "--data-root", "CORPORA", "-o", "4gram.arpa").status == 0
            continue
        program, *words = shlex.split(line)
        if program == "memsim":
            done = memsim(words[0], *shorter(words[0], words[1:]))
            assert done.status == 0, (line, done.err)
            continue
        if program == "torchrun":
            at = words.index("memsim")
            words = [*words[: at + 2], *shorter(words[at + 1], words[at + 2 :])]
            command = [sys.executable, "-m", "torch.distributed.run", *words]
        elif program == "head":
            continue  # the stand-in of its output is there
        else:
            assert program == "python", line
            tool = words[0].rpartition("/")[2]
            command = [sys.executable, str(REPOSITORY / words[0]), *words[1:], *TOOLS[tool]]
        finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, (line, finished.stderr)


def test_what_is_run_elsewhere_is_there():
    lines = [line for document in DOCUMENTS for line in commands(document)]
    for pattern in ELSEWHERE:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    assert {shlex.split(line)[1].rpartition("/")[2] for line in lines if line.startswith("python tests")} == {
        *TOOLS,
        "an4_corpus.py",
        "synthesise_speech.py",
    }


@pytest.mark.slow
def test_the_makefile_s_demo(memsim, folder):
    lines = re.findall(r"^\t\$\(BIN\)/memsim (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert len(lines) == 3
    (folder / "build").mkdir()
    for line in lines:
        verb, *words = shlex.split(line)
        done = memsim(verb, *shorter(verb, words))
        assert done.status == 0, done.err
