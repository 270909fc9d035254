"""The texts of errors."""

from __future__ import annotations

import pickle

from memsim.errors import InputError


def test_of_a_long_quotation_both_ends_are_left() -> None:
    """The place is at the beginning, the remedy at the end."""
    message = f"m.tsv:3: {'x' * 100_000}; name another file"
    said = str(InputError(message))
    assert len(said) < 1100
    assert said.startswith("m.tsv:3: xxx")
    assert said.endswith("xxx; name another file")
    assert " ... " in said


def test_lines_are_shortened_one_by_one() -> None:
    lines = [f"problem {number}" for number in range(500)]
    assert str(InputError("\n".join([*lines, "y" * 2000]))).split("\n")[:500] == lines


def test_it_crosses_processes() -> None:
    error = InputError("a.yaml:1: " + "z" * 5000)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
