"""LSTM, GRU and RNN on simulated arrays, and in training for them: every time step reads the same arrays, with noise of
its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from memsim.crossbar.uncompiled import uncompiled
from memsim.nn.linear import MappedLinear, mapped_product
from memsim.nn.named_layers import NamedLayer, naming_its_layer
from memsim.nn.product import QuantisedLayerOfMany, kept_quantisers
from memsim.nn.sources import WeightSource, effective_weight, kept


class State(NamedTuple):
    """What a cell carries on: `hidden` [batch, hidden or projected]; `cell` [batch, hidden], None but in an LSTM."""

    hidden: Tensor
    cell: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> State:
        """With both tensors changed alike."""
        return State(change(self.hidden), None if self.cell is None else change(self.cell))

    def first(self, count: int) -> State:
        """Of the first `count` sequences."""
        return self.each(lambda part: part[:count])

    def updated(self, new: State) -> State:
        """With the first sequences' replaced by `new`."""
        count = len(new.hidden)
        hidden = torch.cat([new.hidden, self.hidden[count:]])
        if self.cell is None or new.cell is None:
            return State(hidden)
        return State(hidden, torch.cat([new.cell, self.cell[count:]]))


def lstm_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    """The gates' inputs [batch, 4 * hidden], in torch's order, to the next state, before any projection."""
    assert state.cell is not None
    keep_in, forget, new, out = (from_input + from_hidden).chunk(4, dim=-1)
    cell = forget.sigmoid() * state.cell + keep_in.sigmoid() * new.tanh()
    return State(out.sigmoid() * cell.tanh(), cell)


def gru_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    """The gates' inputs [batch, 3 * hidden], in torch's order, to the next state."""
    reset_in, update_in, new_in = from_input.chunk(3, dim=-1)
    reset_hidden, update_hidden, new_hidden = from_hidden.chunk(3, dim=-1)
    new = (new_in + (reset_in + reset_hidden).sigmoid() * new_hidden).tanh()
    return State(new + (update_in + update_hidden).sigmoid() * (state.hidden - new))


def tanh_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    return State((from_input + from_hidden).tanh())


def relu_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    return State((from_input + from_hidden).relu())


STEPS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "LSTM": lstm_step,
    "GRU": gru_step,
    "RNN_TANH": tanh_step,
    "RNN_RELU": relu_step,
}
"""By the `mode` of torch's nn.RNNBase."""


Product = Callable[[str, Tensor], Tensor]
"""The name of a matrix and its input to their product, with the bias where there is one."""


class _Recurrent(NamedLayer):
    """What layers and cells, mapped or in training, share."""

    mode: str

    def _products(self) -> Product:
        """For one forward pass."""
        raise NotImplementedError

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        """By the names of torch's parameters: weight_ih_l0, weight_hh_l0, ..."""
        return {name: WeightSource.of(name, tuple(getattr(module, name).shape)) for name in _weights(module)}

    @property
    def has_cell_state(self) -> bool:
        return self.mode == "LSTM"


def _weights(module: Any) -> Iterator[str]:
    if isinstance(module, nn.RNNCellBase | RecurrentCell):
        yield from ("weight_ih", "weight_hh")
        return
    assert isinstance(module, nn.RNNBase | RecurrentLayer)
    kinds = ("weight_ih", "weight_hh", *(["weight_hr"] if module.proj_size else []))
    for layer in range(module.num_layers):
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            yield from (f"{kind}_l{layer}{direction}" for kind in kinds)


class RecurrentLayer(_Recurrent):
    """nn.LSTM, nn.GRU or nn.RNN, with their arguments and results, packed sequences included.

    The product of the input of all time steps is computed at once; that of the hidden state at every step.
    """

    def _set_sizes(self, module: Any) -> None:
        self.mode = module.mode
        self.input_size, self.hidden_size, self.proj_size = module.input_size, module.hidden_size, module.proj_size
        self.num_layers, self.bidirectional = module.num_layers, module.bidirectional
        self.batch_first, self.dropout = module.batch_first, module.dropout

    @naming_its_layer
    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, Tensor]]:
        if isinstance(input, PackedSequence):
            sizes, order, restored = input.batch_sizes.tolist(), input.sorted_indices, input.unsorted_indices
            data, state = self._run(input.data, sizes, self._initial(hx, input.data, sizes[0], order))
            packed = PackedSequence(data, input.batch_sizes, order, restored)
            return packed, self._as_given(_in_order(state, restored), has_batch=True)
        has_batch = input.ndim == 3
        if input.ndim not in (2, 3):
            raise ValueError(f"an input of {list(input.shape)}; expected 2 (one sequence) or 3 dimensions")
        by_step = input[:, None] if not has_batch else input.transpose(0, 1) if self.batch_first else input
        steps, batch, _ = by_step.shape
        if not steps:
            raise ValueError(f"an input of {list(input.shape)}; it has no time steps")
        if not has_batch and hx is not None:
            hx = (hx[0][:, None], hx[1][:, None]) if isinstance(hx, tuple) else hx[:, None]
        data, state = self._run(by_step.flatten(0, 1), [batch] * steps, self._initial(hx, by_step, batch, None))
        output = data.unflatten(0, (steps, batch))
        if not has_batch:
            output = output[:, 0]
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, self._as_given(state, has_batch)

    def _initial(
        self, hx: Tensor | tuple[Tensor, Tensor] | None, like: Tensor, batch: int, order: Tensor | None
    ) -> State:
        """The states [layers * directions, batch, size] before the first step: zeros where none are given."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        if hx is None:
            hidden = like.new_zeros(count, batch, self.proj_size or self.hidden_size)
            return State(hidden, like.new_zeros(count, batch, self.hidden_size) if self.has_cell_state else None)
        given = State(*hx) if isinstance(hx, tuple | list) else State(hx)
        for part, size in zip(given, (self.proj_size or self.hidden_size, self.hidden_size), strict=True):
            if part is not None and part.shape != (count, batch, size):
                raise ValueError(f"an initial state of {list(part.shape)}; expected {[count, batch, size]}")
        if (given.cell is not None) != self.has_cell_state:
            raise ValueError(f"an initial state of {1 + (given.cell is not None)} tensors does not fit {self.mode}")
        return _in_order(given, order)

    def _as_given(self, state: State, has_batch: bool) -> Tensor | tuple[Tensor, Tensor]:
        """The final states as torch returns them."""
        hidden, cell = state if has_batch else state.each(lambda part: part[:, 0])
        return hidden if cell is None else (hidden, cell)

    def _run(self, data: Tensor, sizes: list[int], initial: State) -> tuple[Tensor, State]:
        """All layers over `data` [frames, in], in which step t has `sizes[t]` frames: outputs, and final states."""
        product = self._products()
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                data = F.dropout(data, self.dropout, self.training)
            outputs = []
            for suffix in (f"_l{layer}", f"_l{layer}_reverse") if self.bidirectional else (f"_l{layer}",):
                index = len(finals)
                before = State(initial.hidden[index], None if initial.cell is None else initial.cell[index])
                output, final = self._run_direction(product, data, sizes, before, suffix)
                outputs.append(output)
                finals.append(final)
            data = torch.cat(outputs, dim=-1)
        hidden = torch.stack([final.hidden for final in finals])
        cells = [final.cell for final in finals if final.cell is not None]
        return data, State(hidden, torch.stack(cells) if cells else None)

    def _run_direction(
        self, product: Product, data: Tensor, sizes: list[int], state: State, suffix: str
    ) -> tuple[Tensor, State]:
        """One direction of a layer. A sequence that has ended, or not yet begun, keeps its state."""
        by_step = list(product(f"weight_ih{suffix}", data).split(sizes))
        is_reverse = suffix.endswith("_reverse")
        outputs = []
        for from_input in reversed(by_step) if is_reverse else by_step:
            before = state.first(len(from_input))
            new = STEPS[self.mode](from_input, product(f"weight_hh{suffix}", before.hidden), before)
            if self.proj_size:
                new = State(product(f"weight_hr{suffix}", new.hidden), new.cell)
            state = state.updated(new)
            outputs.append(new.hidden)
        return torch.cat(outputs[::-1] if is_reverse else outputs), state

    def flatten_parameters(self) -> None:
        """Nothing to do: torch's layers put their weights in one piece here."""

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


class RecurrentCell(_Recurrent):
    """nn.LSTMCell, nn.GRUCell or nn.RNNCell, with their arguments and results."""

    def _set_sizes(self, module: Any) -> None:
        if isinstance(module, nn.LSTMCell):
            self.mode = "LSTM"
        elif isinstance(module, nn.GRUCell):
            self.mode = "GRU"
        else:
            self.mode = module.mode if isinstance(module, RecurrentCell) else f"RNN_{str(module.nonlinearity).upper()}"
        self.input_size, self.hidden_size = module.input_size, module.hidden_size

    @naming_its_layer
    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if input.ndim not in (1, 2):
            raise ValueError(f"an input of {list(input.shape)}; expected 1 (one sequence) or 2 dimensions")
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
        if hx is None:
            state = State(zeros, zeros if self.has_cell_state else None)
        else:
            state = State(hx) if isinstance(hx, Tensor) else State(*hx)
            if (state.cell is not None) != self.has_cell_state:
                raise ValueError(f"an initial state of {1 + (state.cell is not None)} tensors does not fit {self.mode}")
            for part in state:
                if part is not None and part.shape != zeros.shape:
                    raise ValueError(f"an initial state of {list(part.shape)}; expected {list(zeros.shape)}")
        product = self._products()
        from_input, from_hidden = product("weight_ih", input), product("weight_hh", state.hidden)
        new = STEPS[self.mode](from_input, from_hidden, state)
        return new.hidden if new.cell is None else (new.hidden, new.cell)

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}"


class _Mapped(_Recurrent):
    """With matrices, by the names that torch gives them, on arrays or digital, and biases."""

    def __init__(self, module: nn.Module, products: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name in self.sources(module):
            if name in products:
                self.add_module(name, MappedLinear(products[name], getattr(module, name), None))
            else:
                self.register_parameter(name, kept(effective_weight(module, name)))
            if bias := _bias_of(name):
                self.register_parameter(bias, kept(getattr(module, bias, None)))
        self.quantisers = kept_quantisers(module, products)

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> Self:
        return cls(module, products)

    def _products(self) -> Product:
        return self._product

    def _product(self, name: str, x: Tensor) -> Tensor:
        bias = getattr(self, _bias_of(name), None)
        return mapped_product(self.quantisers, name, x, getattr(self, name), bias)


class _Quantised(QuantisedLayerOfMany, _Recurrent):
    """With quantisers for the product with each matrix."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._set_sources(self.sources(module))

    def _products(self) -> Product:
        matrix = cache(self._matrix)  # the same at every time step

        def product(name: str, x: Tensor) -> Tensor:
            return self._finished(name, matrix(name)(x), getattr(self, _bias_of(name), None))

        return product


class MappedRecurrent(_Mapped, RecurrentLayer):
    """nn.LSTM, nn.GRU or nn.RNN on arrays."""

    forward = uncompiled(RecurrentLayer.forward)

    def __init__(self, module: nn.Module, products: Mapping[str, nn.Module]) -> None:
        super().__init__(module, products)
        self._set_sizes(module)


class MappedRecurrentCell(_Mapped, RecurrentCell):
    """nn.LSTMCell, nn.GRUCell or nn.RNNCell on arrays."""

    forward = uncompiled(RecurrentCell.forward)

    def __init__(self, module: nn.Module, products: Mapping[str, nn.Module]) -> None:
        super().__init__(module, products)
        self._set_sizes(module)


class QuantisedRecurrent(_Quantised, RecurrentLayer):
    """nn.LSTM, nn.GRU or nn.RNN with quantisers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._set_sizes(module)


class QuantisedRecurrentCell(_Quantised, RecurrentCell):
    """nn.LSTMCell, nn.GRUCell or nn.RNNCell with quantisers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._set_sizes(module)


def _bias_of(weight: str) -> str:
    """The name of the bias that is added to the product with `weight`; empty where there is none."""
    return "" if "weight_hr" in weight else weight.replace("weight", "bias")


def _in_order(states: State, order: Tensor | None) -> State:
    """Of tensors [layers, batch, size], with the batch in `order`."""
    return states if order is None else states.each(lambda part: part.index_select(1, order))
