"""Speech corpora on disk as lists of utterances: TED-LIUM 2, LibriSpeech, manifests and the bundled demo.

Nothing here opens audio; `memsim.asr.audio` does.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from memsim.asr.data_names import has_one_split
from memsim.asr.text import normalise
from memsim.asr.tokens import Tokens
from memsim.config.json_input import parse_json
from memsim.config.resources import ASSETS, nearest
from memsim.errors import InputError
from memsim.storage.files import is_file
from memsim.units import counted

AUDIO_ROOTS = "MEMSIM_AUDIO_ROOTS"
"""The environment variable that names folders, besides a manifest's own, that its audio may lie in."""


@dataclass(frozen=True)
class Utterance:
    """One transcribed stretch of a recording: all of `audio` where the times are None."""

    id: str
    audio: Path
    text: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Unwritable:
    """What transcripts hold that a recogniser has no token for, so that it can only get those words wrong."""

    parts: Mapping[str, int]
    """Characters, or words where tokens are phonemes: how many words each is in, the most frequent first."""
    words: int
    utterances: int

    def __str__(self) -> str:
        shown = ", ".join(map(repr, list(self.parts)[:10])) + (" and others" if len(self.parts) > 10 else "")
        touched = f"{counted(self.words, 'word')} in {counted(self.utterances, 'utterance')}"
        return f"the recogniser cannot write {shown}: {touched} of the transcripts can only count as errors"


@dataclass(frozen=True)
class Corpus:
    """One split of a corpus, in an order that is a function of its files alone."""

    name: str
    split: str
    utterances: tuple[Utterance, ...]
    text_style: str = "kaldi"
    synthetic: bool = False
    """Whether the speech was synthesised, so that a WER on it says little of real speech."""
    skipped: int = 0
    """How many segments were left out because nothing is said in them (their transcript holds only noise marks)."""
    simplified: int = 0
    """How many alternatives (`{a / b}`, the first is taken) and optional words (`(uh)`, kept) STM transcripts had."""
    unwritable: Unwritable | None = None
    """What a recogniser cannot write; None where it is nothing, or was not looked for (`with_unwritable`)."""

    @property
    def words(self) -> int:
        """The number of words in all transcripts."""
        return sum(len(utterance.text.split()) for utterance in self.utterances)

    def warnings(self) -> list[str]:
        """Return what to know of the transcripts: words that cannot be written, and marks that were simplified."""
        found = [str(self.unwritable)] if self.unwritable is not None else []
        if self.simplified:
            marks = counted(self.simplified, "alternative or optional word", "alternatives and optional words")
            found.append(f"{marks} in the transcripts: the first alternative and every optional word counts as said")
        return [f"{self.name} {self.split}: {message}" for message in found]


def root_of(data: str, data_root: Path | None) -> Path | None:
    """Return the root of `data`: `data_root` is that of the published corpora; manifests say where their audio is."""
    return None if has_one_split(data) else data_root


def load_corpus(
    data: str, *, split: str = "dev", root: Path | None = None, text_style: str = "kaldi", limit: int | None = None
) -> Corpus:
    """The utterances of `data`: `demo`, `tedlium2`, `librispeech`, or the path of a manifest (.tsv or .jsonl).

    Args:
        split: of tedlium2, `train`, `dev` or `test`; of librispeech these too (meaning `train-clean-100`,
            `dev-clean`, `test-clean`) or a folder's own name. The demo and manifests are one split, `all`.
        root: the folder of the corpus, or the one that holds it; without it, `$MEMSIM_DATA/<data>`. For a manifest,
            the folder that its relative audio paths start from, in place of the manifest's own.
        text_style: the convention of the transcripts, a key of `memsim.asr.text.TEXT_STYLES`.
        limit: keep the first `limit` utterances only.

    Raises InputError for whatever is missing or malformed: where it looked, what it expected, or file:line.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1")
    if data == "demo":
        if root is not None:
            raise InputError("the demo is bundled with memsim and has no root; leave --data-root out")
        corpus = Corpus("demo", "all", _read_manifest(ASSETS / "demo" / "manifest.tsv", None), synthetic=True)
    elif data in _SOURCES:
        corpus = _SOURCES[data](split, root)
    elif Path(data).suffix in (".tsv", ".jsonl"):
        corpus = Corpus(data, "all", _read_manifest(Path(data), root))
    else:
        names = ("demo", *_SOURCES)
        known = f"({nearest(data, names, ['.tsv', '.jsonl'])}there are: {', '.join(names)})"
        raise InputError(f"data {data!r}: no such corpus {known}, and not a manifest (.tsv or .jsonl)")
    return _finish(corpus, text_style, limit)


def with_unwritable(corpus: Corpus, tokens: Tokens) -> Corpus:
    """`corpus` with what of its transcripts `tokens` cannot write."""
    missing = {word: set(tokens.missing(word)) for u in corpus.utterances for word in u.text.split()}
    parts: Counter[str] = Counter()
    words = utterances = 0
    for utterance in corpus.utterances:
        odd = [missing[word] for word in utterance.text.split() if missing[word]]
        parts.update(part for one in odd for part in one)
        words, utterances = words + len(odd), utterances + bool(odd)
    return replace(corpus, unwritable=Unwritable(dict(parts.most_common()), words, utterances) if words else None)


def corpus_lexicon(data: str, root: Path | None = None) -> Path:
    """The pronunciation lexicon that comes with the corpus `data`, of which TED-LIUM 2 alone has one.

    Raises InputError where there is none.
    """
    remedy = "name a lexicon file, or cmudict"
    if data != _TEDLIUM2.name:
        raise InputError(f"{data}: comes without a pronunciation lexicon; {remedy}")
    path = _TEDLIUM2.locate(root) / "TEDLIUM.152k.dic"
    if not path.is_file():
        raise InputError(f"{path}: no such file, where {data} has its pronunciation lexicon; {remedy}")
    return path


def _finish(corpus: Corpus, text_style: str, limit: int | None) -> Corpus:
    """`corpus` with its transcripts in `text_style`, those that hold no words left out, cut to `limit`, ids unique."""
    normalised = [replace(utterance, text=normalise(utterance.text, text_style)) for utterance in corpus.utterances]
    spoken = [utterance for utterance in normalised if utterance.text]
    if not spoken:
        raise InputError(f"{corpus.name}: split {corpus.split} has no utterances with words in them")
    return replace(
        corpus,
        utterances=tuple(_with_unique_ids(spoken))[:limit],
        text_style=text_style,
        skipped=len(normalised) - len(spoken),
    )


def _with_unique_ids(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """`utterances`, where the second of an id `x` becomes `x-2`, and so on."""
    seen: set[str] = set()
    copies: dict[str, int] = {}  # the last number that an id was given
    for utterance in utterances:
        unique = utterance.id
        while unique in seen:
            copies[utterance.id] = copies.get(utterance.id, 1) + 1
            unique = f"{utterance.id}-{copies[utterance.id]}"
        seen.add(unique)
        yield utterance if unique == utterance.id else replace(utterance, id=unique)


@dataclass(frozen=True)
class _Source:
    """A published corpus: what it is called, how it lies on disk, and where it comes from."""

    name: str
    folder: str
    layout: str
    transcripts: str
    """Glob of the files below a split that make it one."""
    url: str

    def locate(self, root: Path | None) -> Path:
        """The folder of the corpus: the one of its name in `root` or `$MEMSIM_DATA/<name>`, or that root itself."""
        expected = f"{self.folder}/{self.layout}"
        if root is None:
            home = os.environ.get("MEMSIM_DATA")
            if not home:
                raise InputError(
                    f"{self.name}: give --data-root DIR that holds {expected}, or set $MEMSIM_DATA so that "
                    f"$MEMSIM_DATA/{self.name} does; the corpus comes from {self.url}"
                )
            root = Path(home) / self.name
        for folder in (root / self.folder, root):
            if any(folder.glob(f"*/{self.transcripts}")):
                return folder
        state = "holds no" if root.is_dir() else "is no folder; it should hold"
        raise InputError(f"{root}: {state} {expected}; {self.name} comes from {self.url}")

    def require_split(self, folder: Path, split: str) -> None:
        """Raises InputError, naming the splits in `folder`, when `split` is not one of them."""
        found = sorted(path.name for path in folder.iterdir() if any(path.glob(self.transcripts)))
        if split not in found:
            raise InputError(f"{folder}: {self.name} has no split {split!r} here; there are: {', '.join(found)}")


# ---- TED-LIUM 2 ----

_TEDLIUM2 = _Source(
    "tedlium2", "TEDLIUM_release2", "{train,dev,test}/{sph,stm}", "stm/*.stm", "https://www.openslr.org/19"
)


def _load_tedlium2(split: str, root: Path | None) -> Corpus:
    """`TEDLIUM_release2/SPLIT/{sph/*.sph,stm/*.stm}`; a talk's FLAC or WAV serves where its .sph is absent."""
    folder = _TEDLIUM2.locate(root)
    _TEDLIUM2.require_split(folder, split)
    segments = [
        (segment, where)
        for stm in sorted((folder / split / "stm").glob("*.stm"))
        for number, line in _lines(stm)
        if (segment := parse_stm_line(line, where := f"{stm}:{number}")) is not None
    ]
    segments.sort(key=lambda pair: (pair[0].talk, pair[0].start_seconds, pair[0].end_seconds))

    audio: dict[str, Path] = {}
    for segment, where in segments:
        if segment.talk not in audio:
            audio[segment.talk] = _find_audio([folder / split / "sph", folder / split / "stm"], segment.talk, where)
    utterances = tuple(segment.utterance(audio[segment.talk]) for segment, _ in segments)
    return Corpus("tedlium2", split, utterances, simplified=sum(segment.simplified for segment, _ in segments))


@dataclass(frozen=True)
class StmSegment:
    """A line of an STM file: who said what in which stretch of a talk."""

    talk: str
    speaker: str
    start_seconds: float
    end_seconds: float
    text: str
    simplified: int = 0
    """How many alternatives and optional words the transcript had."""

    def utterance(self, audio: Path) -> Utterance:
        """This segment in the recording `audio`, by Kaldi's id: talk, start and end in hundredths of a second."""
        start, end = round(self.start_seconds * 100), round(self.end_seconds * 100)
        id = f"{self.talk}-{start:07d}-{end:07d}"
        return Utterance(id, audio, self.text, self.start_seconds, self.end_seconds, self.speaker)


def parse_stm_line(line: str, where: str) -> StmSegment | None:
    """The segment of `talk channel speaker start end <label> words...`; None for comments, blanks and unscored gaps.

    As sclite reads it (SCTK, doc/infmts.htm): the label may be left out, and so may the words. The marks of TED-LIUM's
    transcripts go: pronunciations (`read(2)`), `<sil>` and `<unk>`, noises (`{NOISE}`), and the utterance's name at the
    end, `(talk-start-end-...)`. Of alternatives (`{ a / b }`) the first stays, and optional words (`(uh)`) stay.
    `where` is the file:line that an InputError begins with.
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
        raise InputError(f"{where}: {talk!r:.60} is no name of a talk: it leads to another folder")
    start_seconds, end_seconds = _seconds(start, "start", where), _seconds(end, "end", where)
    _require_order(start_seconds, end_seconds, where)
    text = re.sub(r"^<[^<>]*>(?=\s|$)", "", " ".join(fields[5:]))  # the label
    return StmSegment(talk, speaker, start_seconds, end_seconds, *_plain(" ".join(text.split())))


def _plain(text: str) -> tuple[str, int]:
    """A transcript without marks, and how many alternatives and optional words it had."""
    text = re.sub(r"\(\d+\)", "", text)  # pronunciation variants
    text = re.sub(r"\([^ ]*\d[^ ]*\)$", "", text)  # the utterance's name, which holds times
    text = re.sub(r"<[^ >]*>|\{[^ /{}]*\}", "", text)  # silence, unknown words, noises
    simplified = 0
    while found := re.search(r"\{([^{}]*)\}", text):  # the innermost first
        first = re.split(r"(?:^|(?<=\s))/(?=\s|$)", found[1])[0].strip()
        text, simplified = text[: found.start()] + f" {first} " + text[found.end() :], simplified + 1
    text, optional = re.subn(r"(?<!\S)\(([^()]*)\)(?!\S)", r" \1 ", text)
    text, stray = re.subn(r"[{}()]", " ", text)
    words = [word for word in text.split() if word != "@"]  # no word at all
    return " ".join(words), simplified + optional + stray


# ---- LibriSpeech ----

_LIBRISPEECH = _Source(
    "librispeech", "LibriSpeech", "SPLIT/SPEAKER/CHAPTER", "*/*/*.trans.txt", "https://www.openslr.org/12"
)
_LIBRISPEECH_SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}


def _load_librispeech(split: str, root: Path | None) -> Corpus:
    """`LibriSpeech/SPLIT/SPEAKER/CHAPTER/{SPEAKER-CHAPTER.trans.txt,*.flac}`."""
    folder = _LIBRISPEECH.locate(root)
    name = _LIBRISPEECH_SPLITS.get(split, split)
    _LIBRISPEECH.require_split(folder, name)
    utterances = [
        _librispeech_utterance(line, transcript, number)
        for transcript in (folder / name).glob("*/*/*.trans.txt")
        for number, line in _lines(transcript)
        if line.strip()
    ]
    return Corpus("librispeech", name, tuple(sorted(utterances, key=lambda utterance: utterance.id)))


def _librispeech_utterance(line: str, transcript: Path, number: int) -> Utterance:
    where = f"{transcript}:{number}"
    id, _, text = line.strip().partition(" ")
    if not re.fullmatch(r"[^/-]+-[^/-]+-[^/-]+", id):
        raise InputError(f"{where}: expected `SPEAKER-CHAPTER-NUMBER WORDS...`, found {line.strip()!r}")
    return Utterance(id, _find_audio([transcript.parent], id, where), text, speaker=id.split("-")[0])


# ---- manifests ----

_MANIFEST_KEYS = ("audio", "text", "start", "end", "id", "speaker")


def _read_manifest(path: Path, audio_root: Path | None) -> tuple[Utterance, ...]:
    """The rows of a TSV file with a header line, or of a file of JSON objects, in their own order.

    Keys: `audio` (relative to `audio_root`, or to the manifest's folder) and `text`; optional `start` and `end` in
    seconds, `id`, and `speaker`. A row without `id` is called after its audio file and times. Wherever its path and
    links lead, the audio must lie in that folder, or in one that $MEMSIM_AUDIO_ROOTS names.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such manifest")
    rows = _tsv_rows(path) if path.suffix == ".tsv" else _jsonl_rows(path)
    folder = audio_root or path.parent
    utterances, lines_of_ids = [], dict[str, str]()
    for where, row in rows:
        utterance = _manifest_utterance(row, folder, where)
        if row.get("id") is not None and lines_of_ids.setdefault(utterance.id, where) != where:
            raise InputError(f"{where}: id {utterance.id!r} was given already at {lines_of_ids[utterance.id]}")
        utterances.append(utterance)
    if not utterances:
        raise InputError(f"{path}: holds no utterances")
    return tuple(utterances)


def _tsv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """(file:line, row) of every line below the header; an empty cell is an absent key, except for `text`."""
    header: list[str] | None = None
    for number, line in _lines(path):
        if not line.strip():
            continue
        where, cells = f"{path}:{number}", line.split("\t")
        if header is None:
            header = [cell.strip() for cell in cells]
            _require_manifest_keys(header, where)
        elif len(cells) != len(header):
            raise InputError(f"{where}: has {len(cells)} tab-separated columns, the header has {len(header)}")
        else:
            yield where, {key: cell for key, cell in zip(header, cells, strict=True) if cell.strip() or key == "text"}


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """(file:line, row) of every line that is not blank; a null is an absent key."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise InputError(f'{where}: expected an object such as {{"audio": "a.wav", "text": "yes"}}')
        _require_manifest_keys(row, where)
        yield where, {key: value for key, value in row.items() if value is not None}


def _require_manifest_keys(keys: Iterable[str], where: str) -> None:
    counts = Counter(list(keys))
    wrong = [f"lacks `{key}`" for key in ("audio", "text") if key not in counts]
    wrong += [f"has `{key}` twice" for key, count in counts.items() if count > 1]
    wrong += [f"has the unknown key `{key}`" for key in counts if key not in _MANIFEST_KEYS]
    if wrong:
        raise InputError(f"{where}: {', '.join(wrong)}; a manifest's keys are {', '.join(_MANIFEST_KEYS)}")


def _manifest_utterance(row: Mapping[str, object], folder: Path, where: str) -> Utterance:
    audio, text, id, speaker = (_string(row, key, where) for key in ("audio", "text", "id", "speaker"))
    if not audio:
        raise InputError(f"{where}: `audio` is empty")
    if not text or not text.strip():
        raise InputError(f"{where}: `text` is empty; every utterance needs a transcript")
    path = folder / audio
    try:
        exists = is_file(path)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if not exists:
        raise InputError(f"{where}: no such audio file: {path}")
    _require_allowed(path, folder, where)
    start = _seconds(row["start"], "start", where) if "start" in row else None
    end = _seconds(row["end"], "end", where) if "end" in row else None
    _require_order(start or 0.0, math.inf if end is None else end, where)
    if id is None:
        times = [f"{round(seconds * 100):07d}" for seconds in (start, end) if seconds is not None]
        id = "-".join([path.stem, *times])
    return Utterance(id, path, text, start, end, speaker)


def _string(row: Mapping[str, object], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: `{key}` must be a string, not {value!r:.60}")
    if value is not None and (odd := _UNWRITABLE.search(value)):
        raise InputError(f"{where}: `{key}` holds {odd[0]!r}, which is no character")
    return value


_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""NUL, which no file name has, and halves of surrogate pairs, which cannot be written."""


def _require_allowed(path: Path, folder: Path, where: str) -> None:
    """Raise InputError for audio that is, links followed, neither in `folder` nor in one of $MEMSIM_AUDIO_ROOTS."""
    roots = [folder, *map(Path, filter(None, os.environ.get(AUDIO_ROOTS, "").split(os.pathsep)))]
    real = path.resolve()
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        found = f"{path} is {real}, " if real != path.absolute() else f"{path} is "
        raise InputError(
            f"{where}: {found}outside of {folder.resolve()}; to allow it, name its folder in ${AUDIO_ROOTS} "
            f"(several: DIR{os.pathsep}DIR; / allows any)"
        )


# ---- what the readers share ----


def _find_audio(folders: Iterable[Path], stem: str, where: str) -> Path:
    """The recording `stem` in the first of `folders` and formats that has it; `where` (file:line) wants it."""
    candidates = [folder / f"{stem}{suffix}" for suffix in (".sph", ".flac", ".wav") for folder in folders]
    for path in candidates:
        if is_file(path):
            return path
    raise InputError(f"{where}: no audio for it: no {candidates[0]}, nor a .flac or .wav in its place")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a UTF-8 text file, from 1, without line ends."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        broken = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{broken}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save it as UTF-8") from None
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _seconds(value: object, key: str, where: str) -> float:
    """`value`, a number or the text of one, as a time in seconds."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < _MAX_SECONDS:
        raise InputError(f"{where}: {key} must be a time in seconds, not {value!r:.40}")
    return seconds


_MAX_SECONDS = 1e9
"""No recording is thirty years long."""


def _require_order(start_seconds: float, end_seconds: float, where: str) -> None:
    if end_seconds <= start_seconds:
        raise InputError(f"{where}: ends at {end_seconds:g} s, not after its start at {start_seconds:g} s")


_SOURCES: Mapping[str, Callable[[str, Path | None], Corpus]] = {
    "tedlium2": _load_tedlium2,
    "librispeech": _load_librispeech,
}
