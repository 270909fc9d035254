"""Names for array types in annotations; shapes are noted where they are used."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

Floats: TypeAlias = NDArray[Any]  # float64 unless noted
Ints: TypeAlias = NDArray[Any]  # int64
Bools: TypeAlias = NDArray[Any]
