"""All readers of external data in memsim, each with good input to start from.

A reader takes the bytes of a file and a folder to put it into. It returns when they are good, and raises InputError
when they are not; anything else that it raises is a fault in memsim.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from memsim.asr.audio import duration_seconds, read_audio
from memsim.asr.beam import BeamSearch
from memsim.asr.corpora import load_corpus
from memsim.asr.lexicon import Lexicon, load_lexicon
from memsim.asr.models.conformer import ConformerConfig
from memsim.asr.ngram import read_arpa_words, witten_bell
from memsim.asr.prior import stored_log_prior
from memsim.asr.recogniser import Recogniser, build, load_model_config, load_recogniser
from memsim.asr.tokens import CharacterTokens, PhonemeTokens, PieceTokens, tokens_from_json
from memsim.asr.utterances import Utterance
from memsim.chip.architecture import load_chip as load_chip_architecture
from memsim.config.resources import ASSETS, configs_root
from memsim.crossbar.statistics import InputStatistics
from memsim.device import load_device
from memsim.evaluation.merge import merge
from memsim.evaluation.run import run_study
from memsim.fit import read_measurements
from memsim.fit.inspection import inspect_measurements
from memsim.hardware import apply_settings, load_hardware
from memsim.networks.mapped_file import load_chip
from memsim.networks.programming import plan_checkpoint, program_checkpoint, stored_statistics
from memsim.nn.plan import Selection
from memsim.post_training.recipe import load_mapping
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from memsim.training.optimiser import averaged
from memsim.training.recipe import load_train_config
from memsim.training.state import Best, EpochResult, Progress, Trained, finished_training
from tests.evaluation.calls import study_of

Reads = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Reader:
    """`read` is called with the bytes of a file and an empty folder; `seeds` makes files that it reads."""

    read: Reads
    seeds: Callable[[], list[bytes]]


def _file(name: str, read: Callable[[Path], object]) -> Reads:
    """What reads a file of that name."""

    def reads(document: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(document)
        return read(path)

    return reads


# --- YAML ------------------------------------------------------------------------------------------------------------


def _configs(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((configs_root() / kind).glob("*.yaml"))]


def _device_files() -> list[bytes]:
    return [document for document in _configs("devices") if b"kind: levels" in document]


def _settings(document: bytes, folder: Path) -> object:
    return apply_settings(load_hardware("ideal"), [document.decode("utf-8", "surrogateescape")])


_ODD_YAML = b"name: x\nbase: ideal\na: &a [1, 2]\nb: *a\nc: !!python/name:os.system\n'd': {<<: {e: .inf}}\n"


# --- speech ----------------------------------------------------------------------------------------------------------


def _tedlium2(document: bytes, folder: Path) -> object:
    for kind in ("sph", "stm"):
        (folder / "dev" / kind).mkdir(parents=True)
    (folder / "dev" / "sph" / "a.sph").touch()
    (folder / "dev" / "stm" / "a.stm").write_bytes(document)
    return load_corpus("tedlium2", root=folder)


def _librispeech(document: bytes, folder: Path) -> object:
    chapter = folder / "dev-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    (chapter / "1-2-0000.flac").touch()
    (chapter / "1-2.trans.txt").write_bytes(document)
    return load_corpus("librispeech", root=folder)


def _manifest(name: str) -> Reads:
    def read(path: Path) -> object:
        (path.parent / "a.wav").touch()
        return [f"{u.id}{u.text}{u.speaker}".encode() for u in load_corpus(str(path)).utterances]

    return _file(name, read)


def _audio(path: Path) -> object:
    for utterance in (Utterance("u", path, "x"), Utterance("v", path, "x", 0.001, 0.01)):
        duration_seconds(utterance)
        assert torch.isfinite(read_audio(utterance)).all()
    return None


def _sounds(container: str, *subtypes: str) -> list[bytes]:
    samples = np.sin(np.arange(400) / 9.0)
    sounds = []
    for subtype in subtypes:
        for channels in (1, 2):
            file = io.BytesIO()
            soundfile.write(file, np.stack([samples] * channels, 1), 16000, format=container, subtype=subtype)
            sounds.append(file.getvalue())
    return sounds


def sphere(**fields: object) -> bytes:
    """A SPHERE file of 400 samples; `fields` change its header."""
    header: dict[str, object] = {
        "channel_count": 1, "sample_count": 400, "sample_rate": 16000, "sample_n_bytes": 2, "sample_sig_bits": 16,
        "sample_byte_format": "01", "sample_coding": "pcm",
    }  # fmt: skip
    lines = [
        f"{key} -{'i' if isinstance(value, int) else f's{len(str(value))}'} {value}"
        for key, value in (header | fields).items()
    ]
    text = "\n".join(["NIST_1A", "   1024", *lines, "end_head", ""]).encode()
    return text.ljust(1024) + (np.sin(np.arange(400) / 9.0) * 9000).astype("<i2").tobytes()


# --- measurements ----------------------------------------------------------------------------------------------------

_FEATURES = "device,cycle,hrs_ohms,us_volts,lrs_ohms,ur_volts\n"
_FEATURE_ROWS = "".join(f"d{d},{c},{2e5 + 1e3 * c},-0.{6 + d},{2e3 + d},0.{5 + c}\n" for d in (0, 1) for c in (1, 2, 3))


def _sweep_rows() -> str:
    volts = np.concatenate([np.linspace(*leg, 8) for leg in ((0, -1.5), (-1.5, 0), (0, 1.5), (1.5, 0))])
    return "device,cycle,time_s,voltage_V,current_uA\n" + "".join(
        f"1,{cycle},{i * 1e-6:g},{v:g},{v * (50 if 8 < i < 28 else 5):g}\n"
        for cycle in (1, 2)
        for i, v in enumerate(volts)
    )


def _columns() -> dict[str, np.ndarray[Any, Any]]:
    rows = [line.split(",") for line in _FEATURE_ROWS.splitlines()]
    names = _FEATURES.strip().split(",")
    columns: dict[str, np.ndarray[Any, Any]] = {
        name: np.array([float(row[i]) for row in rows]) for i, name in enumerate(names) if i
    }
    return {"device": np.array([row[0] for row in rows]), **columns}


def _npz() -> list[bytes]:
    archives = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **_columns())  # type: ignore[arg-type]
        archives.append(file.getvalue())
    return archives


def _parquet() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet

    files = []
    for codec in ("none", "snappy", "gzip"):
        file = io.BytesIO()
        pyarrow.parquet.write_table(pa.table(_columns()), file, compression=codec)
        files.append(file.getvalue())
    return files


def _inspected(path: Path) -> object:
    return str(inspect_measurements(path))


def _matrices(path: Path) -> object:
    return str(inspect_measurements(path, columns="conductance_uS,..."))


def _matrix_text() -> list[bytes]:
    """Matrices of 6 x 4 cells at three times, below lines of their own and in a header with labels of columns."""
    rows = [[f"WL{row}", *(f"{5 + row + 2 * place:.1f}" for place in range(4))] for row in range(6)]
    plain = "\n".join("\t".join(row[1:]) for row in rows)
    labelled = "\n".join(",".join(row) for row in rows)
    times = ("1 s", "10 s", "1 h")
    return [
        "\n".join(f"t = {time}\n{plain}\n" for time in times).encode(),
        "\n".join(f"time (s): {time},BL0,BL1,BL2,BL3\n{labelled}" for time in (1, 10, 3600)).encode(),
    ]


def _matrix_arrays() -> list[bytes]:
    file, times = io.BytesIO(), np.array([1.0, 10.0, 3600.0])
    np.savez(file, conductance_uS=np.full((3, 6, 4), 7.0), time_s=times, target_uS=np.full((6, 4), 5.0))
    return [file.getvalue()]


def _readings() -> bytes:
    """20 cells of each of two levels, read at two times."""
    rows = [
        f"{cell},{seconds},{target},{target + 0.1 * (cell % 7) - 0.02 * seconds:.5g}\n"
        for cell in range(40)
        for target in (5.0 + 20.0 * (cell % 2),)
        for seconds in (0, 9)
    ]
    return ("cell,time_seconds,target_microsiemens,conductance_microsiemens\n" + "".join(rows)).encode()


def _summary() -> bytes:
    rows = [f"{target},{time},{target - 0.1},{0.4 + 0.1 * time}\n" for target in (5, 25, 45) for time in (0, 9)]
    names = "target_microsiemens,time_seconds,mean_microsiemens,standard_deviation_microsiemens\n"
    return (names + "".join(rows)).encode()


def _pulses() -> bytes:
    rows = [f"{cell},{pulse},{2 + cell / 9 + 9 * pulse:.4g}\n" for cell in range(20) for pulse in range(4)]
    return ("cell,pulse,conductance_microsiemens\n" + "".join(rows)).encode()


_TABLES = [(_FEATURES + _FEATURE_ROWS).encode(), _sweep_rows().encode(), _sweep_rows().replace(",", ";").encode()]


# --- words -----------------------------------------------------------------------------------------------------------


def _arpa() -> list[bytes]:
    return [witten_bell([["a", "b"], ["b", "é"]], order).to_arpa().encode() for order in (1, 3)]


def _kenlm(path: Path) -> object:
    return BeamSearch(CharacterTokens((" ", "a", "b")), ["a", "b"], path)


_LEXICON = Lexicon({"a": (("AH",),), "read": (("R", "EH", "D"), ("R", "IY", "D"))})


def _tokens(document: bytes, folder: Path) -> object:
    tokens = tokens_from_json(document.decode("utf-8", "replace"))
    texts = [tokens.decode([i]) for i in range(min(len(tokens), 50))]
    return [tokens.spellings(text) for text in texts], tokens.to_json()


@functools.cache
def _token_documents() -> list[bytes]:
    pieces = PieceTokens.from_texts(["ab ba", "abba baab"], 8)
    phonemes = PhonemeTokens(("AH", "D", "EH", "IY", "R"), _LEXICON)
    return [tokens.to_json().encode() for tokens in (CharacterTokens((" ", "a", "b")), phonemes, pieces)]


# --- checkpoints -----------------------------------------------------------------------------------------------------


@functools.cache
def _folder() -> Path:
    """Where the good files are made, once a process."""
    kept = tempfile.TemporaryDirectory()
    _folder.kept = kept  # type: ignore[attr-defined]
    return Path(kept.name)


@functools.cache
def _small_config() -> ConformerConfig:
    config = load_model_config("conformer-small")[1]
    assert isinstance(config, ConformerConfig)
    return config.model_copy(update={"width": 4, "blocks": 1, "heads": 1, "feed_forward_width": 4})


def _small() -> Recogniser:
    torch.manual_seed(0)
    return build("conformer_ctc", _small_config(), CharacterTokens((" ", "a")), "kaldi")


def _statistics(width: int) -> InputStatistics:
    """Of two rows of ones."""
    edges = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    return InputStatistics(1.0, edges, torch.tensor([[0.0, 0], [0, 1]]), torch.ones(2, width), torch.ones(2))


@functools.cache
def model_file() -> Path:
    """A recogniser's checkpoint with all that one may hold."""
    recogniser = _small()
    tensors = dict(recogniser.model.state_dict())
    tensors |= replace(_statistics(4), full_scale=1.0).to_tensors("output")
    prior = json.dumps([math.log(1 / 3)] * 3)
    path = _folder() / "model.safetensors"
    save_checkpoint(path, tensors, {"kind": "model", **recogniser.metadata(), "log_prior": prior})
    return path


@functools.cache
def _mapped_file() -> Path:
    checkpoint, spec = load_checkpoint(model_file()), load_hardware("physical").with_settings({"weights.bits": 2})
    copy = _folder() / "device.safetensors"
    copy.write_bytes((configs_root() / "devices" / "synaptogen.safetensors").read_bytes())
    spec = spec.with_settings({"cell": str(copy)})
    plan = plan_checkpoint(checkpoint, spec, Selection((), ()))
    widths = {layer.name: layer.tiling.groups * layer.tiling.block_inputs for layer in plan.mapped}
    statistics = {name: _statistics(width) for name, width in widths.items()}
    mapped = program_checkpoint(checkpoint, spec, plan, statistics=statistics)
    path = _folder() / "model.mapped.safetensors"
    save_checkpoint(path, mapped.tensors, mapped.metadata)
    return path


def _trained() -> Trained:
    model = _small().model
    average = averaged(model, 0.5)
    optimiser = torch.optim.AdamW(model.parameters())
    return Trained(model, average, optimiser)


_RUN = {"kind": "model", "seed": "0", "recipe": '{"epochs": 3}'}


@functools.cache
def _state_file() -> Path:
    trained = _trained()
    sum(p.sum() for p in trained.model.parameters()).backward()  # type: ignore[union-attr]
    trained.optimiser.step()
    path = _folder() / "model.resume.safetensors"
    result = EpochResult(1, 1.0, 1e-3, 0.5, 0.0, 0.1, 0.1, True, 0)
    trained.save(path, _RUN, Progress(2, results=[result], best=Best(1, {"wer": 0.1})))
    return path


@functools.cache
def _finished_file() -> Path:
    path = _folder() / "finished.safetensors"
    best = json.dumps(asdict(Best(1, {"wer": 0.1})))
    save_checkpoint(path, {"a": torch.ones(1)}, {**_RUN, "best": best})
    return path


@functools.cache
def _device_file() -> Path:
    return configs_root() / "devices" / "synaptogen.safetensors"


_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _described(file: Path) -> bytes:
    """A safetensors file as JSON: its metadata, and the type and shape of each tensor."""
    with safe_open(file, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        tensors = {name: [part.get_dtype(), part.get_shape()] for name, part in slices.items()}
        # safetensors gives the metadata in another order each time
        return json.dumps({"metadata": opened.metadata(), "tensors": tensors}, sort_keys=True).encode()


def _assembled(document: bytes, original: Path) -> bytes:
    """The file that `_described` describes. Tensors as in `original` have its values, others are zero."""
    described = json.loads(document)
    values = load_checkpoint(original).views()
    header: dict[str, Any] = {"__metadata__": described["metadata"]}
    data = bytearray()
    for name, (dtype, shape) in described["tensors"].items():
        size = math.prod(shape) * _DTYPES.get(dtype, 1)
        if not 0 <= size < 1 << 20:
            raise ValueError
        known = values.get(name)
        same = known is not None and list(known.shape) == shape and known.nbytes == size
        raw = known.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if same and size else bytes(size)  # type: ignore[union-attr]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _of_description(original: Callable[[], Path], read: Callable[[Path], object]) -> Reader:
    """What reads safetensors files that are described in JSON, so that changes reach what memsim makes of them."""

    def reads(document: bytes, folder: Path) -> object:
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            document = _assembled(document, original())  # else as it is, which is no such file
        return _file("model.safetensors", read)(document, folder)

    return Reader(reads, lambda: [_described(original())])


def _any_checkpoint(path: Path) -> object:
    checkpoint = load_checkpoint(path)
    return checkpoint.shapes, checkpoint.integers, checkpoint.tensors(), checkpoint.kind


def _model(path: Path) -> object:
    checkpoint = load_checkpoint(path)
    spec = load_hardware("ideal")
    plan = plan_checkpoint(checkpoint, spec, Selection((), ()))
    mapped = program_checkpoint(checkpoint, spec, plan)
    recogniser = load_recogniser(checkpoint)
    return mapped, stored_statistics(checkpoint), stored_log_prior(checkpoint, len(recogniser.tokens))


def _mapped(path: Path) -> object:
    recogniser, _ = load_chip(load_checkpoint(path))
    with torch.no_grad():
        return recogniser.model(torch.zeros(1, 40, recogniser.config.features.mel_bins), torch.tensor([40]))  # type: ignore[union-attr]


def _state(path: Path) -> object:
    return _trained().load(path, _RUN)


def _finished(path: Path) -> object:
    return finished_training(path, _RUN)


def _tiny_safetensors() -> list[bytes]:
    path = _folder() / "tiny.safetensors"
    save_checkpoint(path, {"a": torch.ones(2, 3), "b": torch.arange(3)}, {"kind": "model", "architecture": "x"})
    return [path.read_bytes(), bytes(8), (2).to_bytes(8, "little") + b"{}"]


def _index(document: bytes, folder: Path) -> object:
    """The index of two files of tensors."""
    for number, name in enumerate("ab"):
        save_file({name: torch.full((2,), float(number))}, folder / f"{name}.safetensors")
    return _file("model.safetensors.index.json", _any_checkpoint)(document, folder)


def _header(document: bytes, folder: Path) -> object:
    """A header of safetensors with 64 bytes of data behind it."""
    path = folder / "a.safetensors"
    path.write_bytes(len(document).to_bytes(8, "little") + document + bytes(64))
    return _any_checkpoint(path)


def _headers() -> list[bytes]:
    tensors = {
        name: {"dtype": dtype, "shape": [2, size], "data_offsets": [0, 2 * size * width]}
        for name, dtype, size, width in (("a", "F32", 8, 4), ("b", "F8_E4M3", 32, 1), ("c", "BF16", 16, 2))
    }
    found = [{"__metadata__": {"format": "memsim/1", "kind": "model"}, "a": tensors["a"]}]
    return [json.dumps(header).encode() for header in [*found, *({name: t} for name, t in tensors.items())]]


# --- results ---------------------------------------------------------------------------------------------------------


@functools.cache
def _results() -> list[bytes]:
    corpus = load_corpus("demo", limit=3)
    path = _folder() / "r.jsonl"
    spec = load_hardware("ideal").with_settings({"weights.bits": 4})
    from memsim.evaluation.study import Point

    demo = load_checkpoint(ASSETS / "checkpoints" / "demo.safetensors")
    run_study(study_of(demo, corpus, (Point({"a": 1}, spec),)), results=path)
    return [path.read_bytes()]


def _read_results(path: Path) -> object:
    return [evaluation.to_dict() for _, evaluation in merge([path])]


_STM = b""";; c
a 1 Al 0.29 2 <F0_M> yes {NOISE} it 's(2) <sil> (a-1)
a 1 x 2 3 <o> ignore_time_segment_in_scoring
"""
_TSV = b"audio\ttext\tstart\tend\tid\tspeaker\na.wav\tyes\t0.5\t1.5\tu1\tbob\na.wav\tno\t\t\t\t\n"
_JSONL = b"""{"audio": "a.wav", "text": "yes", "start": 0.5, "end": 1, "id": "u", "speaker": "b"}
{"audio": "a.wav", "text": "no", "end": null}
"""
_DIC = b";;; c\n<s> SIL\nA AH\nb(2) B\n"

READERS: dict[str, Reader] = {
    "hardware-yaml": Reader(_file("a.yaml", load_hardware), lambda: [*_configs("hardware"), _ODD_YAML]),
    "model-yaml": Reader(_file("a.yaml", load_model_config), lambda: [*_configs("models"), _ODD_YAML]),
    "recipe-yaml": Reader(_file("a.yaml", load_train_config), lambda: [*_configs("qat"), _ODD_YAML]),
    "mapping-yaml": Reader(_file("a.yaml", load_mapping), lambda: [*_configs("mapping"), _ODD_YAML]),
    "chip-yaml": Reader(_file("a.yaml", load_chip_architecture), lambda: [*_configs("chips"), _ODD_YAML]),
    "device-yaml": Reader(_file("a.yaml", load_device), _device_files),
    "setting": Reader(_settings, lambda: [b"adc.bits=4", b"tile={rows: 64, cols: 64}", b"overrides=[{match: a*}]"]),
    "stm": Reader(_tedlium2, lambda: [_STM]),
    "librispeech": Reader(_librispeech, lambda: [b"1-2-0000 MISTER QUILTER\n1-2-0000 IS\n"]),
    "manifest-tsv": Reader(_manifest("m.tsv"), lambda: [_TSV]),
    "manifest-jsonl": Reader(_manifest("m.jsonl"), lambda: [_JSONL]),
    "sphere": Reader(_file("a.sph", _audio), lambda: [sphere(), sphere(channel_count=2, sample_count=200)]),
    "wav": Reader(_file("a.wav", _audio), lambda: _sounds("WAV", "PCM_16", "FLOAT", "ULAW", "MS_ADPCM")),
    "flac": Reader(_file("a.flac", _audio), lambda: _sounds("FLAC", "PCM_16", "PCM_24")),
    "csv": Reader(_file("m.csv", read_measurements), lambda: _TABLES),
    "csv-gz": Reader(_file("m.csv.gz", read_measurements), lambda: [gzip.compress(table) for table in _TABLES]),
    "levels": Reader(_file("levels.csv", _inspected), lambda: [_readings(), _summary(), _pulses()]),
    "matrices": Reader(_file("g.txt", _matrices), _matrix_text),
    "arrays": Reader(_file("g.npz", _inspected), _matrix_arrays),
    "npz": Reader(_file("m.npz", read_measurements), _npz),
    "parquet": Reader(_file("m.parquet", read_measurements), _parquet),
    "arpa": Reader(_file("m.arpa", read_arpa_words), _arpa),
    "arpa-gz": Reader(_file("m.arpa.gz", read_arpa_words), lambda: [gzip.compress(text) for text in _arpa()]),
    "arpa-bz2": Reader(_file("m.arpa.bz2", read_arpa_words), lambda: [bz2.compress(text) for text in _arpa()]),
    "arpa-xz": Reader(_file("m.arpa.xz", read_arpa_words), lambda: [lzma.compress(text) for text in _arpa()]),
    "kenlm": Reader(_file("m.arpa", _kenlm), _arpa),
    "lexicon": Reader(_file("m.dic", load_lexicon), lambda: [_LEXICON.to_text().encode(), _DIC, b"a\nb\n"]),
    "results": Reader(_file("r.jsonl", _read_results), _results),
    "tokens": Reader(_tokens, _token_documents),
    "safetensors": Reader(_file("a.safetensors", _any_checkpoint), _tiny_safetensors),
    "safetensors-header": Reader(_header, _headers),
    "safetensors-index": Reader(_index, lambda: [b'{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}']),
    "model": _of_description(model_file, _model),
    "mapped": _of_description(_mapped_file, _mapped),
    "device": _of_description(_device_file, load_device),
    "training-state": _of_description(_state_file, _state),
    "finished-training": _of_description(_finished_file, _finished),
}
