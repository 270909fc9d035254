"""What a training starts from: random weights, a checkpoint, or a checkpoint's encoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from memsim.asr.architectures import ARCHITECTURES
from memsim.asr.models.frontend import RecogniserConfig
from memsim.asr.recogniser import Recogniser, build, describe_misfits, skeleton, weights_of, with_shared
from memsim.asr.tokens import CharacterTokens, Tokens
from memsim.errors import InputError
from memsim.networks.open_checkpoint import open_network
from memsim.nn.quantisers import quantiser_tensors
from memsim.rng import derive_seed


def fresh(architecture: str, config: RecogniserConfig, tokens: Tokens, text_style: str, seed: int) -> Recogniser:
    """A recogniser with random weights."""
    torch.manual_seed(derive_seed(seed, "init"))
    return build(architecture, config, tokens, text_style)


def from_checkpoint(
    init: str, architecture: str, config: RecogniserConfig, texts: Iterable[str], text_style: str, model: str
) -> tuple[Recogniser, str]:
    """The recipe's model with the weights of --init, and that file's SHA-256.

    Its tokens are the checkpoint's, or where it has none (a file of somebody else) the config's, else those of `texts`.
    Raises InputError when the file does not hold that model; dropout may differ, and is the recipe's.
    """
    option = f"--init {init}"
    checkpoint = open_network(init, "--init")
    different: list[str] = []
    tokens: Tokens = config.own_tokens or CharacterTokens.from_texts(texts)
    if "architecture" in checkpoint.metadata:
        given = skeleton(checkpoint)
        tokens = given.tokens
        if given.text_style != text_style:
            remedy = f"--text-style {given.text_style} trains on such"
            raise InputError(f"{option}: was trained on transcripts of text style {given.text_style}; {remedy}")
        if given.architecture != architecture:
            found = f"is of architecture {given.architecture}, {model} of {architecture}"
            raise InputError(f"{option}: {found}; --model names another")
        different = _differences(given.config, config)
    recogniser = build(architecture, config, tokens, text_style)
    if set(checkpoint.stored.values()) & recogniser.model.state_dict().keys():  # what looked like a prefix is its own
        checkpoint = checkpoint.with_prefixes()
    weights = weights_of(checkpoint)
    for name in quantiser_tensors(weights):  # this training has its own
        del weights[name]
    weights = with_shared(recogniser.model, weights, option)
    if problems := "; ".join([*different, *filter(None, [describe_misfits(recogniser.model, weights)])]):
        raise InputError(f"{option}: is not a {model}: {problems}")
    recogniser.model.load_state_dict(weights)
    return recogniser, checkpoint.sha256


def load_encoder(recogniser: Recogniser, init_encoder: str, model: str) -> str:
    """Give `recogniser` the encoder of --init-encoder, and return that file's SHA-256.

    Raises InputError when one of them has no encoder apart, or when they are not alike; dropout may differ.
    """
    option = f"--init-encoder {init_encoder}"
    checkpoint = open_network(init_encoder, "--init-encoder")
    given = skeleton(checkpoint)
    encoder = ARCHITECTURES[given.architecture].encoder
    own = ARCHITECTURES.get(recogniser.architecture)
    if encoder is None:
        raise InputError(f"{option}: architecture {given.architecture} has no encoder apart from the rest")
    if own is None or own.encoder is not encoder:
        found = f"its encoder, of architecture {given.architecture}, is not that of {recogniser.architecture}"
        raise InputError(f"{option}: {found}; --model names another")
    with torch.device("meta"):
        expected = encoder(recogniser.config)
    names = expected.state_dict().keys()
    weights = {name: tensor for name, tensor in weights_of(checkpoint).items() if name in names}
    weights = with_shared(expected, weights, option)
    problems = [*_differences(given.config, recogniser.config), *filter(None, [describe_misfits(expected, weights)])]
    if problems:
        raise InputError(f"{option}: is not the encoder of {model}: {'; '.join(problems)}")
    recogniser.model.load_state_dict(weights, strict=False)
    return checkpoint.sha256


def _differences(given: RecogniserConfig, wanted: RecogniserConfig) -> list[str]:
    """Keys that both configs have, but not alike; dropout and tokens are a training's own."""
    old, new = (config.model_dump(exclude={"dropout", "tokens", "characters"}) for config in (given, wanted))
    return [f"{key} differs" for key, value in new.items() if key in old and old[key] != value]
