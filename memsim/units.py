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


def counted(number: int, thing: str, plural: str = "") -> str:
    """Format a number of things; `plural` is the word for several, where it is irregular.

    >>> counted(2048, "layer"), counted(1, "layer"), counted(3, "matrix", "matrices")
    ('2,048 layers', '1 layer', '3 matrices')
    """
    return f"{number:,} {thing if number == 1 else plural or plural_of(thing)}"


def plural_of(thing: str) -> str:
    """Return the plural of a regular noun: `layers`, `batches`."""
    return f"{thing}es" if thing.endswith(("ch", "sh", "s", "x")) else f"{thing}s"
