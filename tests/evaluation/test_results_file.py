"""Results files that a study refuses to continue."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from memsim.asr.corpora import load_corpus
from memsim.config.resources import ASSETS, configs_root
from memsim.errors import InputError
from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.results_file import Header, adding_to, read_results
from memsim.evaluation.task import System
from memsim.storage.checkpoint import load_checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "r.jsonl"


def part_of(study):
    return PartialResult(study.task.outcomes_from_dict({"utterances": [0, 1], "texts": ["yes", ""]}), 0.5)


def begin(path, study, shard=None):
    with adding_to(path, study.facts, shard) as file:
        file.add_part(System("full_precision"), part_of(study))


def test_a_header_is_read_as_it_was_written(study):
    header = Header(study(seed=3).facts, (2, 5))
    again = Header.from_dict(json.loads(json.dumps(header.to_dict())))
    assert again == header
    assert header.difference(again) is None


def test_parts_are_kept(path, study):
    begin(path, study())
    begin(path, study())
    assert read_results(path).parts == [(System("full_precision"), part_of(study()))] * 2
    assert not read_results(path).is_finished


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"corpus": load_corpus("demo", limit=59)}, "data demo all (60 utterances), not demo all (59 utterances)"),
        ({"corpus": load_corpus("demo", limit=60, text_style="rwth")}, "text style kaldi, not rwth"),
        ({"settings": ("adc.bits=3,4",)}, "adc.bits=8, which is not among the points here"),
        ({"trials": 1}, "2 trials, not 1"),
    ],
)
def test_another_command_is_refused(path, study, changes, said):
    begin(path, study())
    before = path.read_text()
    with pytest.raises(InputError) as error:
        begin(path, study(**changes))
    assert f"{path}: holds results of another command ({said})" in str(error.value)
    assert "--force overwrites it" in str(error.value)
    assert path.read_text() == before


def test_another_checkpoint_is_refused(path, study):
    begin(path, study())
    other = load_checkpoint(ASSETS / "checkpoints" / "demo-float.safetensors")
    for changes, said in (({"checkpoint": other}, "(checkpoint "), ({"reference": other}, "(reference none, not ")):
        with pytest.raises(InputError) as error:
            begin(path, study(**changes))
        assert said in str(error.value)


def test_another_calibration_is_refused(path, study):
    def calibrated(utterances):
        networks = study().networks.calibrated("demo", None, utterances, lambda *progress: None)
        return replace(study(), networks=networks)

    begin(path, calibrated(2))
    begin(path, calibrated(2))
    for other, said in ((calibrated(3), "3 utterances"), (study(), "that of the checkpoint")):
        with pytest.raises(InputError, match=rf"calibration demo all \(2 utterances, \w+\), not .*{said}"):
            begin(path, other)


def test_another_device_in_the_same_file_is_refused(path, study, tmp_path):
    cell = tmp_path / "mine.yaml"

    def on(device):
        cell.write_text((configs_root() / "devices" / f"{device}.yaml").read_text())
        return study(settings=(f"cell={cell}",))

    begin(path, on("cmo-hfox"))
    begin(path, on("cmo-hfox"))
    with pytest.raises(InputError, match="other hardware, which is not among the points here"):
        begin(path, on("rram-wan"))


def test_other_transcripts_are_refused(path, study):
    begin(path, study())
    data = json.loads(path.read_text().splitlines()[0])
    data["data"]["utterances"][3][2] += " more"
    path.write_text(json.dumps(data) + "\n")
    with pytest.raises(InputError, match=r"another command \(transcripts"):
        begin(path, study())


def test_a_shard_goes_on_with_itself_alone(path, study):
    begin(path, study(), (1, 2))
    begin(path, study(), (1, 2))
    for shard, said in (((2, 2), "shard 1/2, not shard 2/2"), (None, "shard 1/2, not no shard")):
        with pytest.raises(InputError) as error:
            begin(path, study(), shard)
        assert said in str(error.value)
    with pytest.raises(InputError, match="fewer trials or points, by which the shards were divided"):
        begin(path, study(trials=3), (1, 2))


@pytest.mark.parametrize("text", ["", "\n", "{}\n", '{"kind": "study"}\n', "no JSON\n", '["study"]\n', "\x00\n"])
def test_what_is_no_results_file_is_said(path, study, text):
    path.write_text(text)
    with pytest.raises(InputError, match=r"r\.jsonl: is not a results file of memsim eval, or is damaged"):
        begin(path, study())
    assert path.read_text() == text


def test_a_folder_is_no_results_file(tmp_path, study):
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path)


def test_one_process_at_a_time_adds_to_a_file(path, study):
    pytest.importorskip("fcntl")
    begin(path, study())
    with (
        adding_to(path, study().facts),
        pytest.raises(InputError, match=r"r\.jsonl: another process is adding to it"),
    ):
        begin(path, study())
