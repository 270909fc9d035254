"""Initial weights of a training: random ones, a checkpoint's, or those of a checkpoint's encoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from memsim.asr.architectures import ARCHITECTURES
from memsim.asr.hugging_face.folder import CTC, SEQ2SEQ
from memsim.asr.models.frontend import RecogniserConfig
from memsim.asr.recogniser import (
    Recogniser,
    build,
    describe_misfits,
    stored_config,
    stored_tokens,
    weights_of,
    with_shared,
)
from memsim.asr.tokens import CharacterTokens, Tokens
from memsim.errors import InputError
from memsim.networks.open_checkpoint import open_network
from memsim.networks.opened_network import OpenedNetwork
from memsim.nn.quantisers import quantiser_tensors
from memsim.rng import derive_seed
from memsim.storage.checkpoint import Checkpoint


def fresh(architecture: str, config: RecogniserConfig, tokens: Tokens, text_style: str, seed: int) -> Recogniser:
    """Return a recogniser with random weights."""
    torch.manual_seed(derive_seed(seed, "init"))
    return build(architecture, config, tokens, text_style)


def from_checkpoint(
    checkpoint: Checkpoint,
    option: str,
    architecture: str,
    config: RecogniserConfig,
    texts: Iterable[str],
    text_style: str,
    model: str,
) -> tuple[Recogniser, Checkpoint]:
    """Return the recipe's model with the weights of a checkpoint, and that checkpoint, with prefixes if the model has.

    Its tokens are the checkpoint's; where that has none (an external file), the config's, else the characters of
    `texts`. Dropout may differ, and is the recipe's. `option` is what users typed to name the checkpoint.

    Raises:
        InputError: The file does not hold that model.
    """
    if architecture in (CTC, SEQ2SEQ):
        return _hugging_face(checkpoint), checkpoint
    different: list[str] = []
    tokens: Tokens = config.own_tokens or CharacterTokens.from_texts(texts)
    if (given := checkpoint.metadata.get("architecture")) is not None:
        given_config = stored_config(checkpoint)
        tokens = stored_tokens(checkpoint, given_config)
        if (given_style := checkpoint.metadata.get("text_style", "kaldi")) != text_style:
            remedy = f"use --text-style {given_style}"
            raise InputError(f"{option}: was trained on transcripts of text style {given_style}; {remedy}")
        if given != architecture:
            found = f"is of architecture {given}, {model} of {architecture}"
            raise InputError(f"{option}: {found}; --model names another")
        different = _differences(given_config, config)
    recogniser = build(architecture, config, tokens, text_style)
    if set(checkpoint.stored.values()) & recogniser.model.state_dict().keys():  # the prefix belongs to the names
        checkpoint = checkpoint.with_prefixes()
    weights = weights_of(checkpoint)
    for name in quantiser_tensors(weights):  # this training has quantisers of its own
        del weights[name]
    weights = with_shared(recogniser.model, weights, option)
    if problems := "; ".join([*different, *filter(None, [describe_misfits(recogniser.model, weights)])]):
        raise InputError(f"{option}: is not a {model}: {problems}")
    recogniser.model.load_state_dict(weights)
    return recogniser, checkpoint


def is_hugging_face(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is a recogniser of Hugging Face's, which names its network itself."""
    return checkpoint.metadata.get("architecture") in (CTC, SEQ2SEQ)


def _hugging_face(checkpoint: Checkpoint) -> Recogniser:
    """Return the recogniser of a folder with weights of its own in memory, without the quantisers of a training."""
    if quantiser_tensors(checkpoint.names):
        raise InputError(f"--init {checkpoint.path}: was trained for few bits; start from the folder itself")
    recogniser = OpenedNetwork(checkpoint).recogniser
    shared: dict[nn.Parameter, nn.Parameter] = {}
    for module in recogniser.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:  # it may be a view of the file
                module._parameters[name] = shared.setdefault(parameter, nn.Parameter(parameter.detach().clone()))
    return recogniser


def load_encoder(recogniser: Recogniser, init_encoder: str | Path, model: str) -> Checkpoint:
    """Give `recogniser` the encoder of the checkpoint `init_encoder`, and return that checkpoint.

    Dropout may differ.

    Raises:
        InputError: One of them has no separate encoder, or the encoders differ.
    """
    option = f"--init-encoder {init_encoder}"
    checkpoint = open_network(str(init_encoder), "--init-encoder")
    given_config = stored_config(checkpoint)
    given = checkpoint.metadata["architecture"]
    encoder = ARCHITECTURES[given].encoder
    own = ARCHITECTURES.get(recogniser.architecture)
    if encoder is None:
        raise InputError(f"{option}: architecture {given} has no encoder apart from the rest")
    if own is None or own.encoder is not encoder:
        found = f"its encoder, of architecture {given}, is not that of {recogniser.architecture}"
        raise InputError(f"{option}: {found}; --model names another")
    with torch.device("meta"):
        expected = encoder(recogniser.config)
    names = expected.state_dict().keys()
    weights = {name: tensor for name, tensor in weights_of(checkpoint).items() if name in names}
    weights = with_shared(expected, weights, option)
    problems = [*_differences(given_config, recogniser.config), *filter(None, [describe_misfits(expected, weights)])]
    if problems:
        raise InputError(f"{option}: is not the encoder of {model}: {'; '.join(problems)}")
    recogniser.model.load_state_dict(weights, strict=False)
    return checkpoint


def _differences(given: RecogniserConfig, wanted: RecogniserConfig) -> list[str]:
    """Return messages for keys with other values in `given` than in `wanted`; dropout and tokens may differ."""
    old, new = (config.model_dump(exclude={"dropout", "tokens", "characters"}) for config in (given, wanted))
    return [f"{key} differs" for key, value in new.items() if key in old and old[key] != value]
