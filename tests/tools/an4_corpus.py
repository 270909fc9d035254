"""Lay CMU's AN4 corpus out as TED-LIUM 2 is on disk, so that `--data tedlium2 --data-root AN4` reads it.

    python tests/tools/an4_corpus.py an4_sphere.tar.gz AN4

The archive, 64 MB of NIST SPHERE files, comes from CMU (http://www.speech.cs.cmu.edu/databases/an4/). Its 74 speakers
with a close-talking microphone (`an4_clstk`) become three splits without a speaker in common: 58 for training, 8 each
for dev and test. A speaker's utterances stand in one file, 0.4 s of silence before each of them.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import soundfile

DEV = {"fwxs", "mdmc", "meht", "mjdr", "mjes", "mjgk", "mrcb", "mtxj"}
TEST = {"ffmm", "fjmd", "mcsc", "mdcs", "mema", "mrab", "mrjc2", "mtcv"}
RATE = 16000
SILENCE = np.zeros(int(0.4 * RATE), dtype=np.int16)
TRANSCRIPTS = "an4/etc/an4_train.transcription"
_LINE = re.compile(r"(?:<s>)?(?P<words>.*?)(?:</s>)?\s*\((?P<id>(?P<kind>[a-z]+)(?P<number>\d+)-(?P<speaker>\w+)-b)\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path, help="folder that gets TEDLIUM_release2")
    arguments = parser.parse_args()
    with tarfile.open(arguments.archive) as archive:
        # the audio of a compressed archive is read in one go; seeking for each file would unpack it anew
        files = {
            member.name: archive.extractfile(member).read()
            for member in archive
            if member.name == TRANSCRIPTS or re.fullmatch(r"an4/wav/an4_clstk/\w+/[\w-]+\.sph", member.name)
        }
    if TRANSCRIPTS not in files:
        sys.exit(f"{arguments.archive}: holds no {TRANSCRIPTS}; is it an4_sphere.tar.gz?")
    for speaker, utterances in by_speaker(files[TRANSCRIPTS].decode()).items():
        split = "dev" if speaker in DEV else "test" if speaker in TEST else "train"
        audio = [files[f"an4/wav/an4_clstk/{speaker}/{id}.sph"] for id, _ in utterances]
        write_talk(arguments.out / "TEDLIUM_release2" / split, speaker, [text for _, text in utterances], audio)


def by_speaker(transcripts: str) -> dict[str, list[tuple[str, str]]]:
    """The ids and the words of each speaker's utterances, in the order of their numbers."""
    found: dict[str, list[tuple[str, int, str, str]]] = {}
    for number, line in enumerate(transcripts.splitlines(), 1):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            sys.exit(f"{TRANSCRIPTS}:{number}: expected `<s> WORDS </s> (ID-SPEAKER-b)`, found {line!r}")
        words = " ".join(match["words"].lower().split())
        found.setdefault(match["speaker"], []).append((match["kind"], int(match["number"]), match["id"], words))
    return {speaker: [(id, words) for *_, id, words in sorted(rows)] for speaker, rows in sorted(found.items())}


def write_talk(folder: Path, speaker: str, texts: list[str], audio: list[bytes]) -> None:
    """Write SPEAKER.sph and SPEAKER.stm into `folder/sph` and `folder/stm`."""
    about = f"<o,f0,{'female' if speaker.startswith('f') else 'male'}>"
    samples, lines, at = [], [], 0
    for text, content in zip(texts, audio, strict=True):
        heard, rate = soundfile.read(io.BytesIO(content), dtype="int16")
        if rate != RATE:
            sys.exit(f"{speaker}: {rate} Hz; expected {RATE}")
        for part, words in ((SILENCE, "ignore_time_segment_in_scoring"), (heard, text)):
            end = at + len(part)
            lines.append(f"{speaker} 1 {speaker} {at / RATE:.3f} {end / RATE:.3f} {about} {words}\n")
            samples.append(part)
            at = end
    for kind in ("sph", "stm"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "sph" / f"{speaker}.sph", np.concatenate(samples), RATE, "PCM_16", format="NIST")
    (folder / "stm" / f"{speaker}.stm").write_text("".join(lines))


if __name__ == "__main__":
    main()
