from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from memsim.asr.corpora import NAMES, load_corpus
from memsim.errors import InputError
from tests.asr.test_corpora import write


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Writes a manifest beside `sounds/b.wav` and `sounds/a.wav`; its path."""
    write(tmp_path / "sounds" / "a.wav")
    write(tmp_path / "sounds" / "b.wav")
    return lambda name, text: str(write(tmp_path / name, text))


def test_tsv(manifest: Callable[..., str], tmp_path: Path) -> None:
    path = manifest(
        "m.tsv",
        "\ufeffaudio\ttext\tstart\tend\tspeaker\r\n"
        'sounds/b.wav\tSay "YES"\t0.5\t1.25\tBea\r\n\r\n'
        "sounds/a.wav\tit 's\t\t\t\r\n",
    )
    corpus = load_corpus(path)
    assert (corpus.name, corpus.split, corpus.synthetic) == (path, "all", False)
    first, second = corpus.utterances
    assert (first.id, first.text, first.speaker) == ("b-0000050-0000125", 'say "yes"', "Bea")
    assert (first.start_seconds, first.end_seconds) == (0.5, 1.25)
    assert (second.id, second.text, second.speaker) == ("a", "it's", None)
    assert (second.start_seconds, second.end_seconds, second.audio) == (None, None, tmp_path / "sounds/a.wav")


def test_jsonl(manifest: Callable[..., str], tmp_path: Path) -> None:
    rows = [
        {"audio": "sounds/a.wav", "text": "one", "start": 1, "id": "first", "speaker": None},
        {"audio": str(tmp_path / "sounds/a.wav"), "text": "two"},
        {"audio": "sounds/a.wav", "text": "three"},
    ]
    corpus = load_corpus(manifest("m.jsonl", "\n".join(map(json.dumps, rows))))
    assert [u.id for u in corpus.utterances] == ["first", "a", "a-2"]
    assert [u.text for u in corpus.utterances] == ["one", "two", "three"]
    assert (corpus.utterances[0].start_seconds, corpus.utterances[0].end_seconds) == (1.0, None)


def test_root_moves_a_manifests_audio(manifest: Callable[..., str], tmp_path: Path) -> None:
    path = manifest("m.tsv", "audio\ttext\na.wav\tone\n")
    assert load_corpus(path, root=tmp_path / "sounds").utterances[0].audio == tmp_path / "sounds/a.wav"


TSV_ERRORS = [
    ("text\none\n", ":1: lacks `audio`; a manifest's keys are audio, text, start, end, id, speaker"),
    ("audio\ttext\ttext\tstrat\n", ":1: has `text` twice, has the unknown key `strat`"),
    ("audio\ttext\nsounds/a.wav\n", ":2: has 1 tab-separated columns, the header has 2"),
    ("audio\ttext\nsounds/a.wav\tone\n\nsounds/b.wav\t \n", ":4: `text` is empty"),
    ("audio\ttext\n\tone\n", ":2: `audio` is empty"),
    ("audio\ttext\nsounds/c.wav\tone\n", ":2: no such audio file: "),
    ("audio\ttext\tstart\nsounds/a.wav\tone\tsoon\n", ":2: start must be a time in seconds, not 'soon'"),
    ("audio\ttext\tend\nsounds/a.wav\tone\t0\n", ":2: ends at 0 s, not after its start at 0 s"),
    ("audio\ttext\tid\nsounds/a.wav\tone\tx\nsounds/b.wav\ttwo\tx\n", ":3: id 'x' was given already at "),
    (b"audio\ttext\nsounds/a.wav\tcaf\xe9\n", ":2: not UTF-8 text (byte 0xe9)"),
    ("audio\ttext\n", ": holds no utterances"),
    ("", ": holds no utterances"),
]
JSONL_ERRORS = [
    ('{"audio": ', ":1: not JSON"),
    ("[1]", ":1: expected an object such as"),
    ('\n{"audio": "sounds/a.wav"}', ":2: lacks `text`"),
    ('{"audio": "sounds/a.wav", "text": "", "x": 1}', ":1: has the unknown key `x`"),
    ('{"audio": "sounds/a.wav", "text": 3}', ":1: `text` must be a string, not 3"),
    ('{"audio": "sounds/a.wav", "text": "one", "start": true}', ":1: start must be a time in seconds, not True"),
    ('{"audio": "sounds/a.wav", "text": "one", "end": NaN}', ":1: end must be a time in seconds, not nan"),
    ('{"audio": "sounds/a.wav", "text": "one", "end": 1' + "0" * 400 + "}", ":1: end must be a time in seconds"),
]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("m.tsv", *case) for case in TSV_ERRORS] + [("m.jsonl", *case) for case in JSONL_ERRORS],
)
def test_bad_manifests(manifest: Callable[..., str], name: str, text: str | bytes, message: str) -> None:
    path = manifest(name, text)
    with pytest.raises(InputError) as raised:
        load_corpus(path)
    assert str(raised.value).startswith(f"{path}{message}")
    assert "\n" not in str(raised.value)


def test_missing_manifest_and_unknown_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m\.tsv: no such manifest"):
        load_corpus(str(tmp_path / "m.tsv"))
    with pytest.raises(InputError, match=rf"data 'timit': no such corpus \(there are: {', '.join(NAMES)}\)"):
        load_corpus("timit")
