from __future__ import annotations

import hashlib
import json
import os
import pickle
import threading
import weakref
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memsim import __version__
from memsim.errors import InputError
from memsim.storage import checkpoint
from memsim.storage.checkpoint import FORMAT, load_checkpoint, save_checkpoint, writing_checkpoint

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "levels": torch.tensor([[-3, 3]], dtype=torch.int8)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def refusal(path: Path) -> str:
    """Why `path` is refused, in one line that begins with its name."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_a_header_whose_length_looks_like_json_is_read(tmp_path: Path) -> None:
    """The first byte of a file is the length of its header: 123 is an opening brace."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(123)
    (tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert load_checkpoint(tmp_path / "odd.safetensors").names == ("a",)


def test_round_trip(path: Path) -> None:
    save_checkpoint(path, TENSORS, {"kind": "model", "seed": "3"})
    loaded = load_checkpoint(path)
    assert loaded.metadata == {"format": FORMAT, "memsim_version": __version__, "kind": "model", "seed": "3"}
    assert sorted(loaded.names) == ["levels", "weight"]
    assert loaded.kind == "model"
    assert loaded.shapes == {"levels": (1, 2), "weight": (2, 3)}
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, tensor in loaded.tensors().items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
    assert list(loaded.tensors(["weight"])) == ["weight"]


def test_equal_contents_are_equal_files(path: Path, tmp_path: Path) -> None:
    save_checkpoint(path, TENSORS, {"kind": "model"})
    save_checkpoint(tmp_path / "b", dict(reversed(TENSORS.items())), {"kind": "model"})
    assert load_checkpoint(path).sha256 == load_checkpoint(tmp_path / "b").sha256


def test_views_and_parameters(path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"transposed": base.T, "row": base[1], "same": base[1], "parameter": torch.nn.Parameter(base[:2])}
    save_checkpoint(path, tensors, {})
    for name, tensor in load_checkpoint(path).tensors().items():
        assert torch.equal(tensor, tensors[name])


def test_a_foreign_file(path: Path) -> None:
    save_file({"w": torch.ones(2)}, path)
    assert load_checkpoint(path).kind == "foreign"
    assert load_checkpoint(path).metadata == {}
    save_file({"w": torch.ones(2)}, path, {"kind": "model", "format": "pt"})
    assert load_checkpoint(path).kind == "foreign"


def test_views_are_of_the_file_and_unchecked(path: Path) -> None:
    save_checkpoint(path, TENSORS | {"bad": torch.tensor([0, torch.nan])}, {})
    before = path.read_bytes()
    views = load_checkpoint(path).views()
    assert set(views) == {*TENSORS, "bad"}
    assert all(torch.equal(views[name], tensor) for name, tensor in TENSORS.items())
    views["weight"].add_(1)
    assert torch.equal(views["weight"], TENSORS["weight"] + 1)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match=r"a\.safetensors: tensor bad holds NaN or Inf"):
        load_checkpoint(path).require_finite("bad", views["bad"])


def test_an_unknown_tensor(path: Path) -> None:
    save_checkpoint(path, TENSORS, {})
    with pytest.raises(InputError, match="bias"):
        load_checkpoint(path).tensors(["bias"])


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_missing_file(path: Path) -> None:
    assert refusal(path) == "no such file"


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "a folder; name the .safetensors file in it"


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / ("x" * 300)) == "cannot be read (File name too long)"
    assert refusal(tmp_path / "file" / "a") == "cannot be read (Not a directory)"


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(path: Path, zipped: bool) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    assert refusal(path).startswith("a pickle (torch.save); pickles can run code and are refused, convert it: ")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_never_run(path: Path, tmp_path: Path, protocol: int) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path.write_bytes(pickle.dumps(Trap(), protocol))
    assert "pickle" in refusal(path)
    assert not (tmp_path / "sprung").exists()


def test_a_header_as_long_as_a_pickle_s_mark_is_none(path: Path) -> None:
    length = int.from_bytes(b"PK\0\0\0\0\0\0", "little")
    save_file({"w": torch.ones(2)}, path, {"note": ""})
    start = len(path.read_bytes()) - 2 * 4 - 8
    save_file({"w": torch.ones(2)}, path, {"note": "x" * (length - start)})
    raw = path.read_bytes()
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")].rstrip().ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + raw[-8:])
    assert path.read_bytes()[:2] == b"PK"
    assert torch.equal(load_checkpoint(path).tensors()["w"], torch.ones(2))


@pytest.mark.parametrize("kept", [0, 3, 8, 40, -1])
def test_truncated(path: Path, kept: int) -> None:
    save_checkpoint(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(path).startswith("not a complete safetensors file (")


def test_a_pointer_of_git_lfs_is_answered_with_what_fetches_the_file(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 151060136\n")
    assert refusal(path).startswith("a pointer of Git LFS in place of the weights; `git lfs pull`")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(path: Path, seed: int) -> None:
    path.write_bytes(torch.randint(256, (999,), generator=torch.Generator().manual_seed(seed)).byte().numpy().tobytes())
    assert refusal(path).startswith("not a complete safetensors file (")


@pytest.mark.parametrize("version", ["memsim/3", "memsim/11", "memsim/0"])
def test_another_format(path: Path, version: str) -> None:
    save_checkpoint(path, TENSORS, {"format": version})
    assert refusal(path).startswith(f"format {version}; this memsim {__version__} reads memsim/1 and memsim/2")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_numbers_that_are_not_finite(path: Path, value: float, dtype: torch.dtype) -> None:
    save_checkpoint(path, TENSORS | {"bad": torch.tensor([0, value], dtype=dtype)}, {})
    loaded = load_checkpoint(path)
    assert set(loaded.tensors(TENSORS)) == set(TENSORS)  # the others can be read
    with pytest.raises(InputError, match=r"a\.safetensors: tensor bad holds NaN or Inf"):
        loaded.tensors()


def test_8_bit_floats(path: Path) -> None:
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, path)
    assert load_checkpoint(path).tensors()["w"].float().tolist() == [1, 1]
    save_file({"w": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(InputError, match="holds NaN or Inf"):
        load_checkpoint(path).tensors()


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_failure_leaves_the_old_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(path, TENSORS, {"seed": "1"})

    def fail(file: FileIO, tensor: object) -> None:
        file.write(b"half")
        raise MemoryError

    monkeypatch.setattr(checkpoint, "_put", fail)
    with pytest.raises(MemoryError):
        save_checkpoint(path, TENSORS, {"seed": "2"})
    assert load_checkpoint(path).metadata["seed"] == "1"
    assert list(path.parent.iterdir()) == [path]


OF_ALL_KINDS = {
    **{f"of {dtype}".removeprefix("of torch."): torch.arange(6).view(2, 3).to(dtype) for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16,
    )},
    "one number": torch.tensor(3.0),
    "empty": torch.ones(2, 0),
    "ein Maß\n": torch.ones(3, 2).T,
}  # fmt: skip


def test_the_file_is_the_one_of_safetensors(path: Path, tmp_path: Path) -> None:
    save_checkpoint(path, OF_ALL_KINDS, {"note": "é"})
    metadata = {"format": FORMAT, "memsim_version": __version__, "note": "é"}
    save_file({name: tensor.contiguous() for name, tensor in OF_ALL_KINDS.items()}, tmp_path / "theirs", metadata)
    ours, theirs = path.read_bytes(), (tmp_path / "theirs").read_bytes()
    length = 8 + int.from_bytes(ours[:8], "little")
    assert ours[:8] == theirs[:8]
    assert json.loads(ours[8:length]) == json.loads(theirs[8:length])
    assert list(json.loads(ours[8:length])) == list(json.loads(theirs[8:length]))
    assert ours[length:] == theirs[length:]


def test_tensors_in_any_order_make_the_same_file(path: Path, tmp_path: Path) -> None:
    save_checkpoint(path, OF_ALL_KINDS, {"note": "é"})
    with writing_checkpoint(tmp_path / "b") as file:
        file.add("one number", torch.ones(7, 7))  # which the one below replaces
        for name, tensor in reversed(OF_ALL_KINDS.items()):
            file.add(name, tensor)
        file.metadata = {"note": "é"}
    assert (tmp_path / "b").read_bytes() == path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "b"]


def test_a_file_that_takes_tensors_keeps_none_of_them(path: Path) -> None:
    with writing_checkpoint(path) as file:
        tensor = torch.ones(100)
        kept = weakref.ref(tensor)
        file.add("w", tensor)
        del tensor
        assert kept() is None
    assert load_checkpoint(path).tensors()["w"].sum() == 100


def test_an_error_between_tensors_leaves_nothing_and_keeps_its_text(path: Path) -> None:
    for error in (KeyboardInterrupt(), BrokenPipeError("the reader has left")):
        stack = ExitStack()
        stack.enter_context(writing_checkpoint(path)).add("w", torch.ones(2))
        with pytest.raises(type(error)) as caught, stack:
            raise error
        assert caught.value is error
        assert list(path.parent.iterdir()) == []


def test_a_writer_says_what_the_disk_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: FileIO, values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_put_bytes", fail)
    wanted = rf"^{path}: could not be written \(No space left on device\); no part of it was kept$"
    with pytest.raises(OSError, match=wanted), writing_checkpoint(path) as file:
        file.add("w", torch.ones(2))
    assert list(path.parent.iterdir()) == []


def test_tensors_that_are_read_one_by_one(path: Path) -> None:
    save_checkpoint(path, TENSORS | {"bad": torch.tensor([0, torch.nan])}, {})
    tensors = load_checkpoint(path).one_by_one()
    assert sorted(tensors) == ["bad", "levels", "weight"]
    assert "weights" not in tensors
    assert torch.equal(tensors["weight"], TENSORS["weight"])
    assert tensors["weight"].untyped_storage().data_ptr() != tensors["levels"].untyped_storage().data_ptr()
    with pytest.raises(InputError, match="tensor bad holds NaN or Inf"):
        tensors["bad"]
    with pytest.raises(KeyError):
        tensors["bad.weight"]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.safetensors: cannot be written"):
        save_checkpoint(tmp_path / "none" / "a.safetensors", TENSORS, {})


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(tmp_path, TENSORS, {})


def test_permissions_honour_the_umask(path: Path) -> None:
    old = os.umask(0o077)
    try:
        save_checkpoint(path, TENSORS, {})
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600


def test_readers_see_the_old_file_or_the_new_one(path: Path) -> None:
    def save(value: int) -> None:
        save_checkpoint(path, {"w": torch.full((20_000,), float(value))}, {"seed": str(value)})

    save(0)
    errors: list[str] = []
    seen: set[float] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                values = load_checkpoint(path).tensors()["w"].unique().tolist()
                assert len(values) == 1
                seen.update(values)
            except Exception as error:
                errors.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(1, 40):
        save(value)
    done.set()
    reader.join()
    assert errors == []
    assert seen


# --- shards and prefixes ---------------------------------------------------------------------------------------------

SHARDED = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.arange(2), "b.weight": torch.ones(3, 2)}


def write_shards(folder: Path, weight_map: dict[str, object] | None = None) -> Path:
    save_file({name: SHARDED[name] for name in ("a.weight", "a.bias")}, folder / "model-00001-of-00002.safetensors")
    save_file({"b.weight": SHARDED["b.weight"]}, folder / "model-00002-of-00002.safetensors")
    places = {name: f"model-0000{1 + name.startswith('b')}-of-00002.safetensors" for name in SHARDED}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {**places, **(weight_map or {})}}))
    return index


def test_an_index_is_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_checkpoint(write_shards(tmp_path))
    assert loaded.kind == "foreign"
    assert loaded.shapes == {name: tuple(tensor.shape) for name, tensor in SHARDED.items()}
    assert loaded.integers == {"a.bias"}
    opened = []
    real = checkpoint.safe_open
    monkeypatch.setattr(checkpoint, "safe_open", lambda *a, **k: (opened.append(a[0]), real(*a, **k))[1])
    assert all(torch.equal(tensor, SHARDED[name]) for name, tensor in loaded.tensors().items())
    assert opened == loaded.files[1:]  # each once
    opened.clear()
    assert list(loaded.tensors(["b.weight"])) == ["b.weight"]
    assert opened == [tmp_path / "model-00002-of-00002.safetensors"]
    before = loaded.sha256
    save_file({"b.weight": torch.zeros(3, 2)}, tmp_path / "model-00002-of-00002.safetensors")
    assert load_checkpoint(loaded.path).sha256 != before


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        (
            {"c": "model-00002-of-00002.safetensors"},
            "has c in model-00002-of-00002.safetensors, which does not hold",
        ),
        ({"c": "model-00003-of-00003.safetensors"}, "names model-00003-of-00003.safetensors, which is not beside it"),
        (
            {"c": "../other.safetensors"},
            "has c in '../other.safetensors'; expected the name of a file",
        ),
        ({"c": "/etc/passwd"}, "has c in '/etc/passwd'; expected the name of a file beside the index"),
        ({"c": 3}, "has c in 3; expected the name of a file beside the index"),
    ],
)
def test_an_index_that_does_not_fit_its_files(tmp_path: Path, weight_map: dict[str, object], said: str) -> None:
    assert refusal(write_shards(tmp_path, weight_map)).startswith(said)


def test_an_index_that_is_none(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": []}'):
        index.write_text(text)
        assert refusal(index).startswith("has no weight_map")
    index.write_text("[" * 10000)
    assert refusal(index) == "nested too deep"
    index.write_bytes(b"\xff{")
    with pytest.raises(InputError, match=r"index\.json:1: not UTF-8 text"):
        load_checkpoint(index)
    index.unlink()
    assert refusal(index) == "no such file"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    other = tmp_path / "pytorch_model.bin.index.json"
    other.write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    with pytest.raises(InputError, match=r"pytorch_model\.bin: a pickle"):
        load_checkpoint(other)


def test_a_folder_names_the_file_to_give(tmp_path: Path) -> None:
    save_file(SHARDED, tmp_path / "model.safetensors")
    assert refusal(tmp_path) == f"a folder; name the file in it: {tmp_path / 'model.safetensors'}"
    index = write_shards(tmp_path)
    assert refusal(tmp_path) == f"a folder; name the file in it: {index}"


@pytest.mark.parametrize(
    ("names", "wrappers"),
    [
        (["module.{}"] * 3, ("module.",)),
        (["_orig_mod.{}"] * 3, ("_orig_mod.",)),
        (["module._orig_mod.{}"] * 3, ("module.", "_orig_mod.")),
        (["_orig_mod.module.{}"] * 3, ("_orig_mod.", "module.")),
        (["module.module.{}"] * 3, ("module.",)),
        (["_fsdp_wrapped_module.{}"] * 3, ("_fsdp_wrapped_module.",)),
        (["{}", "{}", "b._checkpoint_wrapped_module.weight"], ("_checkpoint_wrapped_module.",)),
        (["{}", "{}", "b._orig_mod.weight"], ("_orig_mod.",)),
        (["{}", "{}", "{}"], ()),
    ],
)
def test_prefixes_of_wrappers_are_left_out(path: Path, names: list[str], wrappers: tuple[str, ...]) -> None:
    stored = {pattern.format(name): tensor for pattern, (name, tensor) in zip(names, SHARDED.items(), strict=True)}
    save_file(stored, path)
    loaded = load_checkpoint(path)
    assert sorted(loaded.names) == sorted(SHARDED)
    assert loaded.wrappers == wrappers
    assert all(torch.equal(tensor, SHARDED[name]) for name, tensor in loaded.tensors().items())
    assert loaded.shapes["a.weight"] == (2, 3)
    assert loaded.integers == {"a.bias"}
    assert sorted(loaded.with_prefixes().names if wrappers else loaded.names) == sorted(stored)


def test_names_that_only_look_like_wrapped_ones(path: Path) -> None:
    kept: list[dict[str, torch.Tensor]] = [
        {"module.a": torch.ones(1), "head": torch.ones(1)},
        {"_orig_mod.a": torch.ones(1), "a": torch.ones(2)},
        {"submodule.a": torch.ones(1)},
    ]
    for tensors in kept:
        save_file(tensors, path)
        assert sorted(load_checkpoint(path).names) == sorted(tensors)
        assert load_checkpoint(path).wrapped_by is None
    save_file({"n_averaged": torch.ones(1), "module.a": torch.ones(2)}, path)
    assert load_checkpoint(path).names == ("a",)
    assert load_checkpoint(path).wrapped_by == "module. (DataParallel or DistributedDataParallel)"
    save_checkpoint(path, {"module.a": torch.ones(1)}, {"kind": "model"})
    assert load_checkpoint(path).names == ("module.a",)
