"""AN4 as CMU ships it becomes a corpus that `--data tedlium2` reads."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from memsim.asr.corpora import load_corpus
from tests.documents import REPOSITORY

UTTERANCES = {  # two of one speaker for training, whose numbers tell their order, and one each of dev and test
    "an10-fash-b": "RUBOUT G M",
    "an9-fash-b": "YES",
    "cen1-fwxs-b": "TWO SIX",
    "cen1-mrab-b": "STOP",
}


def sphere(samples: np.ndarray) -> bytes:
    written = io.BytesIO()
    soundfile.write(written, samples, 16000, "PCM_16", format="NIST")
    return written.getvalue()


def archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def lay_out(folder: Path) -> subprocess.CompletedProcess[str]:
    tool = str(REPOSITORY / "tests" / "tools" / "an4_corpus.py")
    return subprocess.run(
        [sys.executable, tool, "an4_sphere.tar.gz", "AN4"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_splits_have_the_utterances(tmp_path):
    rng = np.random.default_rng(0)
    audio = {name: rng.integers(-999, 999, 1600 * (i + 3), dtype=np.int16) for i, name in enumerate(UTTERANCES)}
    files = {f"an4/wav/an4_clstk/{name.split('-')[1]}/{name}.sph": sphere(a) for name, a in audio.items()}
    lines = [f"<s> {text} </s> ({name})\n" for name, text in UTTERANCES.items()]
    archive(tmp_path / "an4_sphere.tar.gz", {"an4/etc/an4_train.transcription": "".join(lines).encode(), **files})
    done = lay_out(tmp_path)
    assert done.returncode == 0, done.stderr
    found = {split: load_corpus(f"tedlium2:{split}", root=tmp_path / "AN4") for split in ("train", "dev", "test")}
    texts = {split: [each.text for each in corpus.utterances] for split, corpus in found.items()}
    assert texts == {"train": ["yes", "rubout g m"], "dev": ["two six"], "test": ["stop"]}
    for split, name, at in (("train", "an9-fash-b", 0), ("train", "an10-fash-b", 1), ("test", "cen1-mrab-b", 0)):
        each = found[split].utterances[at]
        heard, rate = soundfile.read(each.audio, dtype="int16")
        part = heard[round(each.start_seconds * rate) : round(each.end_seconds * rate)]
        assert np.array_equal(part, audio[name])
        assert each.start_seconds >= 0.4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"other": b""}, "holds no an4/etc/an4_train.transcription"),
        ({"an4/etc/an4_train.transcription": b"YES\n"}, "an4_train.transcription:1: expected"),
    ],
)
def test_another_archive_is_refused_in_a_line(tmp_path, files, said):
    archive(tmp_path / "an4_sphere.tar.gz", files)
    done = lay_out(tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
