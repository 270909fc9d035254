"""Fake quantisers, and the linear layer that is trained through them.

Their grids are those of the hardware: a weight's is that of `memsim.crossbar.encode`, an activation's the DAC's own
(`memsim.crossbar.convert`). What they round to in training is therefore, code for code, what is on the arrays later.

A quantised network has the tensors of the network it was made of, and those of its quantisers beside them, such as
`<layer>.weight_quantiser.scale` and `<layer>.input_quantiser.range`; the `bits` of each are a tensor, too, so that a
file says for itself what its layers were trained for.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.crossbar import convert, encode
from memsim.nn.transfer import HardwareTransfer
from memsim.spec import Weights

Method = Literal["lsq", "minmax"]

_SUFFIX = "_quantiser"
_LEAST = 1e-12  # of a range or scale, so that nothing is divided by 0
_TRANSFER = ".transfer."  # the tensors of `QuantisedLinear.transfer`


class _Rounding(torch.autograd.Function):
    """codes * step, with the gradients of LSQ (Esser et al., ICLR 2020, equations 3 and 5).

    The gradient of `x` passes where it is in range; that of `step`, codes - x / step in range and codes beyond, is
    multiplied by `gradient_scale`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, codes: Tensor, largest: int, gradient_scale: float) -> Tensor:
        ctx.save_for_backward(x, step, codes)
        ctx.largest, ctx.gradient_scale = largest, gradient_scale
        return codes * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step, codes = ctx.saved_tensors
        fraction = x / step
        inside = fraction.abs() <= ctx.largest
        of_step = None
        if ctx.needs_input_grad[1]:
            of_step = (gradient * (codes - fraction * inside)).sum_to_size(step.shape) * ctx.gradient_scale
        return gradient * inside, of_step, None, None, None


def _rounded(x: Tensor, step: Tensor, codes: Tensor, largest: int, values: int) -> Tensor:
    """`codes` * `step` in place of `x`; `values` are those that share a step."""
    result: Tensor = _Rounding.apply(x, step, codes, largest, (values * largest) ** -0.5)
    return result


def _hold(module: nn.Module, name: str, value: Tensor, method: Method) -> None:
    """Give `module` the state `name`: a parameter where it is learned, a buffer where it is observed."""
    if method == "lsq":
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


class WeightQuantiser(nn.Module):
    """Rounds a weight [out, in] to levels * `scale`, `scale` being [out] (per channel) or [1] (per tensor).

    `lsq` learns the scale; `minmax` observes it in training: the largest magnitude that there ever was is on the last
    level.
    """

    scale: Tensor

    def __init__(self, bits: int, scale: Tensor, method: Method = "lsq") -> None:
        super().__init__()
        self.method = method
        self.weight_bits = bits
        self.largest = encode.max_level(bits)
        self.register_buffer("bits", torch.tensor(bits))
        _hold(self, "scale", scale, method)

    @classmethod
    def fitted(cls, weight: Tensor, bits: int, method: Method, config: Weights) -> WeightQuantiser:
        """With the scale that mapping would choose for `weight` [out, in]."""
        return cls(bits, encode.fit_scale(weight.detach(), bits, config), method)

    def forward(self, weight: Tensor) -> Tensor:
        if self.method == "minmax" and self.training:
            self._observe(weight.detach())
        scale = self.positive_scale()
        return _rounded(weight, scale[:, None], self.levels(weight), self.largest, weight.numel() // len(scale))

    def positive_scale(self) -> Tensor:
        """`scale`, above 0 wherever training has led it."""
        return self.scale.clamp_min(_LEAST)

    @torch.no_grad()
    def levels(self, weight: Tensor) -> Tensor:
        """Levels [out, in], whole numbers in float32."""
        return (weight / self.positive_scale()[:, None]).round_().clamp_(-self.largest, self.largest)

    def _observe(self, weight: Tensor) -> None:
        rows = weight if len(self.scale) == len(weight) else weight.reshape(1, -1)
        self.scale.copy_(torch.maximum(self.scale, rows.abs().amax(dim=1) / self.largest))

    def extra_repr(self) -> str:
        return f"levels=+-{self.largest}, {self.method}"


class ActivationQuantiser(nn.Module):
    """Rounds to the codes of a signed converter whose full scale is `range` [].

    `lsq` learns the range; `minmax` observes it in training: the largest magnitude that there ever was.
    """

    range: Tensor

    def __init__(self, bits: int, range_: Tensor, method: Method = "lsq") -> None:
        super().__init__()
        self.method = method
        self.dac_bits = bits
        self.register_buffer("bits", torch.tensor(bits))
        _hold(self, "range", range_, method)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.method == "minmax" and self.training:
            self.range.copy_(torch.maximum(self.range, x.detach().abs().amax()))
        full_scale = self.positive_range()
        largest = convert.dac_max_code(self.dac_bits)
        with torch.no_grad():
            codes = convert.dac_codes(x, full_scale, self.dac_bits)
        return _rounded(x, full_scale / largest, codes, largest, x.shape[-1])

    def positive_range(self) -> Tensor:
        """`range`, above 0 wherever training has led it."""
        return self.range.clamp_min(_LEAST)

    def extra_repr(self) -> str:
        return f"bits={self.dac_bits}, {self.method}"


QUANTISERS = (WeightQuantiser, ActivationQuantiser)


class QuantisedLinear(nn.Linear):
    """A linear layer with quantisers; an nn.Identity is in the place of one that it does not have.

    With a `transfer`, the product is what the hardware computes of the same codes and levels, and its gradient that of
    the product of the rounded numbers.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None) -> None:
        super().__init__(in_features, out_features, bias, device)
        self.weight_quantiser: nn.Module = nn.Identity()
        self.input_quantiser: nn.Module = nn.Identity()
        self.output_quantiser: nn.Module = nn.Identity()
        self.transfer: HardwareTransfer | None = None

    @classmethod
    def from_float(cls, linear: nn.Linear) -> QuantisedLinear:
        """The layer with the very parameters of `linear`, and no quantisers yet."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, "meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = self.input_quantiser(x)
        product = F.linear(rounded, self.weight_quantiser(self.weight))
        if self.transfer is not None:
            product = product.float()
            product = product + (self._on_hardware(x) - product).detach()
        if self.bias is not None:
            product = product + self.bias
        result: Tensor = self.output_quantiser(product)
        return result

    @torch.no_grad()
    def _on_hardware(self, x: Tensor) -> Tensor:
        assert self.transfer is not None
        assert isinstance(self.weight_quantiser, WeightQuantiser)
        scale = self.weight_quantiser.positive_scale()
        levels = self.weight_quantiser.levels(self.weight)
        product: Tensor = self.transfer(x, levels, scale, self.full_scale or 1.0)
        return product

    @property
    def full_scale(self) -> float | None:
        """The input that drives the DAC's full scale; None where training did not choose one."""
        if isinstance(self.input_quantiser, ActivationQuantiser):
            return float(self.input_quantiser.positive_range().detach())
        return None

    @property
    def trained_scale(self) -> tuple[int, Tensor] | None:
        """The bits that the weight was trained for and its scale; None where it was not quantised."""
        quantiser = self.weight_quantiser
        if not isinstance(quantiser, WeightQuantiser):
            return None
        return quantiser.weight_bits, quantiser.positive_scale().detach()


def seams(model: nn.Module) -> list[str]:
    """The places, besides linear layers, where an architecture lets its activations be quantised.

    They are its submodules named `..._quantiser`: identities, unless something else is put there.
    """
    return [
        name
        for name, module in model.named_modules()
        if name.endswith(_SUFFIX) and not isinstance(model.get_submodule(name.rpartition(".")[0]), QuantisedLinear)
    ]


def quantiser_tensors(names: Iterable[str]) -> list[str]:
    """Those of `names` that are tensors of quantisers, or of what training needs besides."""
    return [name for name in names if name.rpartition(".")[0].endswith(_SUFFIX) or _TRANSFER in name]


def trained_scales(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, Tensor]]:
    """By layer: the bits that its weight was trained for, and its scale."""
    end = f".weight{_SUFFIX}.scale"
    layers = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    return {
        layer: (int(tensors[f"{layer}.weight{_SUFFIX}.bits"]), tensors[layer + end].float().clamp_min(_LEAST))
        for layer in layers
        if f"{layer}.weight{_SUFFIX}.bits" in tensors
    }


def taken_over(names: Iterable[str], mapped: Container[str]) -> list[str]:
    """Those of `names` that say what the arrays of the layers `mapped` do, or what only training needs."""
    return [
        name
        for name in quantiser_tensors(names)
        if _TRANSFER in name
        or (
            (owner := name.rpartition(".")[0].rpartition("."))[0] in mapped
            and owner[2] in (f"weight{_SUFFIX}", f"input{_SUFFIX}")
        )
    ]


def restore_quantisers(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put into `model` (a float one) the quantisers that are in `tensors`: those of its linear layers and seams.

    They hold no values until the model's state is loaded.
    """
    for key, bits in tensors.items():
        name, _, part = key.rpartition(".")
        owner, _, child = name.rpartition(".")
        if part != "bits" or not child.endswith(_SUFFIX):
            continue
        try:
            parent = model.get_submodule(owner)
        except AttributeError:
            continue  # of no layer of this architecture, which the loading of its state says
        if type(parent) is nn.Linear:
            parent = QuantisedLinear.from_float(parent)
            replace_module(model, owner, parent)
        quantiser: nn.Module
        if child == f"weight{_SUFFIX}":
            quantiser = WeightQuantiser(int(bits), torch.empty_like(tensors[f"{name}.scale"], device="meta"), "minmax")
        else:
            quantiser = ActivationQuantiser(
                int(bits), torch.empty_like(tensors[f"{name}.range"], device="meta"), "minmax"
            )
        setattr(parent, child, quantiser.train(parent.training))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the submodule `name` is."""
    owner, _, child = name.rpartition(".")
    setattr(model.get_submodule(owner), child, module)
