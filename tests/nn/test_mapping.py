"""map_model on networks of many kinds: parts that it leaves alone, errors, files."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import memsim
from memsim.crossbar import read
from memsim.errors import InputError
from memsim.nn.chip import mapping_of, remap, swapped, under
from memsim.nn.linear import MappedLinear
from memsim.nn.mapping import measure_inputs
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from tests.calls import growth_beyond_linear

X = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
SMALL = {"weights": {"bits": 3}, "tile": {"rows": 4, "cols": 4}, "digital": []}
PHYSICAL = {"base": "physical", **SMALL}


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 4, bias=False)
            self.norm, self.drop, self.last = nn.BatchNorm1d(9), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.first(x).relu()))
        return self.last(self.second(hidden))


def chip_of(net: nn.Module, spec: Any = PHYSICAL, **options: Any) -> nn.Module:
    return memsim.map_model(net, spec, **{"calibration": [X], **options})


def test_the_original_is_untouched() -> None:
    net = Net()
    net.norm.eval()  # a part that is frozen while the rest trains
    before = copy.deepcopy(net.state_dict())
    modes = {name: module.training for name, module in net.named_modules()}
    random = torch.get_rng_state()
    chip = chip_of(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert isinstance(net.first, nn.Linear)
    assert not hasattr(net, "mapping")
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert not chip.training
    before_copy = net.last.weight.clone()
    with torch.no_grad():
        chip.last.bias.add_(1)
    assert torch.equal(net.last.weight, before_copy)
    assert torch.equal(net.last.bias, before["last.bias"])


def test_the_copy_says_what_was_mapped() -> None:
    chip = chip_of(Net(), exclude=["last"])
    mapping = mapping_of(chip)
    assert chip.mapping is mapping
    assert [layer.name for layer in mapping.mapped] == ["first", "second"]
    assert {layer.name: layer.reason for layer in mapping.digital} == {
        "norm": "BatchNorm1d stays digital",
        "last": "--exclude last",
    }
    assert isinstance(chip.first, MappedLinear)
    assert isinstance(chip.last, nn.Linear)
    error = mapping.programming_errors()["first"]
    cells = mapping.mapped[0].tiling
    assert (
        f"(first): MappedLinear(6 -> 9, {cells.bits} bits, {cells.tiles} arrays, {cells.cells:,} cells, "
        f"programming error {error:.1%})\n"
    ) in repr(chip)
    ideal = memsim.map_model(Net(), "ideal", bits=4)
    assert "MappedLinear(6 -> 9, 4 bits, 6 arrays, 98,304 cells, ideal cells)" in repr(ideal)


def test_a_mapping_prints_as_its_table() -> None:
    mapping = mapping_of(chip_of(Net(), exclude=["last"]))
    assert repr(mapping).count("\n") == 0
    assert "2 layers on" in repr(mapping)
    shown = str(mapping)
    for text in ("layer ", "out x in", "9 x 6", "error", "digital: last (--exclude last)", "2 layers, "):
        assert text in shown
    assert max(map(len, shown.splitlines()[:8])) <= 120
    assert "9 x 6" in mapping._repr_html_()
    assert mapping._repr_html_().startswith("<pre")
    assert mapping.plan.cells == sum(layer.tiling.cells for layer in mapping.mapped)
    assert set(mapping.layers) == {"first", "second"}
    with pytest.raises(TypeError, match="Net is not a mapped model"):
        mapping_of(Net())


def test_ideal_at_16_bits_is_the_network() -> None:
    net = Net().eval()
    chip = memsim.map_model(net, {"base": "ideal", **SMALL}, bits=16)
    with torch.no_grad():
        torch.testing.assert_close(chip(X), net(X), rtol=1e-3, atol=1e-3)
        wide = torch.nn.functional.linear(X, net.first.weight)
        torch.testing.assert_close(chip.first(X) - net.first.bias, wide, rtol=1e-3, atol=1e-3)
        assert chip.first(X[0]).shape == (9,)
        assert chip.first(X.view(5, 6, 6)).shape == (5, 6, 9)


def test_bits_of_the_call_come_before_the_specs() -> None:
    chip = memsim.map_model(Net(), {"base": "ideal", **SMALL}, bits=5)
    assert {layer.tiling.bits for layer in mapping_of(chip).mapped} == {5}
    assert mapping_of(chip).spec.weights.bits == 5


def test_a_chip_is_a_function_of_its_seed() -> None:
    def outputs(seed: int = 0, trial: int = 0) -> Tensor:
        chip = chip_of(Net(), seed=seed, trial=trial)
        mapping_of(chip).begin_batch("0")
        return chip(X)

    torch.rand(3)
    assert torch.equal(outputs(), outputs())
    assert not torch.equal(outputs(), outputs(seed=1))
    assert not torch.equal(outputs(), outputs(trial=1))
    states = [mapping_of(chip_of(Net(), trial=trial)).layers["first"].states for trial in (0, 1)]
    assert torch.equal(states[0], states[1])  # another read of the same chip


def test_layers_do_not_depend_on_the_order_or_company_of_others() -> None:
    class Backwards(Net):
        def __init__(self) -> None:
            super().__init__()
            first = self.first
            del self.first
            self.first = first

    a, b = (mapping_of(chip).layers for chip in (chip_of(Net()), chip_of(Backwards(), exclude=["last"])))
    assert next(iter(a)) != next(iter(b))
    for name in b:
        assert all(torch.equal(value, b[name].state_dict()[key]) for key, value in a[name].state_dict().items())


def test_noise_is_keyed_by_batch_and_not_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = chip_of(Net())
    x = X.repeat(4, 1)

    def outputs(key: str) -> Tensor:
        mapping_of(chip).begin_batch(key)
        return chip(x)

    first = outputs("a")
    assert not torch.equal(outputs("b"), first)
    monkeypatch.setattr(read, "CHUNK_VALUES", 1)
    assert torch.equal(outputs("a"), first)


def test_mapping_takes_work_that_grows_with_the_layers() -> None:
    spec = {"base": "ideal", "weights": {"bits": 4, "scale_method": "minmax"}}

    def mapping(layers: int) -> Callable[[], object]:
        net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
        return lambda: memsim.map_model(net, spec)

    assert abs(growth_beyond_linear(mapping, 20)) < 0.01


CALIBRATIONS: dict[str, Callable[[], Any]] = {
    "tensors": lambda: [X[:10], X[10:]],
    "tuples": lambda: [(X[:10],), [X[10:]]],
    "named arguments": lambda: [{"x": X[:10]}, {"x": X[10:]}],
    "an iterator": lambda: iter([X[:10], X[10:]]),
    "a function": lambda: lambda net: [net(X[:10]), net(X[10:])],
    "statistics": lambda: measure_inputs(Net(), [X[:10], X[10:]]),
}


@pytest.mark.parametrize("calibration", CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_ways_to_calibrate(calibration: Callable[[], Any]) -> None:
    reference, chip = chip_of(Net(), calibration=[X[:10], X[10:]]), chip_of(Net(), calibration=calibration())
    for name, matrix in mapping_of(chip).layers.items():
        for key, value in mapping_of(reference).layers[name].state_dict().items():
            assert torch.equal(matrix.state_dict()[key], value)


def test_calibration_runs_the_network_as_in_evaluation() -> None:
    net = Net()
    first, again = measure_inputs(net, [X]), measure_inputs(net.eval(), [X])
    assert torch.equal(first["second"].histogram, again["second"].histogram)  # no dropout, no batch statistics
    assert not first["second"].sample.requires_grad


def with_nan(net: Net) -> Net:
    with torch.no_grad():
        net.second.weight[1, 2] = torch.nan
    return net


def test_errors_name_the_layer() -> None:
    with pytest.raises(InputError, match="second: its weight holds NaN or Inf"):
        chip_of(with_nan(Net()), calibration=None)
    with pytest.raises(InputError, match="first: an input holds NaN or Inf"):
        chip_of(Net(), calibration=[X * torch.inf])
    chip = memsim.map_model(Net(), PHYSICAL)
    with pytest.raises(InputError, match=r"first: .*not calibrated; map the checkpoint with --calibrate"):
        chip(X)
    with pytest.raises(FloatingPointError, match="first: its input holds NaN"):
        chip_of(Net())(X * torch.nan)
    with pytest.raises(
        InputError, match=r"--exclude nowhere\*: matches no layer \(layers are named like first, second"
    ):
        chip_of(Net(), exclude=["nowhere*"])
    with pytest.raises(InputError, match=r"^include: expected a list of texts"):
        chip_of(Net(), include="first")
    taken = Net()
    taken.mapping = "a map of its own"
    with pytest.raises(InputError, match="attribute `mapping`"):
        chip_of(taken)


@pytest.mark.filterwarnings("ignore:.*Lazy modules are a new feature")
def test_networks_that_cannot_be_mapped_as_they_are() -> None:
    net = Net()
    with pytest.raises(InputError, match=r"^the model: is compiled by torch\.compile, .*map it uncompiled"):
        chip_of(torch.compile(net, backend="eager"))
    net.last.compile(backend="eager")
    with pytest.raises(InputError, match=r"^last: is compiled by torch\.compile"):
        chip_of(net)
    with pytest.raises(InputError, match=r"^1: is a LazyLinear that has no weights yet; run the network once"):
        memsim.map_model(nn.Sequential(nn.Linear(6, 3), nn.LazyLinear(2)), "ideal")
    with pytest.raises(InputError, match=r"^the model is mapped already; map the original, or use remap for other h"):
        memsim.map_model(memsim.map_model(Net(), "ideal"), "ideal")
    net = Net()
    net.mapping = {"first": "second"}
    with pytest.raises(InputError, match=r"^Net has an attribute `mapping` of its own, where memsim keeps its report"):
        memsim.map_model(net, "ideal")


def test_what_a_network_raises_as_it_is_copied_is_its_own() -> None:
    class Single(nn.Module):
        def __deepcopy__(self, memo: Any) -> nn.Module:
            raise NotImplementedError("there is only one")

    with pytest.raises(NotImplementedError, match=r"^there is only one$"):
        memsim.map_model(nn.Sequential(Single(), nn.Linear(6, 3)), "ideal")


def test_the_compensation_of_drift_needs_inputs() -> None:
    spec = {**PHYSICAL, "cell": "pcm-hermes", "read_at_seconds": 3600, "drift_compensation": "layer"}
    with pytest.raises(
        InputError,
        match=r"^drift_compensation: needs the inputs of first, second, last, which are not known; calibrate "
        r"\(--calibrate DATA; in Python, calibration=batches\), or set it to none$",
    ):
        memsim.map_model(Net(), spec)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_script_stays_digital_and_says_so() -> None:
    net = nn.Sequential(torch.jit.script(Net().eval()), nn.Linear(3, 3))
    mapping = mapping_of(memsim.map_model(net, {"base": "ideal", **SMALL}))
    assert [layer.name for layer in mapping.mapped] == ["1"]
    reasons = {layer.name: layer.reason for layer in mapping.digital}
    assert reasons["0.first"] == "TorchScript, whose layers cannot be replaced, stays digital"


def test_a_layer_that_calibration_never_reached_is_named_when_run() -> None:
    chip = chip_of(Net(), calibration=lambda net: net.first(X))
    with pytest.raises(InputError, match=r"second: .*not calibrated"):
        chip(X)


def test_weights_that_change_when_training_looks_at_them_are_untouched() -> None:
    """A spectral norm takes a step of its power iteration each time."""
    net = Net()
    net.first = torch.nn.utils.parametrizations.spectral_norm(net.first)
    before = copy.deepcopy(net.state_dict())
    assert net.training
    chip = chip_of(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    exact = memsim.map_model(net, {"base": "ideal", **SMALL}, bits=16)
    torch.testing.assert_close(exact(X), net.eval()(X), rtol=1e-3, atol=1e-3)
    assert "first.parametrizations.weight.0._u" not in chip.state_dict()


def test_a_batch_norm_that_was_fused_into_a_convolution() -> None:
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
    with torch.no_grad():
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
    fused = nn.Sequential(torch.nn.utils.fusion.fuse_conv_bn_eval(net[0].eval(), net[1].eval()))
    chip = memsim.map_model(fused, {"base": "ideal", **SMALL}, bits=16)
    assert [layer.name for layer in mapping_of(chip).mapped] == ["0"]
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(chip(x), net(x), rtol=1e-3, atol=1e-3)


def test_nothing_to_map_is_a_digital_copy() -> None:
    chip = memsim.map_model(nn.Sequential(nn.ReLU()), "ideal")
    assert mapping_of(chip).mapped == ()


def test_a_layer_under_two_names_is_one_layer() -> None:
    net = Net()
    net.again = net.first
    chip = chip_of(net)
    assert chip.again is chip.first
    assert isinstance(chip.again, MappedLinear)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("mask", [False, True])
def test_fused_transformer_kernels_do_not_go_round_the_arrays(mask: bool) -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    net = nn.TransformerEncoder(layer, 2)
    chip = memsim.map_model(net, {"base": "ideal", **SMALL}, bits=16)
    coarse = memsim.map_model(net, {"base": "ideal", **SMALL}, bits=2)
    padding = torch.arange(6).expand(5, 6) >= torch.tensor([6, 6, 4, 3, 6])[:, None] if mask else None
    x = X.view(5, 6, 6)
    with torch.no_grad():
        wanted = net.eval()(x, src_key_padding_mask=padding)
        got, rough = (c(x, src_key_padding_mask=padding) for c in (chip, coarse))
    valid = torch.ones(5, 6, dtype=torch.bool) if padding is None else ~padding
    torch.testing.assert_close(got[valid], wanted[valid], rtol=1e-2, atol=1e-2)
    assert (rough[valid] - wanted[valid]).abs().max() > 0.1


def test_a_chip_survives_files_and_copies() -> None:
    chip = chip_of(Net())

    def outputs(of: nn.Module) -> Tensor:
        mapping_of(of).begin_batch("0")
        return of(X)

    wanted = outputs(chip)
    stored = safetensors.torch.load(safetensors.torch.save(chip.state_dict()))
    for other in (chip_of(Net(), seed=5), memsim.map_model(Net(7), PHYSICAL, seed=5)):
        mapping_of(other).reads.seed = 0
        if mapping_of(other).layers["first"].is_calibrated:
            assert not torch.equal(outputs(other), wanted)
        other.load_state_dict(stored)
        assert torch.equal(outputs(other), wanted)
    for other in (copy.deepcopy(chip), pickle.loads(pickle.dumps(chip))):
        assert torch.equal(outputs(other), wanted)
        assert all(matrix.reads is mapping_of(other).reads for matrix in mapping_of(other).layers.values())
        assert mapping_of(other).layers["first"] is other.first.matrix


def test_gradients_and_dtypes() -> None:
    chip = chip_of(Net())

    def outputs(x: Tensor) -> Tensor:
        mapping_of(chip).begin_batch("0")
        return chip(x)

    wanted = outputs(X)
    with torch.no_grad():
        assert torch.equal(outputs(X), wanted)
    assert torch.equal(outputs(X.clone().requires_grad_()), wanted)
    half = chip_of(Net()).half()  # digital parts in half precision; the cells stay as they are
    mapping_of(half).begin_batch("0")
    got = half(X.half())
    assert got.dtype == torch.float16
    assert (got.float() - wanted).norm() < 0.3 * wanted.norm()


def test_clip_rates_are_counted_when_asked_for() -> None:
    chip = chip_of(Net())
    mapping = mapping_of(chip)
    chip(X)
    assert mapping.clip_rates()["first"].dac is None
    mapping.reads.count_clips = True
    chip(5 * X)
    rate = mapping.clip_rates()["first"].dac
    matrix = mapping.layers["first"]
    assert rate == pytest.approx(float(((5 * X).abs() > matrix.input_range * (1 + 0.5 / 127)).double().mean()))
    assert 0.2 < rate < 1
    adc = mapping.clip_rates()["second"].adc
    assert adc is not None
    assert 0 <= adc <= 1


def test_remapping_keeps_levels_and_draws_new_cells() -> None:
    chip = chip_of(Net())
    wanted = chip.first.matrix.states.clone()
    statistics = measure_inputs(Net(), [X])
    other = remap(chip, mapping_of(chip).spec, seed=1, statistics=statistics)
    same = remap(chip, mapping_of(chip).spec, seed=0, statistics=statistics)
    assert torch.equal(other.first.matrix.levels, chip.first.matrix.levels)
    assert not torch.equal(other.first.matrix.states, wanted)
    assert torch.equal(same.first.matrix.states, wanted)
    assert torch.equal(chip.first.matrix.states, wanted)
    assert mapping_of(other).layers["first"] is other.first.matrix
    mapping_of(chip).begin_batch("0")
    mapping_of(same).begin_batch("0")
    assert torch.equal(chip(X), same(X))


def test_a_chip_under_another_spec_keeps_its_cells_seed_and_trial() -> None:
    chip = chip_of(Net(), seed=3, trial=2)
    spec, statistics = mapping_of(chip).spec, measure_inputs(Net(), [X])
    other = under(chip, spec.with_settings({"adc.bits": 4}), statistics)
    assert other.first.matrix.states is chip.first.matrix.states
    assert mapping_of(other).layers["first"] is other.first.matrix
    assert mapping_of(other).layers["first"].reads is mapping_of(other).reads
    assert (mapping_of(other).seed, mapping_of(other).reads.trial) == (3, 2)
    assert not torch.equal(other(X), chip(X))
    mapping_of(chip).begin_batch("0")
    again = under(other, spec, statistics)
    mapping_of(again).begin_batch("0")
    assert torch.equal(again(X), chip(X))
    aged = under(chip, spec.with_settings({"retention.age_seconds": 1e6}), statistics)
    anew = chip_of(Net(), spec.with_settings({"retention.age_seconds": 1e6}), seed=3)
    assert torch.equal(aged.first.matrix.states, anew.first.matrix.states)


def test_a_swapped_matrix_reads_for_the_chip_it_is_in() -> None:
    spec = memsim.load_hardware(PHYSICAL)
    chip, twin = chip_of(Net(), spec), chip_of(Net(), spec.digital_twin())
    own, matrix = twin.first.matrix, chip.first.matrix
    reads, before = matrix.reads, twin(X)
    with swapped(twin, matrix):
        assert twin.first.matrix is matrix
        mapping_of(twin).begin_batch("a")
        mixed = twin(X)
        mapping_of(twin).begin_batch("a")
        assert torch.equal(twin(X), mixed)
        mapping_of(twin).begin_batch("b")
        assert not torch.equal(twin(X), mixed)  # its read noise
    assert (twin.first.matrix, matrix.reads) == (own, reads)
    assert torch.equal(twin(X), before)
    assert not torch.equal(mixed, before)
    with pytest.raises(RuntimeError, match="stop"), swapped(twin, matrix):
        raise RuntimeError("stop")
    assert (twin.first.matrix, matrix.reads) == (own, reads)


class Wide(nn.Linear):
    """Computes as its base."""


BARE: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], list[str]]] = {
    "linear": (lambda: nn.Linear(6, 4), (X,), ["linear"]),
    "derived": (lambda: Wide(6, 4), (X,), ["linear"]),
    "weight norm": (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), (X,), ["linear"]),
    "conv1d": (lambda: nn.Conv1d(6, 4, 2), (X.view(2, 6, 15),), ["conv1d"]),
    "conv2d": (lambda: nn.Conv2d(6, 4, 2, groups=2), (X.view(1, 6, 5, 6),), ["conv2d"]),
    "transposed": (lambda: nn.ConvTranspose1d(6, 4, 2), (X.view(2, 6, 15),), ["convtranspose1d"]),
    "lstm": (lambda: nn.LSTM(6, 4), (X.view(5, 6, 6),), ["weight_ih_l0", "weight_hh_l0"]),
    "cell": (lambda: nn.GRUCell(6, 4), (X,), ["weight_ih", "weight_hh"]),
    "attention": (
        lambda: nn.MultiheadAttention(6, 2),
        (X.view(5, 6, 6),) * 3,
        ["q_proj", "k_proj", "v_proj", "out_proj"],
    ),
}


@pytest.mark.parametrize("trained", [False, True], ids=["float", "in training"])
@pytest.mark.parametrize("name", BARE)
def test_a_layer_alone(name: str, trained: bool) -> None:
    make, inputs, names = BARE[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = make().eval()
    if trained:
        net = nn.Sequential(layer)
        recipe = QuantisationConfig(layers="all")
        statistics = measure_inputs(net, lambda n: n[0](*inputs))
        layer = Quantisation(recipe, 3, memsim.load_hardware(PHYSICAL)).apply(net, statistics).eval()[0]
    before = copy.deepcopy(layer.state_dict())
    exact = memsim.map_model(layer, {"base": "ideal", **SMALL}, bits=16, exclude=[])

    def first(outputs: Any) -> Tensor:
        return outputs[0] if isinstance(outputs, tuple) else outputs

    if not trained:
        torch.testing.assert_close(first(exact(*inputs)), first(layer(*inputs)), rtol=1e-2, atol=1e-2)
    statistics = memsim.measure_inputs(layer, [inputs])
    assert sorted(statistics) == sorted(names)
    chip = memsim.map_model(layer, PHYSICAL, calibration=statistics)
    assert [mapped.name for mapped in chip.mapping.mapped] == names
    assert list(chip.mapping.layers) == names
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())

    def outputs(of: nn.Module) -> Tensor:
        with of.mapping.batch("0"):
            return first(of(*inputs))

    wanted = outputs(chip)
    other = memsim.map_model(layer, PHYSICAL, seed=5, calibration=statistics)
    assert not torch.equal(outputs(other), wanted)
    other.mapping.reads.seed = 0
    other.load_state_dict(chip.state_dict())
    spec = chip.mapping.spec
    for same in (
        other,
        copy.deepcopy(chip),
        pickle.loads(pickle.dumps(chip)),
        remap(chip, spec, seed=0, statistics=statistics),
        under(chip, spec, statistics),
    ):
        assert torch.equal(outputs(same), wanted)
    assert not torch.equal(outputs(remap(chip, spec, seed=1, statistics=statistics)), wanted)
    digital = memsim.map_model(layer, PHYSICAL, exclude=[names[0]], calibration=[inputs])
    assert names[0] not in digital.mapping.layers
    assert {left.name: left.reason for left in digital.mapping.digital}[names[0]] == f"--exclude {names[0]}"
    few = memsim.map_model(layer, {**PHYSICAL, "overrides": [{"match": names[0], "weights": {"bits": 5}}]})
    assert [mapped.tiling.bits for mapped in few.mapping.mapped] == [5] + [3] * (len(names) - 1)


def test_a_layer_alone_is_named_in_messages() -> None:
    with pytest.raises(InputError, match=r"^linear: .*not calibrated"):
        memsim.map_model(nn.Linear(3, 3), "physical")(X[:, :3])
    with pytest.raises(InputError, match=r"layers are named like linear\)"):
        memsim.map_model(nn.Linear(3, 3), "physical", exclude=["lin"])
    broken = nn.Linear(3, 3)
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"^linear: its weight holds NaN"):
        memsim.map_model(broken, "physical")
    attention = memsim.map_model(nn.MultiheadAttention(6, 2), "ideal")
    with pytest.raises(InputError, match=r"exclude=\['\*'\]"):
        attention.in_proj_weight @ X.T


def test_progress_is_reported() -> None:
    def heard(calibration: Any, net: nn.Module | None = None, **options: Any) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        report = lambda name, done: found.setdefault(name, []).append(done)  # noqa: E731
        memsim.map_model(net or Net(), PHYSICAL, calibration=calibration, progress=report, **options)
        return found

    batches = [X[:10], X[10:20], X[20:]]
    told = heard(batches)
    assert list(told) == ["calibration", "programming", "converter ranges"]
    assert told["calibration"] == told["converter ranges"] == [0, 1 / 3, 2 / 3, 1]
    tilings = [layer.tiling for layer in chip_of(Net()).mapping.mapped]
    cells = [tiling.cells for tiling in tilings]
    assert told["programming"] == [0, cells[0] / sum(cells), (cells[0] + cells[1]) / sum(cells), 1]
    for unknown in (iter(batches), lambda net: net(X)):
        assert {0, 1} <= set(heard(unknown)["calibration"])
    assert "calibration" not in heard(measure_inputs(Net(), batches))
    assert heard(None, exclude=["first", "second", "last"])["programming"] == [0, 1]
    assert heard([X], nn.Linear(6, 4))["programming"] == [0, 1]

    def stop(name: str, done: float) -> None:
        if name == "programming" and done > 0:
            raise KeyboardInterrupt

    net = Net().train()
    with pytest.raises(KeyboardInterrupt):
        memsim.map_model(net, PHYSICAL, calibration=batches, progress=stop)
    assert net.training
    assert net.norm.training


def test_inputs_are_measured_once_for_many_chips() -> None:
    class Counts(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.runs = getattr(self, "runs", 0) + 1
            return super().forward(x)

    net = Counts()
    told: list[float] = []
    statistics = memsim.measure_inputs(net, [X[:10], X[10:]], progress=lambda name, done: told.append(done))
    assert (told[0], told[-1]) == (0, 1)
    assert 0.5 in told
    assert not hasattr(net, "runs")  # a copy ran
    assert net.training
    assert statistics.keys() == {"first", "second", "last"}
    chips = [memsim.map_model(net, PHYSICAL, seed=seed, calibration=statistics) for seed in (0, 0, 1)]
    with torch.no_grad():
        for one in chips:
            one.mapping.begin_batch("0")
        first, again, other = (one(X) for one in chips)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert memsim.measure_inputs(net, lambda copied: copied.first(X)).keys() == {"first"}
    with pytest.raises(InputError, match="goes in a list"):
        memsim.measure_inputs(net, {"x": X})
    with pytest.raises(InputError, match="ran none of the layers"):
        memsim.measure_inputs(net, [])
    with pytest.raises(InputError, match="is compiled"):
        memsim.measure_inputs(torch.compile(net, backend="eager"), [X])


def test_a_batch_repeats_its_noise_and_leaves_that_of_others() -> None:
    def generate(steps: int = 3) -> Tensor:
        x, made = X, []
        for _ in range(steps):  # as an autoregressive decoder reads, several times
            made.append(chip(x))
            x = torch.cat([x[:, 3:], made[-1]], dim=1)
        return torch.stack(made)

    chip, twin = chip_of(Net()), chip_of(Net())
    mapping = mapping_of(chip)
    assert not torch.equal(generate(), generate())
    with mapping.batch("utterance 7"):
        first = generate()
    with mapping.batch("utterance 7"):
        assert torch.equal(generate(), first)
        assert not torch.equal(generate(), first)  # further calls, further noise
    with mapping.batch("utterance 8"):
        assert not torch.equal(generate(), first)
    mapping.begin_batch("utterance 7")
    assert torch.equal(generate(), first)

    # what was under way goes on as if there had been no other batch, however that ended
    wanted = []
    mapping_of(twin).begin_batch("a")
    wanted = [twin(X) for _ in range(3)]
    mapping.begin_batch("a")
    got = [chip(X)]
    with mapping.batch("b"):
        inner = chip(X)
        with mapping.batch("a"):
            assert torch.equal(chip(X), wanted[0])
        with pytest.raises(ValueError, match="features"), mapping.batch("c"):
            chip(X[:, 1:])
        further = chip(X)
    got += [chip(X), chip(X)]
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    with mapping.batch("b"):
        assert torch.equal(chip(X), inner)
        assert torch.equal(chip(X), further)
    assert mapping.reads.batch == "a"


def test_other_libraries_do_not_save_a_chip() -> None:
    """They would write a file that looks like a network, and has none of the weights that are on arrays."""

    class Pretrained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.saved: list[str] = []

        def save_pretrained(self, folder: str) -> None:
            self.saved.append(folder)

        def push_to_hub(self, name: str) -> None:
            self.saved.append(name)

    for net in (Pretrained(), nn.Sequential(Pretrained())):
        chip = memsim.map_model(net, {"base": "ideal", "digital": []})
        for copied in (chip, copy.deepcopy(chip)):
            inner = copied if isinstance(copied, Pretrained) else copied[0]
            with pytest.raises(InputError, match=r"^save_pretrained: .*memsim\.save_checkpoint\(path, chip\."):
                inner.save_pretrained("x")
            with pytest.raises(InputError, match=r"^push_to_hub: .*use its push_to_hub"):
                inner.push_to_hub("x", private=True)
            assert inner.saved == []
        original = net if isinstance(net, Pretrained) else net[0]
        original.save_pretrained("x")
        assert original.saved == ["x"]
