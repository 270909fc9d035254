"""The page of an evaluation shows the whole result and needs no other file."""

from __future__ import annotations

import base64
import copy
import re
import xml.etree.ElementTree as ET

import pytest
import yaml

from memsim import __version__, load_hardware
from memsim.report.answers import SYNTHETIC
from memsim.report.evaluation_page import evaluation_page
from memsim.report.figures import FIGURE_LAYERS
from tests.pages import Page
from tests.report.conftest import Written


@pytest.fixture(scope="module")
def page(evaluation: Written) -> Page:
    return Page.of(evaluation[1])


def rows(text: str) -> list[list[str]]:
    """The cells of every row."""
    return [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in re.findall(r"<tr[^>]*>(.*?)</tr>", text)]


def test_the_page_is_whole_and_needs_nothing_else(page: Page, evaluation: Written) -> None:
    _, text = evaluation
    assert all(link is not None and link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert "<script" not in text
    assert not re.search(r"url\(|@import", text.partition("</style>")[0])
    assert 'name="viewport" content="width=device-width' in text
    assert len(text) < 2_000_000


def test_every_section_is_there(page: Page) -> None:
    assert page.headings[1:] == [
        "Word error rate",
        "Chips",
        "Ablation",
        "Error budget",
        "Clipping",
        "Sensitivity",
        "Cost",
        "Whole chip",
        "To repeat it",
        "Hardware",
    ]


def test_every_figure_is_a_picture_with_a_name(page: Page) -> None:
    pictures = {image["alt"]: image["src"] for image in page.images}
    assert len(pictures) == len(page.images) == 9
    for name, source in pictures.items():
        root = ET.fromstring(base64.b64decode(str(source).split(",")[1]))
        assert root.tag.endswith("svg"), name
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 3, name


def test_the_numbers_are_those_of_the_result(evaluation: Written) -> None:
    facts, text = evaluation
    table = rows(text)
    intervals, mapped = facts["intervals"], facts["mapped"]
    own = intervals["wer"]["mapped"]
    wer = mapped["wer"]
    (line,) = [line for line in table if line and line[0] == "mapped, 3 chips"]
    assert line[:6] == [
        "mapped, 3 chips",
        f"{100 * wer['mean']:.2f}",
        f"{100 * own['low']:.2f} to {100 * own['high']:.2f}",
        f"{100 * wer['std']:.2f}",
        f"{100 * wer['min']:.2f}",
        f"{100 * wer['max']:.2f}",
    ]
    difference = intervals["to_digital"]["difference"]
    (line,) = [line for line in table if line and line[0] == "mapped less digital, quantised"]
    assert line[2] == f"{100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}"
    for trial in mapped["trials"]:
        assert [f"{trial['seed']}", f"{100 * trial['wer']:.2f}"] in [line[:2] for line in table]
    for layer in facts["budget"]["layers"]:
        assert [layer["name"], f"{100 * layer['error']:.2f}"] in [line[:2] for line in table]
    for step in facts["ablation"]:
        assert f"{100 * step['wer']['mean']:.2f}" in [line[1] for line in table if len(line) == 5]
    for name, rate in facts["clip_rate_by_layer"].items():
        assert [name, f"{100 * rate['dac']:.3f}", f"{100 * rate['adc']:.3f}"] in table
    for layer in facts["sensitivity"]["layers"]:
        assert [layer["name"], f"{100 * layer['wer']:.2f}", f"{layer['loss']:.4f}"] in [line[:3] for line in table]
    circuits = {"DACs and row drivers": "dac", "ADCs": "adc", "cells": "cells", "programming": "programming"}
    shares = {circuits[line[0]]: line[2] for line in table if len(line) == 6 and line[0] in circuits}
    assert shares == {circuit: f"{100 * facts['cost']['shares'][circuit]:.1f}" for circuit in circuits.values()}


def test_headline_numbers_come_first(evaluation: Written) -> None:
    facts, text = evaluation
    first = text.partition("<h2>")[0]
    assert SYNTHETIC in first
    for name in ("mapped", "digital", "full_precision"):
        assert f"{100 * facts['intervals']['wer'][name]['value']:.2f} %" in first
    assert first.count("95% interval over 3 utterances, of these 3 chips") == 3
    for sentence in facts["warnings"]:  # it is not trained
        assert sentence in Page.of(text).text
    assert first.count("unusable</b>") == 2
    usable = copy.deepcopy(facts) | {"unusable": {}, "warnings": []}
    for name in ("digital", "full_precision"):
        usable["intervals"][f"to_{name}"]["relative"] = {"value": 0.1, "low": -0.1, "high": 0.4}
    first = evaluation_page(usable, "memsim eval").partition("<h2>")[0]
    assert first.count("95% interval over 3 utterances, of these 3 chips") == 6  # the opening has one, too
    assert "unusable" not in first
    law = "retention, faults, programming.relaxation: laws whose numbers come from the spec"
    assert law in first
    assert "with weights.bits=3, programming.relaxation=0.02, faults.stuck_lrs=0.01, retention.age_seconds=1e6" in first


def test_one_chip_has_no_spread(evaluation: Written) -> None:
    facts = copy.deepcopy(evaluation[0])
    facts["mapped"]["trials"] = facts["mapped"]["trials"][:1]
    facts["mapped"]["wer"] |= {"std": None}
    facts["ablation"][0]["wer"] |= {"std": None}
    table = rows(evaluation_page(facts, "memsim eval"))
    (line,) = [line for line in table if line and line[0] == "mapped, 1 chip"]
    assert line[3] == ""
    (line,) = [line for line in table if line and line[0] == "quantisation" and len(line) == 5]
    assert line[2] == ""


def test_both_measures_of_a_layer_are_in_one_table(evaluation: Written) -> None:
    facts, text = evaluation
    section = text.partition("<h2>Sensitivity</h2>")[2].partition("<h2>")[0]
    errors = {layer["name"]: f"{100 * layer['error']:.2f}" for layer in facts["budget"]["layers"]}
    table = {line[0]: line for line in rows(section) if line}
    for layer in facts["sensitivity"]["layers"]:
        line = table[layer["name"]]
        assert line[3] == f"{100 * layer['added']['value']:+.2f}"
        assert line[6] == errors[layer["name"]]
    for said in ("adds to CTC loss %", "product error %", "beyond noise", "what that costs the network"):
        assert said in section


def test_it_can_be_repeated(page: Page, evaluation: Written) -> None:
    facts, text = evaluation
    (command,) = re.findall(r"<pre>(memsim eval .*?)</pre>", text)
    assert "--data demo --limit 3 --trials 3 --seed 7" in command
    assert "--set weights.bits=3" in command
    assert "7, 8, 9 (one per chip)" in page.text
    assert f"memsim {__version__}, Python 3." in page.text
    assert facts["checkpoint"]["sha256"] in page.text
    spec = yaml.safe_load(text.rpartition("<pre>")[2].partition("</pre>")[0].replace("&#x27;", "'"))
    assert "read_noise" in spec
    assert load_hardware(_none(spec)) == load_hardware(facts["hardware"]["spec"])


def _none(value: object) -> object:
    """As the spec's YAML reads `none`."""
    if isinstance(value, dict):
        return {key: _none(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_none(inner) for inner in value]
    return None if value == "none" else value


def test_it_shows_what_there_is(evaluation: Written) -> None:
    """A result without additions, without full precision, on exact hardware."""
    facts = copy.deepcopy(evaluation[0])
    for key in ("budget", "ablation", "sensitivity", "cost", "full_precision"):
        del facts[key]
    del facts["intervals"]["wer"]["full_precision"], facts["intervals"]["to_full_precision"]
    facts["clip_rate_by_layer"] = {name: {"dac": None, "adc": None} for name in facts["clip_rate_by_layer"]}
    facts["clip_rate"] = {"dac": None, "adc": None}
    facts["data"]["synthetic"] = False
    facts |= {"unusable": {}, "warnings": []}
    facts["intervals"]["to_digital"]["relative"] = {"value": 0.1, "low": 0.0, "high": None}
    text = evaluation_page(facts, "memsim eval")
    page = Page.of(text)
    assert page.headings[1:] == ["Word error rate", "Chips", "To repeat it", "Hardware"]
    assert len(page.images) == 1
    assert SYNTHETIC not in text
    assert "to unbounded" in text
    facts["intervals"]["to_digital"]["relative"] = None
    assert "relative" not in Page.of(evaluation_page(facts, "memsim eval")).text


def test_losses_and_the_decoder(evaluation: Written) -> None:
    facts = copy.deepcopy(evaluation[0])
    assert "greedy decoding" in Page.of(evaluation[1]).text
    assert "CTC loss" not in evaluation[1].partition("Word error rate")[2].partition("Ablation")[0]
    facts["decoding"] = {
        "decoder": "beam",
        "words": 1000,
        "language_model": {"path": "models/an4.arpa", "sha256": "0"},
        "prior": "checkpoint",
        "options": {"lm_weight": 1.5, "prior_weight": 0.5},
        "tuned": {"data": "tedlium2", "split": "dev", "wer": 0.06},
    }
    facts["mapped"] |= {"loss_name": "CTC", "loss": {"mean": 0.125, "std": 0.0, "min": 0.125, "max": 0.125}}
    for number, score in enumerate((facts["digital"], facts["full_precision"], *facts["mapped"]["trials"])):
        score["loss"] = 0.5 + number
    text = evaluation_page(facts, "memsim eval")
    assert (
        "beam search of 1,000 words, an4.arpa by 1.5, prior of the checkpoint by 0.5 "
        "(tuned on tedlium2 dev: digital WER 6.00%)"
    ) in Page.of(text).text
    table = rows(text.partition("Ablation")[0])
    last = {line[0]: line[-1] for line in table if len(line) > 4}
    assert last["mapped, 3 chips"] == "0.1250"
    assert last["digital, quantised"] == "0.5000"
    assert [last[f"{trial['seed']}"] for trial in facts["mapped"]["trials"]] == ["2.5000", "3.5000", "4.5000"]


def test_cells_of_unknown_currents(evaluation: Written) -> None:
    facts = copy.deepcopy(evaluation[0])
    cost = facts["cost"]
    cost["joules"]["cells"] = cost["shares"]["cells"] = cost["tops_per_watt"] = None
    for layer in cost["layers"]:
        layer["joules"]["cells"] = layer["tops_per_watt"] = None
    text = evaluation_page(facts, "memsim eval")
    assert ["cells", "unknown", ""] in [line[:3] for line in rows(text)]
    del cost["chip"]
    assert "an estimate, for converters alone" in evaluation_page(facts, "memsim eval")


def test_it_opens_with_the_answer(page: Page, evaluation: Written) -> None:
    opening = evaluation[1].partition('<div class="opening')[2].partition("</div>")[0]
    assert opening.startswith(' fail"><p class="answer">The network itself does not work on this data')
    assert re.findall(r"<dt>(.*?)</dt>", opening) == ["How sure", "What hurts most", "Energy"]


def test_only_some_layers_are_drawn(evaluation: Written) -> None:
    facts = copy.deepcopy(evaluation[0])
    (one, *_) = facts["sensitivity"]["layers"]
    facts["sensitivity"]["layers"] = [one | {"name": f"layer.{n}"} for n in range(40)]
    page = Page.of(evaluation_page(facts, "memsim eval"))
    assert [f"layer.{n}" in page.text for n in (0, 39)] == [True, True]
    (source,) = [image["src"] for image in page.images if image["alt"] == "sensitivity of layers"]
    drawn = base64.b64decode(str(source).split(",")[1]).decode()
    assert [f">layer.{n}<" in drawn for n in (0, FIGURE_LAYERS - 1, FIGURE_LAYERS)] == [True, True, False]


def test_the_same_result_makes_the_same_page(evaluation: Written) -> None:
    assert evaluation_page(evaluation[0], "x") == evaluation_page(copy.deepcopy(evaluation[0]), "x")


def test_names_are_escaped(evaluation: Written) -> None:
    facts = copy.deepcopy(evaluation[0])
    facts["hardware"]["name"] = "<script>alert(1)</script>"
    text = evaluation_page(facts, "memsim eval --set 'name=<script>'")
    assert "<script" not in text
    assert "<script>alert(1)</script>" in Page.of(text).text
