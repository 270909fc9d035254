"""The options of an evaluation in groups, each checked as a whole. They have the names of `memsim eval`'s options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memsim.arguments import require_types
from memsim.errors import InputError
from memsim.launch import is_torchrun
from memsim.storage.outputs import require_new
from memsim.units import counted

_CTC_ONLY = ("lm", "lexicon", "lm_weight", "prior_weight", "beam_tokens", "beam_threshold", "tune", "nbest")
"""The options of beam search that recognisers with a beam search of their own do not take."""


@dataclass(frozen=True)
class Decoding:
    """The decoder that makes texts of a recogniser's outputs. Raises InputError for an option without effect.

    >>> memsim.Decoding(decoder="beam", lm="words.arpa", beam_size=200).lm_weight is None  # the default, 2.0
    True
    """

    decoder: str = "greedy"
    """`greedy` (best path) or `beam` (beam search, with a lexicon for CTC, by transformers for generated text)."""
    lm: str | Path | None = None
    """N-gram language model: ARPA, or KenLM's binary."""
    lexicon: str | Path | None = None
    """The words that can be recognised, a file or `cmudict`; by default the checkpoint's, else the language model's."""
    lm_weight: float | None = None
    """Weight of the language model's log10 P."""
    prior_weight: float | None = None
    """Weight of the outputs' log prior, which is subtracted."""
    beam_size: int | None = None
    """The number of hypotheses that are kept, at most."""
    beam_tokens: int | None = None
    """The number of tokens that are tried in a frame, at most."""
    beam_threshold: float | None = None
    """Hypotheses that score this much below the best are dropped."""
    tune: bool = False
    """Choose both weights on the dev split with the digital network; chips use the same."""
    nbest: int | None = None
    """The number of hypotheses of each utterance in `write_hypotheses`."""

    def __post_init__(self) -> None:
        require_types(Decoding, vars(self))
        if self.decoder not in ("greedy", "beam"):
            raise InputError(f"--decoder {self.decoder}: expected greedy or beam")
        if self.decoder == "greedy" and (given := self.given("beam_size", *_CTC_ONLY)):
            raise InputError(f"{given[0]}: not used by greedy decoding; add --decoder beam")
        if self.nbest is not None and self.nbest < 1:
            raise InputError(f"--nbest {self.nbest}: there must be at least 1")
        if self.lm is None and self.lm_weight is not None:
            raise InputError("--lm-weight: there is no language model; name one by --lm FILE")
        if self.tune and not (self.lm_weight is None and self.prior_weight is None):
            raise InputError("--tune: chooses the weights; leave --lm-weight and --prior-weight out")

    def given(self, *names: str) -> list[str]:
        """Return the options among `names` that are given, as they are typed."""
        order = [name for name in self.__dataclass_fields__ if name in names]
        return [f"--{name.replace('_', '-')}" for name in order if getattr(self, name) not in (None, False)]

    def require_beam_size_alone(self, recogniser: str) -> None:
        """Raise InputError for options that the beam search of a recogniser other than CTC does not have."""
        if given := self.given(*_CTC_ONLY):
            raise InputError(f"{given[0]}: only for CTC; the beam search of {recogniser} takes --beam-size")


@dataclass(frozen=True)
class Sharing:
    """The processes and machines that share the work, and the file that keeps the results.

    >>> memsim.Sharing(shard="2/8", results="results-2.jsonl").numbers
    (2, 8)
    """

    jobs: int = 1
    """The number of processes of this machine that share the work. They are spawned, so a script that asks for more
    than one guards its own start with ``if __name__ == "__main__"``."""
    shard: str | None = None
    """Do only shard I/N of the work (I from 1 to N), into `results`; `merge_results` joins the shards."""
    results: str | Path | None = None
    """A file of JSON lines that grows as chips are done. The same call again continues it."""

    def __post_init__(self) -> None:
        require_types(Sharing, vars(self))
        if self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: there must be at least 1")
        if self.shard is not None:
            match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
            if match is None or not 1 <= int(match[1]) <= int(match[2]):
                raise InputError(f"--shard {self.shard}: expected I/N with I from 1 to N, such as 2/8")
            if self.results is None:
                raise InputError(f"--shard {self.shard}: name the file of its results with --results FILE.jsonl")
        if is_torchrun() and (self.jobs > 1 or self.shard):
            raise InputError("torchrun already divides the work; leave out --jobs and --shard")

    @property
    def numbers(self) -> tuple[int, int] | None:
        """The shard as (which, of how many)."""
        if self.shard is None:
            return None
        which, count = map(int, self.shard.split("/"))
        return which, count

    @property
    def file(self) -> Path | None:
        """The results file."""
        return None if self.results is None else Path(self.results)

    @property
    def goes_on(self) -> bool:
        """Whether there are results to continue."""
        return self.file is not None and self.file.exists()

    def require_file(self, *, force: bool) -> None:
        """Raise InputError where results cannot be written, or when `force` would replace a file of another kind."""
        if self.file is None:
            return
        if str(self.file) == "-":
            raise InputError("--results -: results are added to and read again; name a file")
        require_new(self.file, force=True)
        if force and self.goes_on:
            from memsim.evaluation.results_file import require_results

            require_results(self.file)


@dataclass(frozen=True)
class Findings:
    """Findings besides the scores. All but `loss` and `cost` need a single point that one process evaluates.

    `cost` takes several points, too.

    >>> memsim.Findings(ablate=True, budget=True)
    Findings(budget=True, ablate=True, sensitivity=False, cost=False, loss=False, hypotheses=False)
    """

    budget: bool | None = False
    """The error that each non-ideality adds to the products; None measures it where that is possible."""
    ablate: bool = False
    """The score with the non-idealities switched on one after the other."""
    sensitivity: bool = False
    """The score with one layer at a time on hardware."""
    cost: bool | None = False
    """Energy, time and area, by circuit and layer; None estimates them where that is possible."""
    loss: bool = False
    """The mean CTC or RNN-T loss a token, which is finer than the WER."""
    hypotheses: bool = False
    """Prepare for `write_hypotheses`, whose n-best lists need the networks."""

    def __post_init__(self) -> None:
        require_types(Findings, vars(self))

    def require_single_point(self, *, shared: bool = True) -> None:
        """Raise InputError for findings that need a single point, or one process where the work is `shared`."""
        for name in ("budget", "ablate", "sensitivity", "hypotheses"):
            if getattr(self, name):
                raise InputError(f"--{name}: only for a single point, not for a sweep or shards")
        if self.cost and shared:
            raise InputError("--cost: not with shards or torchrun; leave it out, or evaluate in one process")


def describe_decoding(decoding: Mapping[str, Any]) -> str:
    """Return a line that describes the decoder, from its entry in a result."""
    if decoding["decoder"] == "greedy":
        return "greedy decoding"
    options = decoding["options"]
    if "words" not in decoding:
        return f"beam search of {options['beam_size']} hypotheses"
    count, model = decoding["words"], decoding["language_model"]
    said = f"beam search of {counted(count, 'word')}, "
    said += "no language model" if model is None else f"{Path(model['path']).name} by {options['lm_weight']:g}"
    prior = decoding["prior"]
    said += f", prior of the {prior} by {options['prior_weight']:g}" if prior else ", no prior"
    if tuned := decoding.get("tuned"):
        said += f" (tuned on {tuned['data']} {tuned['split']}: digital WER {tuned['wer']:.2%})"
    return said
