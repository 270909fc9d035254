"""Layers with a forward of their own, and experts in one tensor: they are mapped exactly or not at all."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from threading import Lock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import memsim
from memsim.errors import InputError
from memsim.hardware import load_hardware
from memsim.nn.chip import mapping_of, remap
from memsim.nn.mapping import measure_inputs
from memsim.nn.plan import Selection, plan_modules
from tests.nn.layers import EXACT, PHYSICAL, drawn, exact, is_close, normal


class TurnedConv(nn.Conv1d):
    """As Parakeet's CTC head."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states.transpose(1, 2)).transpose(1, 2)


class CausalConv(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class SamePaddedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ImageOfOneChannel(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(1))


class OwnConvForward(nn.Conv1d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv1d(input, weight, None, self.stride, "same", self.dilation, self.groups)


class Upsampled(nn.ConvTranspose1d):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[..., : -self.stride[0]]


class WithProduct(nn.Linear):
    """As Falcon's linear layer: it multiplies by the weight itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class InFloat32(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float()).to(x.dtype)


class Flattening(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x).relu())


class Adapted(nn.Linear):
    """With an adapter, as LoRA puts beside a layer: its parts are layers or parameters."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self.down, self.up = nn.Linear(features, 2, bias=False), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(self.down(x), self.up)


class Pair(nn.Linear):
    """As Megatron's layers, which leave the bias to others."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.linear(x, self.weight), self.bias.expand(*x.shape[:-1], -1)]).sum(0)


class Added(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight.t()).view(*x.shape[:-1], -1)


class InItsType(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.double().type_as(self.weight), self.weight.type_as(x), self.bias)


RESHAPING: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "turned": (lambda: TurnedConv(6, 4, 1), normal(2, 9, 6)),
    "turned, a kernel of 3 and groups": (lambda: TurnedConv(6, 4, 3, groups=2, stride=2), normal(2, 9, 6)),
    "causal": (lambda: CausalConv(3, 4, 3, dilation=2), normal(2, 3, 9)),
    "same": (lambda: SamePaddedConv(4, 6, 3, groups=2, stride=2), normal(2, 4, 7, 8)),
    "one channel": (lambda: ImageOfOneChannel(1, 4, 3), normal(2, 7, 8)),
    "conv forward": (lambda: OwnConvForward(3, 4, 5, dilation=2), normal(2, 3, 12)),
    "circular": (lambda: CausalConv(3, 4, 3, padding=1, padding_mode="circular"), normal(2, 3, 9)),
    "transposed": (lambda: Upsampled(4, 6, 4, stride=2, groups=2, output_padding=1), normal(2, 4, 5)),
    "product": (lambda: WithProduct(6, 4), normal(2, 3, 6)),
    "square product": (lambda: WithProduct(5, 5), normal(2, 3, 5)),
    "float": (lambda: InFloat32(6, 4), normal(2, 3, 6)),
    "flattening": (lambda: Flattening(6, 4), normal(2, 3, 6)),
    "twice": (lambda: Twice(5, 5), normal(2, 3, 5)),
    "adapted": (lambda: Adapted(6, 4), normal(2, 3, 6)),
    "pair": (lambda: Pair(6, 4), normal(2, 3, 6)),
    "added": (lambda: Added(6, 4), normal(2, 3, 6)),
    "type": (lambda: InItsType(6, 4), normal(2, 3, 6)),
}


@pytest.mark.parametrize("name", RESHAPING)
def test_a_forward_around_the_product_stays(name: str) -> None:
    make, x = RESHAPING[name]
    net = drawn(make)
    chip = exact(net)
    assert "0" in {layer.name for layer in mapping_of(chip).mapped}
    wanted = net(x)
    is_close(chip(x), wanted)
    for copied in (copy.deepcopy(chip), pickle.loads(pickle.dumps(chip))):
        assert torch.equal(copied(x), chip(x))
    assert isinstance(chip[0], type(net[0]))
    assert "0.weight" not in chip.state_dict()
    assert torch.equal(net(x), wanted)
    physical = memsim.map_model(net, PHYSICAL, calibration=[x])
    error = float((physical(x) - wanted).detach().norm() / wanted.detach().norm())
    assert 1e-3 < error < 1
    again = memsim.map_model(net, PHYSICAL, calibration=measure_inputs(net, [x]))
    for one in (physical, again):
        mapping_of(one).begin_batch("0")
    size = float(physical(x).detach().abs().max())  # ranges differ: statistics hold a sample of the inputs
    torch.testing.assert_close(physical(x), again(x), rtol=0, atol=0.05 * size)
    other = remap(physical, mapping_of(physical).spec, seed=7, statistics=measure_inputs(net, [x]))
    assert not torch.equal(other(x), physical(x))


def test_what_is_in_such_a_layer_is_mapped_apart() -> None:
    net = drawn(lambda: Adapted(6, 4))
    chip = exact(net)
    for line in ("(0): AdaptedOnArrays(\n", "(down): MappedLinear(6 -> 2, 16 bits, ", "(matrix): MappedMatrix("):
        assert line in repr(chip)
    mapping = mapping_of(chip)
    assert [layer.name for layer in mapping.mapped] == ["0", "0.down"]
    assert [(layer.name, layer.shape, layer.weights) for layer in mapping.digital] == [("0.up", (4, 2), 8)]
    assert (mapping.weights_on_arrays, mapping.weights) == (6 * 4 + 2 * 6, 44)
    assert mapping.fraction_on_arrays == 36 / 44


class Standardised(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.tril(), self.bias)


class Normalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


class WrongWay(nn.Linear):
    """A square weight that is not turned round: another matrix than a linear layer's."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Penalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.weight.square().sum()


class Part(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:2], self.bias[:2])


class Unused(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Asking(nn.Linear):
    """It takes what no trial gives it."""

    def forward(self, x: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(x["x"])


class OwnCall(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class Raising(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise SystemError("no trials")


class HalfAdded(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight.t(), beta=0.5).view(*x.shape[:-1], -1)


class OfItself(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight @ self.weight, self.bias)


class Unbound(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        first, *_ = self.weight.unbind()
        return F.linear(x, self.weight, self.bias) * first.sum()


class TurnedTaps(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight.transpose(0, 1), self.bias)


class OtherGroups(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x[:, :2], self.weight, self.bias, groups=1)


COMPUTING: dict[str, Callable[[], nn.Module]] = {
    "standardised": lambda: Standardised(3, 4, 3),
    "masked": lambda: Masked(5, 5),
    "normalised": lambda: Normalised(6, 4),
    "wrong way": lambda: WrongWay(5, 5),
    "penalised": lambda: Penalised(6, 4),
    "part": lambda: Part(6, 4),
    "unused": lambda: Unused(6, 4),
    "asking": lambda: Asking(6, 4),
    "call": lambda: OwnCall(6, 4),
    "raising": lambda: Raising(6, 4),
    "groups": lambda: OtherGroups(4, 4, 3, groups=2),
    "half added": lambda: HalfAdded(6, 4),
    "of itself": lambda: OfItself(5, 5),
    "unbound": lambda: Unbound(6, 4),
    "turned taps": lambda: TurnedTaps(4, 4, 3),
}


@pytest.mark.parametrize("name", COMPUTING)
def test_a_forward_that_computes_something_else_stays_digital(name: str) -> None:
    net = drawn(COMPUTING[name])
    mapping = mapping_of(exact(nn.Sequential(net, nn.Linear(2, 2))))
    assert [layer.name for layer in mapping.mapped] == ["1"]
    (digital,) = mapping.digital
    assert "with a forward of its own, stays digital" in digital.reason
    assert digital.weights == net[0].weight.numel()


class HalfOfStates(nn.GRU):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0] / 2


def test_a_forward_around_a_recurrent_layer_stays_digital() -> None:
    net, x = drawn(lambda: HalfOfStates(4, 3)), normal(5, 2, 4)
    chip = exact(net)
    assert not mapping_of(chip).mapped
    assert torch.equal(chip(x), net(x))


class Locked(nn.Linear):
    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self.lock = Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return super().forward(x)


def test_a_layer_that_cannot_be_copied_is_not_tried() -> None:
    net = nn.Sequential(Locked(6, 4), nn.Linear(4, 4))
    plan = plan_modules(net, load_hardware(EXACT), Selection())
    assert [layer.name for layer in plan.mapped] == ["1"]
    assert [layer.name for layer in plan.digital] == ["0"]
    with pytest.raises(InputError, match=r"^0\.lock: cannot be copied, so the network cannot: cannot pickle"):
        exact(net)


class Counting(TurnedConv):
    def __init__(self) -> None:
        super().__init__(6, 4, 1)
        self.calls: list[int] = []
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.calls.append(1)
        self.seen += torch.rand(())
        return super().forward(hidden_states)


def test_a_trial_leaves_no_trace() -> None:
    net = drawn(Counting)
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    chip = exact(net)
    assert torch.equal(torch.rand(1), wanted)
    assert (net[0].calls, float(net[0].seen)) == ([], float(chip[0].seen))
    chip(normal(2, 9, 6))
    assert net[0].calls == []
    assert chip[0].calls == [1]


def test_a_layer_that_later_computes_otherwise_says_so() -> None:
    class Switching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.ndim < 5 else x @ self.weight.square().T

    chip = exact(drawn(lambda: Switching(5, 4)))
    with pytest.raises(InputError, match=r"^0: the network computes with this weight itself.*exclude=\['0'\]"):
        chip(normal(1, 1, 1, 1, 5))


# --- experts ---------------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """As Mixtral's in transformers 5."""

    turned = False

    def __init__(self, experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.num_experts = experts
        up, down = (2 * inner, hidden), (hidden, inner)
        self.gate_up_proj = nn.Parameter(torch.empty(experts, *(up[::-1] if self.turned else up)))
        self.down_proj = nn.Parameter(torch.empty(experts, *(down[::-1] if self.turned else down)))

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            token, place = torch.where(top_k_index == expert)
            if not len(token):
                continue
            gate, up = self.product(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            y = self.product(gate.sigmoid() * up, self.down_proj[expert]) * top_k_weights[token, place, None]
            result.index_add_(0, token, y)
        return result


class TurnedExperts(Experts):
    turned = True

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight


class UnboundExperts(Experts):
    """With the weights of each expert by iteration, and by a tensor of its number."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden_states)
        downs = self.down_proj.unbind()
        for number, gate_up in zip(torch.arange(self.num_experts), self.gate_up_proj, strict=True):
            token, place = torch.where(top_k_index == number)
            gate, up = F.linear(hidden_states[token], gate_up).chunk(2, dim=-1)
            down = downs[number] if number % 2 else self.down_proj[number]
            result.index_add_(0, token, F.linear(gate.sigmoid() * up, down) * top_k_weights[token, place, None])
        return result


class BatchedExperts(TurnedExperts):
    """Every expert multiplies every row, as OpenAI's open models do in training."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        rows = hidden_states.expand(self.num_experts, *hidden_states.shape)
        gate, up = torch.bmm(rows, self.gate_up_proj).chunk(2, dim=-1)
        each = (gate.sigmoid() * up) @ self.down_proj  # [experts, rows, hidden]
        weights = torch.zeros(len(hidden_states), self.num_experts).scatter(1, top_k_index, top_k_weights)
        return torch.einsum("ne,enh->nh", weights, each)


class Mixture(nn.Module):
    def __init__(self, kind: type[Experts], experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(hidden, experts), kind(experts, hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(min(2, self.gate.out_features))
        result: Tensor = self.experts(x, chosen, weights)
        return result


@pytest.mark.parametrize("kind", [Experts, TurnedExperts, UnboundExperts, BatchedExperts])
@settings(max_examples=5)
@given(experts=st.integers(1, 4), hidden=st.integers(2, 7), inner=st.integers(1, 6))
def test_each_expert_is_a_matrix(kind: type[Experts], experts: int, hidden: int, inner: int) -> None:
    net = drawn(lambda: Mixture(kind, experts, hidden, inner))
    x = normal(40, hidden)
    chip = exact(net)
    shapes = {layer.name: layer.source.shape for layer in mapping_of(chip).mapped}
    expected = {"0.gate": (experts, hidden)}
    expected |= {f"0.experts.gate_up_proj.{e}": (2 * inner, hidden) for e in range(experts)}
    expected |= {f"0.experts.down_proj.{e}": (hidden, inner) for e in range(experts)}
    assert shapes == expected
    assert not mapping_of(chip).digital
    assert mapping_of(chip).fraction_on_arrays == 1
    is_close(chip(x), net(x), tolerance=5e-3)


def test_experts_some_of_which_stay_digital() -> None:
    net, x = drawn(lambda: Mixture(Experts, 3, 6, 4)), normal(40, 6)
    chip = exact(net, exclude=["*.gate_up_proj.1", "*.down_proj.*"])
    assert [layer.name for layer in mapping_of(chip).digital] == [
        "0.experts.gate_up_proj.1",
        *(f"0.experts.down_proj.{expert}" for expert in range(3)),
    ]
    assert mapping_of(chip).plan.weights == sum(p.numel() for p in net.parameters() if p.ndim > 1)
    is_close(chip(x), net(x))
    is_close(pickle.loads(pickle.dumps(chip))(x), net(x))
    statistics = measure_inputs(net, [x])
    assert statistics.keys() == {"0.gate", *(f"0.experts.{n}_proj.{e}" for n in ("gate_up", "down") for e in range(3))}
    chosen = net[0].gate(x).topk(2).indices
    for expert in range(3):
        rows = x[(chosen == expert).any(dim=1)]
        assert statistics[f"0.experts.gate_up_proj.{expert}"].absmax == pytest.approx(float(rows.abs().max()))


class InEinsum(Experts):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        up = torch.einsum("nh,eoh->neo", hidden_states, self.gate_up_proj)
        return torch.einsum("nef,ehf->nh", up[..., ::2], self.down_proj)


class SharedScale(Experts):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return super().forward(hidden_states, top_k_index, top_k_weights) * self.gate_up_proj.abs().max()


class NeverTheLast(Experts):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return super().forward(hidden_states, top_k_index.clamp(max=self.num_experts - 2), top_k_weights)


class LockedExperts(Experts):
    def __init__(self, experts: int, hidden: int, inner: int) -> None:
        super().__init__(experts, hidden, inner)
        self.lock = Lock()


def test_experts_that_cannot_be_copied_are_not_tried() -> None:
    plan = plan_modules(drawn(lambda: Mixture(LockedExperts, 3, 6, 4)), load_hardware(EXACT), Selection())
    assert [layer.name for layer in plan.mapped] == ["0.gate"]
    assert [layer.name for layer in plan.digital] == ["0.experts.gate_up_proj", "0.experts.down_proj"]


class FewerRows(Experts):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return hidden_states[None] @ self.gate_up_proj.mT @ self.down_proj.mT


class ByOutput(Experts):
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        super().forward(hidden_states, top_k_index, top_k_weights)
        return hidden_states @ self.down_proj.unbind(1)[0].mT


@pytest.mark.parametrize("kind", [InEinsum, SharedScale, NeverTheLast, FewerRows, ByOutput])
def test_experts_that_compute_otherwise_are_named_in_full(kind: type[Experts]) -> None:
    mapping = mapping_of(exact(drawn(lambda: Mixture(kind, 3, 6, 4))))
    assert [layer.name for layer in mapping.mapped] == ["0.gate"]
    assert [(layer.name, layer.shape, layer.weights) for layer in mapping.digital] == [
        ("0.experts.gate_up_proj", (3, 8, 6), 144),
        ("0.experts.down_proj", (3, 6, 4), 72),
    ]
    assert all(layer.reason == f"{kind.__name__} stays digital" for layer in mapping.digital)
    assert mapping.fraction_on_arrays == 18 / (18 + 144 + 72)


def test_weights_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.other, self.positions = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Embedding(5, 4)
            self.norm, self.output = nn.LayerNorm(4), nn.Linear(4, 9)
            self.other.weight = self.output.weight = self.table.weight

    mapping = mapping_of(exact(nn.Sequential(Tied())))
    assert (mapping.plan.weights_on_arrays, mapping.plan.weights) == (36, 36 + 20)
    mapping = mapping_of(exact(nn.Sequential(Tied()), exclude=["0.table"]))  # its matrix goes by this name, too
    assert (mapping.plan.weights_on_arrays, mapping.plan.weights, mapping.fraction_on_arrays) == (0, 56, 0.0)
    for name in ("0.table", "*.other", "0.output"):
        mapping = mapping_of(exact(nn.Sequential(Tied()), include=[name]))
        assert [layer.name for layer in mapping.mapped] == ["0.output"]
    assert math.isclose(mapping.fraction_on_arrays, 36 / 56)
