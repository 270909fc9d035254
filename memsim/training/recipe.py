"""Training recipes, as in configs/qat/*.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import field_validator
from pydantic.types import Strict

from memsim.asr.features import AugmentConfig
from memsim.config.bases import Bases, seen_from
from memsim.config.schema import Schema, Section, Within, problem
from memsim.config.yaml_file import Config
from memsim.nn.quantisation import QuantisationConfig

Pair = Annotated[tuple[float, Annotated[float, Within(low=0)]], Strict(False)]


CORPUS = "corpus"
"""The name, in place of a file's, of the lexicon that comes with the corpus."""


class TargetsConfig(Section):
    """The tokens that a recogniser's outputs stand for."""

    kind: Literal["characters", "phonemes", "pieces"] = "characters"
    lexicon: str = CORPUS  # for phonemes: corpus (the lexicon of TED-LIUM), cmudict, or a file
    pieces: Annotated[int, Within(2)] = 500  # for pieces: their number, including the blank


class TrainConfig(Section):
    """A training recipe (configs/qat/*.yaml)."""

    name: str
    model: str = "conformer-small"
    epochs: Annotated[int, Within(1)]
    batch_seconds: Annotated[float, Within(above=0)]  # seconds of audio per step, over all processes
    accumulate: Annotated[int, Within(1)] = 1  # number of parts of a process's share of a batch
    gradient_checkpointing: bool = False  # compute each block's activations again in the backward pass
    evaluate_start: bool = False  # score the network before training, and keep it where no epoch is better
    best_by: Literal["wer", "loss"] = "wer"  # the epoch that is kept: of lowest dev WER, or of lowest loss on dev
    optimiser: Literal["adamw", "radam"] = "adamw"
    learning_rate: Annotated[tuple[Pair, ...], Strict(False)]  # (fraction of the training, rate), linear between them
    weight_decay: Annotated[float, Within(low=0)] = 0.01
    clip_norm: Annotated[float, Within(above=0)] = 1.0
    average_decay: Annotated[float, Within(low=0, below=1)] = 0.0  # of the moving average of weights; 0: none
    precision: Literal["float32", "bfloat16"] = "float32"  # of products in training; bfloat16 where there are units
    feature_cache_gigabytes: Annotated[float, Within(low=0)] = 4.0  # features kept in memory; 0: none
    augment: AugmentConfig = AugmentConfig()
    targets: TargetsConfig = TargetsConfig()
    quantisation: QuantisationConfig | None = None  # none: full precision

    @field_validator("learning_rate")
    @classmethod
    def _rates_are_a_curve(cls, points: tuple[Pair, ...]) -> tuple[Pair, ...]:
        fractions = [fraction for fraction, _ in points]
        if len(points) < 2 or fractions[0] != 0 or fractions[-1] != 1 or fractions != sorted(set(fractions)):
            raise problem("expected [fraction, rate] pairs whose fractions rise from 0 to 1")
        return points

    def learning_rate_at(self, fraction: float) -> float:
        """Return the learning rate after `fraction` of the training."""
        for (start, low), (end, high) in zip(self.learning_rate, self.learning_rate[1:], strict=False):
            if fraction <= end:
                return low + (high - low) * (fraction - start) / (end - start)
        return self.learning_rate[-1][1]


def load_train_config(source: str | Path | Mapping[str, Any]) -> TrainConfig:
    """Load the recipe of that name (shipped in configs/qat), in that YAML file, or in that mapping.

    Its `base` is resolved. Its `model`, the `lexicon` of its targets and the `mapping` of its quantisation are names or
    files as seen from its folder. A recipe without a `name` takes its file's; one in a mapping is called `custom`.

    Raises:
        InputError: The message lists every problem with its file, line and key.
    """
    if isinstance(source, Mapping):
        return _SCHEMA.validate(_BASES.resolve(Config.from_mapping({"name": "custom", **source}, "config")))
    return _SCHEMA.validate(_BASES.read(source))


def _find_files(data: dict[str, Any], folder: Path) -> None:
    """Replace the files that the recipe `data` names by their paths as seen from its `folder`."""
    seen_from(folder, data, "model")
    if isinstance(targets := data.get("targets"), dict):
        seen_from(folder, targets, "lexicon")
    if isinstance(quantisation := data.get("quantisation"), dict):
        seen_from(folder, quantisation, "mapping")


_SCHEMA = Schema(TrainConfig)
_BASES = Bases("qat", _SCHEMA, _find_files)
