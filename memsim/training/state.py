"""State that a stopped training resumes from: a safetensors file beside its output, written whole or not at all.

Every draw of a training is keyed by (seed, epoch, ...), so no generator has a state to keep between steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from memsim.asr.recogniser import describe_misfits
from memsim.config.json_input import parse_json_object
from memsim.errors import InputError
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class EpochResult:
    """Result of an epoch: a row of the log."""

    epoch: int
    seconds: float
    learning_rate: float
    train_loss: float  # mean loss per token
    extra_loss: float  # mean of what the training method adds to it
    dev_wer: float
    dev_cer: float
    is_best: bool
    too_short: int  # utterances with fewer frames than their text needs, which taught nothing
    dev_loss: float | None = None  # mean over dev utterances of loss and extra loss; None where `best_by` is `wer`


@dataclass(frozen=True)
class Best:
    """The epoch with the lowest dev loss or WER (of equal ones the last), and its scores as `Score.to_dict` gives them.

    Epoch 0 is the network before training. The loss is None where the recipe's `best_by` is `wer`.
    """

    epoch: int
    dev: Mapping[str, int | float]
    dev_loss: float | None = None

    @property
    def deciding(self) -> float:
        """The number by which epochs are compared."""
        return self.dev["wer"] if self.dev_loss is None else self.dev_loss


@dataclass
class Progress:
    """Position of a training, and the results of its epochs so far."""

    epoch: int = 1  # the current one, from 1; after the last, their number + 1
    batches: int = 0  # done in this epoch
    step: int = 0  # steps done, over all epochs
    seconds: float = 0.0  # that this epoch has taken
    loss_sum: float = 0.0  # over the batches of this epoch
    extra_loss_sum: float = 0.0
    too_short: int = 0
    best: Best | None = None
    results: list[EpochResult] = field(default_factory=list)  # of the epochs before it
    heard: list[list[int]] | None = None  # tokens that the teacher has for each utterance, in place of transcripts
    heard_dev: list[list[int]] | None = None  # the same of the dev set, where its texts or its loss need them

    def next_epoch(self) -> None:
        """Go on to the beginning of the next epoch."""
        self.epoch += 1
        self.batches = self.too_short = 0
        self.seconds = self.loss_sum = self.extra_loss_sum = 0.0


_PROGRESS = TypeAdapter(Progress)
_BEST = TypeAdapter(Best)
_RUN = TypeAdapter(dict[str, str])

_OF_A_PARAMETER = {"step", "exp_avg", "exp_avg_sq"}
"""What AdamW and RAdam keep of each parameter."""


@dataclass(frozen=True)
class Trained:
    """Model, moving average and optimiser of a training, whose tensors it changes."""

    model: nn.Module
    average: AveragedModel
    optimiser: torch.optim.Optimizer

    def save(self, path: Path, run: Mapping[str, str], progress: Progress) -> None:
        """Write the state to `path`; `run` identifies the training."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self._optimised():
            tensors |= {f"optimiser/{key}/{name}": value for key, value in self.optimiser.state[parameter].items()}
        save_checkpoint(
            path, tensors, {"kind": "training", "run": json.dumps(run), "progress": json.dumps(asdict(progress))}
        )

    def load(self, path: Path, run: Mapping[str, str]) -> Progress:
        """Load the state in `path`. Raises InputError when it is another training's, or damaged."""
        checkpoint = load_checkpoint(path)
        if checkpoint.kind != "training":
            raise InputError(f"{path}: is not the state of a training; --force starts anew")
        try:
            stored = _RUN.validate_python(parse_json_object(checkpoint.metadata["run"], "run"))
            progress = _PROGRESS.validate_json(checkpoint.metadata["progress"])
        except (KeyError, ValueError):
            raise InputError(f"{path}: the state of a training is damaged; --force starts anew") from None
        if differences := _differences(stored, run):
            raise InputError(f"{path}: is the state of another training ({differences}); --force starts anew")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimiser": {}}
        for name, tensor in checkpoint.views().items():  # an observer's range may be infinite
            part, _, rest = name.partition("/")
            if part not in parts:
                raise InputError(f"{path}: {name} is no part of a training's state; --force starts anew")
            parts[part][rest] = tensor
        for part, module in (("model", self.model), ("average", self.average)):
            if misfits := describe_misfits(module, parts[part]):
                raise InputError(f"{path}: does not fit the model: {misfits}; --force starts anew")
            module.load_state_dict(parts[part])
        try:
            self._load_optimiser(parts["optimiser"])
        except ValueError as error:
            raise InputError(f"{path}: does not fit the optimiser: {error}; --force starts anew") from None
        return progress

    def _optimised(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and parameters of the optimiser, in its order."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in self.optimiser.param_groups:
            yield from ((names[id(parameter)], parameter) for parameter in group["params"])

    def _load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        states: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            key, _, owner = name.partition("/")
            states.setdefault(owner, {})[key] = tensor.clone()  # out of the file's mapping
        for name, parameter in self._optimised():
            own = states.get(name, {})
            if own and own.keys() != _OF_A_PARAMETER:
                raise ValueError(f"of {name} it has {', '.join(own)}, not {', '.join(sorted(_OF_A_PARAMETER))}")
            for key, value in own.items():
                if value.shape not in ((), parameter.shape) or not value.is_floating_point():
                    raise ValueError(f"{key}/{name} is {value.dtype} {list(value.shape)}, not {list(parameter.shape)}")
        numbered = {i: states[name] for i, (name, _) in enumerate(self._optimised()) if name in states}
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": numbered, "param_groups": groups})


def finished_training(out: Path, run: Mapping[str, str]) -> Best | None:
    """Return the best epoch of the finished training `run` that wrote `out`; None where there is no such file.

    Raises:
        InputError: `out` is anything else.
    """
    if not out.exists():
        return None
    metadata = load_checkpoint(out).metadata
    if differences := _differences({key: metadata.get(key, "") for key in run}, run):
        raise InputError(f"{out}: exists already and is not of this training ({differences}); --force overwrites it")
    if "best" not in metadata:
        raise InputError(f"{out}: is of a training that cannot go on without its state; --force overwrites it")
    try:
        return _BEST.validate_json(metadata["best"])
    except ValueError:
        raise InputError(f"{out}: its metadata does not say which epoch was best; --force overwrites it") from None


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Describe how two trainings differ, down to the keys of their recipes; empty where they are the same."""
    found = []
    for key in sorted({*old, *new}):
        before, after = (_fields(key, run.get(key)) for run in (old, new))
        found += [
            f"{name}: {_shown(before.get(name))}, not {_shown(after.get(name))}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _fields(key: str, value: str | None) -> dict[str, object]:
    """Return the value by its key, or, of a JSON object, the values in it by their paths of keys."""
    try:
        parsed = json.loads(value or "")
    except (ValueError, RecursionError):
        parsed = value
    return _leaves(key, parsed) if isinstance(parsed, dict) else {key: value}


def _leaves(key: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {key: value}
    return {name: leaf for child, item in value.items() for name, leaf in _leaves(f"{key}.{child}", item).items()}


def _shown(value: object) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
