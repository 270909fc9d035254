"""The dependence of a network's loss on the errors of its matrices, from one backward pass.

The loss rises by half the errors' quadratic form with its Fisher information: the mean of g g^T over utterances, where
g is the gradient of the loss with respect to the weights. The errors of a matrix's weights are taken to be alike and
not to depend on each other, so that the sum of the gradient's squares is enough (a Fisher information with one number
for each matrix; compare the factors of Martens and Grosse, ICML 2015). All frames of an utterance share the errors of
the weights, and their gradients are summed before they are squared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memsim import rng
from memsim.nn.collect import Recorder, product_of
from memsim.nn.layer_adapters import MappableLayer


class LossSensitivity:
    """The sums that tell how far the loss of a network depends on each of its matrices."""

    def __init__(self) -> None:
        self._seen: dict[str, list[_Product]] = {}
        self._gradients, self._squares = defaultdict[str, float](float), defaultdict[str, float](float)
        self._inputs = defaultdict[str, float](float)
        self._losses = 0

    def note(self, name: str, x: Tensor, product: Tensor, groups: int) -> Tensor:
        """Return the `product` [..., out] of matrix `name`, of `groups` blocks, with inputs `x` [..., in].

        The next loss is computed of what is returned, so that it has a gradient.
        """
        noted = product + torch.zeros((), device=product.device, requires_grad=True)
        self._seen.setdefault(name, []).append(_Product(x.detach(), noted, groups))
        return noted

    def add(self, loss: Tensor) -> None:
        """Add a `loss` of one utterance or batch; its gradient is that of the products since the last one."""
        seen, self._seen = self._seen, {}
        if not seen or not loss.requires_grad:
            return
        products = [own.product for calls in seen.values() for own in calls]
        found = iter(torch.autograd.grad(loss, products, allow_unused=True))
        for name, calls in seen.items():
            gradients = [next(found) for _ in calls]
            reached = [(own, gradient) for own, gradient in zip(calls, gradients, strict=True) if gradient is not None]
            if reached:
                x = torch.cat([own.blocks(own.x) for own, _ in reached])
                gradient = torch.cat([own.blocks(gradient) for own, gradient in reached])
                of_weights = torch.einsum("ngo,ngi->goi", gradient, x)
                self._gradients[name] += float(of_weights.double().square().sum())
            for own in calls:
                outputs = own.product.shape[-1] // own.groups
                self._squares[name] += float(own.product.detach().double().square().sum()) / outputs
                self._inputs[name] += float(own.x.double().square().sum())
        self._losses += 1

    def result(self) -> dict[str, float]:
        """Return, by matrix, the rise of the loss for products that err by as much as they are.

        A relative error of e raises it by e^2 times as much.
        """
        return {
            name: 0.5 * gradients / self._losses * self._squares[name] / self._inputs[name] if gradients else 0.0
            for name, gradients in self._gradients.items()
        }


class _Product(NamedTuple):
    """A product [..., out] of inputs `x` [..., in] and a matrix of `groups` blocks."""

    x: Tensor
    product: Tensor
    groups: int

    def blocks(self, values: Tensor) -> Tensor:
        """Return `values` [..., features] by block: [n, groups, features of a block], float32."""
        return values.reshape(-1, self.groups, values.shape[-1] // self.groups).float()


@contextmanager
def noting_products(layers: Sequence[MappableLayer], found: LossSensitivity) -> Iterator[None]:
    """Pass the products of all matrices of `layers` to `found` while the network runs with gradients.

    Each layer runs once more after each of its calls, and the result takes the place of its output.
    """

    def recorder(layer: MappableLayer, local: str, name: str) -> nn.Module:
        multiply, groups = product_of(layer, local), layer.sources[local].groups
        return Recorder(lambda x: found.note(name, x, multiply(x), groups), None)

    def hook(layer: MappableLayer) -> Callable[..., Any]:
        noting = layer.mapped({name: recorder(layer, local, name) for local, name in layer.matrices.items()})
        assert noting is not None  # there is a recorder for each of its matrices
        noting.eval()

        def again(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
            return noting(*inputs, **options) if torch.is_grad_enabled() else output

        return again

    handles = [layer.module.register_forward_hook(hook(layer), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def losses_of_outputs(model: nn.Module, found: LossSensitivity) -> Iterator[None]:
    """Take for the loss of each run of `model` half the mean square of the change of its output.

    The gradient is that of the output's product with random signs, whose mean square is the same.
    """
    generator = rng.generator("output", "sensitivity")

    def hook(_: nn.Module, inputs: Any, output: Any) -> None:
        values = [value for value in _tensors(output) if value.requires_grad]
        if values:
            signs = [torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1 for value in values]
            found.add(sum((value * sign).sum() for value, sign in zip(values, signs, strict=True)))  # type: ignore[arg-type]

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in the output of a network."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
