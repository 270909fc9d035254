"""Names for arrays in annotations. What they hold and their shapes is said where they are used."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

Floats: TypeAlias = NDArray[Any]  # float64, unless float32 is said
Ints: TypeAlias = NDArray[Any]  # int64
Bools: TypeAlias = NDArray[Any]
