"""The text files of a Hugging Face folder, which say what its network hears and writes.

A mapped file carries them, so transformers' loaders, which read folders, are given a temporary one.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memsim.config.json_input import parse_json_object
from memsim.errors import InputError
from memsim.storage.files import is_file

CONFIG = "config.json"
GENERATION = "generation_config.json"
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "normalizer.json", "sentencepiece.bpe.model"),
)
BINARY = ".model"
"""The suffix of files that are no text; their contents are kept in Base64."""
REMEDY = "pip install 'memsim[hf]' installs it"


def require_transformers(purpose: str) -> Any:
    """Import and return transformers. Raises InputError that says what to install for `purpose` when it is missing."""
    if find_spec("transformers") is None:
        raise InputError(f"{purpose}: needs the package transformers; {REMEDY}")
    import transformers

    return transformers


def read_files(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the texts of those of the files `names` that are in `folder`, BINARY ones in Base64.

    Raises InputError for one that is no text, and for a JSON file that holds no object.
    """
    found = {}
    for name in names:
        path = folder / name
        if is_file(path):
            try:
                if name.endswith(BINARY):
                    found[name] = b64encode(path.read_bytes()).decode()
                else:
                    found[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{path}: cannot be read ({error})") from None
            if name.endswith(".json"):
                parse_json_object(found[name], str(path))
    return found


@contextlib.contextmanager
def as_folder(files: Mapping[str, str]) -> Iterator[str]:
    """Give the path of a temporary folder that holds `files`; transformers is quiet meanwhile."""
    with tempfile.TemporaryDirectory(prefix="memsim-") as name, quiet():
        for file, text in files.items():
            (Path(name) / file).write_bytes(b64decode(text) if file.endswith(BINARY) else text.encode())
        yield name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Give a context in which transformers logs and warns of nothing."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
