"""Bad input made from good input by changes of bytes, lines and JSON values."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1 << 31, 1 << 63, -(1 << 63), 1 << 64, 10**30),
    *(0.0, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf),
    *("", " ", "none", "nan", "1e999", "\0", "\ud800", "\u2028", "é", "../../x", "/dev/null", "x" * 300, "[" * 2000),
    *("{}", "[]", "null", '{"kind": "characters"}', "AAAA", "eJwDAAAAAAE="),
    *([], {}, [[]], [None], [0], ["a"], {"a": 1}, {"": {}}, [[[[]]]]),
)

ODD_BYTES: tuple[bytes, ...] = (
    *(b"", b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x85"),
    *(b"\n", b"\r", b"\r\n", b"\t", b" ", b",", b'"', b"'", b"[", b"{", b"}", b":", b"<", b">", b"(2)", b"(", b"#"),
    *(b"9" * 5000, b"-1", b"0", b"1e999", b"nan", b"inf", b"-inf", b"1e-999", b"18446744073709551616"),
    *(b"[" * 3000, b"x" * 70000, b"\\u0000", b"\\ud800", b"\\1-grams:\n", b"{NOISE}", b";;"),
    *(b"&a [", b"*a", b"!!python/object/apply:os.system [true]", b"<<: ", b"- ", b"? ", b"%YAML 9.9\n", b"---\n"),
)


def mutated(document: bytes, random: Random) -> bytes:
    """`document` with one to four changes."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        document = _mutated_once(document, random)
    return document


def _mutated_once(document: bytes, random: Random) -> bytes:
    if random.random() < 0.6 and (changed := _with_other_values(document, random)) is not None:
        return changed
    return random.choice((_with_other_lines, _with_other_bytes))(document, random)


def _with_other_bytes(document: bytes, random: Random) -> bytes:
    start = random.randint(0, len(document))
    stop = min(len(document), start + random.choice((0, 0, 1, 1, 2, 4, 8, 64)))
    choice = random.randrange(5)
    if choice == 0:
        return document[:start]
    if choice == 1:
        new = random.choice(ODD_BYTES)
    elif choice == 2:
        new = random.randbytes(stop - start)
    elif choice == 3:
        new = bytes(byte ^ 1 << random.randrange(8) for byte in document[start:stop])
    else:
        new = document[start:stop] * random.choice((0, 2, 3))
    return document[:start] + new + document[stop:]


def _with_other_lines(document: bytes, random: Random) -> bytes:
    lines = document.split(b"\n")
    i, j = random.randrange(len(lines)), random.randrange(len(lines))
    choice = random.randrange(4)
    if choice == 0:
        del lines[i]
    elif choice == 1:
        lines.insert(i, lines[j])
    elif choice == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        separator = next((s for s in (b"\t", b",", b" ") if s in lines[i]), b" ")
        fields = lines[i].split(separator)
        fields[random.randrange(len(fields))] = random.choice(ODD_BYTES)
        lines[i] = separator.join(fields)
    return b"\n".join(lines)


def _with_other_values(document: bytes, random: Random) -> bytes | None:
    """One value changed, in JSON or a line of JSON; in strings that are JSON themselves, too. None for other text."""
    lines = document.splitlines(keepends=True)
    for i in [None, random.randrange(len(lines))] if lines else []:
        text = document if i is None else lines[i]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, dict | list):
            continue
        changed = json.dumps(_changed(value, random)).encode()
        if i is None:
            return changed
        return b"".join([*lines[:i], changed, b"\n", *lines[i + 1 :]])
    return None


def _changed(value: Any, random: Random) -> Any:
    """`value` with one of the values in it changed, left out or put in."""
    if isinstance(value, str) and value[:1] in ("{", "[") and random.random() < 0.9:
        try:
            return json.dumps(_changed(json.loads(value), random))
        except (ValueError, RecursionError):
            return value[: random.randint(0, len(value))]
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(ODD_VALUES)
    changed = value.copy()
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = random.choice(keys)
    choice = random.random()
    if choice < 0.12:
        del changed[key]
    elif choice < 0.2 and isinstance(changed, list):
        changed.insert(key, value[random.choice(keys)])
    elif choice < 0.2:
        changed[random.choice(("x", "", "kind", str(key) + "x"))] = value[key]
    elif choice < 0.27:
        changed[key] = value[random.choice(keys)]
    else:
        changed[key] = _changed(value[key], random)
    return changed
