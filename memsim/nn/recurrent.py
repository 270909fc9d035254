"""LSTM, GRU and RNN on simulated arrays, and in training for them.

Every time step reads the same arrays, with its own noise.
"""

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
from memsim.nn.quantised_product import QuantisedLayerOfMany, copied_quantisers, finished
from memsim.nn.sources import WeightSource, effective_weight, frozen_copy


class State(NamedTuple):
    """The state of a cell: `hidden` [batch, hidden or projected], and in an LSTM `cell` [batch, hidden]."""

    hidden: Tensor
    cell: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> State:
        """Apply `change` to both tensors."""
        return State(change(self.hidden), None if self.cell is None else change(self.cell))

    def first(self, count: int) -> State:
        """Return the state of the first `count` sequences."""
        return self.each(lambda part: part[:count])

    def updated(self, new: State) -> State:
        """Return the state with `new` in place of that of the first sequences."""
        count = len(new.hidden)
        hidden = torch.cat([new.hidden, self.hidden[count:]])
        if self.cell is None or new.cell is None:
            return State(hidden)
        return State(hidden, torch.cat([new.cell, self.cell[count:]]))


def lstm_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    """Return an LSTM's next state, before projection, from the gates' inputs [batch, 4 * hidden] (torch's order)."""
    assert state.cell is not None
    keep_in, forget, new, out = (from_input + from_hidden).chunk(4, dim=-1)
    cell = forget.sigmoid() * state.cell + keep_in.sigmoid() * new.tanh()
    return State(out.sigmoid() * cell.tanh(), cell)


def gru_step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    """Return a GRU's next state from the gates' inputs [batch, 3 * hidden] (torch's order)."""
    reset_in, update_in, new_in = from_input.chunk(3, dim=-1)
    reset_hidden, update_hidden, new_hidden = from_hidden.chunk(3, dim=-1)
    new = (new_in + (reset_in + reset_hidden).sigmoid() * new_hidden).tanh()
    return State(new + (update_in + update_hidden).sigmoid() * (state.hidden - new))


STEPS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "LSTM": lstm_step,
    "GRU": gru_step,
    "RNN_TANH": lambda from_input, from_hidden, _: State((from_input + from_hidden).tanh()),
    "RNN_RELU": lambda from_input, from_hidden, _: State((from_input + from_hidden).relu()),
}
"""The step of each kind of cell, by the `mode` of torch's nn.RNNBase."""

Product = Callable[[str, Tensor], Tensor]
"""A function of the name of a matrix and an input that returns their product, with the bias if there is one."""


class _Recurrent(NamedLayer):
    """A recurrent layer or cell, mapped or in training."""

    mode: str

    def _products(self) -> Product:
        """Return the product function for one forward pass."""
        raise NotImplementedError

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        """Return the matrices by the names of torch's parameters: weight_ih_l0, weight_hh_l0 and so on."""
        return {name: WeightSource.of(name, tuple(getattr(module, name).shape)) for name in _weights(module)}

    def _initial(
        self,
        hx: Tensor | tuple[Tensor, Tensor] | None,
        like: Tensor,
        shape: tuple[int, ...],
        cell_shape: tuple[int, ...],
    ) -> State:
        """Return the state before the first step: `hx`, or by default zeros with the dtype and device of `like`."""
        has_cell = self.mode == "LSTM"
        if hx is None:
            return State(like.new_zeros(shape), like.new_zeros(cell_shape) if has_cell else None)
        given = State(hx) if isinstance(hx, Tensor) else State(*hx)
        if (given.cell is not None) != has_cell:
            raise ValueError(f"an initial state of {1 + (given.cell is not None)} tensors does not fit {self.mode}")
        for part, wanted in zip(given, (shape, cell_shape), strict=True):
            if part is not None and part.shape != wanted:
                raise ValueError(f"an initial state of {list(part.shape)}; expected {list(wanted)}")
        return given


def _weights(module: Any) -> Iterator[str]:
    if isinstance(module, nn.RNNCellBase | RecurrentCell):
        yield from ("weight_ih", "weight_hh")
        return
    kinds = ("weight_ih", "weight_hh", *(["weight_hr"] if module.proj_size else []))
    for layer in range(module.num_layers):
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            yield from (f"{kind}_l{layer}{direction}" for kind in kinds)


class RecurrentLayer(_Recurrent):
    """An nn.LSTM, nn.GRU or nn.RNN, with their arguments and results, packed sequences included.

    The product of the input is computed for all time steps at once, that of the hidden state at every step.
    """

    def _copy_sizes(self, module: Any) -> None:
        self.mode = module.mode
        self.input_size, self.hidden_size, self.proj_size = module.input_size, module.hidden_size, module.proj_size
        self.num_layers, self.bidirectional = module.num_layers, module.bidirectional
        self.batch_first, self.dropout = module.batch_first, module.dropout

    @naming_its_layer
    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, Tensor]]:
        """Return the outputs and the final states, as torch's layer does.

        Raises ValueError where the shape of the input or of the initial states does not fit.
        """
        if isinstance(input, PackedSequence):
            sizes, order, restored = input.batch_sizes.tolist(), input.sorted_indices, input.unsorted_indices
            data, state = self._run(input.data, sizes, _in_order(self._before(hx, input.data, sizes[0]), order))
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
        data, state = self._run(by_step.flatten(0, 1), [batch] * steps, self._before(hx, by_step, batch))
        output = data.unflatten(0, (steps, batch))
        if not has_batch:
            output = output[:, 0]
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, self._as_given(state, has_batch)

    def _before(self, hx: Tensor | tuple[Tensor, Tensor] | None, like: Tensor, batch: int) -> State:
        """Return the states [layers * directions, batch, size] before the first step."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        shape = (count, batch, self.proj_size or self.hidden_size)
        return self._initial(hx, like, shape, (count, batch, self.hidden_size))

    def _as_given(self, state: State, has_batch: bool) -> Tensor | tuple[Tensor, Tensor]:
        """Return the final states as torch does."""
        hidden, cell = state if has_batch else state.each(lambda part: part[:, 0])
        return hidden if cell is None else (hidden, cell)

    def _run(self, data: Tensor, sizes: list[int], initial: State) -> tuple[Tensor, State]:
        """Run all layers over `data` [frames, in], with `sizes[t]` frames in step t: the outputs and final states."""
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
        """Run one direction of a layer. A sequence that has ended, or has not begun, keeps its state."""
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
        """Do nothing: the method exists for networks that call it on torch's layers."""

    def extra_repr(self) -> str:
        """Return the kind of cell and the sizes."""
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


class RecurrentCell(_Recurrent):
    """An nn.LSTMCell, nn.GRUCell or nn.RNNCell, with their arguments and results."""

    def _copy_sizes(self, module: Any) -> None:
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
        """Return the next state, as torch's cell does.

        Raises ValueError where the shape of the input or of the state does not fit.
        """
        if input.ndim not in (1, 2):
            raise ValueError(f"an input of {list(input.shape)}; expected 1 (one sequence) or 2 dimensions")
        shape = (*input.shape[:-1], self.hidden_size)
        state = self._initial(hx, input, shape, shape)
        product = self._products()
        from_input, from_hidden = product("weight_ih", input), product("weight_hh", state.hidden)
        new = STEPS[self.mode](from_input, from_hidden, state)
        return new.hidden if new.cell is None else (new.hidden, new.cell)

    def extra_repr(self) -> str:
        """Return the kind of cell and the sizes."""
        return f"{self.mode}, {self.input_size}, {self.hidden_size}"


class _Mapped(_Recurrent):
    """A recurrent layer or cell whose matrices, by torch's names, are on arrays or digital."""

    def __init__(self, module: nn.Module, products: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._copy_sizes(module)
        for name in self.sources(module):
            if name in products:
                self.add_module(name, MappedLinear(products[name], getattr(module, name), None))
            else:
                self.register_parameter(name, frozen_copy(effective_weight(module, name)))
            if bias := _bias_of(name):
                self.register_parameter(bias, frozen_copy(getattr(module, bias, None)))
        self.quantisers = copied_quantisers(module, products)

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> Self:
        """Return the layer in place of `module`, whose matrices `products` are on arrays."""
        return cls(module, products)

    def _products(self) -> Product:
        return self._product

    def _product(self, name: str, x: Tensor) -> Tensor:
        bias = getattr(self, _bias_of(name), None)
        return mapped_product(self.quantisers, name, x, getattr(self, name), bias)


class _Quantised(QuantisedLayerOfMany, _Recurrent):
    """A recurrent layer or cell with quantisers for the product of each matrix."""

    def _products(self) -> Product:
        matrix = cache(self._matrix)  # the same at every time step

        def product(name: str, x: Tensor) -> Tensor:
            bias = getattr(self, _bias_of(name), None)
            return finished(matrix(name)(x), bias, self.products[name].output_quantiser)

        return product


class MappedRecurrent(_Mapped, RecurrentLayer):
    """An nn.LSTM, nn.GRU or nn.RNN on arrays."""

    forward = uncompiled(RecurrentLayer.forward)


class MappedRecurrentCell(_Mapped, RecurrentCell):
    """An nn.LSTMCell, nn.GRUCell or nn.RNNCell on arrays."""

    forward = uncompiled(RecurrentCell.forward)


class QuantisedRecurrent(_Quantised, RecurrentLayer):
    """An nn.LSTM, nn.GRU or nn.RNN with quantisers."""


class QuantisedRecurrentCell(_Quantised, RecurrentCell):
    """An nn.LSTMCell, nn.GRUCell or nn.RNNCell with quantisers."""


def _bias_of(weight: str) -> str:
    """Return the name of the bias that is added to the product of `weight`; empty for a projection, which has none."""
    return "" if "weight_hr" in weight else weight.replace("weight", "bias")


def _in_order(states: State, order: Tensor | None) -> State:
    """Return states, tensors [layers, batch, size], with the batch in `order`."""
    return states if order is None else states.each(lambda part: part.index_select(1, order))
