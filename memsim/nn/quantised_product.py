"""The matrix product with quantisers, through which every layer of a quantised training computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Mapping
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from memsim.nn.named_layers import NamedLayer
from memsim.nn.rounding import QUANTISERS, ActivationQuantiser, TrainedScale, WeightQuantiser, dtype_of_state
from memsim.nn.sources import WeightSource, computed_name, computed_tensor, effective_weight
from memsim.nn.trained_transform import TrainedTransform
from memsim.nn.transfer import HardwareTransfer

Stream = Callable[[Iterable[Tensor]], Tensor]
"""A function of rows [n, in], in parts, that returns their product [n, out], as `MappedMatrix.stream`."""


class QuantisedProduct(nn.Module):
    """The product of rows with a matrix, both rounded; an nn.Identity takes the place of a missing quantiser.

    With a `transfer`, the hardware computes the product from the same codes and levels, and the gradient is that of the
    product of the rounded numbers. With a `trained_transform`, inputs and matrix are transformed before they are
    rounded, and the product of its digital rows is added unrounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight_quantiser: nn.Module = nn.Identity()
        self.input_quantiser: nn.Module = nn.Identity()
        self.output_quantiser: nn.Module = nn.Identity()
        self.trained_transform: TrainedTransform | None = None
        self.transfer: HardwareTransfer | None = None

    @property
    def is_quantised(self) -> bool:
        """Whether the weights are rounded."""
        return isinstance(self.weight_quantiser, WeightQuantiser)

    @property
    def full_scale(self) -> float | None:
        """The input at the DAC's full scale; None where training did not choose one."""
        if isinstance(self.input_quantiser, ActivationQuantiser):
            return float(self.input_quantiser.positive_range().detach())
        return None

    @property
    def trained_scale(self) -> TrainedScale | None:
        """The bits that the matrix was trained for, and its scale; None where it was not quantised."""
        quantiser = self.weight_quantiser
        if not isinstance(quantiser, WeightQuantiser):
            return None
        return quantiser.trained._replace(transform=self.trained_transform)


class RoundedMatrix:
    """A rounded matrix [out, in / groups] that multiplies inputs, for one forward pass of its layer.

    The blocks of `groups` lie one below the other, as in a `MappedMatrix`.
    """

    def __init__(self, product: QuantisedProduct, matrix: Tensor, groups: int = 1) -> None:
        """Round `matrix` [out, in / groups] once for all inputs."""
        self._product = product
        self._plain = matrix
        transform = product.trained_transform
        self._matrix = matrix if transform is None else transform.weight(matrix).to(matrix.dtype)
        self._groups = groups
        self._rounded = _rounded_for_product(product.weight_quantiser, self._matrix)

    def __call__(
        self,
        x: Tensor,
        multiply: Callable[[Tensor, Tensor], Tensor] | None = None,
        in_rows: Callable[[Tensor, Stream], Tensor] | None = None,
    ) -> Tensor:
        """Multiply `x` [..., in] by the matrix, giving [..., out].

        A layer whose input is not rows, such as a convolution, says how it multiplies: `multiply` computes the product
        of the rounded input and the rounded matrix, `in_rows` that of the input `x` by a function that multiplies rows.
        """
        if self._product.trained_transform is not None:
            return (in_rows or _as_rows)(x, self._transformed)
        return self._through_quantisers(x, multiply or self._multiply, in_rows)

    def _transformed(self, parts: Iterable[Tensor]) -> Tensor:
        """Multiply rows [n, in], in parts, that go through the input transform first, giving [n, out]."""
        transform = self._product.trained_transform
        assert transform is not None
        rows = torch.cat(list(parts))
        product = self._through_quantisers(transform(rows.float()).to(rows.dtype), self._multiply, None)
        digital = transform.product_of_digital_rows(rows, self._plain)
        return product if digital is None else product + digital.to(product.dtype)

    def _through_quantisers(
        self,
        x: Tensor,
        multiply: Callable[[Tensor, Tensor], Tensor],
        in_rows: Callable[[Tensor, Stream], Tensor] | None,
    ) -> Tensor:
        """Multiply inputs `x` [..., in] at the DAC as `__call__` says."""
        rounded = _rounded_for_product(self._product.input_quantiser, x)
        if self._product.transfer is None:
            return multiply(rounded, self._rounded)
        with torch.no_grad():
            on_hardware = (in_rows or _as_rows)(x, self._stream_on_hardware).to(dtype_of_state(rounded))
        if multiply == self._multiply and self._groups == 1:
            return _LinearOnHardware.apply(rounded, self._rounded, on_hardware)  # type: ignore[no-any-return]
        return _OnHardware.apply(multiply(rounded, self._rounded), on_hardware)  # type: ignore[no-any-return]

    def _multiply(self, x: Tensor, matrix: Tensor) -> Tensor:
        return multiplied(x, matrix, self._groups)

    @cached_property
    def _stream_on_hardware(self) -> Stream:
        product = self._product
        assert product.transfer is not None
        assert isinstance(product.weight_quantiser, WeightQuantiser)
        scale = product.weight_quantiser.positive_scale().detach()
        levels = product.weight_quantiser.levels(self._matrix)
        return product.transfer.programmed(levels, scale, product.full_scale or 1.0)


class _OnHardware(torch.autograd.Function):
    """The value that the hardware computes for a product, with the gradient of the product."""

    @staticmethod
    def forward(ctx: Any, product: Tensor, on_hardware: Tensor) -> Tensor:
        ctx.dtype = product.dtype
        return on_hardware

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


class _LinearOnHardware(torch.autograd.Function):
    """As `_OnHardware`, for the product of `x` [..., in] with a `matrix` [out, in], which need not be computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, on_hardware: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return on_hardware

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, matrix = ctx.saved_tensors
        rows = gradient.to(x.dtype).flatten(0, -2)
        of_x = (rows @ matrix).view(x.shape)
        return of_x, (x.flatten(0, -2).T @ rows).T, None


def _rounded_for_product(quantiser: nn.Module, values: Tensor) -> Tensor:
    """Return `values` as the quantiser rounds them, in the dtype in which autocast multiplies them."""
    device = values.device.type
    if not torch.is_autocast_enabled(device) or values.dtype == torch.float64 or not values.is_floating_point():
        return quantiser(values)  # type: ignore[no-any-return]
    dtype = torch.get_autocast_dtype(device)
    in_dtype: Tensor = quantiser(values, dtype) if isinstance(quantiser, QUANTISERS) else quantiser(values).to(dtype)
    return in_dtype


def multiplied(x: Tensor, matrix: Tensor, groups: int = 1) -> Tensor:
    """Multiply `x` [..., in] by a `matrix` [out, in / groups] of `groups` blocks, giving [..., out]."""
    if groups == 1:
        return F.linear(x, matrix)
    blocks = x.unflatten(-1, (groups, -1))
    return torch.einsum("...gi,goi->...go", blocks, matrix.unflatten(0, (groups, -1))).flatten(-2)


def finished(product: Tensor, bias: Tensor | None, output_quantiser: nn.Module | None = None) -> Tensor:
    """Add a bias [out] to `product` [..., out] and round the sum."""
    if bias is not None:
        product = product + (bias if bias.dtype == product.dtype else bias.to(product.dtype))
    if output_quantiser is not None:
        product = output_quantiser(product)
    return product


def _as_rows(x: Tensor, stream: Stream) -> Tensor:
    product = stream([x.reshape(-1, x.shape[-1])])
    return product.view(*x.shape[:-1], product.shape[1])


class QuantisedLayer(NamedLayer):
    """A layer whose matrix products can have quantisers; its parameters have the names of the float layer's."""

    sources: Callable[[nn.Module], dict[str, WeightSource]]
    """The method `sources` of the mapped layer."""

    def __init__(self, module: nn.Module) -> None:
        """Take the settings, not the parameters, of the float layer `module`."""
        super().__init__()
        self._copy_sizes(module)

    @classmethod
    def from_float(cls, module: Any) -> Self:
        """Return the layer with the parameters of `module` itself, not copies of them, and without quantisers."""
        layer = cls(module)
        for name, parameter in module._parameters.items():
            layer.register_parameter(name, parameter)
        for name, buffer in module._buffers.items():
            layer.register_buffer(name, buffer)
        for name, child in module._modules.items():
            if name != "parametrizations":
                layer.add_module(name, child)
        parametrize.transfer_parametrizations_and_params(module, layer)
        for hook in module._forward_pre_hooks.values():
            if (computed := computed_name(hook)) is not None:
                layer.register_forward_pre_hook(hook)
                setattr(layer, computed, effective_weight(layer, computed))
        return layer.train(module.training)

    @property
    def products(self) -> Mapping[str, QuantisedProduct]:
        """The products of the layer, by the names of its matrices within it."""
        raise NotImplementedError


class QuantisedLayerOfOne(QuantisedLayer, QuantisedProduct):
    """A layer of one matrix, which is itself the product: its quantisers are `<layer>.weight_quantiser` and so on."""

    bias: Tensor | None

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.source = self.sources(module)[""]

    def matrix(self) -> RoundedMatrix:
        """Return the product with the current weight."""
        return RoundedMatrix(self, self.source.matrix(computed_tensor(self, self.source.tensor)), self.source.groups)

    @property
    def products(self) -> Mapping[str, QuantisedProduct]:
        """The layer itself, under the name ""."""
        return {"": self}


class QuantisedLayerOfMany(QuantisedLayer):
    """A layer of several matrices, whose quantisers are `<layer>.quantisers.<matrix>.weight_quantiser` and so on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._sources = self.sources(module)
        self.quantisers = nn.ModuleDict({name: QuantisedProduct() for name in self._sources})

    def _matrix(self, name: str) -> RoundedMatrix:
        """Return the product with matrix `name` as its weight is now."""
        source = self._sources[name]
        return RoundedMatrix(self.products[name], source.matrix(computed_tensor(self, source.tensor)))

    @property
    def products(self) -> Mapping[str, QuantisedProduct]:
        """The products, by the names of their matrices within the layer."""
        return self.quantisers._modules  # type: ignore[return-value]  # all are products


QUANTISERS_OF_MANY = "quantisers"
"""The name of the child of a layer of several matrices that holds their quantisers."""


def copied_output_quantiser(module: nn.Module) -> nn.Module:
    """Return a copy of the output quantiser of a layer of one matrix, for the layer on arrays in its place."""
    return copy.deepcopy(module.output_quantiser) if isinstance(module, QuantisedProduct) else nn.Identity()


def copied_quantisers(module: nn.Module, on_arrays: Container[str]) -> nn.ModuleDict:
    """Return copies of the quantisers that a layer of several matrices keeps when the matrices `on_arrays` are mapped.

    Arrays round weights and inputs themselves. Outputs, and the matrices that stay digital, are rounded as in training.
    """
    found = nn.ModuleDict()
    if not isinstance(module, QuantisedLayerOfMany):
        return found
    for name, product in module.products.items():
        kept = QuantisedProduct()
        kept.output_quantiser = copy.deepcopy(product.output_quantiser)
        if name not in on_arrays:
            kept.weight_quantiser = copy.deepcopy(product.weight_quantiser)
            kept.input_quantiser = copy.deepcopy(product.input_quantiser)
            kept.trained_transform = copy.deepcopy(product.trained_transform)
        if next(kept.buffers(), None) is not None:
            found[name] = kept
    return found
