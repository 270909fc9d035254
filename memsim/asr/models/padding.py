"""Removal of the padding of a recogniser's batches, for calibration."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


class KnowsPadding:
    """Base of networks that take ([batch, frames, ...], lengths [batch]), whose calibration leaves padding out."""

    def unpadded(self, features: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the utterances of a batch one at a time, without padding."""
        for index, length in enumerate(lengths.tolist()):
            yield features[index : index + 1, :length], lengths[index : index + 1]
