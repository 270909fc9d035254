"""`memsim eval` with beam search and a language model, and the hypotheses that it writes, on the bundled demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim.asr.corpora import load_corpus
from memsim.asr.ngram import witten_bell
from tests.cli.speech import tedlium_of_demo

pytest.importorskip("flashlight.lib.text", reason="the extra lm is not installed")

ONE_BLOCK = "digital=['output*', 'frontend.*', 'blocks.[1-5].*']"
HARDWARE = ("--hardware", "ideal", "--bits", "8", "--set", ONE_BLOCK)
DEMO = ("eval", "demo-float", "--data", "demo", "--limit", "12", *HARDWARE)
TEXTS = [utterance.text for utterance in load_corpus("demo").utterances]


@pytest.fixture
def arpa(tmp_path) -> Path:
    path = tmp_path / "demo.arpa"
    path.write_text(witten_bell([text.split() for text in TEXTS], 2).to_arpa())
    return path


def result_of(done) -> dict:
    assert done.status == 0, done.err
    return json.loads(done.out)


def test_a_language_model_of_the_very_texts_makes_fewer_errors(memsim, arpa):
    greedy = result_of(memsim(*DEMO, "--json", "-"))
    assert greedy["decoding"] == {"decoder": "greedy"}
    beam = result_of(memsim(*DEMO, "--decoder", "beam", "--lm", "demo.arpa", "--json", "-"))
    assert beam["decoding"]["options"] == {
        "lm_weight": 2.0,
        "prior_weight": 0.5,
        "beam_size": 1024,
        "beam_tokens": 12,
        "beam_threshold": 14.0,
    }
    assert beam["decoding"]["prior"] == "outputs on demo all"
    assert beam["decoding"]["words"] == len({word for text in TEXTS for word in text.split()})
    for system in ("full_precision", "digital"):
        assert beam[system]["wer"] < greedy[system]["wer"]
    assert beam["mapped"]["wer"]["mean"] < greedy["mapped"]["wer"]["mean"]


def test_hypotheses_on_standard_output(memsim):
    done = memsim(*DEMO, "--hypotheses", "-")
    assert (done.status, done.err) == (0, "")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert len(rows) == 12 * len({row["system"] for row in rows})
    assert {row["reference"] for row in rows} <= set(TEXTS)


def test_hypotheses_of_every_system(memsim, arpa, tmp_path):
    command = (*DEMO, "--trials", "2", "--decoder", "beam", "--lm", "demo.arpa", "--prior-weight", "0", "--nbest", "3")
    done = memsim(*command, "--hypotheses", "h.jsonl", "--worst", "2", "--json", "r.json")
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    result = json.loads((tmp_path / "r.json").read_text())
    systems = ["full precision", "digital", "chip of seed 0", "chip of seed 1"]
    assert [row["system"] for row in rows] == [system for system in systems for _ in range(12)]
    assert [row["errors"] for row in rows[12:24]] == result["digital"]["utterance_errors"]
    assert [row["errors"] for row in rows[36:]] == result["mapped"]["trials"][1]["utterance_errors"]
    for row in rows:
        assert row["words"] == len(row["reference"].split())
        assert row["reference"] in TEXTS
        assert (row["errors"] == 0) == (row["hypothesis"] == row["reference"])
        best = row["nbest"]
        assert best[0]["text"] == row["hypothesis"]
        assert len({one["text"] for one in best}) == len(best) <= 3
        assert [one["score"] for one in best] == sorted((one["score"] for one in best), reverse=True)
    assert result["decoding"]["prior"] is None
    worst = max(result["mapped"]["trials"][1]["utterance_errors"])
    assert f"{worst} errors in" in done.said
    assert "REF: " in done.said
    assert "demo.arpa by 2, no prior" in done.said
    refused = memsim(*command, "--hypotheses", "h.jsonl")
    assert (refused.status, "h.jsonl: exists already" in refused.err) == (2, True)


def test_words_of_a_lexicon_without_a_language_model(memsim, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(sorted({word for text in TEXTS for word in text.split()})))
    command = (*DEMO, "--decoder", "beam", "--lexicon", "words.txt", "--prior-weight", "0")
    result = result_of(memsim(*command, "--json", "-"))
    assert result["decoding"]["language_model"] is None
    assert result["decoding"]["options"]["lm_weight"] == 0.0
    assert result["digital"]["wer"] < 0.5
    (tmp_path / "no.txt").write_text("no\n")
    said = memsim(*DEMO, "--decoder", "beam", "--lexicon", "no.txt", "--worst", "1").said
    assert "HYP: no" in said or "HYP: *" in said


def test_weights_are_tuned_on_dev_with_the_digital_model_and_reused(memsim, arpa, tmp_path):
    tedlium_of_demo(tmp_path)
    command = ("eval", "demo-float", "--data", "tedlium2", "--data-root", ".", "--split", "test", *HARDWARE)
    done = memsim(*command, "--decoder", "beam", "--lm", "demo.arpa", "--tune", "--json", "r.json")
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())
    tuned, options = result["decoding"]["tuned"], result["decoding"]["options"]
    assert (tuned["data"], tuned["split"], tuned["utterances"]) == ("tedlium2", "dev", 6)
    assert result["decoding"]["prior"] == "outputs on tedlium2 dev"
    wers = {(lm, prior): wer for lm, prior, wer in tuned["grid"]}
    assert len(wers) == 49
    chosen = (options["lm_weight"], options["prior_weight"])
    assert wers[chosen] == min(wers.values()) == pytest.approx(tuned["wer"], abs=1e-6)
    assert f"(tuned on tedlium2 dev: digital WER {tuned['wer']:.2%})" in done.said
    # The pair, given by hand on the dev split, is what the grid says of it; on hardware without errors, chips too.
    by_hand = ("--lm-weight", str(chosen[0]), "--prior-weight", str(chosen[1]))
    dev = result_of(
        memsim(*command, "--split", "dev", "--decoder", "beam", "--lm", "demo.arpa", *by_hand, "--json", "-")
    )
    assert dev["digital"]["wer"] == pytest.approx(tuned["wer"])
    assert dev["mapped"]["wer"]["mean"] == pytest.approx(tuned["wer"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--decoder", "viterbi"], "--decoder viterbi: expected greedy or beam"),
        (["--lm", "demo.arpa"], "--lm: not used by greedy decoding; add --decoder beam"),
        (["--tune"], "--tune: not used by greedy decoding"),
        (["--nbest", "2"], "--nbest: not used by greedy decoding"),
        (["--decoder", "beam"], "name --lexicon FILE or --lm FILE"),
        (["--decoder", "beam", "--lm", "gone.arpa"], "gone.arpa: cannot be read"),
        (["--decoder", "beam", "--lexicon", "gone.txt"], "gone.txt: cannot be read"),
        (["--decoder", "beam", "--lm", "demo.arpa", "--nbest", "2"], "name it with --hypotheses FILE"),
        (["--decoder", "beam", "--lexicon", "demo.arpa", "--lm-weight", "1"], "there is no language model"),
        (["--decoder", "beam", "--lm", "demo.arpa", "--tune"], "demo has no dev split to tune on"),
        (["--decoder", "beam", "--lm", "demo.arpa", "--beam-size", "0"], "beam_size is 0; expected 1 to"),
        (
            ["--decoder", "beam", "--lm", "demo.arpa", "--tune", "--lm-weight", "1"],
            "--tune: chooses the weights; leave --lm-weight and --prior-weight out",
        ),
        (["--hypotheses", "demo.arpa"], "demo.arpa: exists already"),
        (["--hypotheses", "-", "--json", "-"], "two results go to standard output"),
    ],
)
def test_bad_input(memsim, arpa, arguments, said):
    done = memsim(*DEMO, *arguments)
    assert done.status == 2
    assert said in " ".join(done.err.split())
    assert done.out == ""
    assert "Traceback" not in done.err
