"""Calibration with batches of DataLoaders, with labels beside the inputs."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import memsim
from memsim.errors import InputError
from memsim.nn.batches import run_batch
from tests.nn.layers import normal

X, LABELS = normal(12, 6), torch.arange(12) % 3
SPEC = {"base": "ideal", "weights": {"bits": 3}, "digital": []}


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Masked(One):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.layer(x if mask is None else x.masked_fill(mask, 0))


class Lengths(One):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        return self.layer(x * lengths[:, None])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.table(tokens))


class Losses(One):
    """As those of transformers."""

    def forward(self, x: Tensor, labels: Tensor | None = None, **options: Any) -> Any:  # type: ignore[override]
        y = self.layer(x)
        return y if labels is None else (nn.functional.cross_entropy(y, labels), y)


class Pictures(Dataset[Any]):
    """As those of torchvision: pairs of an image and a number."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], int(LABELS[index])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ((x, y) for x, y in zip(X, LABELS, strict=True))


def named(samples: list[Any]) -> dict[str, Tensor]:
    return {"x": torch.stack([x for x, _ in samples]), "labels": torch.tensor([int(y) for _, y in samples])}


LOADERS: dict[str, tuple[type[nn.Module], Callable[[], Any]]] = {
    "TensorDataset": (One, lambda: DataLoader(TensorDataset(X, LABELS), 4)),
    "without labels": (One, lambda: DataLoader(TensorDataset(X), 4)),
    "torchvision": (One, lambda: DataLoader(Pictures(), 4)),
    "a stream": (One, lambda: DataLoader(Stream(), 4)),
    "a dataset": (One, lambda: TensorDataset(X, LABELS)),
    "tuples": (One, lambda: [(X, LABELS)]),
    "targets that are numbers, and weights": (One, lambda: [[X, X.sum(1), torch.ones(12)]]),
    "several targets": (One, lambda: [(X, (LABELS, LABELS))]),
    "named": (One, lambda: DataLoader(Pictures(), 4, collate_fn=named)),
    "named label": (One, lambda: [{"x": X, "label": LABELS}]),
    "named targets of another mapping": (One, lambda: [UserDict(x=X, targets=LABELS)]),
    "labels that the network takes": (Losses, lambda: DataLoader(Pictures(), 4, collate_fn=named)),
    "labels second": (Losses, lambda: [(X, LABELS)]),
    "a wrapped network": (lambda: nn.Sequential(One()), lambda: [(X, LABELS)]),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", LOADERS)
def test_labels_are_left_out_where_it_is_clear_what_they_are(name: str) -> None:
    make, loader = LOADERS[name]
    found = memsim.measure_inputs(make(), loader())
    (wanted,) = memsim.measure_inputs(One(), [X]).values()
    (got,) = found.values()
    assert got.absmax == wanted.absmax
    memsim.map_model(make(), SPEC, calibration=loader())


REFUSED: dict[str, tuple[type[nn.Module], Any, str, str]] = {
    "a label in the place of a mask": (Masked, [(X, LABELS)], "forward(x, mask)", "[x for x, _ in loader]"),
    "a label behind two": (Lengths, [(X, LABELS, LABELS)], "forward(x, lengths)", "[x for x, *_ in loader]"),
    "a label in the place of the second": (Lengths, [(X, "label")], "forward(x, lengths)", "[x for x, _ in loader]"),
    "a label first": (Tokens, [(LABELS, LABELS[:, None])], "forward(tokens)", "[x for x, _ in loader]"),
    "tokens and labels": (Tokens, [(LABELS[:, None], LABELS)], "forward(tokens)", "[x for x, _ in loader]"),
    "another name": (One, [{"image": X, "label": LABELS}], "forward(x)", "[batch['image'] for batch in loader]"),
    "names beside": (One, [{"x": X, "id": LABELS}], "forward(x)", "[{'x': batch['x']} for batch in loader]"),
    "a pair in the input": (One, [((X, LABELS), LABELS)], "forward(x)", "[x for x, _ in loader]"),
    "text": (One, ["text"], "forward(x)", "[x for x, _ in loader]"),
    "numbers for names": (One, [{0: X}], "forward(x)", "[batch[0] for batch in loader]"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("call", ["map_model", "measure_inputs"])
def test_other_batches_are_answered_in_a_line(name: str, call: str) -> None:
    make, batches, takes, remedy = REFUSED[name]
    calls = {
        "map_model": lambda: memsim.map_model(make(), SPEC, calibration=batches),
        "measure_inputs": lambda: memsim.measure_inputs(make(), batches),
    }
    with pytest.raises(InputError, match=r"^calibration: the network fails on a batch of ") as raised:
        calls[call]()
    said = str(raised.value)
    assert "\n" not in said
    assert takes in said
    assert remedy in said
    assert raised.value.__cause__ is not None


def test_a_batch_is_described() -> None:
    with pytest.raises(InputError, match=r"a batch of \(float32 \[12, 6\], \{boxes: int64 \[12\]\}, str\): "):
        memsim.measure_inputs(Lengths(), [(X, {"boxes": LABELS}, "a.png")])


def test_errors_of_a_kind_that_no_layer_raises_are_the_networks_own() -> None:
    class RefusalError(ValueError):
        pass

    class Refusing(One):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            raise RefusalError("no such data")

    with pytest.raises(RefusalError, match=r"^no such data$"):
        memsim.measure_inputs(Refusing(), [(X, LABELS)])


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
def test_networks_of_torch_script_take_their_arguments_as_they_are() -> None:
    """What was loaded does not tell how many arguments it takes, so a second one is never left out as a label."""
    file = BytesIO()
    torch.jit.save(torch.jit.script(Masked()), file)
    file.seek(0)
    net = torch.jit.load(file)
    run_batch(net, (X, X > 0))
    with pytest.raises(InputError) as raised:
        run_batch(net, (X, LABELS))
    assert str(raised.value).startswith("calibration: the network fails on a batch of (float32 [12, 6], int64 [12]): ")
    assert "a batch is the argument of the network, forward(...), a tuple of its arguments" in str(raised.value)


def test_what_a_network_raises_of_an_only_argument_is_its_own() -> None:
    class Checking(One):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("too few examples")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        memsim.measure_inputs(One(), [X[:, :5]])
    with pytest.raises(ValueError, match=r"^too few examples$"):
        memsim.measure_inputs(Checking(), [X])
