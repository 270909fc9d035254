"""Lines of `qat` about its files: prefixes of names, and transcripts that cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsim.units import counted

if TYPE_CHECKING:
    from memsim.asr.corpora import Corpus
    from memsim.storage.checkpoint import Checkpoint


def say_of_prefixes(checkpoint: Checkpoint) -> None:
    """The prefixes that wrappers of the network have left in the file, and that are left out."""
    from memsim.cli.progress import say

    if (wrapped := checkpoint.wrapped_by) is not None:
        say(f"{checkpoint.path.name}: names of its tensors have the prefix {wrapped}, which is left out")


def warn_of_transcripts(corpus: Corpus) -> None:
    """What a recogniser cannot write, as `with_unwritable` found it, and what was made simpler than it is."""
    from memsim.cli.progress import warn

    where = f"{corpus.name} {corpus.split}"
    if corpus.unwritable is not None:
        warn(f"{where}: {corpus.unwritable}")
    if corpus.simplified:
        marks = counted(corpus.simplified, "alternative or optional word", "alternatives and optional words")
        warn(f"{where}: {marks} in the transcripts: the first alternative and every optional word counts as said")
