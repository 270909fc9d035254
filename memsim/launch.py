"""Questions about torchrun that are answered without importing torch, as the command line must start at once."""

from __future__ import annotations

import os


def is_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process writes files and reports progress: the only one, or the first of torchrun's."""
    return not is_torchrun() or os.environ["RANK"] == "0"
