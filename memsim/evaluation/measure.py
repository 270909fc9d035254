"""Measures by which networks are compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A number by which networks are compared, such as the word error rate."""

    key: str
    """Its name in JSON and in `Score.rates`."""
    name: str
    """Its name in tables."""
    lower_is_better: bool = True
    in_percent: bool = True

    @property
    def title(self) -> str:
        """The heading of its column."""
        return f"{self.name} %" if self.in_percent else self.name

    def show(self, value: float | None, digits: int = 2, *, signed: bool = False) -> str:
        """Return `value` as a cell of that column; empty for None."""
        if value is None:
            return ""
        return f"{(100 if self.in_percent else 1) * value:{'+' if signed else ''}.{digits}f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


WER, CER = Measure("wer", "WER"), Measure("cer", "CER")
"""The measures of recognisers."""
