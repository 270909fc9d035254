"""Data for tests of training: the bundled speech in the layout of other corpora, and a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from memsim.asr.corpora import load_corpus

TINY_MODEL = """
architecture: conformer_ctc
frontend: [{channels: 2, stride_time: 2, stride_frequency: 2}, {channels: 2, stride_time: 2, stride_frequency: 4}]
width: 8
blocks: 1
heads: 2
feed_forward_width: 16
kernel_frames: 3
"""


def few_utterances(folder: Path, count: int) -> None:
    """The manifest few.tsv: the first `count` of the demo."""
    rows = [f"{u.audio}\t{u.text}" for u in load_corpus("demo", limit=count).utterances]
    (folder / "few.tsv").write_text("\n".join(["audio\ttext", *rows]) + "\n")


def tedlium_of_demo(folder: Path) -> None:
    """The demo's speech as TED-LIUM has its own: six utterances of each split."""
    utterances = load_corpus("demo", limit=18).utterances
    for number, split in enumerate(("train", "dev", "test")):
        lines, samples, at = [], [], 0.0
        for utterance in utterances[6 * number : 6 * number + 6]:
            audio, rate = soundfile.read(utterance.audio)
            lines.append(f"{split} 1 x {at:.3f} {at + len(audio) / rate:.3f} <o> {utterance.text}\n")
            samples.append(audio)
            at += len(audio) / rate
        for kind in ("sph", "stm"):
            (folder / "TEDLIUM_release2" / split / kind).mkdir(parents=True)
        (folder / "TEDLIUM_release2" / split / "stm" / f"{split}.stm").write_text("".join(lines))
        soundfile.write(folder / "TEDLIUM_release2" / split / "sph" / f"{split}.wav", np.concatenate(samples), 16000)


def librispeech_of_demo(folder: Path, *splits: str) -> None:
    """The demo's speech as LibriSpeech has its own: two utterances of each split."""
    utterances = load_corpus("demo", limit=2 * len(splits)).utterances
    for number, split in enumerate(splits):
        chapter = folder / "LibriSpeech" / split / str(number) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for i, utterance in enumerate(utterances[2 * number : 2 * number + 2]):
            audio, rate = soundfile.read(utterance.audio)
            soundfile.write(chapter / f"{number}-1-{i:04}.flac", audio, rate)
            lines.append(f"{number}-1-{i:04} {utterance.text.upper()}\n")
        (chapter / f"{number}-1.trans.txt").write_text("".join(lines))
