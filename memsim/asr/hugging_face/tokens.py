"""The tokens of a Hugging Face recogniser: its own tokenizer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from memsim.asr.hugging_face.files import as_folder, require_transformers
from memsim.asr.tokens import BLANK, Tokens
from memsim.errors import InputError

WORD_MARKS = ("\u0120", "\u2581")
"""Beginnings of tokens that hold the space before a word: of byte pairs, and of SentencePiece."""


@dataclass(frozen=True, eq=False)
class HuggingFaceTokens(Tokens):
    """The tokenizer of a network that generates text: ids are the tokenizer's own."""

    files: Mapping[str, str]
    """The texts of the tokenizer's files, by name."""

    kind: ClassVar[str] = "hugging_face"

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer. Raises InputError where transformers cannot make it."""
        transformers = require_transformers("tokenizer of a Hugging Face folder")
        with as_folder(self.files) as folder:
            try:
                return transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
            except Exception as error:  # transformers may raise anything
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise InputError(f"tokenizer: cannot be made from {', '.join(self.files)} ({reason:.100})") from None

    @property
    def writes_case(self) -> bool:
        """Whether the tokens tell upper from lower case."""
        return True

    @property
    def writes_english(self) -> bool:
        """Whether texts are English: of a tokenizer for many languages, by the language and the task it is set to."""
        language, task = (getattr(self.tokenizer, name, None) for name in ("language", "task"))
        return task == "translate" or language in (None, "en", "english")

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, with the tokens that the tokenizer puts before and behind it.

        Whisper's tokens of words hold the space before them, and in its training the first word had one, too.
        """
        ids: list[int] = self.tokenizer(f" {text}" if text and self._first_word_needs_space else text).input_ids
        return ids

    @cached_property
    def _first_word_needs_space(self) -> bool:
        """Whether the tokenizer writes a space with every word but the first."""
        ids = self.tokenizer("a a", add_special_tokens=False).input_ids
        written: list[str] = self.tokenizer.convert_ids_to_tokens(ids)
        return sum(token.startswith(WORD_MARKS) for token in written) == 1

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; special tokens spell nothing."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return none: a lexicon search needs CTC tokens."""
        return []

    def missing(self, word: str) -> list[str]:
        """Return none: such tokenizers write any text."""
        return []

    def to_json(self) -> str:
        """Return the kind and the files as JSON."""
        return json.dumps({"kind": self.kind, "files": dict(self.files)})

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> HuggingFaceTokens:
        """Return the tokens of an object that `to_json` wrote. Raises InputError for any other."""
        files = fields.get("files")
        if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
            raise InputError("tokens: `files` must be texts by name")
        return cls(files)


@dataclass(frozen=True, eq=False)
class HuggingFaceCTCTokens(HuggingFaceTokens):
    """The tokenizer of a CTC network, whose pad token is the blank: it changes places with id 0, memsim's blank."""

    kind: ClassVar[str] = "hugging_face_ctc"

    @cached_property
    def blank(self) -> int:
        """The tokenizer's own id of the blank."""
        pad = self.tokenizer.pad_token_id
        if pad is None:
            raise InputError("tokenizer: has no pad token, which is the blank of CTC networks")
        return int(pad)

    @property
    def writes_case(self) -> bool:
        """Whether the tokens tell upper from lower case; where all are of one case, texts are lower case."""
        return self._case is None

    @cached_property
    def _case(self) -> str | None:
        """The one case of all tokens, `upper` or `lower`; None where they have both."""
        texts = "".join(token for token in self.tokenizer.get_vocab() if not token.startswith(("<", "[")))
        return "upper" if texts == texts.upper() else "lower" if texts == texts.lower() else None

    @cached_property
    def _without_merging(self) -> dict[str, bool]:
        """The option of tokenizers that would merge repeated tokens, which decoders have done by then."""
        merging = "group_tokens" in inspect.signature(self.tokenizer._decode).parameters
        return {"group_tokens": False} if merging else {}

    @property
    def separator_id(self) -> int | None:
        """The id of the word delimiter; None where the tokenizer has none."""
        delimiter = getattr(self.tokenizer, "word_delimiter_token", None)
        return None if delimiter is None else self._exchanged(self.tokenizer.convert_tokens_to_ids(delimiter))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, which are never 0. Raises InputError for a character without a token."""
        if odd := self.missing(text):
            raise InputError(f"no token for {odd[0]!r}")
        return [self._exchanged(i) for i in self._ids_of(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; blanks and special tokens spell nothing."""
        own = [self._exchanged(i) for i in ids if i != BLANK]
        text: str = self.tokenizer.decode(own, skip_special_tokens=True, **self._without_merging)
        return text if self.writes_case else text.lower()

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the one way to write `word`; none where a part of it has no token."""
        return [] if self.missing(word) else [tuple(self._exchanged(i) for i in self._ids_of(word))]

    def missing(self, word: str) -> list[str]:
        """Return the characters of `word` that have no token."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown not in self._ids_of(word):
            return []
        return [character for character in word if unknown in self._ids_of(character)]

    def _ids_of(self, text: str) -> list[int]:
        cased = text.upper() if self._case == "upper" else text
        ids: list[int] = self.tokenizer(cased, add_special_tokens=False).input_ids
        return ids

    def _exchanged(self, token: int) -> int:
        """Return the id with blank and 0 exchanged, which is its own inverse."""
        return BLANK if token == self.blank else self.blank if token == BLANK else token
