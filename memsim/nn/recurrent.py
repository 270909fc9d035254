"""LSTM, GRU and RNN on simulated arrays: every time step reads the same arrays, with noise of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from memsim.nn.linear import MappedLinear
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


class _Recurrent(nn.Module):
    """What layers and cells share: matrices by the names that torch gives them, on arrays or digital, and biases."""

    def __init__(self, module: nn.Module, mode: str, products: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.mode = mode
        for name in self.sources(module):
            if name in products:
                self.add_module(name, MappedLinear(products[name], None))
            else:
                self.register_buffer(name, kept(effective_weight(module, name)))
            bias = name.replace("weight", "bias")
            if "weight_hr" not in name:
                self.register_buffer(bias, kept(getattr(module, bias, None)))

    @classmethod
    def sources(cls, module: nn.Module) -> dict[str, WeightSource]:
        """By the names of torch's parameters: weight_ih_l0, weight_hh_l0, ..."""
        return {name: WeightSource.of(name, tuple(getattr(module, name).shape)) for name in _weights(module)}

    def _product(self, name: str, x: Tensor) -> Tensor:
        """`x` times the matrix `name`, with its bias where there is one."""
        weight = getattr(self, name)
        product: Tensor = F.linear(x, weight.to(x.dtype)) if isinstance(weight, Tensor) else weight(x)
        bias = getattr(self, name.replace("weight", "bias"), None)
        return product if bias is None else product + bias.to(product.dtype)

    @property
    def has_cell_state(self) -> bool:
        return self.mode == "LSTM"


def _weights(module: nn.Module) -> Iterator[str]:
    if isinstance(module, nn.RNNCellBase):
        yield from ("weight_ih", "weight_hh")
        return
    assert isinstance(module, nn.RNNBase)
    kinds = ("weight_ih", "weight_hh", *(["weight_hr"] if module.proj_size else []))
    for layer in range(module.num_layers):
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            yield from (f"{kind}_l{layer}{direction}" for kind in kinds)


class MappedRecurrent(_Recurrent):
    """nn.LSTM, nn.GRU or nn.RNN, with their arguments and results, packed sequences included.

    The matrices are named as torch's parameters. The input of all time steps is read from the input matrix at once;
    the recurrent matrix is read at every step.
    """

    def __init__(self, module: nn.RNNBase, products: Mapping[str, nn.Module]) -> None:
        super().__init__(module, module.mode, products)
        self.input_size, self.hidden_size, self.proj_size = module.input_size, module.hidden_size, module.proj_size
        self.num_layers, self.bidirectional = module.num_layers, module.bidirectional
        self.batch_first, self.dropout = module.batch_first, module.dropout

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> MappedRecurrent:
        return cls(module, products)

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
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                data = F.dropout(data, self.dropout, self.training)
            outputs = []
            for suffix in (f"_l{layer}", f"_l{layer}_reverse") if self.bidirectional else (f"_l{layer}",):
                index = len(finals)
                before = State(initial.hidden[index], None if initial.cell is None else initial.cell[index])
                output, final = self._run_direction(data, sizes, before, suffix)
                outputs.append(output)
                finals.append(final)
            data = torch.cat(outputs, dim=-1)
        hidden = torch.stack([final.hidden for final in finals])
        cells = [final.cell for final in finals if final.cell is not None]
        return data, State(hidden, torch.stack(cells) if cells else None)

    def _run_direction(self, data: Tensor, sizes: list[int], state: State, suffix: str) -> tuple[Tensor, State]:
        """One direction of a layer. A sequence that has ended, or not yet begun, keeps its state."""
        by_step = list(self._product(f"weight_ih{suffix}", data).split(sizes))
        is_reverse = suffix.endswith("_reverse")
        outputs = []
        for from_input in reversed(by_step) if is_reverse else by_step:
            before = state.first(len(from_input))
            new = STEPS[self.mode](from_input, self._product(f"weight_hh{suffix}", before.hidden), before)
            if self.proj_size:
                new = State(self._product(f"weight_hr{suffix}", new.hidden), new.cell)
            state = state.updated(new)
            outputs.append(new.hidden)
        return torch.cat(outputs[::-1] if is_reverse else outputs), state

    def flatten_parameters(self) -> None:
        """Nothing to do: torch's layers put their weights in one piece here."""

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


class MappedRecurrentCell(_Recurrent):
    """nn.LSTMCell, nn.GRUCell or nn.RNNCell, with their arguments and results."""

    def __init__(self, module: nn.RNNCellBase, products: Mapping[str, nn.Module]) -> None:
        if isinstance(module, nn.LSTMCell):
            mode = "LSTM"
        else:
            mode = "GRU" if isinstance(module, nn.GRUCell) else f"RNN_{str(module.nonlinearity).upper()}"
        super().__init__(module, mode, products)
        self.input_size, self.hidden_size = module.input_size, module.hidden_size

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> MappedRecurrentCell:
        return cls(module, products)

    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
        if hx is None:
            state = State(zeros, zeros if self.has_cell_state else None)
        else:
            state = State(hx) if isinstance(hx, Tensor) else State(*hx)
        from_input, from_hidden = self._product("weight_ih", input), self._product("weight_hh", state.hidden)
        new = STEPS[self.mode](from_input, from_hidden, state)
        return new.hidden if new.cell is None else (new.hidden, new.cell)

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}"


def _in_order(states: State, order: Tensor | None) -> State:
    """Of tensors [layers, batch, size], with the batch in `order`."""
    return states if order is None else states.each(lambda part: part.index_select(1, order))
