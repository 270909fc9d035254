"""Layers that know their name in the network and put it into errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor, nn

from memsim.errors import InputError

Forward = TypeVar("Forward", bound=Callable[..., Any])

_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # raised for inputs that do not fit


class NamedLayer(nn.Module):
    """A layer on arrays, or in training for them; `layer_name` is its name in the network, empty where it has none."""

    layer_name = ""

    def _copy_sizes(self, module: Any) -> None:
        """Copy the settings of `module`, which this layer replaces."""

    @property
    def in_this_layer(self) -> str:
        """The layer's name as the end of an error that begins with the name of an argument."""
        return f" (layer {self.layer_name})" if self.layer_name else ""


def naming_its_layer(forward: Forward) -> Forward:
    """Wrap the `forward` of a `NamedLayer`: errors begin with the layer's name, and nested tensors are refused."""

    @wraps(forward)
    def named(self: NamedLayer, *inputs: Any, **options: Any) -> Any:
        try:
            for value in (*inputs, *options.values()):
                if isinstance(value, Tensor) and value.is_nested:
                    raise InputError(
                        "its input is a nested tensor, which layers on arrays do not take; pad it: "
                        "torch.nested.to_padded_tensor(x, 0.0), with a mask where the network takes one"
                    )
            return forward(self, *inputs, **options)
        except _MISFITS as error:
            name, said, kind = self.layer_name, str(error), type(error)
            is_named = not name or said.startswith((f"{name}:", f"{name}.")) or said.endswith(self.in_this_layer)
            if is_named or kind not in (*_MISFITS, InputError):
                raise
            raise kind(f"{name}: {error}") from error

    return named  # type: ignore[return-value]
