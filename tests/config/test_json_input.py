from __future__ import annotations

import math

import pytest

from memsim.config.json_input import is_finite_number, parse_json, parse_json_object
from memsim.errors import InputError


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "nul"])
def test_what_is_no_json_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^where: (not JSON|nested too deep)") as caught:
        parse_json(text, "where")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"'])
def test_only_objects_have_keys(text: str) -> None:
    parse_json(text, "where")
    with pytest.raises(InputError, match=r"^where: expected keys and values"):
        parse_json_object(text, "where")
    assert parse_json_object('{"a": 1}', "where") == {"a": 1}


def test_numbers() -> None:
    assert all(map(is_finite_number, (0, -1.5, 10**300, 1e308)))
    assert not any(map(is_finite_number, (True, None, "1", math.nan, math.inf, -math.inf, 10**400, [1])))
