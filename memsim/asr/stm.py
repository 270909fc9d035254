"""STM files: the segment-time-mark format of sclite (SCTK, doc/infmts.htm), with the marks of TED-LIUM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from memsim.asr.utterances import Utterance, parse_seconds, require_order
from memsim.errors import InputError


@dataclass(frozen=True)
class StmSegment:
    """A line of an STM file: a speaker's words in a stretch of a talk."""

    talk: str
    speaker: str
    start_seconds: float
    end_seconds: float
    text: str
    simplified: int = 0
    """The number of alternatives and optional words that the transcript had."""

    def utterance(self, audio: Path) -> Utterance:
        """Return this segment of the recording `audio`.

        Its id is Kaldi's: talk, start and end, in hundredths of a second.
        """
        start, end = round(self.start_seconds * 100), round(self.end_seconds * 100)
        id = f"{self.talk}-{start:07d}-{end:07d}"
        return Utterance(id, audio, self.text, self.start_seconds, self.end_seconds, self.speaker)


def parse_stm_line(line: str, where: str) -> StmSegment | None:
    """Parse `talk channel speaker start end <label> words...`; None for comments, blanks and unscored gaps.

    The label may be left out, and so may the words. The marks of TED-LIUM's transcripts are removed: pronunciations
    (`read(2)`), `<sil>` and `<unk>`, noises (`{NOISE}`), and the utterance's name at the end, `(talk-start-end-...)`.
    The first of several alternatives (`{ a / b }`) is kept, and so are optional words (`(uh)`).

    Raises InputError that begins with `where`, the file:line.
    """
    is_comment = not line.strip() or line.lstrip().startswith(";;")
    if is_comment or "ignore_time_segment_in_scoring" in line.lower():
        return None
    fields = line.split(maxsplit=5)
    if len(fields) < 5:
        found = f"found {line.strip()!r}; the label may be left out"
        raise InputError(f"{where}: expected `talk channel speaker start end <label> words...`, {found}")
    talk, _, speaker, start, end = fields[:5]
    if "/" in talk or "\0" in talk:
        raise InputError(f"{where}: {talk!r:.60} is not the name of a talk: it leads to another folder")
    start_seconds, end_seconds = parse_seconds(start, "start", where), parse_seconds(end, "end", where)
    require_order(start_seconds, end_seconds, where)
    text = re.sub(r"^<[^<>]*>(?=\s|$)", "", " ".join(fields[5:]))  # the label
    return StmSegment(talk, speaker, start_seconds, end_seconds, *_without_marks(" ".join(text.split())))


def _without_marks(text: str) -> tuple[str, int]:
    """Return a transcript without marks, and the number of alternatives and optional words that it had."""
    text = re.sub(r"\(\d+\)", "", text)  # pronunciation variants
    text = re.sub(r"\([^ ]*\d[^ ]*\)$", "", text)  # the utterance's name, which holds times
    text = re.sub(r"<[^ >]*>|\{[^ /{}]*\}", "", text)  # silence, unknown words, noises
    simplified = 0
    while found := re.search(r"\{([^{}]*)\}", text):  # the innermost first
        first = re.split(r"(?:^|(?<=\s))/(?=\s|$)", found[1])[0].strip()
        text, simplified = text[: found.start()] + f" {first} " + text[found.end() :], simplified + 1
    text, optional = re.subn(r"(?<!\S)\(([^()]*)\)(?!\S)", r" \1 ", text)
    text, stray = re.subn(r"[{}()]", " ", text)
    words = [word for word in text.split() if word != "@"]  # sclite's mark for no word
    return " ".join(words), simplified + optional + stray
