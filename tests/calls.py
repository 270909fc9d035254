"""Counts of the function calls that an action makes, which measure its work in Python without a clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


def calls(action: Callable[[], object]) -> int:
    """How many functions `action` calls, Python's and built-in ones; a generator counts each time it goes on."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def growth_beyond_linear(make: Callable[[int], Callable[[], object]], size: int) -> float:
    """What of the calls at four times `size` cannot be a straight line through those at `size` and its double."""
    actions = [make(factor * size) for factor in (1, 2, 4)]
    actions[0]()  # what is done only once in a process
    one, two, four = (calls(action) for action in actions)
    return (four - two - 2 * (two - one)) / four
