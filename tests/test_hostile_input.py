"""Malicious input: code in pickles and YAML, huge archives, wrong sizes, paths that lead out."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
import torch

from memsim.asr import tokens
from memsim.asr.audio import read_audio
from memsim.asr.corpora import load_corpus
from memsim.asr.manifests import AUDIO_ROOTS
from memsim.asr.ngram import read_arpa_words
from memsim.asr.tokens import tokens_from_json
from memsim.asr.utterances import Utterance
from memsim.errors import InputError
from memsim.fit import read_measurements
from memsim.hardware import load_hardware
from memsim.storage import packed
from memsim.storage.checkpoint import load_checkpoint
from memsim.training.recipe import load_train_config
from tests.fuzz.readers import sphere


class Payload:
    """Unpickled, it makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self._path,)


def refused(read: Callable[[], object], match: str) -> None:
    """It is said in one line, soon, and without taking much memory."""
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=match) as caught:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < (50e6 if sys.version_info < (3, 13) else 52e6)  # whose gzip reads 128 KiB at a time, not 8
    assert time.process_time() - started < 10


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_pickles_are_refused(tmp_path: Path, name: str, save: Callable[[object, Path], object]) -> None:
    save({"weight": Payload(tmp_path / "harm")}, tmp_path / name)
    refused(lambda: load_checkpoint(tmp_path / name), rf"{name}: a pickle .*refused.*safetensors\.torch\.save_file")
    assert not (tmp_path / "harm").exists()


def test_pickles_in_measurements_are_refused(tmp_path: Path) -> None:
    harm = np.array([Payload(tmp_path / "harm")] * 3, dtype=object)
    numbers = {name: np.ones(3) for name in ("cycle", "hrs_ohms", "us_volts", "lrs_ohms", "ur_volts")}
    np.savez(tmp_path / "m.npz", device=harm, **numbers)
    np.save(tmp_path / "m.npy", harm)
    refused(lambda: read_measurements(tmp_path / "m.npz"), r"m\.npz: device is object of shape \[3\]; expected numbers")
    refused(lambda: read_measurements(tmp_path / "m.npy"), r"m\.npy: expected \.csv")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("read", [load_hardware, load_train_config])
def test_yaml_runs_no_code(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "a.yaml"
    tag = "!!python/object/apply:pathlib.Path"
    path.write_text(f"{tag}.touch [{tag} [{tmp_path}/harm]]\n")
    refused(lambda: read(path), r"a\.yaml:1: the tag .*python/object/apply:pathlib\.Path\.touch' is not allowed")
    assert not (tmp_path / "harm").exists()


# --- what is small and unpacks to anything ---------------------------------------------------------------------------


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    refused(lambda: load_hardware(tmp_path / "a.yaml"), r"a\.yaml:\d+: .*too large")


@pytest.fixture
def little_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small bombs do."""
    monkeypatch.setattr(packed, "FREE_BYTES", 1 << 16)


COLUMNS = {"device": 1, "cycle": 1, "hrs_ohms": 1e5, "us_volts": -1.0, "lrs_ohms": 1e3, "ur_volts": 1.0}
ROWS = 100_000


def _csv_gz(path: Path) -> None:
    row = ",".join(map(str, COLUMNS.values())) + "\n"
    path.write_bytes(gzip.compress((",".join(COLUMNS) + "\n" + row * ROWS).encode()))


def _npz(path: Path) -> None:
    np.savez_compressed(path, **{name: np.full(ROWS, value) for name, value in COLUMNS.items()})  # type: ignore[arg-type]


def _parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({name: np.full(ROWS, value) for name, value in COLUMNS.items()}), path)


@pytest.mark.usefixtures("little_is_free")
@pytest.mark.parametrize(("name", "make"), [("m.csv.gz", _csv_gz), ("m.npz", _npz), ("m.parquet", _parquet)])
def test_measurements_that_unpack_to_far_too_much(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    refused(lambda: read_measurements(tmp_path / name), r"bytes unpack to .* MiB or more, over 200 times as much")


@pytest.mark.usefixtures("little_is_free")
@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_language_models_that_unpack_to_far_too_much(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"lm.arpa{suffix}"
    for filling in (b"-1 a\n", b" "):  # many lines, and one line
        path.write_bytes(pack(b"\\1-grams:\n" + filling * 600_000))
        refused(lambda: read_arpa_words(path), r"bytes unpack to .* MiB or more, over 200 times as much")


def test_a_lexicon_in_tokens_that_unpacks_to_far_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_LEXICON_BYTES", 1 << 16)
    bomb = base64.b64encode(zlib.compress(b"a AH\n" * 100_000)).decode()
    document = json.dumps({"kind": "phonemes", "phonemes": ["AH"], "lexicon": bomb})
    refused(lambda: tokens_from_json(document), "tokens: `lexicon` is cut short, or more than")


# --- sizes that lie --------------------------------------------------------------------------------------------------


def test_a_flac_file_of_two_years(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(1600), 16000)
    header = bytearray(path.read_bytes())
    header[21] |= 0x0F  # the number of samples, 36 bits
    header[22:26] = b"\xff" * 4
    path.write_bytes(header)
    refused(lambda: read_audio(Utterance("u", path, "x")), r"a\.flac: u is .*, says its header; an utterance has")


def test_a_sphere_file_of_more_samples_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.sph"
    path.write_bytes(sphere(sample_count=10**12))
    assert len(read_audio(Utterance("u", path, "x"))) == 400  # libsndfile goes by the file's length


@pytest.mark.parametrize(("rate_hz", "said"), [(44101, "cannot be resampled"), (1, "an utterance has at most 4 h")])
def test_rates_that_take_a_memory_to_resample(tmp_path: Path, rate_hz: int, said: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(20_000), rate_hz)
    refused(lambda: read_audio(Utterance("u", path, "x")), said)


def npz(path: Path, **headers: tuple[tuple[int, ...], str]) -> None:
    """An archive of arrays of 24 bytes each, whatever shape and type their headers give."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, (shape, dtype) in headers.items():
            file = io.BytesIO()
            np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", file.getvalue() + bytes(24))


@pytest.mark.parametrize("lie", [((10**12,), "<f8"), ((3,), "<U500000000")])
def test_arrays_of_other_sizes_than_they_say(tmp_path: Path, lie: tuple[tuple[int, ...], str]) -> None:
    headers: dict[str, Any] = dict.fromkeys(COLUMNS, (lie[0], "<f8"))
    npz(tmp_path / "m.npz", **headers | {"device": lie})
    refused(lambda: read_measurements(tmp_path / "m.npz"), r"m\.npz: device holds \d+ bytes, too few for")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}},
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"},
    ],
)
def test_tensors_that_are_not_where_the_header_says(tmp_path: Path, header: dict[str, object]) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(lambda: load_checkpoint(path), r"a\.safetensors: not a complete safetensors file")
    path.write_bytes(struct.pack("<Q", 1 << 62) + text)
    refused(lambda: load_checkpoint(path), r"a\.safetensors: not a complete safetensors file")


# --- paths that lead out ---------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a manifest that names one audio file, in a folder beside which there is other audio."""
    monkeypatch.delenv(AUDIO_ROOTS)
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").touch()
    (tmp_path / "data" / "link.wav").symlink_to(tmp_path / "elsewhere" / "a.wav")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "inside.wav").symlink_to("a.wav")

    def write(audio: str) -> str:
        path = tmp_path / "data" / "m.jsonl"
        path.write_text(json.dumps({"audio": audio.format(folder=tmp_path), "text": "yes"}))
        return str(path)

    return write


@pytest.mark.parametrize("audio", ["../elsewhere/a.wav", "{folder}/elsewhere/a.wav", "link.wav", "linked/a.wav"])
def test_audio_lies_below_the_data_root_unless_that_is_allowed(
    manifest: Callable[..., str], audio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manifest(audio)
    refused(lambda: load_corpus(path), r"m\.jsonl:1: .* outside of .*data; .*\$MEMSIM_AUDIO_ROOTS")
    for allowed in (tmp_path / "elsewhere", f"/nowhere{os.pathsep}{tmp_path}", "/"):
        monkeypatch.setenv(AUDIO_ROOTS, str(allowed))
        assert len(load_corpus(path).utterances) == 1
    monkeypatch.setenv(AUDIO_ROOTS, str(tmp_path / "else"))
    refused(lambda: load_corpus(path), "outside of")


@pytest.mark.parametrize("audio", ["a.wav", "{folder}/data/a.wav", "inside.wav", "../data/a.wav", "./linked/../a.wav"])
def test_audio_within_the_data_root_may_be_named_anyhow(manifest: Callable[..., str], audio: str) -> None:
    if audio == "./linked/../a.wav":  # the system follows links first: this is beside the folder that is linked to
        with pytest.raises(InputError, match="no such audio file"):
            load_corpus(manifest(audio))
    else:
        assert len(load_corpus(manifest(audio)).utterances) == 1


def test_the_data_root_moves(manifest: Callable[..., str], tmp_path: Path) -> None:
    path = manifest("elsewhere/a.wav")
    assert load_corpus(path, root=tmp_path).utterances[0].audio == tmp_path / "elsewhere" / "a.wav"
    refused(lambda: load_corpus(manifest("../data/a.wav"), root=tmp_path / "elsewhere"), "outside of")


def test_talks_of_a_corpus_lie_in_it(tmp_path: Path) -> None:
    stm = tmp_path / "dev" / "stm" / "a.stm"
    stm.parent.mkdir(parents=True)
    stm.write_text("../../a 1 Al 0 1 <NA> yes\n")
    (tmp_path / "a.wav").touch()
    refused(lambda: load_corpus("tedlium2", root=tmp_path), r"a\.stm:1: '\.\./\.\./a' is not the name of a talk")
