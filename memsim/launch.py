"""Whether torchrun has started this process, and as which of several: known without importing torch."""

from __future__ import annotations

import os


def is_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this is the one process, or the one of torchrun's that writes files and says how it goes."""
    return not is_torchrun() or os.environ["RANK"] == "0"
