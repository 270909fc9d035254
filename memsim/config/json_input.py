"""JSON of unknown origin, in files and in the metadata of checkpoints."""

from __future__ import annotations

import json
import sys
from typing import Any

from memsim.errors import InputError


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON document. Raises InputError, in one line that begins with `where`, for other text."""
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{where}: nested too deep") from None
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None


def is_finite_number(value: object) -> bool:
    """Whether a value of JSON is a finite number that a float holds; JSON may have NaN or a thousand digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def parse_json_object(text: str, where: str) -> dict[str, Any]:
    """Return the object of a JSON document. Raises InputError, as `parse_json` does, for any other value."""
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected keys and values")
    return value
