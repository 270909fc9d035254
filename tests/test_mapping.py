"""Mapped files: the tensors that loading reads, and equality with the chip that was mapped."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import memsim.storage.checkpoint
from memsim.asr.architectures import ARCHITECTURES, Architecture
from memsim.asr.kinds import CTC
from memsim.asr.models.conformer import ConformerConfig
from memsim.asr.recogniser import Recogniser, build, load_model_config, load_recogniser
from memsim.asr.tokens import CharacterTokens
from memsim.config.resources import ASSETS
from memsim.errors import InputError
from memsim.hardware import HardwareSpec, load_hardware
from memsim.networks.mapped_file import load_chip
from memsim.networks.programming import plan_checkpoint, program_checkpoint
from memsim.nn.chip import mapping_of, remap
from memsim.nn.mapping import map_model, measure_inputs
from memsim.nn.plan import Selection
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.calls import growth_beyond_linear
from tests.nn.layers import quantised_layers

SMAPS = Path("/proc/self/smaps")


def map_file(source: Path, spec: HardwareSpec, target: Path) -> Path:
    checkpoint = load_checkpoint(source)
    mapped = program_checkpoint(checkpoint, spec, plan_checkpoint(checkpoint, spec, Selection()))
    save_checkpoint(target, mapped.tensors, mapped.metadata)
    return target


@pytest.fixture(scope="module")
def mapped_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled recogniser at 8 bits: 7 planes, so that states are most of the file."""
    spec = load_hardware("physical").with_settings({"weights.bits": 8})
    source = ASSETS / "checkpoints" / "demo-float.safetensors"
    return map_file(source, spec, tmp_path_factory.mktemp("mapped") / "demo8.safetensors")


def outputs(recogniser: Recogniser, layer: str = "blocks.0.feed_forward_1.expand") -> Tensor:
    """What one layer makes of an input, under the same noise each time."""
    matrix = mapping_of(recogniser.model).layers[layer]
    mapping_of(recogniser.model).begin_batch("0")
    x = torch.randn(5, matrix.levels.shape[1], generator=torch.Generator().manual_seed(0))
    read: Tensor = matrix(x)
    return read


def resident_bytes(path: Path) -> int:
    """How much of `path` this process has brought into memory through the maps that it has of the file."""
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.MULTILINE)
    ours = [text for text in maps if text.partition("\n")[0].endswith(f" {path}")]
    assert ours, "the file is not mapped into memory"
    return sum(1024 * int(re.findall(r"^Rss: +(\d+) kB$", text, flags=re.MULTILINE)[0]) for text in ours)


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux says which pages of a map are in memory")
def test_cells_are_read_when_their_layer_is(mapped_file: Path) -> None:
    recogniser, _ = load_chip(load_checkpoint(mapped_file))
    layers = mapping_of(recogniser.model).layers
    states = {name: matrix.states.nbytes for name, matrix in layers.items() if matrix.states is not None}
    assert sum(states.values()) > 0.7 * mapped_file.stat().st_size
    loaded = resident_bytes(mapped_file)
    # the first page of each tensor is looked at, and the system brings in its neighbours: about 64 kB
    assert loaded < 0.5 * sum(states.values())
    largest = max(states, key=lambda name: states[name])
    outputs(recogniser, largest)
    read = resident_bytes(mapped_file) - loaded
    assert read > 0.8 * states[largest]
    assert read < 2 * states[largest]
    for name in layers:
        outputs(recogniser, name)
    assert resident_bytes(mapped_file) > 0.95 * sum(states.values())


def with_damage(mapped_file: Path, tensor: str, target: Path) -> Checkpoint:
    """`mapped_file` with a NaN in one tensor."""
    checkpoint = load_checkpoint(mapped_file)
    tensors = checkpoint.tensors()
    tensors[tensor].view(-1)[-1] = torch.nan
    save_checkpoint(target, tensors, checkpoint.metadata)
    return load_checkpoint(target)


def test_damaged_cells_are_found_when_they_are_read(mapped_file: Path, tmp_path: Path) -> None:
    damaged, other = "blocks.1.attention.key", "blocks.0.attention.key"
    checkpoint = with_damage(mapped_file, f"{damaged}.matrix.states", tmp_path / "damaged.safetensors")
    recogniser, statistics = load_chip(checkpoint)
    intact, _ = load_chip(load_checkpoint(mapped_file))
    assert torch.equal(outputs(recogniser, other), outputs(intact, other))
    with pytest.raises(InputError, match=rf"^{damaged}: its cell states hold NaN or Inf; the file is damaged"):
        outputs(recogniser, damaged)
    # its levels are whole, so other cells can be programmed
    spec = mapping_of(recogniser.model).spec
    remapped = mapping_of(remap(recogniser.model, spec, seed=0, statistics=statistics)).layers[damaged]
    assert torch.equal(remapped.states, mapping_of(intact.model).layers[damaged].states)


@pytest.mark.parametrize(
    "part", ["blocks.1.attention.key.matrix.scale", "blocks.1.attention.key.bias", "output.weight"]
)
def test_other_damage_is_found_at_once(mapped_file: Path, tmp_path: Path, part: str) -> None:
    checkpoint = with_damage(mapped_file, part, tmp_path / "damaged.safetensors")
    with pytest.raises(InputError, match=rf"damaged\.safetensors: tensor {part} holds NaN or Inf"):
        load_chip(checkpoint)


def test_a_loaded_chip_is_a_module_like_any_other(mapped_file: Path) -> None:
    """It holds the tensors of the file, copies and remaps as other chips do, and never writes to the file."""
    checkpoint = load_checkpoint(mapped_file)
    before = checkpoint.sha256
    recogniser, statistics = load_chip(checkpoint)
    chip = recogniser.model
    stored, held = checkpoint.tensors(), chip.state_dict()
    assert held.keys() == {name for name in stored if not name.startswith("statistics/")}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in held.items())
    wanted = outputs(recogniser)
    copied = copy.deepcopy(chip)
    assert torch.equal(outputs(_like(recogniser, copied)), wanted)
    again = remap(chip, mapping_of(chip).spec, seed=mapping_of(chip).seed, statistics=statistics)
    assert torch.equal(outputs(_like(recogniser, again)), wanted)
    twin = remap(chip, mapping_of(chip).spec.digital_twin(), seed=0, statistics=statistics)
    assert all(matrix.states is None for matrix in mapping_of(twin).layers.values())
    for matrix in mapping_of(chip).layers.values():
        assert matrix.states is not None
        matrix.states.zero_()
    assert torch.equal(outputs(_like(recogniser, copied)), wanted)
    assert load_checkpoint(mapped_file).sha256 == before


def _like(recogniser: Recogniser, model: nn.Module) -> Recogniser:
    return Recogniser(model, recogniser.architecture, recogniser.config, recogniser.tokens, recogniser.text_style)


def test_releasing_what_reads_keep_changes_nothing(mapped_file: Path) -> None:
    recogniser, _ = load_chip(load_checkpoint(mapped_file))
    matrix = mapping_of(recogniser.model).layers["blocks.0.feed_forward_1.expand"]
    assert matrix._operator is None
    wanted = outputs(recogniser)
    assert matrix._operator is not None
    mapping_of(recogniser.model).release()
    assert matrix._operator is None
    assert torch.equal(outputs(recogniser), wanted)


def test_the_source_is_opened_as_often_for_many_layers_as_for_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time, safetensors reads a header that is as long as there are tensors."""
    opened = []
    real = memsim.storage.checkpoint.safe_open
    monkeypatch.setattr(memsim.storage.checkpoint, "safe_open", lambda *a, **k: (opened.append(a), real(*a, **k))[1])
    counts = []
    for layers in (3, 30):
        network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        save_checkpoint(tmp_path / "source.safetensors", network.state_dict(), {"kind": "model"})
        opened.clear()
        spec = load_hardware("ideal").with_settings({"weights.bits": 4})
        mapped = map_file(tmp_path / "source.safetensors", spec, tmp_path / "mapped.safetensors")
        assert len(load_checkpoint(mapped).names) == 3 * layers  # levels, scale, bias
        counts.append(len(opened))
    assert counts[0] == counts[1]


class EveryLayer(nn.Module):
    """A recogniser with one of every kind of layer: [batch, frames, mel_bins] to log-probabilities."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.first, self.depth = nn.Conv1d(config.features.mel_bins, 6, 3), nn.Conv1d(6, 6, 5, groups=3, padding="same")
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(6, 2, kdim=4, vdim=4, batch_first=True)
        self.lstm, self.up = nn.LSTM(6, 4, batch_first=True, proj_size=2), nn.ConvTranspose1d(2, 4, 2, groups=2)
        self.last = nn.Linear(6, config.tokens)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.depth(self.first(features.transpose(1, 2))).transpose(1, 2)
        hidden = hidden + self.attention(hidden, hidden, hidden)[0]
        up = self.up(self.lstm(hidden)[0].transpose(1, 2)).transpose(1, 2)
        mixed = hidden + self.cross(hidden, up, up, need_weights=False)[0]
        return self.last(mixed).log_softmax(dim=-1), lengths - 2


EXCLUDED: list[list[str]] = [
    [],
    ["lstm.weight_hh_l0", "attention.k_proj", "cross.v_proj"],
    ["*.out_proj", "*.q_proj", "lstm.*"],
]


def every_layer(monkeypatch: pytest.MonkeyPatch) -> tuple[Recogniser, tuple[Tensor, Tensor]]:
    """A recogniser with one of every kind of layer, and a batch for it."""
    monkeypatch.setitem(ARCHITECTURES, "every_layer", Architecture(ConformerConfig, EveryLayer, CTC()))
    config = load_model_config("conformer-small")[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recogniser = build("every_layer", config, CharacterTokens(("a", "b")), "kaldi")
    recogniser.model.eval()
    features = torch.randn(2, 9, config.features.mel_bins, generator=torch.Generator().manual_seed(1))
    return recogniser, (features, torch.tensor([9, 7]))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("exclude", EXCLUDED)
def test_a_file_of_every_layer_with_quantisers_maps_as_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exclude: list[str]
) -> None:
    recogniser, batch = every_layer(monkeypatch)
    spec = load_hardware({"base": "ideal", "dac": {"bits": 8}, "digital": [], "tile": {"rows": 16}})
    config = QuantisationConfig.model_validate({"layers": "all", "outputs": {"bits": 8}})
    model = Quantisation(config, 3, spec).apply(recogniser.model, measure_inputs(recogniser.model, [batch]))
    with torch.no_grad():
        model.train()(*batch)
    tensors = dict(model.eval().state_dict())
    for name, measured in measure_inputs(model, [batch]).items():
        tensors |= measured.to_tensors(name)
    save_checkpoint(tmp_path / "trained.safetensors", tensors, {"kind": "model", **recogniser.metadata()})
    checkpoint = load_checkpoint(tmp_path / "trained.safetensors")
    trained = dict(quantised_layers(model))
    assert len(trained) == 15

    with torch.no_grad():
        wanted = model(*batch)[0]
        assert torch.equal(load_recogniser(checkpoint).model(*batch)[0], wanted)
        plan = plan_checkpoint(checkpoint, spec, Selection(exclude=exclude))
        mapped = program_checkpoint(checkpoint, spec, plan)
        assert not mapped.uncalibrated
        assert {layer.tiling.bits for layer in plan.mapped} == {3}
        for layer in plan.mapped:
            assert torch.equal(mapped.tensors[f"{layer.name}.matrix.scale"], trained[layer.name].weight_quantiser.scale)
            full_scale = float(mapped.tensors[f"{layer.name}.matrix.input_range"])
            assert full_scale == pytest.approx(trained[layer.name].full_scale)
        save_checkpoint(tmp_path / "mapped.safetensors", mapped.tensors, mapped.metadata)
        found = load_chip(load_checkpoint(tmp_path / "mapped.safetensors"))[0].model(*batch)[0]
    # a value at the middle of two codes may round to either: rare, and then a small step
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    assert ((found - wanted).abs() < 1e-5).float().mean() > 0.8


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("hardware", ["ideal", "physical"])
@pytest.mark.parametrize("exclude", EXCLUDED)
def test_a_file_of_every_layer_is_the_chip_that_map_model_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: str, exclude: list[str]
) -> None:
    recogniser, batch = every_layer(monkeypatch)
    model = recogniser.model
    statistics = measure_inputs(model, [batch])
    save_checkpoint(tmp_path / "model.safetensors", model.state_dict(), {"kind": "model", **recogniser.metadata()})
    source = load_checkpoint(tmp_path / "model.safetensors")
    spec = load_hardware(hardware).with_settings({"weights.bits": 5, "digital": [], "tile.rows": 16})
    plan = plan_checkpoint(source, spec, Selection(exclude=exclude))
    mapped = program_checkpoint(source, spec, plan, seed=3, statistics=statistics)
    save_checkpoint(tmp_path / "mapped.safetensors", mapped.tensors, mapped.metadata)
    loaded, kept = load_chip(load_checkpoint(tmp_path / "mapped.safetensors"))
    chip = map_model(model, spec, seed=3, calibration=statistics, exclude=exclude)
    assert set(mapping_of(loaded.model).layers) == set(mapping_of(chip).layers) == {layer.name for layer in plan.mapped}
    assert {layer.name: layer.tiling for layer in plan.mapped} == {
        layer.name: layer.tiling for layer in mapping_of(chip).mapped
    }
    stored = loaded.model.state_dict()
    assert stored.keys() == chip.state_dict().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in chip.state_dict().items())
    assert kept.keys() == statistics.keys()

    def log_probabilities(of: nn.Module) -> Tensor:
        mapping_of(of).begin_batch("0")
        return of(*batch)[0]

    wanted = log_probabilities(chip)
    assert torch.equal(log_probabilities(loaded.model), wanted)
    again = remap(loaded.model, spec, seed=3, statistics=statistics)
    assert torch.equal(log_probabilities(again), wanted)
    assert (wanted - model(*batch)[0]).norm() < 0.5 * wanted.norm()
    twin = remap(loaded.model, spec.digital_twin(), seed=0, statistics=statistics)
    assert torch.equal(log_probabilities(twin), wanted) == (hardware == "ideal")


def test_a_mapped_layer_that_the_architecture_lacks_is_refused(mapped_file: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(mapped_file)
    for name, said in (
        ("output", "lacks the levels of output"),
        ("blocks.0.norm", "is not a layer of the architecture"),
    ):
        layers = {**json.loads(checkpoint.metadata["layers"]), name: 8}
        tensors = checkpoint.tensors()
        if name != "output":
            tensors[f"{name}.matrix.levels"] = torch.zeros(3, 3, dtype=torch.int8)
        save_checkpoint(tmp_path / "bad.safetensors", tensors, {**checkpoint.metadata, "layers": json.dumps(layers)})
        with pytest.raises(InputError, match=rf"bad\.safetensors: .*{said}"):
            load_chip(load_checkpoint(tmp_path / "bad.safetensors"))


def test_tensors_that_do_not_fit_their_architecture_are_not_mapped(tmp_path: Path) -> None:
    source = load_checkpoint(ASSETS / "checkpoints" / "demo-float.safetensors")
    tensors = source.tensors()
    tensors["blocks.0.attention.key.weight"] = torch.randn(3, 4)
    save_checkpoint(tmp_path / "odd.safetensors", tensors, source.metadata)
    with pytest.raises(InputError, match=r"blocks\.0\.attention\.key\.weight is \[3, 4\], but the arch"):
        map_file(
            tmp_path / "odd.safetensors", load_hardware("ideal").with_settings({"weights.bits": 4}), tmp_path / "o"
        )


def test_loading_takes_work_that_grows_with_the_layers(tmp_path: Path) -> None:
    architecture, config = load_model_config("conformer-small")
    small = config.model_copy(update={"width": 16, "heads": 2, "feed_forward_width": 16, "kernel_frames": 3})

    def loading(blocks: int) -> Callable[[], object]:
        recogniser = build(
            architecture, small.model_copy(update={"blocks": blocks}), CharacterTokens(("a", "b")), "kaldi"
        )
        source, mapped = tmp_path / "source.safetensors", tmp_path / f"{blocks}.safetensors"
        save_checkpoint(source, recogniser.model.state_dict(), {"kind": "model", **recogniser.metadata()})
        map_file(source, load_hardware("ideal").with_settings({"weights.bits": 4}), mapped)
        return lambda: load_chip(load_checkpoint(mapped))

    # torch's load_state_dict looks through the tensors of all blocks for those of each: 0.009
    assert abs(growth_beyond_linear(loading, 2)) < 0.03
