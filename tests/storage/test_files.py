from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.storage.files import is_file, writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    with writing(path) as temporary:
        temporary.write_text(text)


def test_a_new_file(tmp_path: Path) -> None:
    with writing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == tmp_path
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_name_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.txt"), "new")
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError("halfway"), KeyboardInterrupt(), InputError("bad data")])
def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, writing(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(
            OSError, match=r"a\.txt: could not be written \(No space left on device\); no part of it was kept"
        ),
        writing(tmp_path / "a.txt"),
    ):
        raise OSError(28, os.strerror(28))
    assert names(tmp_path) == []


def test_the_writer_may_replace_the_temporary_file(tmp_path: Path) -> None:
    with writing(tmp_path / "a.txt") as temporary:
        (tmp_path / "other").write_text("new")
        (tmp_path / "other").replace(temporary)
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_what_reaches_the_disk_is_the_file_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with writing(tmp_path / "a.txt") as temporary:
        (tmp_path / "other").write_text("new")
        (tmp_path / "other").replace(temporary)
    assert synced == [(tmp_path / "a.txt").stat().st_ino]


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.mark.usefixtures("umask")
def test_permissions_honour_the_umask(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    current = os.umask(0o027)
    assert current == 0o027


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none/a\.txt: cannot be written \(No such file or directory\)"):
        write(tmp_path / "none" / "a.txt", "new")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\)"):
        write(tmp_path / "file" / "a.txt", "new")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write anywhere

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, os.strerror(13))

        monkeypatch.setattr("memsim.storage.files.tempfile.mkdtemp", refuse)
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(Permission denied\)"):
        write(tmp_path / "a.txt", "new")


@pytest.mark.parametrize("target", ["folder", "pipe"])
def test_only_files_are_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"cannot be written \(a folder or device, not a file\)"):
        write(tmp_path / target, "new")
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_link_keeps_pointing_at_its_file(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "a.txt")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "a.txt").read_text() == "new"
    assert names(tmp_path / "far") == ["a.txt"]


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = ["x" * 100_000, "y" * 50_000]
    write(path, texts[0])
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        write(path, texts[turn % 2])
    done.set()
    reader.join()
    assert seen <= set(texts)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from memsim.storage.files import writing\n"
        "with writing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half of the n'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for name in ("a.txt", "b.txt"):
        done = subprocess.run([sys.executable, "-c", code, tmp_path / name])
        assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2  # hidden
    with writing(tmp_path / "a.txt") as temporary:
        write(tmp_path / "a.txt", "of another who writes now")
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [name for name in names(tmp_path) if not name.startswith(".b.txt.")] == ["a.txt"]
    write(tmp_path / "b.txt", "new")
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_impossible_names_are_bad_input(tmp_path: Path) -> None:
    assert not is_file(tmp_path / "none")
    with pytest.raises(InputError, match=r"\.\.\.: cannot be read \(File name too long\)"):
        is_file(tmp_path / ("x" * 300))
