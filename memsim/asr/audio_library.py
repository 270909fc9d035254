"""The package torchaudio, in whose place a build that does not load beside this torch raises one clear line."""

from __future__ import annotations

from importlib.metadata import version

from memsim.errors import InputError

try:
    import torchaudio
except OSError as error:  # its compiled part asks for libraries that this torch lacks, such as CUDA's
    raise InputError(
        f"torchaudio {version('torchaudio')} was built for another torch and does not load beside torch "
        f"{version('torch')}; install both from the same place, such as PyTorch's index of CPU wheels"
    ) from error

__all__ = ["torchaudio"]
