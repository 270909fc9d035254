"""Quantities as text for people."""

from __future__ import annotations

import math

_PREFIXES = ("f", "p", "n", "µ", "m", "", "k", "M", "G", "T", "P")
_LEAST = -15


def si(value: float, unit: str = "") -> str:
    """Format `value` with three digits and an SI prefix from f to P.

    >>> si(0.00123, "J")
    '1.23 mJ'
    """
    if not value or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    exponent = 3 * math.floor(math.log10(abs(float(f"{value:.3g}"))) / 3 + 1e-9)  # rounded, so 999.9 is 1.00 k
    exponent = min(max(exponent, _LEAST), _LEAST + 3 * (len(_PREFIXES) - 1))
    return f"{value / 10.0**exponent:#.3g}".rstrip(".") + f" {_PREFIXES[(exponent - _LEAST) // 3]}{unit}".rstrip()


def prefix_of(value: float) -> tuple[str, float]:
    """Return the SI prefix in which `si` writes `value`, and its factor.

    >>> prefix_of(0.00123)[0]
    'm'
    """
    if not value:
        return "", 1.0
    prefix = si(value, "s").split(" ")[1].removesuffix("s")
    return prefix, 10.0 ** (_LEAST + 3 * _PREFIXES.index(prefix))


def counted(number: int, thing: str, plural: str = "") -> str:
    """Format a number of things; `plural` is the word for several, where it is irregular.

    >>> counted(2048, "layer"), counted(1, "layer"), counted(3, "matrix", "matrices")
    ('2,048 layers', '1 layer', '3 matrices')
    """
    return f"{number:,} {thing if number == 1 else plural or plural_of(thing)}"


def plural_of(thing: str) -> str:
    """Return the plural of a regular noun: `layers`, `batches`."""
    return f"{thing}es" if thing.endswith(("ch", "sh", "s", "x")) else f"{thing}s"


def duration(seconds: float) -> str:
    """Format a time from microseconds to years in the unit that fits.

    >>> duration(20), duration(3600), duration(86400), duration(3e9)
    ('20 s', '1 h', '1 day', '95 years')
    """
    for unit, size in (("year", 365.25 * 86400), ("day", 86400), ("h", 3600), ("min", 60)):
        number = round(seconds / size, 1 if seconds < 10 * size else 0)
        if number >= 1:
            one = unit in ("h", "min") or number == 1
            return f"{number:g} {unit if one else plural_of(unit)}"
    return f"{seconds:g} s" if seconds >= 0.1 or not seconds else si(seconds, "s")
