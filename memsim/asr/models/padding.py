"""What a recogniser knows of its batches: which frames belong to an utterance, and which fill it up."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


class KnowsPadding:
    """A network of ([batch, frames, ...], lengths [batch]) whose calibration leaves the padding out."""

    def unpadded(self, features: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The utterances of a batch, one at a time and as long as they are."""
        for index, length in enumerate(lengths.tolist()):
            yield features[index : index + 1, :length], lengths[index : index + 1]
