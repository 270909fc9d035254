"""Matrices of conductances for several times in one file: each way to write them gives the same readings."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from memsim import inspect_measurements
from memsim.errors import InputError
from memsim.fit.levels.tables import levels_kind, read_readings

SECONDS = (1.0, 10.0, 3600.0)
WORDS = ("1 s", "10 s", "1 h")
G = 5 + 20 * np.random.default_rng(0).random((3, 6, 5))  # [times, rows, columns] in uS
NAMES = ("conductance_uS", "...")


def rows(matrix: np.ndarray, delimiter: str = "\t", decimal: str = ".") -> list[str]:
    return [delimiter.join(f"{value:.9g}" for value in row).replace(".", decimal) for row in matrix]


def blocks(line: Callable[[str], str], delimiter: str = "\t", decimal: str = ".") -> str:
    return "\n".join("\n".join([line(t), *rows(g, delimiter, decimal), ""]) for t, g in zip(WORDS, G, strict=True))


def labelled(mark: str) -> str:
    lines = []
    for word, matrix in zip(WORDS, G, strict=True):
        lines += [",".join([f"t = {word}", *(f"BL{k}" for k in range(5))])]
        lines += [f"WL{k}{mark}{row}" for k, row in enumerate(rows(matrix, ","))]
    return "\n".join(lines)


TEXTS = {
    "lines": blocks(lambda t: f"t = {t}"),
    "comments": blocks(lambda t: f"# after {t}", " "),
    "bare": blocks(lambda t: f"[{t}]", ";", ","),
    "two fields": blocks(lambda t: f"Time,{t},,,", ","),
    "unit first": blocks(lambda t: {"1 s": "time (s): 1", "10 s": "time (s): 10.0", "1 h": "time (s): 3.6e3"}[t], ","),
    "below names": "Conductance in uS\n" + blocks(lambda t: f"t = {t}\nBL0;BL1;BL2;BL3;BL4", ";"),
    "labels": labelled(","),
}


def same(path: Path, names: tuple[str, ...] = (), renamed: dict[str, str] | None = None, targets: bool = False) -> None:
    assert levels_kind(path, names, renamed or {}) == "readings"
    found = read_readings(path, names, renamed)
    assert found.start_seconds == 1
    np.testing.assert_allclose(found.start, G[0].reshape(-1), rtol=1e-8)
    np.testing.assert_allclose(found.group_seconds, SECONDS[1:])
    for group in (0, 1):
        inside = found.changes.group == group
        now = np.empty(30)
        now[found.changes.cells[inside]] = found.changes.now[inside]
        np.testing.assert_allclose(now, G[group + 1].reshape(-1), rtol=1e-8)
    if targets:
        assert found.target is not None
        np.testing.assert_allclose(found.target, np.round(G[0]).reshape(-1))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_blocks_below_times(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_bytes(gzip.compress(TEXTS[text].replace("\n", "\r\n").encode(encoding)))
    same(tmp_path / "g.txt", NAMES)
    with pytest.raises(
        InputError, match=r"holds a matrix for each time \('.* --columns conductance_uS,\.\.\. reads it"
    ):
        inspect_measurements(tmp_path / "g.txt")


def test_labels_of_rows_that_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text(labelled(",").replace("WL", ""))
    same(tmp_path / "g.csv", ("cell", *NAMES))


def test_a_file_for_each_time(tmp_path: Path) -> None:
    for word, matrix in zip(WORDS, G, strict=True):
        (tmp_path / f"chip3_G_{word.replace(' ', '')}.csv").write_text("\n".join(rows(matrix, ",")))
    same(tmp_path, NAMES)
    with pytest.raises(InputError, match=r"holds a matrix for each time \('chip3_G_1h.csv', 'chip3_G_1s.csv' \.\.\.\)"):
        inspect_measurements(tmp_path)
    (tmp_path / "chip3_G_1h.csv").rename(tmp_path / "chip3_G_late.csv")
    with pytest.raises(InputError, match=r"chip3_G_late.csv: its name gives no time; name it like G_3600s.csv"):
        read_readings(tmp_path, NAMES)


def test_a_row_for_each_time(tmp_path: Path) -> None:
    cells = [",".join([f"{t:g}", *rows(g.reshape(1, -1), ",")]) for t, g in zip(SECONDS, G, strict=True)]
    (tmp_path / "g.csv").write_text("\n".join(["time (s)," + ",".join(f"cell{k}" for k in range(30)), *cells]))
    same(tmp_path / "g.csv", ("time_s", *NAMES))
    with pytest.raises(InputError, match=r"a row for each time, 'time \(s\)', and 30 columns; --columns time_s,cond"):
        inspect_measurements(tmp_path / "g.csv")


def test_arrays(tmp_path: Path) -> None:
    path, times, targets = tmp_path / "g.npz", np.array(SECONDS), np.round(G[0])
    np.savez(path, conductance_uS=G, time_s=times, target_uS=targets)
    same(path, targets=True)
    np.savez(path, G=np.moveaxis(G, 0, -1), t=times / 60)
    same(path, renamed={"conductance_uS": "G", "time_min": "t"})
    np.savez(path, resistance_kohm=1e3 / G.reshape(3, -1), time_s=times, target_uS=targets.reshape(-1))
    same(path, targets=True)


def test_several_cells_in_a_row_with_a_column_for_each_time(tmp_path: Path) -> None:
    names = [f"conductance_uS at {t} (target {aim} uS)" for t in WORDS for aim in (5, 10, 20, 40, 80)]
    lines = [",".join([str(k), *(f"{v:.9g}" for v in G[:, k].reshape(-1))]) for k in range(6)]
    (tmp_path / "g.csv").write_text("\n".join([",".join(["cell", *names]), *lines]))
    same(tmp_path / "g.csv")
    found = read_readings(tmp_path / "g.csv")
    assert found.target is not None
    np.testing.assert_allclose(found.target, np.tile([5, 10, 20, 40, 80], 6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            TEXTS["lines"].replace("t = 10 s\n", ""),
            "the matrix of 1 s is not one of 12 x 5|of 3600 s is not one of 12 x 5",
        ),
        (TEXTS["lines"].replace("t = 10 s", "t = 1 s"), "two matrices of 1 s; give one for each time"),
        (
            TEXTS["lines"].replace("t = 1 s\n", ""),
            "line 1: a row of numbers without a time; write a line such as t = 3600",
        ),
        (TEXTS["lines"].partition("t = 10 s")[0], "holds no two matrices with times"),
        (TEXTS["lines"] + "\nt = 2 h\n", "line 25: no matrix for 7200 s"),
        (TEXTS["lines"] + "\n1\t2\tthree\n", "'three' is not a number; expected a line such as t = 3600 s or a row"),
        (TEXTS["lines"].replace("t = 10 s", "t = 10"), "line 9: 't = 10' names no unit of time; write t = 3600 s"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        read_readings(tmp_path / "g.txt", NAMES)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"G": G}, r"lacks conductance_uS \(arrays: G \[3, 6, 5\]\); --column conductance_uS=THEIRS names another"),
        ({"conductance_uS": G}, r"lacks time_s \(arrays: conductance_uS \[3, 6, 5\]\)"),
        ({"conductance_uS": G, "time_s": np.ones(2)}, r"time_s \[2\]; expected conductances \[times, \.\.\.\]"),
        ({"conductance_uS": G, "time_s": np.array(SECONDS), "target_uS": np.ones(30)}, r"is \[30\]; expected \[6, 5\]"),
        (
            {"conductance_uS": G, "time_s": np.array(SECONDS), "cell": np.ones(30)},
            r"cell beside an array .* leave it out",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(InputError, match=message):
        inspect_measurements(tmp_path / "g.npz")


def test_a_measurement_that_failed_is_missing(tmp_path: Path) -> None:
    text = TEXTS["lines"].splitlines()
    text[1] = "\t".join(["9.91E37", "OVERFLOW", "", *text[1].split("\t")[3:]])
    (tmp_path / "g.txt").write_text("\n".join(text))
    found = read_readings(tmp_path / "g.txt", NAMES)
    assert len(found.start) == 27
    assert "3 rows of 90 without a cell, time or conductance left out" in found.source.notes


def test_two_rows_of_names_lead_to_one(tmp_path: Path) -> None:
    """Times above targets, each over the columns of its group or once: their quantity stands nowhere."""
    lines = [",".join([f"c{k}", *(f"{v:.9g}" for v in G[:, k].reshape(-1))]) for k in range(6)]
    aims = [f"{aim} uS" for _ in WORDS for aim in (5, 10, 20, 40, 80)]
    merged = ",".join(["cell", *(word if k == 0 else "" for word in WORDS for k in range(5))])
    (tmp_path / "g.csv").write_text("\n".join([merged, "," + ",".join(aims), *lines]))
    with pytest.raises(
        InputError, match=r"columns 1 s 5 uS, 1 s 10 uS .* call them .* conductance_uS at 1 s target 5 uS"
    ):
        inspect_measurements(tmp_path / "g.csv")
    names = [f"conductance_uS at {word} target {aim} uS" for word in WORDS for aim in (5, 10, 20, 40, 80)]
    same(tmp_path / "g.csv", ("cell", *names))
    numbers = "target_uS," + ",".join(aim.removesuffix(" uS") for aim in aims)
    (tmp_path / "g.csv").write_text("\n".join([merged, numbers, *lines]))
    with pytest.raises(InputError, match=r"row 1: the cell is 'target_uS.*', of a second row of names; leave"):
        read_readings(tmp_path / "g.csv", ("cell", *names))
