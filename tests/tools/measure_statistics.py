"""Measure the input statistics of a checkpoint again, as a training does at its end.

python tests/tools/measure_statistics.py memsim/assets/checkpoints/demo.safetensors --data tedlium2 --data-root AN4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from memsim.asr.corpora import load_corpus
from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import load_recogniser
from memsim.asr.running import calibration_data
from memsim.crossbar.statistics import PREFIX
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--rows", type=int, default=18, help="of a layer's sample (default: few, to be bundled)")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    recogniser = load_recogniser(checkpoint)
    corpus = load_corpus(options.data, split=options.split, root=options.data_root, text_style=recogniser.text_style)
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors().items() if not name.startswith(PREFIX)}
    data = calibration_data(recogniser, corpus.utterances, FeatureSource(recogniser.features))
    for layer, measured in data.statistics(most_rows=options.rows).items():
        if f"{PREFIX}{layer}/scales" in checkpoint.names:
            tensors |= measured.to_tensors(layer)
    save_checkpoint(options.checkpoint, tensors, {k: v for k, v in checkpoint.metadata.items() if k != "format"})
    print(f"{options.checkpoint}: {options.checkpoint.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
