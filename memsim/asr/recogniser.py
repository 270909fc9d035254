"""A recogniser: a model, the tokens that it emits and the features that it reads, as one checkpoint holds them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from memsim.asr.features import FeatureConfig
from memsim.asr.models.conformer import ConformerConfig, ConformerCTC
from memsim.asr.tokens import CharacterTokens
from memsim.checkpoint import Checkpoint
from memsim.crossbar.statistics import PREFIX
from memsim.errors import InputError

# Architectures by the name that checkpoints and configs/models/*.yaml give them.
ARCHITECTURES = {"conformer_ctc": (ConformerConfig, ConformerCTC)}


@dataclass(frozen=True)
class Recogniser:
    """`model` maps ([batch, frames, mel_bins], [batch]) to (log-probabilities [batch, frames', tokens], [batch])."""

    model: nn.Module
    architecture: str
    config: ConformerConfig
    tokens: CharacterTokens
    text_style: str

    @property
    def features(self) -> FeatureConfig:
        return self.config.features

    def metadata(self) -> dict[str, str]:
        """What a checkpoint must say besides its tensors to be loaded again."""
        return {
            "architecture": self.architecture,
            "architecture_config": self.config.model_dump_json(),
            "tokens": self.tokens.to_json(),
            "text_style": self.text_style,
        }


def build(architecture: str, config: ConformerConfig, tokens: CharacterTokens, text_style: str) -> Recogniser:
    """A recogniser with fresh weights, drawn from torch's default generator."""
    config = config.model_copy(update={"tokens": len(tokens)})
    return Recogniser(ARCHITECTURES[architecture][1](config), architecture, config, tokens, text_style)


def skeleton(checkpoint: Checkpoint) -> Recogniser:
    """The recogniser that `checkpoint` describes, without its weights. Raises InputError when it describes none."""
    architecture = checkpoint.metadata.get("architecture")
    if architecture is None:
        raise InputError(
            f"{checkpoint.path}: the file names no architecture, so it can be mapped but not run; "
            "a checkpoint written by `memsim qat` can be run"
        )
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{checkpoint.path}: unknown architecture {architecture} (known: {', '.join(sorted(ARCHITECTURES))})"
        )
    try:
        config_class, model_class = ARCHITECTURES[architecture]
        config = config_class.model_validate_json(checkpoint.metadata["architecture_config"])
        tokens = CharacterTokens.from_json(checkpoint.metadata["tokens"])
        with torch.device("meta"):
            model = model_class(config)
    except (KeyError, ValidationError, json.JSONDecodeError, ValueError) as error:
        summary = str(error).splitlines()[0]
        raise InputError(
            f"{checkpoint.path}: unusable architecture_config or tokens in the metadata ({summary})"
        ) from None
    return Recogniser(model, architecture, config, tokens, checkpoint.metadata.get("text_style", "kaldi"))


def load_weights(recogniser: Recogniser, checkpoint: Checkpoint) -> Recogniser:
    """Fill `recogniser.model` from the file, in float32. Raises InputError when tensors are missing or misshapen."""
    names = [name for name in checkpoint.names if not name.startswith(PREFIX)]
    state = {n: t.float() if t.is_floating_point() else t for n, t in checkpoint.tensors(names).items()}
    assign_state(recogniser.model, state, str(checkpoint.path))
    recogniser.model.eval()
    return recogniser


def assign_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """`load_state_dict` with one-line errors: every missing, unexpected or misshapen tensor is named."""
    expected = model.state_dict()
    problems = [f"{n} is missing" for n in expected if n not in state]
    problems += [f"{n} is unexpected" for n in state if n not in expected]
    problems += [
        f"{n} is {list(t.shape)}, not {list(expected[n].shape)}"
        for n, t in state.items()
        if n in expected and t.shape != expected[n].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise InputError(f"{where}: tensors do not fit the architecture: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state, assign=True)


def load_recogniser(checkpoint: Checkpoint) -> Recogniser:
    """The full-precision recogniser of a `model` checkpoint."""
    return load_weights(skeleton(checkpoint), checkpoint)
