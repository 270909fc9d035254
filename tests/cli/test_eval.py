"""`memsim eval` as users type it, on the bundled checkpoint and speech."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from memsim.asr.bootstrap import compare
from memsim.asr.corpora import NAMES, load_corpus
from memsim.asr.data import FeatureSource, pad
from memsim.asr.recogniser import load_recogniser
from memsim.config.resources import ASSETS
from memsim.crossbar.histogram import bin_edges
from memsim.crossbar.statistics import InputStatistics
from memsim.storage.checkpoint import load_checkpoint
from tests.cli.speech import few_utterances

DEMO = ("--data", "demo", "--limit", "6")


def result_of(done) -> dict:
    assert done.status == 0, done.err
    return json.loads(done.out)


def without_timing(result: dict) -> dict:
    return {key: value for key, value in result.items() if key != "real_time_factor"}


def test_the_table_says_what_was_measured(memsim):
    done = memsim("eval", "demo-float", *DEMO, "--bits", "3", "--trials", "2", "--verbose")
    assert done.status == 0
    for said in (
        "6 utterances",
        "of synthetic speech",
        "full precision",
        "digital, quantised",
        "mapped, 2 chips",
        "relative degradation to digital: ",
        "(95% interval over 6 utterances, of these 2 chips: ",
        "clipped: DAC",
        "real-time factor of the simulation: ",
        "(not the speed of a chip)",
        "demo-float.safetensors on physical, 3-bit weights, 60 layers",
        "says little of real speech",
        "blocks.5.feed_forward_2.expand",
    ):
        assert said in done.said


def test_one_chip_has_no_spread_and_changed_keys_are_named(memsim):
    settings = ("--set", "adc.bits=6", "--set", "retention.age_seconds=1e6")
    done = memsim("eval", "demo", *DEMO, *settings, "--json", "one.json", "--report", "one.html")
    assert done.status == 0, done.err
    result, titled = json.loads(Path("one.json").read_text()), "physical with adc.bits=6, retention.age_seconds=1e6"
    for rates in (result["mapped"]["wer"], result["mapped"]["cer"]):
        assert rates["std"] is None
        assert rates["min"] == rates["mean"] == rates["max"]
    assert "std" in done.out
    assert " 0.00 " not in done.out.partition("relative")[0]
    hardware = result["hardware"]
    assert (hardware["name"], hardware["base"], hardware["title"]) == ("physical", "physical", titled)
    assert hardware["changed"] == {"adc.bits": 6, "retention.age_seconds": 1e6}
    assert hardware["unfitted"] == ["retention"]
    law = "retention: a law whose numbers come from the spec and were not fitted to measurements"
    page = " ".join(Path("one.html").read_text("utf-8").split())
    for text in (done.said, page):
        assert f"demo.safetensors on {titled}" in text
        assert law in text
    assert "95% interval over 6 utterances, of this chip" in page

    # a mapped file knows, too, and what is changed on it comes on top
    mapped = memsim("map", "demo", *settings, "-o", "m.safetensors", "--json", "map.json", "--report", "map.html")
    assert f"demo.safetensors on {titled}" in mapped.said
    assert law in mapped.said
    assert json.loads(Path("map.json").read_text())["hardware"]["changed"] == hardware["changed"]
    assert f"demo.safetensors on {titled}" in " ".join(Path("map.html").read_text("utf-8").split())
    assert f"m.safetensors on {titled}, 3-bit weights" in memsim("eval", "m.safetensors", *DEMO).said
    again = memsim("eval", "m.safetensors", *DEMO, "--set", "adc.bits=8", "--set", "read_noise=none")
    assert "levels mapped again on physical with read_noise=none, retention.age_seconds=1e6" in again.said


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_network_of_no_use_has_no_ratio(memsim, tiny_recogniser, quiet):
    done = memsim(
        "eval", tiny_recogniser, *DEMO, "--bits", "3", "--trials", "2", "--json", "r.json", "--report", "r.html", *quiet
    )
    assert done.status == 0
    result = json.loads(Path("r.json").read_text())
    assert result["relative_degradation"] == {"to_digital": None, "to_full_precision": None}
    assert result["unusable"].keys() == {"full_precision", "digital", "mapped"}
    assert result["intervals"]["to_digital"]["relative"] is None
    assert result["warnings"]
    page = " ".join(Path("r.html").read_text("utf-8").split())
    for sentence in result["warnings"]:
        assert (f"warning: {sentence}" in " ".join(done.err.split())) == (not quiet)
    assert "full precision: unusable: WER" in page
    assert "is the checkpoint trained, and for this language" in page
    if not quiet:
        assert "no relative degradation to digital: digital is unusable (WER " in done.said
        assert "no relative degradation to full precision: full precision is unusable (WER " in done.said
    else:
        assert (done.out, done.err) == ("", "")
        piped = memsim("eval", tiny_recogniser, *DEMO, "--bits", "3", "--json", "-")
        assert json.loads(piped.out)["warnings"]
        assert "warning: full precision: unusable: WER" in piped.err


def test_the_json_has_the_contract(memsim):
    result = result_of(
        memsim("eval", "demo-float", *DEMO, "--bits", "4", "--trials", "3", "--seed", "5", "--json", "-")
    )
    assert result["data"]["name"] == "demo"
    assert result["data"]["utterances"] == 6
    assert result["data"]["synthetic"] is True
    assert result["data"]["words"] == load_corpus("demo", limit=6).words
    assert result["hardware"]["name"] == "physical"
    assert result["hardware"]["spec"]["weights"]["bits"] == 4
    assert result["seed"] == 5
    trials = result["mapped"]["trials"]
    assert [trial["seed"] for trial in trials] == [5, 6, 7]
    wers = [trial["wer"] for trial in trials]
    assert result["mapped"]["wer"]["mean"] == pytest.approx(sum(wers) / 3)
    assert result["mapped"]["wer"]["min"] == min(wers)
    assert result["mapped"]["wer"]["max"] == max(wers)
    for part in (result["digital"], result["full_precision"], trials[0]):
        assert {"wer", "cer", "hits", "substitutions", "insertions", "deletions"} <= part.keys()
        assert part["hits"] + part["substitutions"] + part["deletions"] == result["data"]["words"]
    assert result["relative_degradation"]["to_digital"] == pytest.approx(
        result["mapped"]["wer"]["mean"] / result["digital"]["wer"] - 1
    )
    words, intervals = result["data"]["utterance_words"], result["intervals"]
    for part in (result["digital"], result["full_precision"], *trials):
        assert len(part["utterance_errors"]) == len(words) == 6
        assert sum(part["utterance_errors"]) / sum(words) == pytest.approx(part["wer"])
    paired = compare([trial["utterance_errors"] for trial in trials], result["digital"]["utterance_errors"], words)
    assert intervals["to_digital"] == paired.to_dict()
    assert intervals["wer"]["mapped"]["value"] == pytest.approx(result["mapped"]["wer"]["mean"])
    assert intervals["to_full_precision"]["relative"]["value"] == pytest.approx(
        result["relative_degradation"]["to_full_precision"]
    )
    assert 0 <= result["clip_rate"]["dac"] < 0.01
    assert 0 <= result["clip_rate"]["adc"] < 0.01
    assert len(result["clip_rate_by_layer"]) == 60
    assert all(0 <= rates["adc"] < 0.05 for rates in result["clip_rate_by_layer"].values())
    assert result["real_time_factor"] > 0


NARROW_ADC = "{{match: {}, adc: {{range: fixed, precision_bits: 4, range_bits: {}}}}}"
WARNED = "conversions are beyond full scale"


def test_a_layer_that_clips_much_is_named(memsim):
    """The rate over all layers hides it: here, one of 60, and then two."""
    run = ("eval", "demo", "--data", "demo", "--limit", "1", "--json", "result.json", "--force")
    run += ("--hardware", "ideal", "--set", "adc={range: fixed, precision_bits: 4, range_bits: 8}")
    narrow, also_narrow = "blocks.3.attention.query", "blocks.3.attention.key"
    assert WARNED not in memsim(*run).said
    for layers, others in (((narrow,), ""), ((narrow, also_narrow), " (1 more layer above 5%)")):
        listed = ", ".join(NARROW_ADC.format(name, -2 * (name == narrow)) for name in layers)
        done = memsim(*run, "--set", f"overrides=[{listed}]")
        rates = json.loads(Path("result.json").read_text())
        assert rates["clip_rate"]["adc"] < 0.05 < rates["clip_rate_by_layer"][layers[-1]]["adc"]
        rate = rates["clip_rate_by_layer"][narrow]["adc"]
        assert (
            f"warning: {narrow}: {rate:.1%} of the ADC's {WARNED}{others}; more than adc.range_bits -2 has room for "
            "them, under `overrides` in some layers alone"
        ) in done.said
        assert done.said.count(WARNED) == 1


def test_converters_whose_range_does_not_fit_the_speech_are_named(memsim):
    run = ("eval", "demo-float", "--data", "demo", "--limit", "1", "--hardware", "ideal", "--bits", "3")
    done = memsim(*run, "--set", "adc={bits: 8, percentile: 80}", "--set", "dac={bits: 8, percentile: 80}")
    for kind, remedy in (("DAC", "dac.method: max and calibration on such data"), ("ADC", "adc.method: max")):
        assert f"of the {kind}'s {WARNED} (" in done.said
        assert f"; {remedy}" in done.said


def test_losses_are_given_where_they_are_asked_for(memsim):
    run = ("eval", "demo-float", *DEMO, "--hardware", "ideal", "--bits", "2", "--loss")
    done = memsim(*run, "--json", "result.json")
    result = json.loads(Path("result.json").read_text())
    recogniser = load_recogniser(load_checkpoint(ASSETS / "checkpoints" / "demo-float.safetensors"))
    source = FeatureSource(recogniser.features)
    losses = []
    for utterance in load_corpus("demo", limit=6).utterances:
        tokens = torch.tensor(recogniser.tokens.encode(utterance.text))
        with torch.no_grad():
            log_probs, frames = recogniser.model(*pad([source(utterance)]))
        loss = F.ctc_loss(log_probs.transpose(0, 1), tokens[None], frames, torch.tensor([len(tokens)]), reduction="sum")
        losses.append(loss.item() / len(tokens))
    assert result["full_precision"]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert result["mapped"]["loss_name"] == "CTC"
    assert result["mapped"]["loss"]["mean"] == pytest.approx(result["digital"]["loss"])
    assert result["digital"]["loss"] != pytest.approx(result["full_precision"]["loss"], rel=0.01)
    assert f"{result['full_precision']['loss']:.4f}" in done.out


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result(memsim):
    command = ("eval", "demo-float", *DEMO, "--bits", "3", "--json", "-")
    first, again, other = memsim(*command), memsim(*command), memsim(*command, "--seed", "1")
    assert without_timing(result_of(first)) == without_timing(result_of(again))
    assert result_of(first)["mapped"] != result_of(other)["mapped"]


def test_ideal_hardware_with_enough_bits_is_full_precision(memsim):
    result = result_of(memsim("eval", "demo-float", *DEMO, "--hardware", "ideal", "--bits", "16", "--json", "-"))
    assert result["digital"] == result["full_precision"]
    assert result["mapped"]["trials"] == [{"seed": 0, **result["full_precision"]}]
    assert result["clip_rate"] == {"dac": None, "adc": None}


def test_mapping_first_gives_the_result_of_mapping_in_memory(memsim):
    assert memsim("map", "demo-float", "--bits", "3", "--seed", "4").status == 0
    # without CHECKPOINT, the newest mapped file in the folder
    mapped = memsim("eval", *DEMO, "--trials", "2", "--json", "-")
    in_memory = memsim("eval", "demo-float", *DEMO, "--bits", "3", "--seed", "4", "--trials", "2", "--json", "-")
    for key in ("digital", "mapped", "clip_rate", "seed"):
        assert result_of(mapped)[key] == result_of(in_memory)[key]
    assert result_of(mapped)["checkpoint"]["path"] == "demo-float.mapped.safetensors"


def test_which_checkpoint_is_taken_is_said(memsim, monkeypatch):
    done = memsim("eval", *DEMO, "--bits", "2")
    assert "checkpoint: demo (bundled)" in done.said
    memsim("map", "demo-float", "--bits", "2")
    assert "the newest mapped one in this folder" in memsim("eval", *DEMO).said
    monkeypatch.setenv("MEMSIM_CHECKPOINT", str(ASSETS / "checkpoints" / "demo-float.safetensors"))
    assert "(from $MEMSIM_CHECKPOINT)" in memsim("eval", *DEMO, "--bits", "2").said


def test_a_folder_or_dangling_link_is_not_taken_for_a_checkpoint(memsim, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "gone.mapped.safetensors").symlink_to("nowhere")
    (tmp_path / "folder.mapped.safetensors").mkdir()
    assert "checkpoint: demo (bundled)" in memsim("eval", *DEMO, "--bits", "2").said
    assert memsim("eval", "demo", *DEMO, "--bits", "2").status == 0


def test_hardware_options_map_a_mapped_file_again_and_say_so(memsim):
    memsim("map", "demo-float", "--bits", "3")
    as_it_is = memsim("eval", "demo-float.mapped.safetensors", *DEMO)
    assert "chip 1 is the one in the file" in as_it_is.said
    again = memsim("eval", "demo-float.mapped.safetensors", *DEMO, "--hardware", "ideal")
    assert "levels mapped again on ideal" in again.said
    assert "on ideal, 3-bit weights" in again.said
    changed = memsim("eval", "demo-float.mapped.safetensors", *DEMO, "--set", "adc.bits=6", "--json", "-")
    spec = result_of(changed)["hardware"]["spec"]
    assert (spec["adc"]["bits"], spec["weights"]["bits"]) == (6, 3)
    refused = memsim("eval", "demo-float.mapped.safetensors", *DEMO, "--bits", "2")
    assert refused.status == 2
    assert "was mapped at 3 bits and holds levels, not weights" in refused.err


def test_globs_that_match_nothing_are_warned_of_where_layers_are_known(memsim, tmp_path):
    digital = "['blocks.0.*', 'frontend.*', '*.depthwise', 'typo*']"
    (tmp_path / "mine.yaml").write_text(f"base: physical\nweights: {{bits: 2}}\ndigital: {digital}\n")
    done = memsim("eval", "demo-float", *DEMO, "--hardware", "mine.yaml")
    assert "digital: typo*: matches no layer" in done.said
    assert "blocks.0.*: matches" not in done.said
    memsim("map", "demo-float", "--hardware", "mine.yaml")
    assert "matches no layer" not in memsim("eval", "demo-float.mapped.safetensors", *DEMO).said


def test_a_reference_adds_full_precision_to_a_mapped_file(memsim):
    memsim("map", "demo-float", "--bits", "2", "--quiet")
    command = ("eval", "demo-float.mapped.safetensors", *DEMO, "--json", "-")
    assert "full_precision" not in result_of(memsim(*command))
    with_reference = result_of(memsim(*command, "--reference", "demo-float"))
    assert with_reference["full_precision"]["wer"] < 0.5
    assert "to_full_precision" in with_reference["relative_degradation"]


def strip_statistics(target) -> None:
    source = ASSETS / "checkpoints" / "demo-float.safetensors"
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor for name, tensor in load_file(source).items() if not name.startswith("statistics/")}
    save_file(tensors, target, metadata)


def test_an_uncalibrated_checkpoint_is_calibrated_by_map(memsim, tmp_path):
    strip_statistics(tmp_path / "bare.safetensors")
    few_utterances(tmp_path, 6)
    for command in (["eval", "bare.safetensors", *DEMO], ["map", "bare.safetensors", "--bits", "3"]):
        done = memsim(*command)
        assert "--calibrate DATA" in done.said
        assert done.status == (2 if command[0] == "eval" else 0)
    refused = memsim("eval", "bare.mapped.safetensors", *DEMO)
    assert refused.status == 2
    assert "holds no input statistics for blocks.0." in refused.err
    assert memsim("map", "bare.safetensors", "--bits", "3", "--calibrate", "few.tsv", "--force").status == 0
    assert memsim("eval", "bare.mapped.safetensors", *DEMO).status == 0
    # exact hardware has no ranges to calibrate
    assert memsim("eval", "bare.safetensors", *DEMO, "--hardware", "ideal", "--bits", "4").status == 0


def test_the_largest_signal_is_known_from_data_alone(memsim, tmp_path):
    strip_statistics(tmp_path / "bare.safetensors")
    few_utterances(tmp_path, 6)
    settings = ("--bits", "3", "--set", "adc.method=max")
    refused = memsim("map", "demo-float", *settings)
    assert refused.status == 2
    assert "adc.method: max needs all calibration inputs" in refused.err
    assert "--calibrate DATA" in refused.err
    assert not list(tmp_path.glob("*.mapped.safetensors"))
    assert memsim("map", "bare.safetensors", *settings, "--calibrate", "few.tsv").status == 0
    done = memsim("eval", "bare.mapped.safetensors", *DEMO, "--json", "one.json")
    assert done.status == 0, done.err
    assert json.loads(Path("one.json").read_text())["clip_rate"]["adc"] < 1e-4
    further = memsim("eval", "bare.mapped.safetensors", *DEMO, "--trials", "2")
    assert further.status == 2
    assert "adc.method: max needs all calibration inputs" in further.err


def test_map_says_how_far_products_are_from_exact_ones(memsim, tmp_path):
    done = memsim("map", "demo-float", "--bits", "3", "--json", "map.json", "--report", "map.html")
    assert done.status == 0, done.err
    layers = {layer["name"]: layer["deviation"] for layer in json.loads(Path("map.json").read_text())["layers"]}
    assert all(0.02 < found["to_digital"] < found["to_full_precision"] < 0.25 for found in layers.values())
    worst = max(layers, key=lambda name: layers[name]["to_full_precision"])
    assert f"largest: {worst} {100 * layers[worst]['to_full_precision']:.1f}%" in done.said
    assert "further than" not in done.said
    assert f"{100 * layers[worst]['to_full_precision']:.1f}" in Path("map.html").read_text()
    with safe_open("demo-float.mapped.safetensors", "pt") as file:
        assert json.loads(file.metadata()["deviations"]) == layers
    ruined = memsim("map", "demo-float", "--bits", "2", "--force")
    assert ruined.status == 0
    assert "further than 25% from the exact ones" in ruined.said
    assert "--exclude blocks." in ruined.said
    assert "further than" not in memsim("map", "demo", "--out", "good.safetensors").said


def test_layers_that_saw_only_zeros_are_named(memsim, tmp_path):
    tensors = load_file(ASSETS / "checkpoints" / "demo-float.safetensors")
    with safe_open(ASSETS / "checkpoints" / "demo-float.safetensors", "pt") as file:
        metadata = file.metadata()
    dead = InputStatistics(0.0, bin_edges(0.0, 24, 3), torch.zeros(2, 24), torch.zeros(3, 96), torch.ones(3))
    save_file(tensors | dead.to_tensors("blocks.2.attention.query"), "dead.safetensors", metadata)
    for command in (["map", "dead.safetensors"], ["eval", "dead.safetensors", *DEMO]):
        done = memsim(*command, "--bits", "4")
        assert done.status == 0, done.err
        assert "calibration saw only zeros at the input of blocks.2.attention.query, so" in done.said


def test_what_effects_and_layers_cost(memsim):
    some = "digital=['output*', '*[!ey]', '*.depthwise', 'frontend.*']"
    command = ("eval", "demo-float", *DEMO, "--bits", "3", "--trials", "2", "--set", some)
    done = memsim(*command, "--budget", "--ablate", "--sensitivity", "--json", "all.json")
    assert done.status == 0, done.err
    result = json.loads(Path("all.json").read_text())
    effects = ["quantisation", "dac", "iv", "programming", "adc", "read_noise"]
    assert [entry["effect"] for entry in result["budget"]["effects"]] == effects
    assert [entry["effect"] for entry in result["ablation"]] == effects
    assert [entry["chips"] for entry in result["ablation"]] == [1, 1, 1, 2, 2, 2]
    assert result["ablation"][-1]["wer"] == result["mapped"]["wer"]
    assert result["ablation"][1]["cer"]["mean"] == result["digital"]["cer"]
    layers = result["sensitivity"]["layers"]
    assert len(layers) == len(result["budget"]["layers"]) == 18  # query, key and value of six blocks
    assert {"name", "wer", "cer", "loss", "added", "within_noise", "may_be_worst"} == layers[0].keys()
    for layer in layers:
        added = layer["added"]
        assert added["low"] <= added["value"] <= added["high"]
        assert added["value"] == pytest.approx(layer["loss"] / result["sensitivity"]["digital"]["loss"] - 1, abs=1e-5)
        assert layer["within_noise"] == (added["low"] <= 0 <= added["high"])
    assert all(layer["standard_error"] > 0 for layer in result["budget"]["layers"])
    assert result["sensitivity"]["digital"]["wer"] == result["digital"]["wer"]
    for said in (
        "error of the product",
        "non-idealities up to",
        "none: full precision",
        "only this layer on hardware",
        "none: digital, quantised",
        "8 more with --verbose",
        "adds to CTC loss %",
        "product error %",
        "95% interval over utterances, of this chip",
        "to the CTC loss beyond noise",
        f"The largest product error is that of {result['budget']['layers'][0]['name']}",
    ):
        assert said in done.said
    assert result["sensitivity"]["layers"][0]["name"] in done.said
    assert "in layer" not in done.said  # one table names layers
    plain = memsim(*command, "--json", "-")
    assert without_timing(result_of(plain)) == without_timing(
        {key: value for key, value in result.items() if key not in ("budget", "ablation", "sensitivity")}
    )


@pytest.mark.slow
def test_a_budget_of_a_mapped_file_leaves_quantisation_out(memsim):
    memsim("map", "demo-float", "--bits", "3")
    command = ("eval", "demo-float.mapped.safetensors", *DEMO, "--budget")
    done = memsim(*command, "--json", "-")
    assert result_of(done)["budget"]["against"] == "quantised"
    assert "quantised weights on calibration inputs" in memsim(*command).said
    referred = result_of(memsim(*command, "--reference", "demo-float", "--json", "-"))["budget"]
    in_memory = result_of(memsim("eval", "demo-float", *DEMO, "--bits", "3", "--budget", "--json", "-"))["budget"]
    assert referred == in_memory


def test_manifests_with_other_rates_are_read_and_said_once(memsim, tmp_path):
    import soundfile

    corpus = load_corpus("demo", limit=2)
    rows = ["audio\ttext"]
    for utterance in corpus.utterances:
        samples, rate = soundfile.read(utterance.audio)
        assert rate == 16000
        soundfile.write(tmp_path / f"{utterance.id}.wav", samples, 22050)
        rows.append(f"{utterance.id}.wav\t{utterance.text}")
    (tmp_path / "m.tsv").write_text("\n".join(rows) + "\n")
    done = memsim("eval", "demo-float", "--data", "m.tsv", "--hardware", "ideal", "--bits", "8")
    assert done.status == 0
    assert "2 utterances" in done.said


def test_what_a_recogniser_cannot_write_is_said_once(memsim, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSIM_AUDIO_ROOTS", "/")
    utterances = load_corpus("demo", limit=2).utterances
    texts = ("the q. of forty-one", "cafe\u0301 YES")
    rows = [f"{utterance.audio}\t{text}\n" for utterance, text in zip(utterances, texts, strict=True)]
    (tmp_path / "odd.tsv").write_text("audio\ttext\n" + "".join(rows))
    command = ["eval", "demo-float", "--data", "odd.tsv", "--hardware", "ideal", "--trials", "2"]
    done = memsim(*command, "--json", "one.json", "--results", "r.jsonl")
    assert done.status == 0, done.err
    said = "odd.tsv all: the recogniser cannot write '.', '-', '\u00e9': 3 words in 2 utterances of the transcripts"
    assert done.err.count(said) == 1
    assert memsim(*command, "--quiet").err == ""
    assert memsim("eval", "--merge", "r.jsonl", "--json", "two.json").status == 0
    for name in ("one.json", "two.json"):
        found = json.loads((tmp_path / name).read_text())["data"]["unwritable"]
        assert found == {"parts": {".": 1, "-": 1, "\u00e9": 1}, "words": 3, "utterances": 2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch.safetensors", *DEMO], "nosuch.safetensors: no such file, and no bundled checkpoint of that name"),
        (["foreign.safetensors", *DEMO], "names no architecture, so it can be mapped but not run"),
        (["demo-float", "--data", "nosuch"], f"data 'nosuch': no such corpus (available: {', '.join(NAMES)})"),
        (["demo-float", "--data", "tedlium2"], "https://www.openslr.org/19"),
        (["demo-float", "--data", "tedlium2", "--data-root", "."], "holds no TEDLIUM_release2/"),
        (["demo-float", "--data", "missing.tsv"], "missing.tsv: no such manifest"),
        (["demo-float", "--data", "audio.tsv"], "audio.tsv:2: no such audio file: gone.wav"),
        (["demo-float", "--data", "text.tsv"], "text.tsv:2: `text` is empty"),
        (["demo-float", "--data", "demo", "--limit", "0"], "limit is 0; it must be at least 1"),
        (["demo-float", *DEMO, "--split", "test"], "--split test: demo is not divided into splits; leave --split out"),
        (["demo-float", *DEMO, "--cell", "nosuch"], "nosuch: no such file, and no shipped devices config"),
        (["demo-float", *DEMO, "--trials", "0"], "greater than or equal to 1"),
        (["demo-float", *DEMO, "--compute", "tpu"], "--compute tpu: expected auto, cpu or cuda"),
        (["demo-float", *DEMO, "--bits", "1"], "out of range (2 to 16)"),
        (
            ["demo-float", *DEMO, "--hardware", "broken.yaml"],
            "broken.yaml:1: adc.bitz: unknown key (nearest: adc.bits)",
        ),
        (["demo-float", *DEMO, "--json", "foreign.safetensors"], "exists already; --force overwrites it"),
        (["demo-float", *DEMO, "--text-style", "odd"], "odd"),
        (["bare.safetensors", *DEMO, "--hardware", "ideal", "--budget"], "bare.safetensors: holds no input statistics"),
        (["demo-float", "--data", "odd.tsv", "--sensitivity"], "no token for the character '\u00e9'"),
        (["device.safetensors", *DEMO], "a device model; eval takes a recogniser"),
        (["demo", "--reference", "device.safetensors"], "--reference device.safetensors: a device model, not a recogn"),
        (["demo", "--quiet", "--verbose"], "--quiet --verbose: contradict each other; leave one out"),
        (["demo", "-v", "-q", "--merge", "x.jsonl"], "--quiet --verbose: contradict each other; leave one out"),
        (["bare.safetensors", *DEMO, "--hardware", "ideal", "--budget"], "add --calibrate DATA, which measures them"),
        (["demo-flaot", *DEMO], "(nearest: demo-float; available: demo-float, demo)"),
        (["device", *DEMO], "(nearest: the file device.safetensors; available: demo-float, demo)"),
        (["demo", "--data", "audio"], f"(nearest: the file audio.tsv; available: {', '.join(NAMES)})"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(memsim, foreign, arguments, said):
    folder = foreign.parent
    (folder / "audio.tsv").write_text("audio\ttext\ngone.wav\tyes\n")
    (folder / "text.tsv").write_text("audio\ttext\nforeign.safetensors\t\n")
    (folder / "broken.yaml").write_text("adc: {bitz: 3}\n")
    (folder / "odd.tsv").write_text(f"audio\ttext\n{load_corpus('demo', limit=1).utterances[0].audio}\tcaf\u00e9\n")
    strip_statistics(folder / "bare.safetensors")
    save_file({"llrs": torch.ones(3)}, folder / "device.safetensors", {"format": "memsim/1", "kind": "device"})
    done = memsim("eval", *arguments)
    assert done.status == 2
    assert said in " ".join(done.err.split())
    assert done.out == ""
    assert "Traceback" not in done.err
