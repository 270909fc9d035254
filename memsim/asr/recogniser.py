"""Recognisers: a network with its tokens and features, and how one is built and loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from memsim.asr.architectures import find_architecture
from memsim.asr.features import Features
from memsim.asr.kinds import Kind
from memsim.asr.models.frontend import RecogniserConfig
from memsim.asr.tokens import Tokens, tokens_from_json
from memsim.config.json_input import parse_json_object
from memsim.config.resources import find_config
from memsim.config.schema import Schema
from memsim.config.yaml_file import Config, read_config
from memsim.crossbar.statistics import PREFIX
from memsim.errors import InputError, naming
from memsim.nn.quantisers import restore_quantisers, taken_over
from memsim.storage.checkpoint import Checkpoint
from memsim.units import counted

Decoder = Callable[[nn.Module, Tensor, Tensor], list[str]]
"""Maps a network and its result for a batch, [batch, frames', ...] and [batch], to the texts of the utterances."""


@dataclass(frozen=True)
class Recogniser:
    """A speech recogniser: a network with its config, its tokens and its decoder."""

    model: nn.Module
    """Maps features [batch, frames, mel_bins] and lengths [batch] to ([batch, frames', ...], [batch]).

    The last dimension depends on the kind (`memsim.asr.kinds`): the log-probabilities of the tokens for CTC.
    """
    architecture: str
    config: RecogniserConfig
    tokens: Tokens
    text_style: str
    decoder: Decoder | None = None
    """The decoder; None for greedy decoding."""

    @property
    def features(self) -> Features:
        """The settings of the features that the network reads."""
        return self.config.features

    @property
    def kind(self) -> Kind:
        """The kind of recogniser, CTC or Transducer, which gives the loss and greedy decoding."""
        return find_architecture(self.architecture).kind

    def transcribe(self, encoded: Tensor, frames: Tensor) -> list[str]:
        """Decode the result of `model` for a batch, `encoded` [batch, frames', ...] and `frames` [batch]."""
        with torch.inference_mode():
            if self.decoder is not None:
                return self.decoder(self.model, encoded, frames)
            return self.kind.transcribe(self.model, encoded, frames, self.tokens)

    def losses(self, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the loss per target token of each utterance [batch], from the result of `model` for a batch.

        `targets` are the token ids of the utterances' texts.
        """
        with torch.inference_mode():
            return self.kind.losses(self.kind.outputs(self.model, encoded, frames, targets), targets)

    def metadata(self) -> dict[str, str]:
        """Return the metadata with which a checkpoint of the network can be loaded again."""
        return metadata_of(self.architecture, self.config, self.tokens, self.text_style)


def metadata_of(architecture: str, config: RecogniserConfig, tokens: Tokens, text_style: str) -> dict[str, str]:
    """Return the metadata that describe a recogniser in a checkpoint."""
    return {
        "architecture": architecture,
        "architecture_config": config.model_dump_json(),
        "tokens": tokens.to_json(),
        "text_style": text_style,
    }


def load_model_config(name_or_path: str | Path) -> tuple[str, RecogniserConfig]:
    """Load the architecture and its config from a YAML file, or by a name shipped in configs/models.

    Raises InputError that lists every problem with its file, line and key.
    """
    config = read_config(find_config("models", name_or_path))
    name = config.data.get("architecture")
    try:
        architecture = find_architecture(name)
    except InputError as error:
        raise InputError("\n".join([*config.problems, f"{config.mark(('architecture',))}: {error}"])) from None
    shape = {key: value for key, value in config.data.items() if key != "architecture"}
    return str(name), Schema(architecture.config).validate(replace(config, data=shape))


def build(architecture: str, config: RecogniserConfig, tokens: Tokens, text_style: str) -> Recogniser:
    """Build a recogniser with fresh weights, drawn from torch's default generator."""
    config = config.model_copy(update={"tokens": len(tokens)})
    return Recogniser(find_architecture(architecture).build(config), architecture, config, tokens, text_style)


def skeleton(checkpoint: Checkpoint) -> Recogniser:
    """Build the recogniser that `checkpoint` describes, without its weights: the model is on the meta device.

    Raises InputError when the metadata describe no recogniser.
    """
    config, name = stored_config(checkpoint), checkpoint.metadata["architecture"]
    tokens = stored_tokens(checkpoint, config)
    try:
        with torch.device("meta"):
            model = find_architecture(name).build(config)
    except InputError:  # raised by a factory, which is not in the file
        raise
    except ValueError as error:
        raise _unusable(checkpoint, error) from None
    return Recogniser(model, name, config, tokens, checkpoint.metadata.get("text_style", "kaldi"))


def stored_tokens(checkpoint: Checkpoint, config: RecogniserConfig) -> Tokens:
    """Return the tokens of the recogniser that `checkpoint` describes, whose config is `config`.

    Raises InputError where there are none, or another number than the config says.
    """
    if "tokens" not in checkpoint.metadata:
        raise InputError(f"{checkpoint.path}: the metadata lacks tokens, so the file cannot be run")
    try:
        tokens = tokens_from_json(checkpoint.metadata["tokens"])
        if config.tokens != len(tokens):
            raise InputError(f"architecture_config: has {counted(config.tokens, 'token')}, but there are {len(tokens)}")
    except ValueError as error:
        raise _unusable(checkpoint, error) from None
    return tokens


def _unusable(checkpoint: Checkpoint, error: Exception) -> InputError:
    return InputError(f"{checkpoint.path}: unusable metadata: {str(error).splitlines()[0]}")


def stored_config(checkpoint: Checkpoint) -> RecogniserConfig:
    """Return the config of the architecture that `checkpoint` names. Raises InputError when it has none."""
    if checkpoint.cannot_run is not None:
        raise InputError(checkpoint.cannot_run)
    if "architecture" not in checkpoint.metadata:
        raise InputError(
            f"{checkpoint.path}: the file names no architecture, so it can be mapped but not run; a checkpoint written "
            "by `memsim qat` can be run, another recogniser with --architecture, and any network in Python: "
            "memsim.evaluate(model, batches, score=...)"
        )
    if "architecture_config" not in checkpoint.metadata:
        raise InputError(f"{checkpoint.path}: the metadata lacks architecture_config, so the file cannot be run")
    try:
        architecture = find_architecture(checkpoint.metadata["architecture"])
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {error}") from None
    where = "architecture_config"
    try:
        fields = parse_json_object(checkpoint.metadata[where], where)
        return Schema(architecture.config).validate(Config.from_mapping(fields, where))
    except InputError as error:
        raise _unusable(checkpoint, error) from None


def load_weights(
    recogniser: Recogniser,
    checkpoint: Checkpoint,
    renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> Recogniser:
    """Load the weights of a checkpoint, in float32, with the quantisers that the network was trained with.

    `renamed` makes the network's state of the tensors of a file that has other names for them. Raises InputError when
    tensors are missing or misshapen.
    """
    weights = weights_of(checkpoint)
    if renamed is not None:
        weights = renamed(weights)
    for name in taken_over(weights, ()):
        del weights[name]
    with naming(checkpoint.path):
        restore_quantisers(recogniser.model, weights)
    assign_state(recogniser.model, weights, str(checkpoint.path))
    recogniser.model.eval()
    return recogniser


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors of the model by name, those of floating point in float32."""
    names = [name for name in checkpoint.names if not name.startswith(PREFIX)]
    return {n: t.float() if t.is_floating_point() else t for n, t in checkpoint.tensors(names).items()}


def assign_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load `state` into `model`, as `load_state_dict` does, with errors of one line.

    Layers that share a parameter still share it; `state` may hold it under one of its names, or equal under several.

    Raises InputError that begins with `where` and names missing, unexpected and misshapen tensors.
    """
    shared = shared_parameters(model)
    state = with_shared(model, state, where)
    if misfits := describe_misfits(model, state):
        raise InputError(f"{where}: tensors do not fit the architecture: {misfits}")
    model.load_state_dict(state, assign=True)
    for first, *others in shared:
        for name in others:
            layer, _, local = name.rpartition(".")
            setattr(model.get_submodule(layer), local, model.get_parameter(first))


def with_shared(model: nn.Module, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return `state` with each parameter that layers of `model` share under all of its names; one of them is enough.

    Raises InputError that begins with `where` when the tensors of these names differ.
    """
    filled = dict(state)
    for names in shared_parameters(model):
        stored = [name for name in names if name in state]
        for other in stored[1:]:
            if not torch.equal(state[stored[0]], state[other]):
                raise InputError(
                    f"{where}: {stored[0]} and {other} differ, but the architecture has one tensor for both"
                )
        if stored:
            filled |= dict.fromkeys(names, state[stored[0]])
    return filled


def shared_parameters(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [found for found in names.values() if len(found) > 1]


def describe_misfits(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Name the first tensors of `state` that do not fit `model`, and how many more there are; empty where all fit."""
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
    """Load the recogniser of a `model` checkpoint: in full precision, unless it was trained for fewer bits."""
    return load_weights(skeleton(checkpoint), checkpoint)
