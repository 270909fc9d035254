"""Recurrent layers on arrays against torch's, and the number of their reads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import memsim
from memsim.nn import recurrent
from memsim.nn.chip import mapping_of
from tests.nn.layers import PHYSICAL, drawn, exact, is_close, normal

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

LENGTHS = [4, 7, 1]
RECURRENT: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "projected lstm": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=2, **options),
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "relu rnn": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


def states(layer: nn.Module, batch: tuple[int, ...]) -> Any:
    """Initial states [layers * directions, *batch, size]."""
    count = layer.num_layers * (1 + layer.bidirectional)
    hidden = normal(count, *batch, layer.proj_size or layer.hidden_size, seed=8)
    return (hidden, normal(count, *batch, layer.hidden_size, seed=9)) if isinstance(layer, nn.LSTM) else hidden


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize(("layers", "bidirectional", "bias"), [(1, False, True), (2, True, False), (3, True, True)])
def test_recurrent_layers(kind: str, layers: int, bidirectional: bool, bias: bool) -> None:
    for batch_first in (False, True):
        options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
        net = drawn(lambda o=options: RECURRENT[kind](3, 5, **o))
        layer, chip = net[0], exact(net)[0]
        x = normal(4, 7, 3)
        batch = (4,) if batch_first else (7,)
        is_close(chip(x), layer(x))
        is_close(chip(x, states(layer, batch)), layer(x, states(layer, batch)))
        is_close(chip(x[0]), layer(x[0]))  # one sequence
        is_close(chip(x[0], states(layer, ())), layer(x[0], states(layer, ())))
        assert chip.flatten_parameters() is None


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences(kind: str, bidirectional: bool) -> None:
    net = drawn(lambda: RECURRENT[kind](3, 5, num_layers=2, bidirectional=bidirectional))
    layer, chip = net[0], exact(net)[0]
    packed = pack_sequence([normal(n, 3, seed=n) for n in LENGTHS], enforce_sorted=False)
    for more in ((), (states(layer, (3,)),)):
        (got, got_state), (wanted, wanted_state) = chip(packed, *more), layer(packed, *more)
        assert isinstance(got, PackedSequence)
        is_close(got_state, wanted_state)
        is_close(pad_packed_sequence(got), pad_packed_sequence(wanted))
    in_order = pack_padded_sequence(normal(5, 2, 3), torch.tensor([5, 2]))
    is_close(chip(in_order)[0].data, layer(in_order)[0].data)


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        (nn.LSTMCell, "LSTM"),
        (nn.GRUCell, "GRU"),
        (nn.RNNCell, "RNN_TANH"),
        (lambda *sizes, **options: nn.RNNCell(*sizes, nonlinearity="relu", **options), "RNN_RELU"),
    ],
)
def test_recurrent_cells(make: Callable[..., nn.Module], mode: str) -> None:
    for bias, batch in product((True, False), ((), (4,))):
        net = drawn(lambda b=bias: make(3, 5, bias=b))
        cell, chip = net[0], exact(net)[0]
        hidden = normal(*batch, 5, seed=3)
        given = (hidden, normal(*batch, 5, seed=4)) if make is nn.LSTMCell else hidden
        x = normal(*batch, 3)
        is_close(chip(x), cell(x))
        is_close(chip(x, given), cell(x, given))
        assert f"MappedRecurrentCell(\n  {mode}, 3, 5\n" in repr(chip)


def test_inputs_that_do_not_fit_are_refused() -> None:
    chip = exact(drawn(lambda: nn.LSTM(3, 5)))[0]
    with pytest.raises(ValueError, match=r"an initial state of \[1, 2, 5\]; expected \[1, 4, 5\]"):
        chip(normal(7, 4, 3), (normal(1, 2, 5), normal(1, 2, 5)))
    with pytest.raises(ValueError, match="it has no time steps"):
        chip(normal(0, 4, 3))
    with pytest.raises(ValueError, match=r"0\.weight_ih_l0: its input has 2 features, the matrix has 3"):
        chip(normal(7, 4, 2))
    with pytest.raises(ValueError, match="does not fit LSTM"):
        chip(normal(7, 4, 3), normal(1, 4, 5))
    cell = exact(drawn(lambda: nn.GRUCell(3, 5)))[0]
    with pytest.raises(ValueError, match=r"an input of \[7, 4, 3\]; expected 1 \(one sequence\) or 2 dimensions"):
        cell(normal(7, 4, 3))


def test_dropout_lies_between_the_layers_in_training_alone() -> None:
    """With a probability of 1 nothing is left to chance: the second layer sees zeros."""
    net, x = drawn(lambda: nn.LSTM(3, 5, num_layers=2, dropout=1.0)), normal(6, 4, 3)
    layer, chip = net[0].train(), exact(net)[0].train()
    in_training = chip(x)
    is_close(in_training, layer(x))
    is_close(chip.eval()(x), layer.eval()(x))
    assert not torch.allclose(in_training[0], chip(x)[0], atol=0.01)


def test_each_time_step_reads_the_same_arrays_with_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net = drawn(lambda: nn.GRU(3, 5))
    x = normal(1, 4, 3).expand(6, 4, 3)
    loud = {**PHYSICAL, "adc": "none", "read_noise": {"shot_scale": 100.0}}
    chip = memsim.map_model(net, loud, calibration=[normal(6, 4, 3)])
    arrays = {name: matrix.states.clone() for name, matrix in mapping_of(chip).layers.items()}
    reads: dict[str, list[Tensor]] = {name: [] for name in arrays}
    for name, matrix in mapping_of(chip).layers.items():
        matrix.register_forward_hook(lambda _, __, y, name=name: reads[name].append(y))
    zero_step = lambda from_input, from_hidden, state: state  # noqa: E731 (every step then reads the same hidden state)
    monkeypatch.setitem(recurrent.STEPS, "GRU", zero_step)
    chip[0](x, torch.ones(1, 4, 5))
    (inputs,), hidden = reads["0.weight_ih_l0"], reads["0.weight_hh_l0"]
    assert inputs.shape == (24, 15)
    assert len(hidden) == 6
    assert all(y.shape == (4, 15) for y in hidden)
    mean = torch.stack(hidden).mean(0)
    for one, other in pairwise(hidden):
        assert (one != other).all()
        assert (one - other).norm() < 0.5 * mean.norm()  # the same cells
    for name, matrix in mapping_of(chip).layers.items():
        assert torch.equal(matrix.states, arrays[name])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_recurrent_layers_of_any_size(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(RECURRENT)))
    inputs, hidden = data.draw(st.integers(1, 20)), data.draw(st.integers(3, 20))  # a projection is to 2
    options = {"num_layers": data.draw(st.integers(1, 2)), "bidirectional": data.draw(st.booleans())}
    net = drawn(lambda: RECURRENT[kind](inputs, hidden, **options))
    layer, chip = net[0], exact(net)[0]
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    packed = pack_sequence([normal(length, inputs, seed=length) for length in lengths], enforce_sorted=False)
    given_states = (states(layer, (len(lengths),)),) if data.draw(st.booleans()) else ()
    (got, got_state), (wanted, wanted_state) = chip(packed, *given_states), layer(packed, *given_states)
    is_close(pad_packed_sequence(got), pad_packed_sequence(wanted))
    is_close(got_state, wanted_state)
    x = normal(lengths[0], len(lengths), inputs)
    is_close(chip(x, *given_states), layer(x, *given_states))
