"""nn.MultiheadAttention on simulated arrays, and in training for them.

Its projections are matrix products; what lies between them is computed digitally.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.uncompiled import uncompiled
from memsim.nn.linear import MappedLinear, mapped_product
from memsim.nn.named_layers import NamedLayer, naming_its_layer
from memsim.nn.quantised_product import QuantisedLayerOfMany, copied_quantisers, finished
from memsim.nn.sources import WeightSource, effective_weight, frozen_copy
from memsim.nn.stand_in import WeightOnArrays

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Attention(NamedLayer):
    """An nn.MultiheadAttention, mapped or in training, with its arguments and results.

    It has four matrices: `q_proj`, `k_proj`, `v_proj` and `out_proj`. The first three are separate also where torch
    keeps them in one `in_proj_weight`, because their inputs differ in general.
    """

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None
    # False keeps nn.TransformerEncoderLayer from computing with the weights itself instead of calling this layer
    _qkv_same_embed_dim = False

    def _copy_sizes(self, module: Any) -> None:
        self.embed_dim, self.num_heads, self.head_dim = module.embed_dim, module.num_heads, module.head_dim
        self.kdim, self.vdim = module.kdim, module.vdim
        self.batch_first, self.dropout, self.add_zero_attn = module.batch_first, module.dropout, module.add_zero_attn

    def _projected(self, name: str, x: Tensor) -> Tensor:
        """Multiply `x` [..., in] by the matrix `name` and add its bias, giving [..., out]."""
        raise NotImplementedError

    def _bias_of(self, name: str) -> Tensor | None:
        """Return the bias [width] of one of PROJECTIONS."""
        if self.in_proj_bias is None:
            return None
        return self.in_proj_bias.chunk(len(PROJECTIONS))[PROJECTIONS.index(name)]

    @classmethod
    def sources(cls, module: Any) -> dict[str, WeightSource]:
        """Return the four matrices of an nn.MultiheadAttention, or of a QuantisedAttention."""
        width = module.embed_dim
        if module.in_proj_weight is not None:
            stored = tuple(module.in_proj_weight.shape)
            found = {
                name: WeightSource.of("in_proj_weight", stored, rows=rows) for name, rows in projection_rows(width)
            }
        else:
            tensors = {name: f"{name}_weight" for name in PROJECTIONS}
            found = {name: WeightSource.of(t, tuple(getattr(module, t).shape)) for name, t in tensors.items()}
        return found | {"out_proj": WeightSource.of("out_proj.weight", tuple(module.out_proj.weight.shape))}

    @naming_its_layer
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as nn.MultiheadAttention; `is_causal` only describes `attn_mask`, which must be given with it.

        A query that may see no key gets the same as from torch: NaN with `need_weights` and where torch would use its
        fused kernel (self-attention without gradients), otherwise the output projection of 0.

        Raises ValueError where shapes do not fit, TypeError where a mask holds neither truth values nor floating-point
        numbers.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal only describes attn_mask; give the mask, too")
        self._require_sizes(query, key, value)
        has_batch = query.ndim == 3
        gives_nan = need_weights or self._is_fused(query, key, value, key_padding_mask, attn_mask)
        if not has_batch:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        self._require_masks(query, key, key_padding_mask, attn_mask)
        parts = (self._projected(name, x) for name, x in zip(PROJECTIONS, (query, key, value), strict=True))
        q, k, v = self._with_extra_keys(*parts)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        # [batch, heads, frames, width / heads]
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.transpose(2, 3)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(dim=-1), dropout)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        mixed = mixed.transpose(1, 2).flatten(2)  # [batch, queries, width]
        if mask is not None and gives_nan:
            blind = (mask == -torch.inf).all(dim=-1)  # [queries] or [batch, heads, queries]
            blind = (blind.any(dim=1) if blind.ndim > 1 else blind)[..., None]
            output = self._projected("out_proj", mixed.masked_fill(blind, 0)).masked_fill(blind, torch.nan)
            self._note_masked_rows(blind)
        else:
            output = self._projected("out_proj", mixed)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not has_batch:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _require_sizes(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
        if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim:
            raise ValueError(f"query, key and value of {shapes}; expected 2 dimensions (one sequence) or 3 in each")
        batch = 0 if self.batch_first else 1
        if key.shape[:-1] != value.shape[:-1] or (query.ndim == 3 and query.shape[batch] != key.shape[batch]):
            raise ValueError(f"query, key and value of {shapes}; expected one batch, and a value for each key")

    def _is_fused(self, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor | None) -> bool:
        """Whether nn.MultiheadAttention would use its fused kernel for this in evaluation."""
        return (
            torch.backends.mha.get_fastpath_enabled()
            and query is key is value
            and query.ndim == 3
            and self.batch_first
            and not (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled())
            and self.num_heads % 2 == 0
            and self.embed_dim == self.kdim == self.vdim
            and self.in_proj_bias is not None
            and self.bias_k is None
            and not self.add_zero_attn
            and all(mask is None or mask.dtype == torch.bool for mask in masks)
        )

    def _note_masked_rows(self, rows: Tensor) -> None:
        """Take note of the `rows`, as truth values, for which the layer gives NaN."""

    def _require_masks(
        self, query: Tensor, key: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> None:
        """Raise ValueError or TypeError for a mask that does not fit `query` and `key` [batch, frames, width]."""
        batch, queries, keys = len(query), query.shape[1], key.shape[1]
        allowed = {"attn_mask": [(queries, keys), (batch * self.num_heads, queries, keys)]}
        allowed["key_padding_mask"] = [(batch, keys)]
        where = self.in_this_layer
        for name, mask in (("attn_mask", attn_mask), ("key_padding_mask", key_padding_mask)):
            if mask is None:
                continue
            if mask.shape not in allowed[name]:
                wanted = " or ".join(str(list(shape)) for shape in allowed[name])
                raise ValueError(f"{name} is {list(mask.shape)}; expected {wanted}{where}")
            if mask.dtype != torch.bool and not mask.is_floating_point():
                raise TypeError(f"{name} is {mask.dtype}; expected truth values or floating-point numbers{where}")

    def _with_extra_keys(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append the frames of the learned key and value, and of the zero ones, where the layer has them."""
        extra: list[tuple[Tensor, Tensor]] = []
        if self.bias_k is not None and self.bias_v is not None:
            extra.append((self.bias_k.to(k.dtype), self.bias_v.to(v.dtype)))
        if self.add_zero_attn:
            extra.append((k.new_zeros(1, 1, self.embed_dim), v.new_zeros(1, 1, self.embed_dim)))
        for more_k, more_v in extra:
            k = torch.cat([k, more_k.expand(len(k), -1, -1)], dim=1)
            v = torch.cat([v, more_v.expand(len(v), -1, -1)], dim=1)
        return q, k, v

    def _mask(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """Return what is added to the scores, broadcastable to [batch, heads, queries, keys]; None without masks."""
        frames = k.shape[2]
        parts = []
        if attn_mask is not None:
            by_head = attn_mask.unflatten(0, (len(q), self.num_heads)) if attn_mask.ndim == 3 else attn_mask
            parts.append(_added(by_head, frames, q.dtype))
        if key_padding_mask is not None:
            parts.append(_added(key_padding_mask, frames, q.dtype)[:, None, None])
        return sum(parts[1:], parts[0]) if parts else None


class MappedAttention(Attention):
    """An nn.MultiheadAttention on arrays."""

    forward = uncompiled(Attention.forward)
    out_proj: nn.Module

    def __init__(self, module: nn.MultiheadAttention | QuantisedAttention, products: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._copy_sizes(module)
        self._has_one_weight = module.in_proj_weight is not None
        for name, source in self.sources(module).items():
            if name == "out_proj":
                continue
            if name in products:
                weight = effective_weight(module, source.tensor)
                self.add_module(name, MappedLinear(products[name], weight, None))
            else:
                digital = frozen_copy(source.matrix(effective_weight(module, source.tensor)))
                self.register_parameter(f"{name}_weight", digital)
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            self.register_parameter(name, frozen_copy(getattr(module, name)))
        if "out_proj" in products:
            self.out_proj: nn.Module = MappedLinear(products["out_proj"], module.out_proj.weight, module.out_proj.bias)
        else:
            bias = frozen_copy(module.out_proj.bias)
            self.out_proj = nn.Linear(module.embed_dim, module.embed_dim, bias is not None, device="meta")
            self.out_proj.register_parameter("weight", frozen_copy(effective_weight(module, "out_proj.weight")))
            self.out_proj.register_parameter("bias", bias)
        self.quantisers = copied_quantisers(module, products)

    @classmethod
    def from_module(cls, module: Any, products: Mapping[str, nn.Module]) -> MappedAttention:
        """Return the layer in place of `module`, whose matrices `products` are on arrays."""
        return cls(module, products)

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """A weight for networks that look it up, or project by themselves: without values unless all is digital."""
        if not self._has_one_weight:
            return None
        on_arrays = [layer for name in PROJECTIONS if isinstance(layer := self._modules.get(name), MappedLinear)]
        if not on_arrays:
            return torch.cat([getattr(self, f"{name}_weight") for name in PROJECTIONS])
        matrix, dtype = on_arrays[0].matrix, on_arrays[0].weight_dtype
        assert isinstance(matrix, MappedMatrix)
        owner = matrix.name.rpartition(".")[0]
        parts = f"{owner}.*" if owner else "*"
        return WeightOnArrays(matrix, dtype, (len(PROJECTIONS) * self.embed_dim, self.embed_dim), parts)

    def _note_masked_rows(self, rows: Tensor) -> None:
        """Allow NaN in the rows of this layer's matrices from now on, on a CPU, where they refuse it."""
        if rows.device.type == "cpu" and rows.any():
            for module in self.modules():
                if (expect := getattr(module, "expect_masked_rows", None)) is not None:
                    expect()

    def _projected(self, name: str, x: Tensor) -> Tensor:
        bias = None if name == "out_proj" else self._bias_of(name)
        layer = self._modules.get(name)
        if isinstance(layer, nn.Linear):
            return mapped_product(self.quantisers, name, x, layer.weight, layer.bias)
        return mapped_product(self.quantisers, name, x, layer or getattr(self, f"{name}_weight"), bias)


class QuantisedAttention(QuantisedLayerOfMany, Attention):
    """An nn.MultiheadAttention with quantisers."""

    out_proj: nn.Linear

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__(module)
        for name in ("bias_k", "bias_v"):
            self.register_parameter(name, None)

    def _projected(self, name: str, x: Tensor) -> Tensor:
        bias = self.out_proj.bias if name == "out_proj" else self._bias_of(name)
        return finished(self._matrix(name)(x), bias, self.products[name].output_quantiser)


def projection_rows(width: int) -> list[tuple[str, tuple[int, int]]]:
    """Return the name and the rows of each projection in an `in_proj_weight` [3 * width, width]."""
    return [(name, (part * width, (part + 1) * width)) for part, name in enumerate(PROJECTIONS)]


def _added(mask: Tensor, frames: int, dtype: torch.dtype) -> Tensor:
    """Return the numbers that a mask [..., keys] adds to scores: -Inf for True. Extra keys are never masked."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    return F.pad(mask.to(dtype), (0, frames - mask.shape[-1]))


def refuse_fused_kernels(model: nn.Module) -> None:
    """Make torch's transformer layers call their own layers; their fused kernels would read the weights instead."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            if module.use_nested_tensor and type(module).forward is nn.TransformerEncoder.forward:
                module.register_forward_hook(_without_padding, with_kwargs=True)
            module.use_nested_tensor = False


def _without_padding(
    encoder: nn.TransformerEncoder, inputs: tuple[Any, ...], options: dict[str, Any], output: Tensor
) -> Tensor:
    """Return the output [batch, frames, width] with 0 in padded frames where torch, in evaluation, would skip them."""
    given = {**dict(zip(("src", "mask", "src_key_padding_mask"), inputs, strict=False)), **options}
    padding, first = given.get("src_key_padding_mask"), encoder.layers[0]
    if padding is None or given.get("mask") is not None or output.ndim != 3 or first.training:
        return output
    if not torch.backends.mha.get_fastpath_enabled() or torch.is_autocast_enabled():
        return output
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in first.parameters()):
        return output
    is_frame = padding.logical_not()
    if getattr(encoder, "mask_check", True) and (is_frame[:, 1:] & ~is_frame[:, :-1]).any():  # frames after padding
        return output
    nothing = output.new_zeros(output.shape[-1])
    return output.where(is_frame[..., None], nothing if encoder.norm is None else encoder.norm(nothing))
