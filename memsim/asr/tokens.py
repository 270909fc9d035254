"""Tokens: the meanings of a recogniser's outputs, which are characters, phonemes or pieces of words."""

from __future__ import annotations

import base64
import io
import json
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from memsim.asr.extras import require
from memsim.asr.lexicon import Lexicon
from memsim.config.json_input import parse_json
from memsim.errors import InputError
from memsim.units import counted

BLANK = 0
"""The id of the blank of CTC and Transducers in all tables of tokens."""


class Tokens(ABC):
    """A table of tokens: the classes of a recogniser's output, and the texts that they spell.

    Its length is the number of classes, the blank included.
    """

    kind: ClassVar[str]

    @property
    def separator_id(self) -> int | None:
        """The token that stands between words; None where words follow each other without one."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, none of them the blank.

        Raises InputError that names the first character or word without a token.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; blanks spell nothing, and repeats are not merged, as decoders do that.

        Raises ValueError for an id outside [0, len(tokens)).
        """

    @abstractmethod
    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the ways to write `word`, without a separator; none where a part of it has no token."""

    @abstractmethod
    def missing(self, word: str) -> list[str]:
        """Return the parts of `word` that have no token: characters, or the whole word where tokens are phonemes."""

    @abstractmethod
    def to_json(self) -> str:
        """Return the `tokens` entry of a checkpoint's metadata."""


@dataclass(frozen=True)
class CharacterTokens(Tokens):
    """Characters as tokens: id i is the i-th of `characters`, counted from 1; the space divides words."""

    characters: tuple[str, ...]

    kind: ClassVar[str] = "characters"

    def __post_init__(self) -> None:
        if any(len(character) != 1 for character in self.characters):
            raise InputError("character tokens must be single characters")
        if len(set(self.characters)) != len(self.characters):
            raise InputError("character tokens must differ from each other")

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharacterTokens:
        """Return the characters that occur in `texts`, sorted, with the space always among them."""
        return cls(tuple(sorted({" "}.union(*texts))))

    @property
    def separator_id(self) -> int | None:
        """The id of the space; None without one."""
        return self._ids.get(" ")

    def __len__(self) -> int:
        return len(self.characters) + 1

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters, start=BLANK + 1)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of the characters of `text`. Raises InputError for a character without a token."""
        if odd := self.missing(text):
            known = "".join(self.characters)
            raise InputError(f"no token for the character {odd[0]!r}; there are tokens for {known!r}")
        return [i for character in text for i in self._ids_of(character)]

    def _ids_of(self, character: str) -> list[int]:
        """Return the ids of a character, or of its decomposed form, or of the typographic apostrophe; else none."""
        for way in (character, unicodedata.normalize("NFD", character), *("\u2019" if character == "'" else "")):
            if set(way) <= self._ids.keys():
                return [self._ids[part] for part in way]
        return []

    def decode(self, ids: Iterable[int]) -> str:
        """Return the characters of `ids`. Raises ValueError for an id that is out of range."""
        return "".join(_symbols(ids, ("", *self.characters)))

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the one way to write `word`, or none where a character has no token."""
        return [] if self.missing(word) else [tuple(self.encode(word))]

    def missing(self, word: str) -> list[str]:
        """Return the characters of `word` without a token."""
        return [character for character in word if not self._ids_of(character)]

    def to_json(self) -> str:
        """Return the kind and the characters as JSON."""
        return json.dumps({"kind": self.kind, "characters": list(self.characters)})

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> CharacterTokens:
        """Return the tokens of an object that `to_json` wrote. Raises InputError for any other."""
        return cls(_strings(fields, "characters"))


END_OF_WORD = "#"
_MAX_LEXICON_BYTES = 1 << 28  # ten million words; a few bytes can unpack to more than there is memory


@dataclass(frozen=True)
class PhonemeTokens(Tokens):
    """Phonemes as tokens, each twice: inside a word (`AH`) and at its end (`AH#`); the lexicon spells the words.

    A word is encoded as its first pronunciation. Phonemes are decoded as the first word of the lexicon that has them.
    """

    phonemes: tuple[str, ...]
    lexicon: Lexicon

    kind: ClassVar[str] = "phonemes"

    def __post_init__(self) -> None:
        if not self.phonemes or any(not p or p.endswith(END_OF_WORD) for p in self.phonemes):
            raise InputError(f"phonemes must have names that do not end in {END_OF_WORD}")
        if len(set(self.phonemes)) != len(self.phonemes):
            raise InputError("phonemes must differ from each other")
        if unknown := set(self.lexicon.phonemes()).difference(self.phonemes):
            raise InputError(f"the lexicon has the phoneme {min(unknown)}, which is not among the tokens")
        if bare := next((word for word, ways in self.lexicon.pronunciations.items() if not ways), None):
            raise InputError(f"the lexicon has no pronunciation of {bare}")

    @classmethod
    def from_lexicon(cls, lexicon: Lexicon, texts: Iterable[str]) -> PhonemeTokens:
        """Return all phonemes of `lexicon`; homophones are decoded as the most frequent one in `texts`."""
        return cls(lexicon.phonemes(), lexicon.frequent_first(texts))

    def __len__(self) -> int:
        return 2 * len(self.phonemes) + 1

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The symbol of each id; that of the blank is empty."""
        return ("", *self.phonemes, *(f"{phoneme}{END_OF_WORD}" for phoneme in self.phonemes))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @cached_property
    def _words(self) -> dict[tuple[str, ...], str]:
        words: dict[tuple[str, ...], str] = {}
        for word, ways in self.lexicon.pronunciations.items():
            for way in ways:
                words.setdefault(way, word)
        return words

    def encode(self, text: str) -> list[int]:
        """Return the phonemes of the words of `text`. Raises InputError for a word that the lexicon lacks."""
        ids: list[int] = []
        for word in text.split():
            ways = self.spellings(word)
            if not ways:
                raise InputError(f"no pronunciation of {word!r} in the lexicon of {counted(len(self.lexicon), 'word')}")
            ids += ways[0]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of the phonemes `ids`; phonemes that spell no word are joined by underscores.

        Raises ValueError for an id that is out of range.
        """
        words: list[str] = []
        open_word: list[str] = []
        for symbol in _symbols(ids, self.symbols):
            if symbol:
                open_word.append(symbol.removesuffix(END_OF_WORD))
            if symbol.endswith(END_OF_WORD):
                words.append(self._words.get(tuple(open_word), "_".join(open_word)))
                open_word = []
        return " ".join([*words, *(["_".join(open_word)] if open_word else [])])

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the pronunciations of `word`, none where the lexicon lacks it."""
        ways = self.lexicon.pronunciations.get(word, ())
        return [tuple(self._ids[symbol] for symbol in (*way[:-1], f"{way[-1]}{END_OF_WORD}")) for way in ways]

    def missing(self, word: str) -> list[str]:
        """Return `word` where the lexicon lacks it, else nothing."""
        return [] if self.spellings(word) else [word]

    def to_json(self) -> str:
        """Return the kind, the phonemes and the lexicon (compressed, in base64) as JSON."""
        lexicon = base64.b64encode(zlib.compress(self.lexicon.to_text().encode(), 9)).decode()
        return json.dumps({"kind": self.kind, "phonemes": list(self.phonemes), "lexicon": lexicon})

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> PhonemeTokens:
        """Return the tokens of an object that `to_json` wrote. Raises InputError for any other."""
        phonemes = _strings(fields, "phonemes")
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(_unpacked(fields.get("lexicon"), "lexicon"), _MAX_LEXICON_BYTES).decode()
        except (zlib.error, UnicodeDecodeError):
            raise InputError("tokens: `lexicon` must be compressed text") from None
        if not unpacker.eof:
            raise InputError(f"tokens: `lexicon` is cut short, or more than {_MAX_LEXICON_BYTES >> 20} MiB of text")
        return cls(phonemes, Lexicon.from_text(text, "tokens: lexicon"))


@dataclass(frozen=True)
class PieceTokens(Tokens):
    """Pieces of words that byte-pair encoding found, in a model of the package sentencepiece.

    The model's id 0, its unknown piece, is never written and serves as the blank.
    """

    model: bytes

    kind: ClassVar[str] = "pieces"

    def __post_init__(self) -> None:
        _ = self._processor  # so that a broken model is an error now

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocab_size: int) -> PieceTokens:
        """Learn the byte-pair encoding of `texts` with `vocab_size` tokens, the blank included.

        Raises InputError where the texts do not give that many.
        """
        sentencepiece = require("sentencepiece", "tokens of word pieces")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(list(texts)),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=1.0,
                unk_id=BLANK,
                bos_id=-1,
                eos_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"no {vocab_size} pieces can be found in the transcripts: {reason}") from None
        return cls(model.getvalue())

    @cached_property
    def _processor(self) -> Any:
        sentencepiece = require("sentencepiece", "tokens of word pieces")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError:
            raise InputError("tokens: `model` is not a sentencepiece model") from None
        if processor.unk_id() != BLANK:
            raise InputError(f"tokens: the model's unknown piece has the id {processor.unk_id()}, not the blank's")
        return processor

    def __len__(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the pieces of `text`. Raises InputError for a character that no piece has."""
        ids: list[int] = self._processor.encode(text)
        if BLANK in ids:
            odd = next(c for c in text if BLANK in self._processor.encode(c))
            raise InputError(f"no token for the character {odd!r}; it is in none of the word pieces")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the pieces `ids`. Raises ValueError for an id that is out of range."""
        pieces = ["", *(self._processor.id_to_piece(i) for i in range(1, len(self)))]
        return "".join(_symbols(ids, pieces)).replace("\u2581", " ").strip()

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the pieces of `word`, none where a character has no token."""
        ids = tuple(self._processor.encode(word))
        return [ids] if ids and BLANK not in ids else []

    def missing(self, word: str) -> list[str]:
        """Return the characters of `word` that no piece has."""
        return [] if self.spellings(word) else [c for c in word if BLANK in self._processor.encode(c)]

    def to_json(self) -> str:
        """Return the kind and the model (in base64) as JSON."""
        return json.dumps({"kind": self.kind, "model": base64.b64encode(self.model).decode()})

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> PieceTokens:
        """Return the tokens of an object that `to_json` wrote. Raises InputError for any other."""
        return cls(_unpacked(fields.get("model"), "model"))


_KINDS: Mapping[str, type[CharacterTokens | PhonemeTokens | PieceTokens]] = {
    tokens.kind: tokens for tokens in (CharacterTokens, PhonemeTokens, PieceTokens)
}


def tokens_from_json(document: str) -> Tokens:
    """Return the tokens of a document that `to_json` wrote. Raises InputError for any other."""
    fields = parse_json(document, "tokens")
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if kind in ("hugging_face", "hugging_face_ctc"):
        from memsim.asr.hugging_face.tokens import HuggingFaceCTCTokens, HuggingFaceTokens  # they import this module

        return (HuggingFaceCTCTokens if kind == "hugging_face_ctc" else HuggingFaceTokens).from_fields(fields)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"tokens: kind is {kind!r}; known are {', '.join(_KINDS)}")
    return _KINDS[kind].from_fields(fields)


def _symbols(ids: Iterable[int], symbols: Sequence[str]) -> Iterator[str]:
    for i in ids:
        if not 0 <= i < len(symbols):
            raise ValueError(f"token id {i} is outside [0, {len(symbols)})")
        yield symbols[i]


def _strings(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = fields.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"tokens: `{key}` must be a list of strings")
    return tuple(values)


def _unpacked(value: object, key: str) -> bytes:
    with suppress(ValueError):
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    raise InputError(f"tokens: `{key}` must be base64 text")
