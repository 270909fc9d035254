"""Make a bundled checkpoint from a trained one: the same tensors with 16-bit weights.

python tests/tools/bundle_checkpoint.py runs/an4.safetensors memsim/assets/checkpoints/demo-float.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from memsim.crossbar.statistics import PREFIX
from memsim.nn.quantisers import quantiser_tensors
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint

MOST_BYTES = 4_000_000  # two are bundled, in at most 8 MB


def main(source: Path, target: Path) -> None:
    """Write `target`; refuse one that is too large to bundle."""
    checkpoint = load_checkpoint(source)
    tensors = checkpoint.tensors()
    precise = set(quantiser_tensors(tensors))
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and name not in precise and not name.startswith(PREFIX):
            tensors[name] = tensor.half()
    save_checkpoint(target, tensors, {key: value for key, value in checkpoint.metadata.items() if key != "format"})
    size = target.stat().st_size
    print(f"{target}: {size:,} bytes")
    if size > MOST_BYTES:
        sys.exit(f"more than {MOST_BYTES:,} bytes: too large to bundle")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
