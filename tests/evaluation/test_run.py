"""Studies run whole, in parts, again, and by several processes, with equal results."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from memsim.asr.corpora import load_corpus
from memsim.errors import InputError, Stopped
from memsim.evaluation.merge import merge
from memsim.evaluation.results_file import read_results
from memsim.evaluation.run import run_study
from tests.evaluation.calls import evaluate
from tests.evaluation.conftest import Counting, without_timing


@pytest.fixture(scope="module")
def whole(study):
    return without_timing(run_study(study()))


def test_a_study_is_an_evaluation_of_every_point(study):
    it = study()
    results = run_study(it)
    for number, (point, evaluation) in enumerate(results):
        alone = evaluate(it.target(number), it.task.corpus, trials=2)
        assert without_timing([(point, evaluation)]) == without_timing([(point, alone)])
    hypotheses = {json.dumps(result["mapped"]) for result in without_timing(results)}
    assert len(hypotheses) == 2


def test_a_resumed_study_says_what_it_found(study, tmp_path):
    path = tmp_path / "r.jsonl"

    def said(it):
        run_study(it, results=path, listener=(listener := Counting()))
        return listener.said

    stopping = Counting(stop_after=9)  # two systems of four batches, and a batch of the first chip
    with pytest.raises(Stopped):
        run_study(study(), results=path, listener=stopping, stop_request=stopping.stop_request)
    assert stopping.said == []  # a new file
    work = f"2 of 6 work items (0 of 4 chips, {stopping.utterances} of 360 transcripts)"
    assert said(study()) == [f"{path}: found {work}; continues with the other 4"]
    work = "6 of 6 work items (4 of 4 chips, 360 of 360 transcripts)"
    assert said(study()) == [f"{path}: found {work}; nothing is left to run"]
    work = "6 of 8 work items (4 of 6 chips, 360 of 480 transcripts)"
    assert said(study(trials=3)) == [f"{path}: found {work}; continues with the other 2"]


def test_processes_make_the_same_result(study, whole, tmp_path):
    listener = Counting()
    results = run_study(study(), jobs=2, results=tmp_path / "r.jsonl", listener=listener)
    assert without_timing(results) == whole
    assert listener.begun == (listener.utterances, 0) == (6 * 60, 0)
    assert without_timing(merge([tmp_path / "r.jsonl"])) == whole


@pytest.mark.slow
def test_what_a_process_complains_of_is_raised(study, tmp_path):
    with pytest.raises(InputError, match="no such audio file"):
        run_study(study(corpus=_gone(tmp_path)), jobs=2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_process_that_is_killed_is_said(study):
    class Killing(Counting):
        def progress(self, name, done, detail="", total=0, unit=""):
            for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    with pytest.raises(OSError, match="a process that shared the work was killed, perhaps for lack of memory"):
        run_study(study(), jobs=2, listener=Killing())


def _gone(folder):
    """A corpus whose second audio file vanishes once its length is known."""
    corpus = load_corpus("demo", limit=2)
    lost = replace(corpus.utterances[1], audio=folder / "lost.wav", start_seconds=0.0, end_seconds=1.0)
    return replace(corpus, utterances=(corpus.utterances[0], lost))


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_shards_are_the_whole(study, whole, tmp_path, count):
    paths = [tmp_path / f"{number}.jsonl" for number in range(count)]
    for number, path in enumerate(paths):
        listener = Counting()
        assert run_study(study(), shard=(number + 1, count), results=path, listener=listener) == []
        assert listener.utterances == listener.begun[0] < 6 * 60
    assert without_timing(merge(paths)) == whole


@pytest.mark.parametrize(
    "stop_after", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 11]
)
def test_a_stopped_study_goes_on(study, whole, tmp_path, stop_after):
    path = tmp_path / "r.jsonl"
    listener = Counting(stop_after)
    with pytest.raises(Stopped, match=r"stopped with \d+% done; the same command continues .*r\.jsonl") as stopped:
        run_study(study(), results=path, listener=listener, stop_request=listener.stop_request)
    assert not stopped.value.by_keyboard
    assert len(listener.steps) == stop_after
    again = Counting()
    results = run_study(study(), results=path, listener=again)
    assert again.begun == (6 * 60, listener.utterances)
    assert listener.utterances + again.utterances == 6 * 60
    assert without_timing(results) == whole
    thrice = Counting()
    assert without_timing(run_study(study(), results=path, listener=thrice)) == whole
    assert thrice.steps == []
    assert json.loads(path.read_text().splitlines()[-1]) == {"kind": "end"}


def test_ctrl_c_is_told_from_other_signals(study, tmp_path):
    listener = Counting(1, signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        run_study(study(), results=tmp_path / "r.jsonl", listener=listener, stop_request=listener.stop_request)
    assert stopped.value.by_keyboard


@pytest.mark.slow
def test_processes_stop_and_go_on(study, whole, tmp_path):
    path = tmp_path / "r.jsonl"
    listener = Counting(2)
    with pytest.raises(Stopped):
        run_study(study(), jobs=2, results=path, listener=listener, stop_request=listener.stop_request)
    kept = sum(len(part.outcomes) for _, part in read_results(path).parts)
    assert 0 < kept < 6 * 60
    again = Counting()
    assert without_timing(run_study(study(), results=path, listener=again)) == whole
    assert again.utterances == 6 * 60 - kept


def test_a_line_that_was_cut_off_is_made_again(study, whole, tmp_path):
    path = tmp_path / "r.jsonl"
    run_study(study(), results=path)
    lines = path.read_text().splitlines(keepends=True)
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds == ["study", "part", "part", "part", "part", "point", "part", "part", "point", "end"]
    path.write_text("".join(lines[:4]) + lines[4][:-20])
    listener = Counting()
    assert without_timing(run_study(study(), results=path, listener=listener)) == whole
    assert listener.utterances == 3 * 60


def test_more_trials_and_points_go_on_with_fewer(study, tmp_path):
    path = tmp_path / "r.jsonl"
    run_study(study(("adc.bits=3,8",), trials=1), results=path)
    listener = Counting()
    results = run_study(study(("adc.bits=8,4,3",), trials=2), results=path, listener=listener)
    assert listener.utterances == (2 + 1 + 1) * 60  # two chips of 4 bits, one more of the others
    assert without_timing(results) == without_timing(run_study(study(("adc.bits=8,4,3",), trials=2)))
    points = [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == "point"]
    assert sorted(line["settings"]["adc.bits"] for line in points) == [3, 4, 8]
    assert {len(line["mapped"]["trials"]) for line in points} == {2}


def test_every_line_says_what_it_is_of(study, tmp_path):
    path = tmp_path / "r.jsonl"
    results = run_study(study(), results=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for point, evaluation in results:
        chips = [line for line in lines if line["kind"] == "part" and line["settings"] == dict(point.settings)]
        assert [line["wer"] for line in chips if line["role"] == "chip"] == [t.score.wer for t in evaluation.trials]
        assert [line["chip"]["seed"] for line in chips if line["role"] == "chip"] == [0, 1]
        (summary,) = (line for line in lines if line["kind"] == "point" and line["settings"] == dict(point.settings))
        assert {**summary, **evaluation.to_dict()} == summary


def test_a_mapped_file_as_it_is(study, whole, tmp_path, tiny_recogniser):
    from memsim.networks.programming import plan_checkpoint, program_checkpoint
    from memsim.nn.plan import Selection
    from memsim.storage.checkpoint import load_checkpoint, save_checkpoint

    it = study(("adc.bits=8",))
    source, spec = it.networks.checkpoint, it.points[0].spec
    mapped = program_checkpoint(source, spec, plan_checkpoint(source, spec, Selection()))
    path = tmp_path / "tiny.mapped.safetensors"
    save_checkpoint(path, mapped.tensors, mapped.metadata)
    results = tmp_path / "r.jsonl"
    as_it_is = study(points=(), checkpoint=load_checkpoint(path))
    listener = Counting(len(as_it_is.task.groups) + 1)
    with pytest.raises(Stopped):  # within the chip of the file, which then is read again
        run_study(as_it_is, results=results, listener=listener, stop_request=listener.stop_request)
    ((_, evaluation),) = run_study(as_it_is, results=results)
    assert [trial.score for trial in evaluation.trials] == [trial.score for trial in run_study(it)[0][1].trials]
    assert evaluation.to_dict()["clip_rate"] == run_study(it)[0][1].to_dict()["clip_rate"]
