"""Speech corpora on disk as lists of utterances: TED-LIUM 2, LibriSpeech, manifests and the bundled demo.

To add a published corpus, write a function that reads a split of it and give it an entry in `CORPORA`. This module
opens no audio (`memsim.asr.audio` does) and imports no torch.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memsim.asr.manifests import SUFFIXES, read_manifest
from memsim.asr.stm import parse_stm_line
from memsim.asr.text import normalise
from memsim.asr.utterances import Utterance, find_audio, read_lines
from memsim.config.resources import ASSETS, nearest
from memsim.errors import InputError
from memsim.units import counted

if TYPE_CHECKING:
    from memsim.asr.tokens import Tokens


@dataclass(frozen=True)
class Unwritable:
    """Parts of transcripts that a recogniser has no token for, so that it can only get those words wrong."""

    parts: Mapping[str, int]
    """The number of words that each character (or word, where tokens are phonemes) is in, most frequent first."""
    words: int
    utterances: int

    def __str__(self) -> str:
        shown = ", ".join(map(repr, list(self.parts)[:10])) + (" and others" if len(self.parts) > 10 else "")
        touched = f"{counted(self.words, 'word')} in {counted(self.utterances, 'utterance')}"
        return f"the recogniser cannot write {shown}: {touched} of the transcripts can only count as errors"


@dataclass(frozen=True)
class Unheard:
    """Ends of utterances that a recogniser does not hear, because they are longer than what it hears of each."""

    longest_seconds: float
    """The length of what is heard."""
    seconds: Mapping[str, float]
    """The length of each such end, by the id of its utterance."""

    def __str__(self) -> str:
        some = [f"{name} {seconds:.1f} s" for name, seconds in list(self.seconds.items())[:3]]
        shown = ", ".join(some) + (", ..." if len(self.seconds) > 3 else "")
        return (
            f"the recogniser hears the first {self.longest_seconds:g} s of an utterance: "
            f"{sum(self.seconds.values()):.1f} s at the end of {counted(len(self.seconds), 'utterance')} are not "
            f"heard, and their words count as errors ({shown})"
        )


@dataclass(frozen=True)
class Corpus:
    """A split of a corpus, in an order that is a function of its files alone."""

    name: str
    split: str
    utterances: tuple[Utterance, ...]
    text_style: str = "kaldi"
    synthetic: bool = False
    """Whether the speech was synthesised, so that a WER on it says little about real speech."""
    skipped: int = 0
    """The number of segments left out because their transcripts hold only noise marks."""
    simplified: int = 0
    """The number of alternatives (`{a / b}`, the first is taken) and optional words (`(uh)`, kept) in STM files."""
    unwritable: Unwritable | None = None
    """The parts of transcripts that a recogniser cannot write, as `with_unwritable` finds; None without any."""
    unheard: Unheard | None = None
    """The ends of utterances that a recogniser does not hear, as `data.with_unheard` finds; None without any."""

    @property
    def words(self) -> int:
        """The number of words in all transcripts."""
        return sum(len(utterance.text.split()) for utterance in self.utterances)

    def warnings(self) -> list[str]:
        """Return what to know of the data: their `distortions`, and marks in transcripts that were simplified."""
        found = self.distortions()
        if self.simplified:
            marks = counted(self.simplified, "alternative or optional word", "alternatives and optional words")
            found.append(f"{marks} in the transcripts: the first alternative and every optional word counts as said")
        return [f"{self.name} {self.split}: {message}" for message in found]

    def distortions(self) -> list[str]:
        """Return what makes every score worse: words that cannot be written, and speech that is not heard."""
        return [str(found) for found in (self.unwritable, self.unheard) if found is not None]


def root_of(data: str, data_root: Path | None) -> Path | None:
    """Return the root of `data`: `data_root` is that of the published corpora; manifests say where their audio is."""
    return None if has_one_split(data) else data_root


@dataclass(frozen=True)
class PublishedCorpus:
    """A published corpus: its name, its files on disk, where it comes from, and the function that reads a split."""

    name: str
    folder: str
    layout: str
    """The folders below `folder`, as an error message shows them."""
    transcripts: str
    """Glob of the transcripts below the folder of a split."""
    url: str
    read: Callable[[Path, str], Corpus]
    """Reads a split, given the corpus's folder and the split's name; transcripts stay as they are in the files."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Folder names of `train`, `dev` and `test`, where they differ."""
    lexicon: str | None = None
    """File name of the pronunciation lexicon, if the corpus comes with one."""

    def load(self, split: str, root: Path | None) -> Corpus:
        """Read a split. Raises InputError when the corpus, the split or a file of it is missing or malformed."""
        folder = self.locate(root)
        split = self.splits.get(split, split)
        found = sorted(path.name for path in folder.iterdir() if any(path.glob(self.transcripts)))
        if split not in found:
            raise InputError(f"{folder}: {self.name} has no split {split!r} here; available: {', '.join(found)}")
        return self.read(folder, split)

    def locate(self, root: Path | None) -> Path:
        """Return the folder of the corpus: `folder` in `root` (or in `$MEMSIM_DATA/<name>`), or that root itself.

        Raises InputError when neither has the corpus's layout.
        """
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
        if any(root.glob(self.transcripts)):
            raise InputError(f"{root}: is a split of {self.name}; name the folder above it, {root.absolute().parent}")
        state = "holds no" if root.is_dir() else "is not a folder; it should hold"
        raise InputError(f"{root}: {state} {expected}; {self.name} comes from {self.url}")


def _read_tedlium2(folder: Path, split: str) -> Corpus:
    """Read `SPLIT/{sph/*.sph,stm/*.stm}`; a talk's FLAC or WAV serves where its .sph is absent."""
    segments = [
        (segment, where)
        for stm in sorted((folder / split / "stm").glob("*.stm"))
        for number, line in read_lines(stm)
        if (segment := parse_stm_line(line, where := f"{stm}:{number}")) is not None
    ]
    segments.sort(key=lambda pair: (pair[0].talk, pair[0].start_seconds, pair[0].end_seconds))

    audio: dict[str, Path] = {}
    for segment, where in segments:
        if segment.talk not in audio:
            audio[segment.talk] = find_audio([folder / split / "sph", folder / split / "stm"], segment.talk, where)
    utterances = tuple(segment.utterance(audio[segment.talk]) for segment, _ in segments)
    return Corpus("tedlium2", split, utterances, simplified=sum(segment.simplified for segment, _ in segments))


def _read_librispeech(folder: Path, split: str) -> Corpus:
    """Read `SPLIT/SPEAKER/CHAPTER/{SPEAKER-CHAPTER.trans.txt,*.flac}`."""
    utterances = []
    for transcript in (folder / split).glob("*/*/*.trans.txt"):
        for number, line in read_lines(transcript):
            where = f"{transcript}:{number}"
            id, _, text = line.strip().partition(" ")
            if not re.fullmatch(r"[^/-]+-[^/-]+-[^/-]+", id):
                raise InputError(f"{where}: expected `SPEAKER-CHAPTER-NUMBER WORDS...`, found {line.strip()!r}")
            audio = find_audio([transcript.parent], id, where)
            utterances.append(Utterance(id, audio, text, speaker=id.split("-")[0]))
    return Corpus("librispeech", split, tuple(sorted(utterances, key=lambda utterance: utterance.id)))


CORPORA = {
    corpus.name: corpus
    for corpus in (
        PublishedCorpus(
            "tedlium2",
            folder="TEDLIUM_release2",
            layout="{train,dev,test}/{sph,stm}",
            transcripts="stm/*.stm",
            url="https://www.openslr.org/19",
            read=_read_tedlium2,
            lexicon="TEDLIUM.152k.dic",
        ),
        PublishedCorpus(
            "librispeech",
            folder="LibriSpeech",
            layout="SPLIT/SPEAKER/CHAPTER",
            transcripts="*/*/*.trans.txt",
            url="https://www.openslr.org/12",
            read=_read_librispeech,
            splits={"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"},
        ),
    )
}
NAMES = ("demo", *CORPORA)
"""The corpora that `load_corpus` knows by name."""
DATA = f"{', '.join(NAMES)}, each with :SPLIT if wanted, or a manifest (.tsv, .jsonl)"
"""The values of `data`, for messages and the help of commands."""


def name_and_split(data: str) -> tuple[str, str | None]:
    """Return the name and the split of `NAME:SPLIT`; the split is None where there is none, as of manifests."""
    name, colon, split = data.partition(":")
    return (name, split) if colon and name in NAMES else (data, None)


def chosen_split(data: str, split: str | None, option: str = "--split") -> tuple[str, str | None]:
    """Return the name of `data`, and the split that it or the option `split` names.

    Raises InputError where both name one, and where the data are not divided into splits.
    """
    name, own = name_and_split(data)
    if own is not None and split is not None:
        raise InputError(f"{option} {split}: {data} names a split already; leave one of the two out")
    if split is not None and has_one_split(name):
        raise InputError(f"{option} {split}: {name} is not divided into splits; leave {option} out")
    if own is not None:
        _require_splits(name, own)
    return name, own or split


def _require_splits(name: str, split: str) -> None:
    """Raise InputError where the data `name` of `name:split` are not divided into splits."""
    if has_one_split(name):
        raise InputError(f"{name}:{split}: {name} is not divided into splits; leave the split out")


def has_one_split(data: str) -> bool:
    """Return whether `data` is not divided into train, dev and test: the demo and manifests are not."""
    name, _ = name_and_split(data)
    return name == "demo" or name.endswith(SUFFIXES)


def load_corpus(
    data: str,
    *,
    split: str = "dev",
    root: Path | None = None,
    text_style: str = "kaldi",
    limit: int | None = None,
    needs_text: bool = True,
) -> Corpus:
    """Load the utterances of a corpus.

    Args:
        data: a name in `NAMES`, with `:SPLIT` or without, or the path of a manifest (.tsv or .jsonl).
        split: for a name without one, `train`, `dev` or `test`, or a folder's own name. Of librispeech they mean
            `train-clean-100`, `dev-clean` and `test-clean`. The demo and manifests are one split, `all`.
        root: the folder of the corpus, or the one that holds it; without it, `$MEMSIM_DATA/<data>`. For a manifest,
            the folder that its relative audio paths start from, in place of the manifest's own.
        text_style: the convention of the transcripts, a key of `memsim.asr.text.TEXT_STYLES`.
        limit: keep the first `limit` utterances only.
        needs_text: without it, utterances without a word are kept, and a manifest may lack the transcripts.

    Raises InputError for anything missing or malformed: the places that were looked in, what was expected, or
    file:line.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1")
    data, own = name_and_split(data)
    if own is not None:
        _require_splits(data, own)
    split = own or split
    if data == "demo":
        if root is not None:
            raise InputError("the demo is bundled with memsim and has no root; leave --data-root out")
        corpus = Corpus("demo", "all", read_manifest(ASSETS / "demo" / "manifest.tsv", None), synthetic=True)
    elif data in CORPORA:
        corpus = CORPORA[data].load(split, root)
    elif Path(data).suffix in SUFFIXES:
        corpus = Corpus(data, "all", read_manifest(Path(data), root, needs_text=needs_text))
    else:
        known = f"({nearest(data, NAMES, SUFFIXES)}available: {', '.join(NAMES)})"
        raise InputError(f"data {data!r}: no such corpus {known}, and not a manifest (.tsv or .jsonl)")
    return _finish(corpus, text_style, limit, needs_text=needs_text)


def with_unwritable(corpus: Corpus, tokens: Tokens) -> Corpus:
    """Return `corpus` with the parts of its transcripts that `tokens` cannot write."""
    missing = {word: set(tokens.missing(word)) for u in corpus.utterances for word in u.text.split()}
    parts: Counter[str] = Counter()
    words = utterances = 0
    for utterance in corpus.utterances:
        odd = [missing[word] for word in utterance.text.split() if missing[word]]
        parts.update(part for one in odd for part in one)
        words, utterances = words + len(odd), utterances + bool(odd)
    return replace(corpus, unwritable=Unwritable(dict(parts.most_common()), words, utterances) if words else None)


def corpus_lexicon(data: str, root: Path | None = None) -> Path:
    """Return the pronunciation lexicon that comes with the corpus `data`. Raises InputError where there is none."""
    remedy = "name a lexicon file, or cmudict"
    corpus = CORPORA.get(name_and_split(data)[0])
    if corpus is None or corpus.lexicon is None:
        raise InputError(f"{data}: comes without a pronunciation lexicon; {remedy}")
    path = corpus.locate(root) / corpus.lexicon
    if not path.is_file():
        raise InputError(f"{path}: no such file, where {data} has its pronunciation lexicon; {remedy}")
    return path


def _finish(corpus: Corpus, text_style: str, limit: int | None, *, needs_text: bool) -> Corpus:
    """Return `corpus` with transcripts in `text_style`, cut to `limit`; where text is needed, without empty ones."""
    normalised = [replace(utterance, text=normalise(utterance.text, text_style)) for utterance in corpus.utterances]
    spoken = [utterance for utterance in normalised if utterance.text or not needs_text]
    if not spoken:
        raise InputError(f"{corpus.name}: split {corpus.split} has no utterances with words")
    return replace(
        corpus,
        utterances=tuple(_with_unique_ids(spoken))[:limit],
        text_style=text_style,
        skipped=len(normalised) - len(spoken),
    )


def _with_unique_ids(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """Yield `utterances`, where the second one of an id `x` becomes `x-2`, and so on."""
    seen: set[str] = set()
    copies: dict[str, int] = {}  # the last number that an id was given
    for utterance in utterances:
        unique = utterance.id
        while unique in seen:
            copies[utterance.id] = copies.get(utterance.id, 1) + 1
            unique = f"{utterance.id}-{copies[utterance.id]}"
        seen.add(unique)
        yield utterance if unique == utterance.id else replace(utterance, id=unique)
