"""`memsim map` as users type it."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from memsim.asr.corpora import load_corpus
from memsim.crossbar.encode import fit_scale, quantise
from memsim.errors import InputError
from memsim.hardware import load_hardware
from memsim.mapping import map_checkpoint
from memsim.storage.checkpoint import FORMAT


def test_a_foreign_checkpoint_is_mapped_and_explained(memsim, foreign):
    done = memsim("map", foreign, "--bits", "3", "--json", "map.json")
    assert done.status == 0
    for said in (
        "4 layers, 5,000 weights on",
        "encoder.embed_tokens.weight (embedding table (by its name))",
        "frontend.conv.weight (digital: frontend.* (hardware spec))",
        "output.weight (digital: output* (hardware spec))",
        "encoder.layers.*.norm.weight (norm, bias or scalar)",
        "wrote " + str(foreign.with_name("foreign.mapped.safetensors")),
        "4 layers are uncalibrated",
    ):
        assert said in done.said
    report = json.loads(foreign.with_name("map.json").read_text())
    layers = {layer["name"]: layer for layer in report["layers"]}
    # 130 x 20 at 3 bits: 2 planes x 2 polarities x 2 column tiles of 128 x 128
    assert layers["encoder.layers.0.fc1"]["tiles"] == 8
    assert layers["encoder.layers.0.fc1"]["cells"] == 8 * 128 * 128
    assert report["cells"] == (8 + 4 + 4 + 4) * 128 * 128
    assert 0.03 < layers["encoder.layers.0.fc1"]["programming_error"] < 0.15
    # an ADC conversion for each of 2 slices and each output; the inputs of all four fit one row tile
    assert layers["encoder.layers.0.fc1"]["conversions"] == 2 * 130
    assert report["conversions"] == 2 * (130 + 20 + 20 + 80)


def test_what_programming_took_is_reported_by_scheme(memsim, foreign, tmp_path):
    (tmp_path / "mixed.yaml").write_text(
        "base: multilevel\nweights: {bits: 3}\noverrides:\n"
        "  - {match: '*.fc1', weights: {encoding: binary_planes}, programming: {scheme: write_verify}}\n"
    )
    done = memsim("map", foreign, "--hardware", "mixed.yaml", "--json", "map.json")
    assert done.status == 0, done.said
    assert "write_verify" in done.said
    assert "incremental_reset" in done.said
    assert "standard deviation of the cells' currents by level" in done.said
    report = json.loads((tmp_path / "map.json").read_text())
    verified, incremental = sorted(report["programming"], key=lambda entry: entry["scheme"], reverse=True)
    assert verified["scheme"] == "write_verify"
    assert verified["cells"] == 130 * 20 * 2 * 2
    assert verified["pulses_per_cell"]["max"] <= 20
    assert incremental["cells"] == (2 * 20 * 20 + 80 * 20) * 2  # three layers, one pair of 2-bit cells a weight
    assert [level["target"] for level in incremental["levels"]] == pytest.approx([0.2, 0.4167, 0.6333, 0.85], abs=1e-4)
    assert all(level["spread"] < 0.01 for level in incremental["levels"])
    layers = {layer["name"]: layer for layer in report["layers"]}
    by_layer = [layers[name]["programming"] for name in layers if not name.endswith("fc1")]
    assert sum(entry["cells"] for entry in by_layer) == incremental["cells"]
    assert layers["encoder.layers.0.fc1"]["programming"]["failures"] == verified["failures"]
    assert (layers["encoder.layers.0.fc1"]["slices"], layers["encoder.layers.0.fc1"]["cell_bits"]) == (2, 1)
    query = layers["encoder.layers.0.self_attn.q_proj"]
    assert (query["slices"], query["cell_bits"], query["copies"], query["conversions"]) == (1, 2, 1, 20)


def test_ideal_cells_are_not_programmed(memsim, foreign):
    report = json.loads(memsim("map", foreign, "--hardware", "ideal", "--json", "-").out)
    assert report["programming"] == []
    assert report["conversions"] == 0
    assert all(layer["programming"] is None for layer in report["layers"])


def test_the_mapped_file_holds_levels_states_and_everything_digital(memsim, foreign):
    assert memsim("map", foreign, "--bits", "4", "--seed", "3", "-o", "out.safetensors", "--quiet") == (0, "", "")
    source, mapped = load_file(foreign), load_file("out.safetensors")
    with safe_open("out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["kind"] == "mapped"
    assert metadata["format"] == FORMAT
    assert metadata["seed"] == "3"
    assert metadata["made_by"] == "somebody"
    assert load_hardware(json.loads(metadata["hardware"])).weights.bits == 4
    name = "encoder.layers.0.self_attn.q_proj"
    spec = load_hardware("physical")
    scale = fit_scale(source[f"{name}.weight"], 4, spec.weights)
    assert torch.equal(mapped[f"{name}.matrix.scale"], scale)
    assert torch.equal(mapped[f"{name}.matrix.levels"], quantise(source[f"{name}.weight"], scale, 4))
    assert mapped[f"{name}.matrix.states"].shape == (3, 2, 1, 20, 20)
    assert f"{name}.weight" not in mapped
    for kept in (f"{name}.bias", "encoder.embed_tokens.weight", "frontend.conv.weight", "output.weight"):
        assert torch.equal(mapped[kept], source[kept])


def test_the_same_seed_gives_the_same_file_and_another_seed_another_chip(memsim, foreign):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert memsim("map", foreign, "--seed", str(seed), "-o", f"{out}.safetensors").status == 0
    folder = foreign.parent
    contents = [(folder / f"{out}.safetensors").read_bytes() for out in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_nothing_is_overwritten_without_force(memsim, foreign):
    memsim("map", foreign)
    mapped = foreign.with_name("foreign.mapped.safetensors")
    before = mapped.read_bytes()
    refused = memsim("map", foreign, "--seed", "1")
    assert refused.status == 2
    assert refused.err == f"memsim: {mapped}: exists already; --force overwrites it\n"
    assert mapped.read_bytes() == before
    assert memsim("map", foreign, "--seed", "1", "--force").status == 0
    assert mapped.read_bytes() != before


def test_dry_run_writes_nothing(memsim, foreign):
    done = memsim("map", foreign, "--dry-run")
    assert done.status == 0
    assert "dry run: nothing was programmed or written" in done.said
    assert [path.name for path in foreign.parent.iterdir()] == ["foreign.safetensors"]


def test_layers_are_chosen_by_globs(memsim, foreign):
    done = memsim(
        "map", foreign, "--include", "encoder.layers.0.*", "--exclude", "*.fc1", "--dry-run", "--json", "report.json"
    )
    assert "1 layer, 400 weights" in done.said
    report = json.loads((foreign.parent / "report.json").read_text())
    reasons = {layer["name"]: layer["reason"] for layer in report["digital"]}
    assert reasons["encoder.layers.1.self_attn.q_proj.weight"] == "not in --include"
    assert reasons["encoder.layers.0.fc1.weight"] == "--exclude *.fc1"


def test_overrides_of_a_spec_reach_their_layers(memsim, foreign, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "base: physical\nweights: {bits: 4}\noverrides:\n  - {match: '*.fc1', weights: {bits: 2}}\n"
    )
    done = memsim("map", foreign, "--hardware", "mine.yaml", "--json", "-", "--dry-run")
    layers = {layer["name"]: layer["bits"] for layer in json.loads(done.out)["layers"]}
    assert layers["encoder.layers.0.fc1"] == 2
    assert layers["encoder.layers.0.self_attn.q_proj"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["foreign.safetensors", "-q", "-v"], "--quiet --verbose: contradict each other; leave one out"),
        (["nosuch.safetensors"], "nosuch.safetensors: no such file"),
        (["."], "names model-1.safetensors, which is not beside it"),
        (["model.pt"], "model.pt: a pickle (torch.save)"),
        (["cut.safetensors"], "cut.safetensors: not a complete safetensors file"),
        (["text.safetensors"], "text.safetensors: not a complete safetensors file"),
        (["nan.safetensors"], "nan.safetensors: tensor a.weight holds NaN or Inf"),
        (["bias.safetensors"], "bias.safetensors: nothing to map: none of its 1 tensors"),
        (["foreign.safetensors", "-o", "out.bin"], "out.bin: expected a name that ends in .safetensors"),
        (["model.safetensors.index.json"], "names model-1.safetensors, which is not beside it"),
        (["foreign.safetensors", "--bits", "1"], "--bits 1: weights.bits: 1 is out of range (2 to 16)"),
        (["foreign.safetensors", "--seed", "1.5"], "--seed 1.5: should be a valid integer; see memsim map --help"),
        (["foreign.safetensors", "--bits", "17"], "--bits 17: weights.bits: 17 is out of range (2 to 16)"),
        (["foreign.safetensors", "--hardware", "nosuch"], "nosuch: no such file, and no shipped hardware config"),
        (["foreign.safetensors", "--cell", "nosuch"], "--cell: nosuch: no such file, and no shipped devices config"),
        (["foreign.safetensors", "--set", "cell=nosuch"], "memsim: cell: nosuch: no such file, and no shipped devices"),
        (["foreign.safetensors", "--set", "chip=nosuch"], "memsim: chip: nosuch: no such file, and no shipped chips"),
        (["foreign.safetensors", "--set", "adc.bits=4,6"], "got '4,6'; several values are a sweep, which memsim eval"),
        (["foreign.safetensors", "--set", "adc.bitz=3"], "adc.bitz: unknown key (nearest: adc.bits)"),
        (
            ["foreign.safetensors", "--set", "weights.encoding=multilevel"],
            "2 bits per cell need programming: {scheme: incremental_reset}",
        ),
        (["foreign.safetensors", "--set", "adc.bits"], "--set adc.bits: expected KEY=VALUE"),
        (["foreign.safetensors", "--include", "zzz*"], "--include zzz*: matches no layer"),
        (["foreign.safetensors", "-o", "no/such.safetensors"], "the folder no does not exist"),
        (["foreign.safetensors", "--budget"], "holds no input statistics for decoder.lstm.weight_ih_l0 and"),
        (["foreign.safetensors", "--budget", "--dry-run"], "--budget --dry-run: the budget needs programmed arrays"),
        (["foreign.safetensors", "--calibrate", "demo"], "names no architecture, so it can be mapped but not run"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(memsim, foreign, arguments, said):
    folder = foreign.parent
    torch.save({"a": torch.ones(2)}, folder / "model.pt")
    (folder / "cut.safetensors").write_bytes(foreign.read_bytes()[:3000])
    (folder / "text.safetensors").write_text("this is not a checkpoint at all")
    save_file({"a.weight": torch.full((3, 3), torch.nan)}, folder / "nan.safetensors")
    save_file({"a.bias": torch.ones(3)}, folder / "bias.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a.weight": "model-1.safetensors"}}')
    before = sorted(folder.iterdir())
    done = memsim("map", *arguments)
    assert done.status == 2
    assert said in done.err
    assert [line for line in done.err.splitlines() if not line.startswith("programming")] == done.err.splitlines()[-1:]
    assert sorted(folder.iterdir()) == before


def test_odd_layers_and_what_is_none(memsim, tmp_path):
    tensors = {
        "h.0.attn.c_attn.weight": torch.randn(16, 48),
        "h.0.attn.c_attn.bias": torch.randn(48),
        "mha.in_proj_weight": torch.randn(48, 16),
        "mha.out_proj.weight": torch.randn(16, 16),
        "conv.weight": torch.randn(6, 4, 3),
        "depthwise_or_first.weight": torch.randn(6, 1, 3),
        "up.weight": torch.randn(6, 2, 3),  # [in, out / groups, kernel], as its bias tells
        "up.bias": torch.randn(4),
        "packed.weight": torch.ones(8, 8, dtype=torch.int8),
        "empty.weight": torch.zeros(4, 16),
        "fc.weight": torch.randn(4, 16),
    }
    save_file(tensors, tmp_path / "odd.safetensors")
    arguments = ("map", "odd.safetensors", "--exclude", "mha.v_proj", "--json", "-")
    report = json.loads(memsim(*arguments).out)
    reasons = {layer["name"]: layer["reason"] for layer in report["digital"]}
    assert reasons.keys() == {"packed.weight", "depthwise_or_first.weight", "mha.v_proj"}
    assert "whole numbers" in reasons["packed.weight"]
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert {name: (row["out_features"], row["in_features"], row["groups"]) for name, row in layers.items()} == {
        "h.0.attn.c_attn": (48, 16, 1),
        "mha.q_proj": (16, 16, 1),
        "mha.k_proj": (16, 16, 1),
        "mha.out_proj": (16, 16, 1),
        "conv": (6, 12, 1),
        "up": (12, 6, 2),
        "empty": (4, 16, 1),
        "fc": (4, 16, 1),
    }
    assert layers["empty"]["programming_error"] == 0  # of a matrix of zeros there is no relative error
    assert layers["up"]["utilisation"] == 6 * 3 * 2 / 128**2
    assert "2 of 6 x 3" in memsim("map", "odd.safetensors", "--dry-run").out
    stored = load_file(tmp_path / "odd.mapped.safetensors")
    assert torch.equal(stored["mha.v_proj_weight"], tensors["mha.in_proj_weight"][32:])
    assert "mha.in_proj_weight" not in stored
    assert torch.equal(stored["up.bias"], tensors["up.bias"])
    levels, scale = stored["up.matrix.levels"].float(), stored["up.matrix.scale"]
    columns = levels * scale[:, None]  # [out * kernel, in / groups]
    wanted = tensors["up.weight"].unflatten(0, (2, 3)).permute(0, 2, 3, 1).reshape(12, 3)
    assert (columns - wanted).norm() < 0.02 * wanted.norm()


def test_a_spec_whose_globs_match_nothing_is_warned_of(memsim, foreign, tmp_path):
    (tmp_path / "typo.yaml").write_text(
        "base: physical\ndigital: ['fcc*']\noverrides: [{match: 'nosuch.*', weights: {bits: 2}}]\n"
    )
    done = memsim("map", foreign, "--hardware", "typo.yaml", "--dry-run")
    assert "warning: hardware typo: digital: fcc*: matches no layer" in done.said
    assert "warning: hardware typo: overrides: match: nosuch.*: matches no layer" in done.said
    assert "matches no layer" not in memsim("map", foreign, "--dry-run").said


def test_a_mapped_file_is_not_mapped_again(memsim, foreign):
    memsim("map", foreign)
    done = memsim("map", "foreign.mapped.safetensors")
    assert done.status == 2
    assert "a mapped file; map takes an unmapped model" in done.err


def test_reads_that_disturb_are_warned_of(memsim, foreign):
    warning = "a read at 0.6 V SETs 11.13% of the HRS cells and moves 0.06% of the LRS cells"
    assert warning in memsim("map", foreign, "--hardware", "paper", "--dry-run").err
    assert "disturbs less" not in memsim("map", foreign, "--dry-run").err
    assert memsim("map", foreign, "--hardware", "paper", "--dry-run", "--quiet") == (0, "", "")
    assert memsim("map", foreign, "--hardware", "ideal", "--dry-run").err == ""


def test_the_error_budget_is_sorted_by_what_hurts(memsim, tiny_recogniser, tmp_path):
    command = (
        "map",
        tiny_recogniser,
        "--bits",
        "3",
        "--budget",
        "-o",
        "out.safetensors",
        "--force",
        "--json",
        "map.json",
    )
    done = memsim(*command, "--force")
    assert done.status == 0, done.err
    budget = json.loads((tmp_path / "map.json").read_text())["budget"]
    assert budget["against"] == "full precision"
    added = {entry["effect"]: entry["added"] for entry in budget["effects"]}
    assert list(added) == ["quantisation", "dac", "iv", "programming", "adc", "read_noise"]
    assert sum(math.copysign(a * a, a) for a in added.values()) == pytest.approx(budget["error"] ** 2)
    assert [layer["error"] for layer in budget["layers"]] == sorted(
        (layer["error"] for layer in budget["layers"]), reverse=True
    )
    labels = {"quantisation": "quantisation", "dac": "DAC", "iv": "I-V", "adc": "ADC", "read_noise": "read noise"}
    _, table = done.out.split("error of the product")
    rows = [line.strip() for line in table.splitlines() if re.search(r"\d\.\d\d +\d", line)]
    wanted = [labels.get(effect, effect) for effect in sorted(added, key=lambda effect: -added[effect])]
    for effect, label, row in zip(sorted(added, key=lambda e: -added[e]), wanted, rows, strict=False):
        assert row.startswith(f"{label} ")
        assert f" {100 * added[effect]:.2f} " in row
    assert "root mean square over 10 layers" in done.said
    worst = done.said.split("deviation of the products")[1].splitlines()[0].count("blocks.0.attention.key")
    assert done.said.count("blocks.0.attention.key") - worst == memsim("map", tiny_recogniser, "--dry-run").said.count(
        "blocks.0.attention.key"
    )
    in_full = memsim(*command, "--verbose")
    assert in_full.out.count("blocks.0.attention.key") == done.out.count("blocks.0.attention.key") + 1
    assert "budget" not in json.loads(memsim("map", tiny_recogniser, "--dry-run", "--json", "-").out)


def test_the_budget_changes_nothing_of_the_file(memsim, tiny_recogniser, tmp_path):
    for out, more in (("a", []), ("b", ["--budget", "--quiet"])):
        done = memsim("map", tiny_recogniser, "--bits", "3", "-o", f"{out}.safetensors", *more)
        assert done.status == 0
    assert (done.out, done.err) == ("", "")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_calibration_data_give_the_budget_its_inputs(memsim, tiny_recogniser, tmp_path):
    with safe_open(tiny_recogniser, "pt") as file:
        metadata = file.metadata()
    tensors = {name: t for name, t in load_file(tiny_recogniser).items() if not name.startswith("statistics/")}
    save_file(tensors, tmp_path / "bare.safetensors", metadata)
    refused = memsim("map", "bare.safetensors", "--hardware", "ideal", "--budget")
    assert refused.status == 2
    assert "and the error budget multiplies their inputs" in refused.err
    assert "; add --calibrate DATA, which measures them, or leave --budget out" in refused.err
    manifest = tmp_path / "one.tsv"
    (utterance,) = load_corpus("demo", limit=1).utterances
    manifest.write_text(f"audio\ttext\n{utterance.audio}\t{utterance.text}\n")
    done = memsim("map", "bare.safetensors", "--hardware", "ideal", "--budget", "--calibrate", "one.tsv", "--json", "-")
    assert [entry["effect"] for entry in json.loads(done.out)["budget"]["effects"]] == ["quantisation"]


def test_some_of_the_utterances_calibrate(memsim, tiny_recogniser, tmp_path):
    first, *_ = load_corpus("demo", limit=2).utterances
    (tmp_path / "one.tsv").write_text(f"audio\ttext\n{first.audio}\t{first.text}\n")
    some = ("--calibrate", "demo", "--calibration-utterances", "1")
    for out, data in (("a", ("--calibrate", "one.tsv")), ("b", some), ("c", ("--calibrate", "demo"))):
        assert memsim("map", tiny_recogniser, "--bits", "3", "-o", f"{out}.safetensors", *data).status == 0
    by_one, by_some, by_all = (load_file(tmp_path / f"{out}.safetensors") for out in "abc")
    assert all(torch.equal(tensor, by_some[name]) for name, tensor in by_one.items())
    assert not all(torch.equal(tensor, by_all[name]) for name, tensor in by_one.items() if name in by_all)
    refused = memsim("map", tiny_recogniser, "--bits", "3", "--calibrate", "demo", "--calibration-utterances", "0")
    assert refused.status == 2
    with pytest.raises(InputError, match="calibration_utterances 0"):
        map_checkpoint(tiny_recogniser, bits=3, calibrate="demo", calibration_utterances=0)


def test_the_share_of_the_weights_on_arrays_is_said(memsim, foreign):
    done = memsim("map", foreign, "--dry-run", "--json", "map.json")
    report = json.loads(foreign.with_name("map.json").read_text())
    weights = report["weights"]
    assert weights["on_arrays"] == 5000
    assert weights["total"] == 5000 + sum(layer["weights"] for layer in report["digital"])
    assert weights["fraction_on_arrays"] == 5000 / weights["total"]
    assert f"{5000 / weights['total']:.1%} of the {weights['total']:,} weights in matrices and tables" in done.said
    table = next(layer for layer in report["digital"] if "embed_tokens" in layer["name"])
    share = f"(embedding table (by its name)), {table['weights'] / weights['total']:.1%} of the weights"
    assert share in done.said


def test_shards_and_prefixes(memsim, foreign, tmp_path):
    tensors = load_file(foreign)
    whole = memsim("map", foreign, "--bits", "3", "-o", "whole.safetensors")
    assert whole.status == 0
    names = sorted(tensors)
    places = {name: f"model-{1 + index % 2:05}-of-00002.safetensors" for index, name in enumerate(names)}
    for shard in set(places.values()):
        held = {f"module.{name}": tensors[name] for name in names if places[name] == shard}
        save_file(held, foreign.with_name(shard))
    index = foreign.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {f"module.{name}": shard for name, shard in places.items()}}))
    done = memsim("map", index, "--bits", "3")
    assert done.status == 0
    assert "have the prefix module. (DataParallel or DistributedDataParallel), which is left out" in done.said
    found, wanted = (load_file(foreign.with_name(n)) for n in ("model.mapped.safetensors", "whole.safetensors"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    quiet = memsim("map", index, "--bits", "3", "--dry-run", "--quiet")
    assert quiet.said == ""
    over = memsim("map", index, "-o", "model-00001-of-00002.safetensors", "--force")
    assert over.status == 2
    assert "is also an input and would be overwritten" in over.err
