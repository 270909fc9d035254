"""nn.Embedding on simulated arrays, and in training for them: a look-up is the product of a one-hot row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar.uncompiled import uncompiled
from memsim.nn.convolution import PIECE_VALUES
from memsim.nn.named_layers import NamedLayer, naming_its_layer
from memsim.nn.quantised_product import QuantisedLayerOfOne, Stream, finished
from memsim.nn.sources import WeightSource
from memsim.nn.stand_in import OnOneMatrix


class _Embedding(NamedLayer):
    """An nn.Embedding, mapped or in training."""

    def _copy_sizes(self, module: Any) -> None:
        self.num_embeddings, self.embedding_dim = module.num_embeddings, module.embedding_dim
        self.padding_idx = module.padding_idx

    @classmethod
    def sources(cls, module: Any) -> dict[str, WeightSource]:
        """Return the matrix of an nn.Embedding, or of a QuantisedEmbedding."""
        return {"": replace(WeightSource.transposed("weight", tuple(module.weight.shape)), is_lookup=True)}


class MappedEmbedding(_Embedding, OnOneMatrix):
    """An nn.Embedding on arrays: the index drives one row with the full-scale input."""

    @staticmethod
    def is_original(module: nn.Module) -> bool:
        """Whether `module` is an nn.Embedding that looks up its weights as they are; `max_norm` changes them."""
        return type(module) is nn.Embedding and module.max_norm is None

    @uncompiled
    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        """Look up `input`, indices [...], giving [..., features].

        Raises RuntimeError where an index is out of range, TypeError where the input holds no indices.
        """
        stream: Stream = self.matrix.stream  # type: ignore[assignment]
        rows = _looked_up(input, self.num_embeddings, stream).to(self.weight_dtype)
        return finished(rows, None, self.output_quantiser)


class QuantisedEmbedding(_Embedding, QuantisedLayerOfOne):
    """An nn.Embedding with quantisers for its weight and output; its one-hot inputs need none."""

    bias = None

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__(module)
        self.scale_grad_by_freq = module.scale_grad_by_freq

    @naming_its_layer
    def forward(self, input: Tensor) -> Tensor:
        """Look up as `MappedEmbedding.forward`."""

        def look_up(indices: Tensor, matrix: Tensor) -> Tensor:
            return F.embedding(indices, matrix.T, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

        def in_rows(indices: Tensor, stream: Stream) -> Tensor:
            return _looked_up(indices, self.num_embeddings, stream)

        return finished(self.matrix()(input, look_up, in_rows), None, self.output_quantiser)


def _looked_up(indices: Tensor, rows: int, stream: Stream) -> Tensor:
    """Multiply the one-hot rows of `indices` [...], giving [..., features]."""
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"its input is {indices.dtype}; it must hold indices, torch.int64 or torch.int32")

    def one_hot() -> Iterator[Tensor]:
        for part in indices.flatten().split(max(1, PIECE_VALUES // rows)):
            yield F.one_hot(part.long(), rows).float()

    product = stream(one_hot())
    return product.view(*indices.shape, product.shape[1])
