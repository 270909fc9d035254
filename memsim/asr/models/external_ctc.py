"""Networks that memsim did not make: what their configs say, and recognisers made by a factory of one's own.

    def factory(tokens: int, **options) -> nn.Module

makes a network with `tokens` outputs, the first of them CTC's blank, whose `forward(features, lengths)` returns
(log-probabilities [batch, frames', tokens], the frames of each utterance [batch]). `features` are
[batch, frames, mel_bins] with `lengths` [batch] in frames, or, of `features: {kind: waveform}`, [batch, samples] with
`lengths` in samples; what is beyond an utterance's length is padding, and must not change its result.
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


class ForeignConfig(RecogniserConfig):
    """Of a network that others have trained: it may say what its outputs stand for.

    `characters` are those of the outputs from the second on, in order; the first is the blank.
    """

    characters: str | None = None

    @property
    def own_tokens(self) -> CharacterTokens | None:
        return None if self.characters is None else CharacterTokens(tuple(self.characters))

    @model_validator(mode="after")
    def _characters_differ(self) -> ForeignConfig:
        if repeated := [c for c, count in Counter(self.characters or "").items() if count > 1]:
            raise problem(f"{repeated[0]!r} stands for more than one output", key="characters")
        return self


class FactoryConfig(ForeignConfig):
    """Of a network made by a factory, whose keyword arguments are `options`."""

    options: dict[str, Any] = Field(default_factory=dict)


def failure_in(error: Exception) -> str:
    """An error in somebody's code, and where that is."""
    if isinstance(error, SyntaxError):
        place = (error.filename, error.lineno)
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = (frame.filename, frame.lineno)
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {said} ({Path(place[0] or '?').name}, line {place[1]})"


@dataclass(frozen=True)
class Factory:
    """Makes the network of a config by the function `function`, which the user knows as `name`."""

    name: str
    function: Callable[..., Any]

    def __call__(self, config: FactoryConfig) -> nn.Module:
        """Raises InputError where the function does not take the config's options, fails, or makes no module."""
        try:
            inspect.signature(self.function).bind(tokens=config.tokens, **config.options)
        except TypeError as error:
            given = ", ".join(["tokens", *config.options])
            raise InputError(f"--architecture {self.name}: does not take the arguments {given} ({error})") from None
        with torch.device("cpu"):  # a factory need not know of devices without values
            try:
                network = self.function(tokens=config.tokens, **config.options)
            except Exception as error:  # whatever somebody's code raises
                raise InputError(f"--architecture {self.name}: failed: {failure_in(error)}") from error
        if not isinstance(network, nn.Module):
            raise InputError(f"--architecture {self.name}: made a {type(network).__name__}; expected a torch.nn.Module")
        network.register_forward_hook(OutputCheck(self.name, config.tokens))
        return network


@dataclass(frozen=True)
class OutputCheck:
    """A forward hook that says where a network's result is not what a recogniser's must be."""

    name: str
    tokens: int

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
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
        if (sums - 1).abs().gt(0.05).any():  # bfloat16 sums up to within a hundredth or so; NaN is found elsewhere
            return f"numbers whose exponentials sum up to {float(sums.flatten()[0]):.3g}, so not log-probabilities"
        return None
