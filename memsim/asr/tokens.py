"""What the recogniser's outputs stand for: characters, with the CTC blank before them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from memsim.errors import InputError


@dataclass(frozen=True)
class CharacterTokens:
    """Characters as CTC labels: id 0 is the blank, id i the i-th of `characters`; the space divides words."""

    characters: tuple[str, ...]

    kind: ClassVar[str] = "characters"
    blank_id: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if any(len(character) != 1 for character in self.characters):
            raise InputError("character tokens must be single characters")
        if len(set(self.characters)) != len(self.characters):
            raise InputError("character tokens must differ from each other")

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharacterTokens:
        """The characters that occur in `texts`, sorted, with the space always among them."""
        return cls(tuple(sorted({" "}.union(*texts))))

    @property
    def vocab_size(self) -> int:
        """The number of output classes, the blank included."""
        return len(self.characters) + 1

    def __len__(self) -> int:
        return self.vocab_size

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters, start=self.blank_id + 1)}

    def encode(self, text: str) -> list[int]:
        """One id a character of `text`, none of them the blank.

        Raises InputError naming the first character that has no token; the caller knows whose it is.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            known = "".join(self.characters)
            raise InputError(f"no token for the character {error.args[0]!r}; there are tokens for {known!r}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; a blank stands for nothing. Repeats are kept: collapsing them is the decoder's work.

        Raises ValueError for an id outside [0, vocab_size).
        """
        symbols = ("", *self.characters)
        text = []
        for i in ids:
            if not 0 <= i < len(symbols):
                raise ValueError(f"token id {i} is outside [0, {len(symbols)})")
            text.append(symbols[i])
        return "".join(text)

    def to_json(self) -> str:
        """The `tokens` entry of a checkpoint's metadata."""
        return json.dumps({"kind": self.kind, "characters": list(self.characters)})

    @classmethod
    def from_json(cls, document: str) -> CharacterTokens:
        """The tokens that `to_json` wrote. Raises InputError for anything else."""
        try:
            fields = json.loads(document)
        except ValueError as error:
            raise InputError(f"tokens: not JSON ({error})") from None
        if not isinstance(fields, dict) or fields.get("kind") != cls.kind:
            kind = fields.get("kind") if isinstance(fields, dict) else None
            raise InputError(f"tokens: kind is {kind!r}, and only {cls.kind!r} is known")
        characters = fields.get("characters")
        if not isinstance(characters, list) or not all(isinstance(character, str) for character in characters):
            raise InputError("tokens: `characters` must be a list of strings")
        return cls(tuple(characters))
