"""Steps of training as ratios to a step in full precision: with quantisers alone, through the chip, and as `robust`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from memsim.asr.corpora import load_corpus
from memsim.asr.recogniser import build, load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.distributed import Workers
from memsim.hardware import load_hardware
from memsim.listener import Listener
from memsim.nn.quantisation import Quantisation
from memsim.training import loop
from memsim.training.hooks import Hooks, Moment
from memsim.training.narrator import Narrator
from memsim.training.quantised import QuantisedTraining
from memsim.training.recipe import load_train_config
from tests.benchmarks.timing import Action, Benchmark, Row, median_seconds

BITS = 3
UTTERANCES = 24
VARIANTS: dict[str, dict[str, None] | None] = {
    "float": None,
    "quantisers": {"teacher": None, "hardware": None},
    "chip": {"teacher": None},
    "robust": {},
}
"""What each training leaves out of the recipe's section `quantisation`; float leaves out all of it."""


@dataclass(frozen=True)
class Case:
    """A shipped model, or some blocks of it, with random weights, trained on batches of bundled speech."""

    model: str
    batch_seconds: float
    blocks: int | None = None

    def step(self, variant: str, folder: Path) -> Action:
        """A step of the optimiser on a loaded batch: forward, backward and update, at the full spread of cells."""
        recipe = load_train_config("robust").model_copy(update={"batch_seconds": self.batch_seconds})
        architecture, config = load_model_config(self.model)
        if self.blocks is not None:
            config = config.model_copy(update={"blocks": self.blocks})
        corpus = load_corpus("demo")
        corpus = replace(corpus, utterances=corpus.utterances[:UTTERANCES])
        torch.manual_seed(0)
        recogniser = build(architecture, config, CharacterTokens.from_texts(u.text for u in corpus.utterances), "kaldi")
        hooks, left_out = Hooks(), VARIANTS[variant]
        if left_out is not None:
            assert recipe.quantisation is not None
            spec = load_hardware("physical").with_settings({"weights.bits": BITS})
            hooks = QuantisedTraining(Quantisation(recipe.quantisation.model_copy(update=left_out), BITS, spec), recipe)
        job = loop.Job(recogniser, recipe, [corpus], corpus, folder / "unused.safetensors", 0, {}, hooks)
        training = loop._Training(job, Narrator(Listener(), 1), Workers(), lambda: None)
        training.model.train()
        loaded = training._load(max(training.data.batches(1), key=len))
        return partial(training._step, *loaded, Moment(0, 1, 1, 1.0))


CASES = (Case("conformer-small", 60), Case("conformer-paper", 20, blocks=2))


def _rows() -> Iterator[Row]:
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            steps = {variant: case.step(variant, Path(folder)) for variant in VARIANTS}
        taken = median_seconds(steps)
        yield {
            "model": case.model,
            "blocks": case.blocks,
            "seconds of speech": case.batch_seconds,
            "float, milliseconds": 1e3 * taken["float"],
            **{variant: taken[variant] / taken["float"] for variant in VARIANTS if variant != "float"},
        }


TRAINING = Benchmark(
    f"a step of training at {BITS} bits (recipe robust, bfloat16), in times of one in full precision",
    {
        **{"model": "", "blocks": "", "seconds of speech": "", "float, milliseconds": ".0f"},
        **dict.fromkeys(("quantisers", "chip", "robust"), ".2f"),
    },
    _rows,
)
