"""The names that `--data` takes. This module imports nothing, so that the help of a command can show them."""

DATA = "demo, tedlium2, librispeech, or a manifest (.tsv, .jsonl)"


def has_one_split(data: str) -> bool:
    """Return whether `data` is not divided into train, dev and test: the demo and manifests are not."""
    return data == "demo" or data.endswith((".tsv", ".jsonl"))
