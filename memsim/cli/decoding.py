"""How `memsim eval` makes texts of outputs: its options, and what they mean together."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.errors import InputError
from memsim.units import counted

if TYPE_CHECKING:
    from memsim.asr.beam import BeamSearch
    from memsim.asr.corpora import Corpus
    from memsim.asr.kinds import TransducerBeam
    from memsim.cli.progress import Draw
    from memsim.evaluation.result import Evaluation
    from memsim.evaluation.target import EvaluationTarget

DECODING_PANEL = "Decoding"


def _option(*names: str, help: str, metavar: str | None = None, **limits: Any) -> Any:
    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=DECODING_PANEL, show_default=False, **limits
    )


Decoder = Annotated[
    str,
    _option("--decoder", metavar="greedy|beam", help="Best path (default), or beam search: CTC's through a lexicon."),
]
LanguageModel = Annotated[
    Path | None, _option("--lm", metavar="FILE", help="N-gram language model: ARPA, or KenLM's binary.")
]
Lexicon = Annotated[
    str | None,
    _option(
        "--lexicon",
        metavar="FILE|cmudict",
        help="The words that can be recognised. Default: the checkpoint's, else the language model's.",
    ),
]
LmWeight = Annotated[
    float | None, _option("--lm-weight", metavar="X", help="Weight of the language model's log10 P. Default: 2.0.")
]
PriorWeight = Annotated[
    float | None,
    _option("--prior-weight", metavar="X", help="Weight of the outputs' log prior, subtracted. Default: 0.5."),
]
BeamSize = Annotated[int | None, _option("--beam-size", metavar="N", help="Most hypotheses kept. Default: 1024.")]
BeamTokens = Annotated[
    int | None, _option("--beam-tokens", metavar="N", help="Most tokens tried in a frame. Default: 12.")
]
BeamThreshold = Annotated[
    float | None, _option("--beam-threshold", metavar="X", help="Drop hypotheses so far below the best. Default: 14.")
]
Tune = Annotated[
    bool, _option("--tune", help="Choose both weights on the dev split with the digital model; chips use the same.")
]
Hypotheses = Annotated[
    Path | None,
    _option(
        "--hypotheses",
        metavar="FILE",
        help="Write reference, hypothesis and errors of every utterance (.jsonl; - is standard output).",
    ),
]
NBest = Annotated[int | None, _option("--nbest", metavar="N", min=1, help="Give the N best of each in --hypotheses.")]
Worst = Annotated[
    int, _option("--worst", metavar="N", min=0, help="Align the N utterances with the most errors, on the last chip.")
]


@dataclass(frozen=True)
class Decoding:
    """The options together. Raises InputError where one of them would mean nothing."""

    decoder: str
    language_model: Path | None
    lexicon: str | None
    lm_weight: float | None
    prior_weight: float | None
    beam_size: int | None
    beam_tokens: int | None
    beam_threshold: float | None
    tune: bool
    hypotheses: Path | None
    nbest: int | None

    def __post_init__(self) -> None:
        if self.decoder not in ("greedy", "beam"):
            raise InputError(f"--decoder {self.decoder}: expected greedy or beam")
        given = [flag for flag, value in self._beam_options().items() if value is not None]
        if self.decoder == "greedy" and given:
            raise InputError(f"{given[0]}: greedy decoding has no use for it; add --decoder beam")
        if self.language_model is None and self.lm_weight is not None:
            raise InputError("--lm-weight: there is no language model; name one by --lm FILE")
        if self.tune and not (self.lm_weight is None and self.prior_weight is None):
            raise InputError("--tune: chooses the weights; leave --lm-weight and --prior-weight out")
        if self.nbest is not None and self.hypotheses is None:
            raise InputError("--nbest: is written to a file; name it by --hypotheses FILE")

    def _beam_options(self) -> dict[str, Any]:
        """Those of beam search, by flag; None where one is not given."""
        return {
            "--lm": self.language_model,
            "--lexicon": self.lexicon,
            "--lm-weight": self.lm_weight,
            "--prior-weight": self.prior_weight,
            "--beam-size": self.beam_size,
            "--beam-tokens": self.beam_tokens,
            "--beam-threshold": self.beam_threshold,
            "--tune": self.tune or None,
            "--nbest": self.nbest,
        }

    def search(
        self, target: EvaluationTarget, corpus: Corpus, dev: Corpus | None, *, device: str, progress: Draw
    ) -> tuple[BeamSearch | TransducerBeam | None, dict[str, Any]]:
        """The beam search that is asked for (None: greedy decoding), and what a result file says of it.

        `dev` is what weights are tuned on. Raises InputError where files, packages or words are missing.
        """
        from memsim.asr.kinds import RNNT

        if self.decoder == "greedy":
            return None, {"decoder": "greedy"}
        if isinstance(target.recogniser.kind, RNNT):
            return self._transducer_search(target)
        from memsim.asr.beam import BeamOptions, BeamSearch, words_to_recognise
        from memsim.evaluation.decoders import LM_WEIGHTS, DigitalOutputs, find_log_prior, tune
        from memsim.storage.files import file_sha256

        tokens, lm = target.recogniser.tokens, self.language_model
        given: dict[str, Any] = {
            "lm_weight": self.lm_weight,
            "prior_weight": self.prior_weight,
            "beam_size": self.beam_size,
            "beam_tokens": self.beam_tokens,
            "beam_threshold": self.beam_threshold,
        }
        options = replace(BeamOptions(), **{key: value for key, value in given.items() if value is not None})
        if lm is None:
            options = replace(options, lm_weight=0.0)
        words = words_to_recognise(tokens, self.lexicon, lm)
        BeamSearch(tokens, words, lm, None, options)  # what is missing is said now, not after the outputs
        outputs = DigitalOutputs(target, dev or corpus, device, progress)
        log_prior, source = None, None
        if self.tune or options.prior_weight:
            log_prior, source = find_log_prior(target, outputs)
        search = BeamSearch(tokens, words, lm, log_prior, options)
        facts: dict[str, Any] = {
            "decoder": "beam",
            "words": search.words,
            "language_model": None if lm is None else {"path": str(lm), "sha256": file_sha256(lm)},
            "prior": source,
        }
        if self.tune:
            tuning = tune(search, outputs, LM_WEIGHTS if lm else (0.0,), progress=progress)
            facts["tuned"] = tuning.to_dict()
        return search, facts | {"options": search.options.to_dict()}

    def _transducer_search(self, target: EvaluationTarget) -> tuple[TransducerBeam, dict[str, Any]]:
        """Without lexicon and language model: a Transducer has its own."""
        from memsim.asr.kinds import TransducerBeam

        for flag, value in self._beam_options().items():
            if flag != "--beam-size" and value is not None:
                raise InputError(f"{flag}: is for the outputs of a CTC; a Transducer's beam search has --beam-size")
        beam = TransducerBeam(target.recogniser.tokens)
        beam = beam if self.beam_size is None else replace(beam, width=self.beam_size)
        return beam, {"decoder": "beam", "options": {"beam_size": beam.width}}

    def write_hypotheses(self, result: Evaluation, target: EvaluationTarget, *, device: str, progress: Draw) -> None:
        """Write --hypotheses, whole or not at all."""
        if self.hypotheses is None:
            return
        from memsim.cli.options import write_text
        from memsim.evaluation.decoders import hypotheses

        rows = hypotheses(result, target, nbest=self.nbest or 0, device=device, progress=progress)
        write_text(self.hypotheses, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def render_worst(result: Evaluation, count: int) -> None:
    """The utterances with the most errors on the last chip, aligned."""
    from memsim.asr.scoring import align
    from memsim.cli.progress import stdout

    score = result.trials[-1].score
    for i in score.worst(count):
        errors, words = score.utterance_errors[i]
        title = f"{result.task.corpus.utterances[i].id}: {counted(errors, 'error')} in {counted(words, 'word')}"
        shown = f"{title}\n{align(score.references[i], score.hypotheses[i])}\n"
        stdout.print(shown, highlight=False, soft_wrap=True)
