"""Folders of Hugging Face's on the command line: the commands of the guide, and options that take DATA."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed (pip install memsim[hf])")

from tests.asr.hugging_face_folders import save_folder
from tests.cli.speech import librispeech_of_demo, tedlium_of_demo
from tests.documents import REPOSITORY

GUIDE = (REPOSITORY / "configs" / "models" / "README.md").read_text(encoding="utf-8")
SECTION = GUIDE.partition("## Hugging Face recognisers\n")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"^    memsim (.*)$", SECTION, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random Whisper in place of tiny.en, and the demo's speech in place of the corpora."""
    save_folder(tmp_path / "whisper-tiny.en", "whisper")
    librispeech_of_demo(tmp_path / "ROOT", "part-train", "part-dev", "part-test")
    tedlium_of_demo(tmp_path / "ROOT")
    (tmp_path / "short.yaml").write_text("base: robust\nepochs: 1\naugment: {speeds: [1.0]}\n")
    return tmp_path


def test_the_guides_commands_run(memsim, folder):
    assert len(COMMANDS) == 4
    said = []
    for line in COMMANDS:
        words = shlex.split(line.replace("--trials 3", "--trials 1"))
        words += ["--config", "short.yaml"] if words[0] == "qat" else ["--limit", "1"] if words[0] == "eval" else []
        done = memsim(*words)
        assert done.status == 0, (line, done.err)
        said.append(done.said)
    assert (folder / "whisper-tiny.en.mapped.safetensors").is_file()
    assert "librispeech part-test" in said[1]
    assert "tedlium2 dev" in said[2]
    assert "whisper-tiny.en on physical with weights.scale=per_tile, dac.method=mse, 6-bit weights" in said[2]
    assert (folder / "page.html").is_file()
    assert memsim("map", "whisper-3.safetensors").status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("eval", "demo", "--data", "librispeech:part-dev", "--split", "part-test"),
            "--split part-test: librispeech:part-dev names a split already; leave one of the two out",
        ),
        (
            ("lm", "--data", "librispeech:part-dev", "--split", "part-test", "-o", "a.arpa"),
            "--split part-test: librispeech:part-dev names a split already; leave one of the two out",
        ),
        (("map", "demo", "--calibrate", "demo:dev"), "demo:dev: demo is not divided into splits; leave the split out"),
        (
            ("map", "whisper-tiny.en", "--calibrate", "librispeech:part-x", "--data-root", "ROOT"),
            "librispeech has no split 'part-x' here; available: part-dev, part-test, part-train",
        ),
        (
            (
                "qat",
                "--init",
                "whisper-tiny.en",
                "--data",
                "librispeech:part-train",
                "--bits",
                "3",
                "--data-root",
                "ROOT",
                "-o",
                "o.safetensors",
            ),
            "librispeech has no split 'dev-clean' here; available: part-dev, part-test, part-train",
        ),
    ],
)
def test_splits_that_cannot_be_had(memsim, folder, arguments, said):
    refused = memsim(*arguments)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert said in refused.err
