"""Other uses of layers in networks besides calls: hooks, attributes, subclasses, dtypes, and reads of weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import memsim
from memsim.errors import InputError
from memsim.nn.chip import mapping_of
from tests.nn.layers import EXACT, PHYSICAL, drawn, exact, is_close, normal, quantised_layers
from tests.nn.test_quantised_networks import quantised

X = normal(3, 6)


class One(nn.Module):
    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.fc = layer or nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        assert isinstance(y, Tensor)
        return y


# --- hooks and attributes --------------------------------------------------------------------------------------------


def after(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def before(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (2 * inputs[0],)


def before_by_name(layer: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return (2 * inputs[0],), named


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "after": lambda layer: layer.register_forward_hook(after),
    "before": lambda layer: layer.register_forward_pre_hook(before),
    "before, with named arguments": lambda layer: layer.register_forward_pre_hook(before_by_name, with_kwargs=True),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 6), lambda: nn.utils.weight_norm(nn.Linear(6, 6))])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_hooks_of_a_layer_go_on(register: Callable[[nn.Module], object], make: Callable[[], nn.Module]) -> None:
    net = drawn(lambda: One(make()))
    plain = net(X)
    register(net[0].fc)
    wanted = net(X)
    assert (wanted - plain).abs().max() > 0.1
    is_close(exact(net)(X), wanted)
    is_close(quantised(net, X, bits=16, inputs=None, hardware=None)(X), wanted)


class Counts:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.count += 1


def test_a_chip_shares_no_hook_or_attribute_with_the_network() -> None:
    net = drawn(One)
    hook = net[0].fc.scales = Counts()
    net[0].fc.register_forward_hook(hook)
    chip = exact(net)
    chip(X)
    assert (chip[0].fc.scales.count, hook.count) == (1, 0)
    assert next(iter(chip[0].fc._forward_hooks.values())) is chip[0].fc.scales


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_tensors_and_children_put_on_a_layer_stay() -> None:
    def make() -> nn.Module:
        layer = nn.utils.weight_norm(nn.Linear(6, 6))
        layer.register_parameter("gain", nn.Parameter(torch.ones(6)))
        layer.register_buffer("shift", torch.arange(6.0))
        layer.add_module("norm", nn.LayerNorm(6))
        layer.register_forward_hook(lambda own, inputs, output: own.norm(output * own.gain + own.shift))
        return One(layer)

    net = drawn(make)
    wanted = net(X)
    chip = exact(net)
    is_close(chip(X), wanted)
    assert {name for name in chip.state_dict() if "matrix" not in name} == {
        f"0.fc.{name}" for name in ("bias", "gain", "shift", "norm.weight", "norm.bias")
    }
    assert chip[0].fc.gain is not net[0].fc.gain
    chip.load_state_dict(chip.state_dict())
    memsim.map_model(net, PHYSICAL, calibration=[X])(X)  # calibration runs hooks, too
    is_close(quantised(net, X, bits=16, inputs=None, hardware=None)(X), wanted)


def test_attributes_of_a_layer_stay() -> None:
    net = drawn(lambda: One(nn.Linear(6, 6)))
    net[0].fc.gain = 3.0
    for there in (exact(net)[0].fc, quantised(net, X)[0].fc):
        assert (there.in_features, there.out_features, there.gain) == (6, 6, 3.0)
    assert exact(drawn(lambda: nn.Conv1d(2, 2, 3, padding_mode="circular")))[0].padding_mode == "circular"
    assert exact(drawn(lambda: nn.LSTM(2, 2)))[0].bias is True
    assert exact(drawn(lambda: nn.MultiheadAttention(4, 2, kdim=3)))[0].in_proj_weight is None


def test_the_arguments_have_the_names_of_torchs() -> None:
    image, steps = normal(1, 6, 8), torch.tensor([1, 0])
    for make, x in (
        (lambda: nn.Linear(6, 3), X),
        (lambda: nn.Conv1d(6, 3, 3), image),
        (lambda: nn.ConvTranspose1d(6, 3, 3), image),
        (lambda: nn.Embedding(3, 4), steps),
    ):
        net = drawn(make)
        chip = memsim.map_model(net, EXACT | {"embeddings": ["*"]}, bits=16)
        is_close(chip[0](input=x), net[0](input=x))


# --- subclasses ------------------------------------------------------------------------------------------------------


class Renamed(nn.Linear):
    """What it computes is what its base does."""


class Causal(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (2, 0)))


class Linear(nn.Module):
    """One's own, by chance of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_derived_class_is_mapped_where_it_computes_as_its_base() -> None:
    net = drawn(
        lambda: nn.Sequential(
            Renamed(6, 6), nn.Unflatten(1, (6, 1)), Causal(6, 2, 3), nn.Flatten(), nn.Linear(2, 6), Linear()
        )
    )
    net[0][4].forward = lambda x: F.linear(x, net[0][4].weight)
    chip = exact(net)
    assert [layer.name for layer in mapping_of(chip).mapped] == ["0.0", "0.2"]  # Causal only pads its input
    assert {layer.name: layer.reason for layer in mapping_of(chip).digital} == {
        "0.4": "Linear, whose forward was replaced, stays digital",
        "0.5": f"{__name__}.Linear stays digital",
    }
    is_close(chip(X), net(X))
    assert [name for name, _ in quantised_layers(quantised(net, X))] == ["0.0"]


# --- one matrix of several names -------------------------------------------------------------------------------------


class Tied(nn.Module):
    """`output` shares the weight of `first`, `again` is `second`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.output = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.output.weight, self.again = self.first.weight, self.second

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.output(self.again(self.second(self.first(x)))))


@pytest.mark.parametrize(
    ("options", "digital"),
    [
        ({"exclude": ["output"]}, {"first": "--exclude output"}),
        ({"exclude": ["again"]}, {"second": "--exclude again"}),
        ({"include": ["again"]}, {"first": "not in --include"}),
        ({"spec": EXACT | {"digital": ["output*"]}}, {"first": "digital: output* (hardware spec)"}),
    ],
)
def test_any_name_of_a_matrix_names_it(options: dict[str, Any], digital: dict[str, str], recwarn: Any) -> None:
    net = drawn(Tied)[0]
    chip = memsim.map_model(net, **{"spec": EXACT, "bits": 16} | options)
    assert {layer.name: layer.reason for layer in mapping_of(chip).digital} == digital
    is_close(chip(X), net(X))
    assert not recwarn


# --- dtypes, and weights that are looked at --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_dtype(dtype: torch.dtype) -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc, self.last = nn.Embedding(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)

        def forward(self, indices: Tensor) -> Tensor:
            x = self.table(indices)
            return self.last(self.fc(x.float().to(self.fc.weight.dtype)))

    net = drawn(Casts).to(dtype)
    spec = EXACT | {"embeddings": ["*"]}
    for chip in (memsim.map_model(net, spec, bits=16), memsim.map_model(net.float(), spec, bits=16).to(dtype)):
        assert next(chip.parameters()).dtype == chip[0].table.weight.dtype == dtype
        is_close(chip(torch.arange(6)), net.to(dtype)(torch.arange(6)), tolerance=0.05)


def test_a_weight_on_arrays_says_what_it_is_like() -> None:
    chip = exact(drawn(lambda: One(nn.Linear(6, 4))))
    weight = chip[0].fc.weight
    assert torch.equal(weight.new_zeros(2, 3), torch.zeros(2, 3))
    assert torch.equal(weight.new_full((2,), 5.0), torch.full((2,), 5.0))
    assert torch.equal(torch.ones_like(weight), torch.ones(4, 6))
    assert torch.empty_like(weight, dtype=torch.float64).dtype == torch.float64
    assert type(weight.new_ones(1)) is Tensor


def test_an_embedding_on_arrays_has_the_looks_of_one() -> None:
    chip = memsim.map_model(drawn(lambda: nn.Embedding(5, 4, padding_idx=0)), EXACT | {"embeddings": ["*"]}, bits=8)
    assert (chip[0].weight.shape, chip[0].padding_idx) == ((5, 4), 0)
    with pytest.raises(InputError, match=r"^0: the network computes with this weight itself"):
        F.linear(normal(2, 4), chip[0].weight)


# --- calibration -----------------------------------------------------------------------------------------------------


class Remembers(nn.Module):
    """It changes as it runs: a state, a counter, and a table whose rows it shortens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(6, 6, max_norm=0.1), nn.Linear(6, 6)
        self.register_buffer("state", torch.zeros(6))
        self.runs = 0

    def forward(self, indices: Tensor) -> Tensor:
        self.runs += 1
        self.state = self.state + self.fc(self.table(indices)).mean(dim=0)
        return self.state


def test_calibration_changes_nothing_of_the_network() -> None:
    net = drawn(Remembers)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    chip = memsim.map_model(net, PHYSICAL, calibration=[torch.arange(6)])
    for model in (net, chip):
        assert model[0].runs == 0
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name in before)
    assert mapping_of(chip).layers["0.fc"].is_calibrated


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"x": X}, "a batch of named arguments goes in a list"),
        ([], "ran none of the layers"),
        (lambda net: None, "ran none of the layers"),
    ],
)
def test_calibration_that_sets_nothing(calibration: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"^calibration: .*{said}"):
        memsim.map_model(drawn(One), PHYSICAL, calibration=calibration)


def test_a_packed_sequence_is_one_argument() -> None:
    packed = pack_sequence([X, X[:2]])
    chip = memsim.map_model(drawn(lambda: nn.LSTM(6, 4)), PHYSICAL, calibration=[packed])
    assert isinstance(chip[0](packed)[0], PackedSequence)


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_what_cannot_be_copied_is_named() -> None:
    net = drawn(One)
    net[0].lock = threading.Lock()
    with pytest.raises(InputError, match=r"^0\.lock: cannot be copied, so the network cannot: .*lock"):
        exact(net)
    net = drawn(One)
    net[0].fc.lock = threading.Lock()
    with pytest.raises(InputError, match=r"^0\.fc: has an attribute that cannot be copied.*lock"):
        exact(net)


def test_weights_without_values_or_real_numbers() -> None:
    with pytest.raises(InputError, match=r"^0: its weight has no values yet"):
        exact(nn.Sequential(nn.Linear(3, 3, device="meta")))
    with pytest.raises(InputError, match=r"^0: its weight is complex; exclude=\['0'\] keeps it digital"):
        exact(nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64)))


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*torch.jit.freeze")
def test_a_frozen_script_stays_digital() -> None:
    net = nn.Sequential(torch.jit.freeze(torch.jit.script(drawn(One))), nn.Linear(6, 2))
    assert [layer.name for layer in mapping_of(exact(net)).mapped] == ["1"]


def test_globs_of_the_spec_that_match_nothing() -> None:
    with pytest.warns(UserWarning, match=r": digital: fc_typo matches no layer"):
        memsim.map_model(drawn(One), EXACT | {"digital": ["fc_typo"]})


@pytest.mark.parametrize("spec", [EXACT, PHYSICAL], ids=["ideal cells", "real cells"])
def test_the_state_of_a_chip_of_more_bits_is_refused(spec: dict[str, Any]) -> None:
    net = drawn(One)
    with pytest.raises(RuntimeError, match=r"levels are -?\d+ to 127, beyond the 7 of 4 bits"):
        memsim.map_model(net, spec, bits=4).load_state_dict(memsim.map_model(net, spec, bits=8).state_dict())
