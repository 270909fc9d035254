"""A recogniser: a model, the tokens that it emits and the features that it reads, as one checkpoint holds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from memsim.asr.decoding import greedy
from memsim.asr.features import FeatureConfig
from memsim.asr.models.conformer import ConformerConfig, ConformerCTC
from memsim.asr.tokens import Tokens, tokens_from_json
from memsim.checkpoint import Checkpoint
from memsim.crossbar.statistics import PREFIX
from memsim.errors import InputError
from memsim.nn.quantisers import restore_quantisers, taken_over
from memsim.resources import find_config
from memsim.schema import Schema
from memsim.yaml_config import Config, read_config, shown

# Architectures by the name that checkpoints and configs/models/*.yaml give them.
ARCHITECTURES = {"conformer_ctc": (ConformerConfig, ConformerCTC)}

Decoder = Callable[[nn.Module, Tensor, Tensor], list[str]]
"""From a network and what it gave for a batch, [batch, frames', ...] and [batch], to a text each."""


@dataclass(frozen=True)
class Recogniser:
    """`model` maps ([batch, frames, mel_bins], [batch]) to (log-probabilities [batch, frames', tokens], [batch])."""

    model: nn.Module
    architecture: str
    config: ConformerConfig
    tokens: Tokens
    text_style: str
    decoder: Decoder | None = None
    """None: greedy decoding."""

    @property
    def features(self) -> FeatureConfig:
        return self.config.features

    def transcribe(self, log_probs: Tensor, lengths: Tensor) -> list[str]:
        """Texts of what `model` gave for a batch."""
        if self.decoder is not None:
            return self.decoder(self.model, log_probs, lengths)
        return greedy(log_probs, lengths, self.tokens)

    def metadata(self) -> dict[str, str]:
        """What a checkpoint must say besides its tensors to be loaded again."""
        return {
            "architecture": self.architecture,
            "architecture_config": self.config.model_dump_json(),
            "tokens": self.tokens.to_json(),
            "text_style": self.text_style,
        }


def load_model_config(name_or_path: str | Path) -> tuple[str, ConformerConfig]:
    """The architecture and its config that a name (shipped in configs/models) or YAML file means.

    Raises InputError that lists every problem with its file, line and key.
    """
    config = read_config(find_config("models", name_or_path))
    architecture = config.data.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        found = f"unknown architecture {shown(architecture)}" if "architecture" in config.data else "missing"
        known = f"{config.mark(('architecture',))}: {found} (known: {', '.join(sorted(ARCHITECTURES))})"
        raise InputError("\n".join([*config.problems, known]))
    shape = {key: value for key, value in config.data.items() if key != "architecture"}
    return architecture, Schema(ARCHITECTURES[architecture][0]).validate(replace(config, data=shape))


def build(architecture: str, config: ConformerConfig, tokens: Tokens, text_style: str) -> Recogniser:
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
    config_class, model_class = ARCHITECTURES[architecture]
    for key in ("architecture_config", "tokens"):
        if key not in checkpoint.metadata:
            raise InputError(f"{checkpoint.path}: the metadata lacks {key}, so the file cannot be run")
    try:
        config = Schema(config_class).validate(_json_config(checkpoint.metadata["architecture_config"]))
        tokens = tokens_from_json(checkpoint.metadata["tokens"])
        if config.tokens != len(tokens):
            raise InputError(f"architecture_config: has {config.tokens} tokens, but there are {len(tokens)}")
        with torch.device("meta"):
            model = model_class(config)
    except ValueError as error:
        summary = str(error).splitlines()[0]
        raise InputError(f"{checkpoint.path}: unusable metadata: {summary}") from None
    return Recogniser(model, architecture, config, tokens, checkpoint.metadata.get("text_style", "kaldi"))


def _json_config(document: str) -> Config:
    try:
        fields = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise InputError(f"architecture_config: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError("architecture_config: expected keys and values")
    return Config.from_mapping(fields, "architecture_config")


def load_weights(recogniser: Recogniser, checkpoint: Checkpoint) -> Recogniser:
    """Fill `recogniser.model` from the file, in float32, with the quantisers that it was trained with.

    Raises InputError when tensors are missing or misshapen.
    """
    weights = weights_of(checkpoint)
    for name in taken_over(weights, ()):
        del weights[name]
    restore_quantisers(recogniser.model, weights)
    assign_state(recogniser.model, weights, str(checkpoint.path))
    recogniser.model.eval()
    return recogniser


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of the model, floating ones in float32."""
    names = [name for name in checkpoint.names if not name.startswith(PREFIX)]
    return {n: t.float() if t.is_floating_point() else t for n, t in checkpoint.tensors(names).items()}


def assign_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """`load_state_dict` with one-line errors: missing, unexpected or misshapen tensors are named."""
    if misfits := describe_misfits(model, state):
        raise InputError(f"{where}: tensors do not fit the architecture: {misfits}")
    model.load_state_dict(state, assign=True)


def describe_misfits(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """The first tensors of `state` that `model` does not have like this, and how many more; empty where all fit."""
    expected = model.state_dict()
    problems = [f"{n} is missing" for n in expected if n not in state]
    problems += [f"{n} is unexpected" for n in state if n not in expected]
    problems += [
        f"{n} is {list(t.shape)}, not {list(expected[n].shape)}"
        for n, t in state.items()
        if n in expected and t.shape != expected[n].shape
    ]
    problems += [
        f"{n} is {t.dtype}, not {expected[n].dtype}"
        for n, t in state.items()
        if n in expected and t.is_floating_point() != expected[n].is_floating_point()
    ]
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def load_recogniser(checkpoint: Checkpoint) -> Recogniser:
    """The recogniser of a `model` checkpoint: in full precision, unless it was trained for fewer bits."""
    return load_weights(skeleton(checkpoint), checkpoint)
