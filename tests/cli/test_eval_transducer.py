"""`memsim eval` of a Transducer, greedy and with its own beam search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from memsim.asr.corpora import load_corpus
from memsim.asr.kinds import TransducerBeam
from memsim.asr.recogniser import load_recogniser
from memsim.evaluation.partial_results import run_network
from memsim.evaluation.speech import SpeechTask
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.asr.networks import tiny

EVAL = ("eval", "tiny.safetensors", "--data", "demo", "--limit", "3", "--hardware", "ideal", "--bits", "8")


@pytest.fixture
def transducer(memsim, tmp_path):
    recogniser = tiny("lstm-transducer-small", characters=" abcdefghijklmnopqrstuvwxyz")
    save_checkpoint(tmp_path / "tiny.safetensors", recogniser.model.state_dict(), recogniser.metadata())
    return load_recogniser(load_checkpoint(tmp_path / "tiny.safetensors"))


def test_beam_search_is_the_transducers_own(memsim, transducer):
    done = memsim(*EVAL, "--decoder", "beam", "--beam-size", "3", "--json", "result.json")
    assert done.status == 0, done.err
    assert "beam search of 3 hypotheses" in done.said
    result = json.loads(Path("result.json").read_text())
    assert result["decoding"] == {"decoder": "beam", "options": {"beam_size": 3}}
    task = SpeechTask.of(transducer, load_corpus("demo", limit=3))
    beam = replace(transducer, decoder=TransducerBeam(transducer.tokens, 3))
    wanted = run_network(task, beam, task.groups, "cpu", lambda outcomes: False)
    assert result["full_precision"]["wer"] == task.score(wanted.outcomes).wer


@pytest.mark.parametrize("option", [("--lm", "some.arpa"), ("--prior-weight", "0.3"), ("--beam-tokens", "4")])
def test_what_only_a_ctc_has_is_refused(memsim, transducer, option):
    done = memsim(*EVAL, "--decoder", "beam", *option)
    assert (done.status, done.out) == (2, "")
    assert f"{option[0]}: only for CTC; the beam search of a Transducer takes --beam-size" in done.said
