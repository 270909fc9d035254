"""Recognisers that memsim did not train: their configs, and networks made by a factory in the user's code.

    def factory(tokens: int, **options) -> nn.Module

makes a network with `tokens` outputs, the first of them CTC's blank, whose `forward(features, lengths)` returns
log-probabilities [batch, frames', tokens] and the number of frames of each utterance [batch]. `features` are
[batch, frames, mel_bins] with `lengths` [batch] in frames, or, with `features: {kind: waveform}` in the config,
[batch, samples] with `lengths` in samples. Values beyond an utterance's length are padding and must not change its
result.
"""

from __future__ import annotations

import inspect
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from memsim.asr.models.frontend import RecogniserConfig
from memsim.asr.tokens import CharacterTokens
from memsim.config.schema import problem
from memsim.errors import InputError
from memsim.units import counted


class ExternalConfig(RecogniserConfig):
    """The config of a network trained elsewhere, which may give the characters of its outputs."""

    characters: str | None = None
    """The characters of the outputs from the second one on, in order; the first output is the blank."""

    @property
    def own_tokens(self) -> CharacterTokens | None:
        """The tokens of `characters`, where the config gives them."""
        return None if self.characters is None else CharacterTokens(tuple(self.characters))

    @model_validator(mode="after")
    def _characters_differ(self) -> ExternalConfig:
        if repeated := [c for c, count in Counter(self.characters or "").items() if count > 1]:
            raise problem(f"{repeated[0]!r} stands for more than one output", key="characters")
        return self


class FactoryConfig(ExternalConfig):
    """The config of a network that a factory makes from the keyword arguments `options`."""

    options: dict[str, Any] = Field(default_factory=dict)


def failure_in(error: Exception) -> str:
    """Return one line about an error in the user's code, with its file and line."""
    if isinstance(error, SyntaxError):
        place = (error.filename, error.lineno)
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = (frame.filename, frame.lineno)
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {said} ({Path(place[0] or '?').name}, line {place[1]})"


@dataclass(frozen=True)
class Factory:
    """A maker of networks: the user's `function`, which --architecture calls `name`."""

    name: str
    function: Callable[..., Any]

    def __call__(self, config: FactoryConfig) -> nn.Module:
        """Make a network. Raises InputError where the function does not take the options, fails, or makes no module."""
        try:
            inspect.signature(self.function).bind(tokens=config.tokens, **config.options)
        except TypeError as error:
            given = ", ".join(["tokens", *config.options])
            raise InputError(f"--architecture {self.name}: does not take the arguments {given} ({error})") from None
        with torch.device("cpu"):  # a factory need not support the meta device
            try:
                network = self.function(tokens=config.tokens, **config.options)
            except Exception as error:  # the user's code may raise anything
                raise InputError(f"--architecture {self.name}: failed: {failure_in(error)}") from error
        if not isinstance(network, nn.Module):
            raise InputError(f"--architecture {self.name}: made a {type(network).__name__}; expected a torch.nn.Module")
        network.register_forward_hook(OutputCheck(self.name, config.tokens))
        return network


@dataclass(frozen=True)
class OutputCheck:
    """A forward hook that raises InputError when a network's result is not that of a CTC recogniser."""

    name: str
    tokens: int

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        """Check the `result` of a call of `module`."""
        if found := self._misfit(len(arguments[0]), result):
            raise InputError(
                f"--architecture {self.name}: forward returned {found}; expected log-probabilities "
                f"[{len(arguments[0])}, frames, {self.tokens}] and lengths [{len(arguments[0])}] in frames"
            )

    def _misfit(self, batch: int, result: Any) -> str | None:
        if not isinstance(result, tuple | list) or len(result) != 2 or not all(isinstance(x, Tensor) for x in result):
            return f"a {type(result).__name__}"
        log_probs, lengths = result
        if log_probs.ndim != 3 or log_probs.shape[::2] != (batch, self.tokens):
            return f"{list(log_probs.shape)}"
        if lengths.shape != (batch,) or lengths.is_floating_point():
            return f"lengths {list(lengths.shape)} of {lengths.dtype}"
        if int(lengths.max()) > log_probs.shape[1]:
            return f"a length of {int(lengths.max())} for {counted(log_probs.shape[1], 'frame')}"
        sums = log_probs[:, :1].detach().float().exp().sum(dim=-1)
        if (sums - 1).abs().gt(0.05).any():  # bfloat16 sums are right to about a hundredth; NaN is found elsewhere
            return f"numbers whose exponentials sum up to {float(sums.flatten()[0]):.3g}, so not log-probabilities"
        return None
