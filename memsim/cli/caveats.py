"""Lines of `qat` about its files: prefixes of names, and transcripts that cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsim.asr.corpora import Corpus
    from memsim.storage.checkpoint import Checkpoint


def say_of_prefixes(checkpoint: Checkpoint) -> None:
    """The prefixes that wrappers of the network have left in the file, and that are left out."""
    from memsim.cli.progress import say

    if (note := checkpoint.prefix_note) is not None:
        say(note)


def warn_of_transcripts(corpus: Corpus) -> None:
    """What a recogniser cannot write, as `with_unwritable` found it, and what was made simpler than it is."""
    from memsim.cli.progress import warn

    for message in corpus.warnings():
        warn(message)
