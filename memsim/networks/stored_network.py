"""A network whose tensors are in a checkpoint, and the tensors of the file that each of its own is made from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn

from memsim.asr.recogniser import shared_parameters
from memsim.crossbar.statistics import PREFIX
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.nn.layer_adapters import mappable_layers
from memsim.nn.plan import DigitalLayer, Plan, Selection, plan_modules
from memsim.nn.quantisers import quantiser_tensors
from memsim.nn.sources import WeightSource, computed_from, stored_parts
from memsim.storage.checkpoint import Checkpoint


@dataclass(frozen=True)
class StoredNetwork:
    """`model`, without values, and the `checkpoint` that holds its tensors.

    `renamed` maps names in the state dict to those in the file, where they differ. `converted` maps names in the state
    dict to the tensors of the file from which `combine` computes that one.
    """

    checkpoint: Checkpoint
    model: nn.Module
    renamed: Mapping[str, str] = field(default_factory=dict)
    converted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    combine: Callable[[str, Sequence[Tensor]], Tensor] | None = None

    def plan(self, spec: HardwareSpec, selection: Selection) -> Plan:
        """Plan which matrices go on arrays, as `plan_modules` does, with sources that are tensors of the file.

        Raises InputError where the file lacks a matrix.
        """
        plan = plan_modules(self.model, spec, selection)
        mapped = [replace(layer, source=self._located(layer.name, layer.source)) for layer in plan.mapped]
        digital = [
            layer if layer.source is None else replace(layer, source=self._located(layer.name, layer.source))
            for layer in plan.digital
        ]
        used = {part for name in self.model.state_dict() for part in self.parts(name)}
        used |= {*self._shared, *quantiser_tensors(self.checkpoint.names)}
        unknown = [name for name in self.checkpoint.names if name not in used and not name.startswith(PREFIX)]
        shapes = self.checkpoint.shapes if unknown else {}
        digital += [DigitalLayer(name, shapes[name], "no tensor of the network") for name in unknown]
        return Plan(tuple(mapped), tuple(digital))

    def parts(self, tensor: str) -> tuple[str, ...]:
        """Return the tensors of the file that `tensor` of the network is made from; none where the file lacks one."""
        if tensor in self.converted:
            return self.converted[tensor]
        for name in (tensor, *self._shared.get(tensor, ())):
            if (stored := self.renamed.get(name, name)) in self._names:
                return (stored,)
        parts = stored_parts(self.model, tensor)
        if parts in ((), (tensor,)):
            return ()
        places = [self.parts(part) for part in parts]
        return tuple(name for names in places for name in names) if all(places) else ()

    def value(self, tensor: str, source: Mapping[str, Tensor]) -> Tensor:
        """Return `tensor` of the network, made from the tensors `source` of the file."""
        if tensor in self.converted:
            assert self.combine is not None
            return self.combine(tensor, [source[part] for part in self.converted[tensor]])
        if self._is_stored(tensor):
            return source[self.parts(tensor)[0]]
        stored = {part: self.value(part, source) for part in stored_parts(self.model, tensor)}
        return computed_from(self.model, tensor, stored)

    def state(self, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict of the network, made from the tensors `source` of the file, as far as they give it."""
        return {name: self.value(name, source) for name in self.model.state_dict() if self.parts(name)}

    def shared_with(self, mapped: Collection[str]) -> tuple[list[str], dict[str, str]]:
        """Return the tensors that the matrices `mapped` share with other layers.

        The first value names tensors of the file that other layers on arrays have. The second maps the names that
        modules without arrays have to the names in the file.
        """
        layers = [layer for layer in mappable_layers(self.model) if any(m in mapped for m in layer.matrices.values())]
        on_arrays = {module for layer in layers for module in layer.module.modules()}
        tensors = {source.tensor for layer in layers for source in layer.sources.values()}
        shared = [name for tensor in tensors for name in self._shared.get(tensor, ())]
        owners = {name: self.model.get_submodule(name.rpartition(".")[0]) for name in shared}
        taken = [self.renamed.get(name, name) for name, owner in owners.items() if owner in on_arrays]
        return taken, {name: self.parts(name)[0] for name, owner in owners.items() if owner not in on_arrays}

    @cached_property
    def _shared(self) -> dict[str, list[str]]:
        """The names of each parameter that has several, by each of these names."""
        return {name: names for names in shared_parameters(self.model) for name in names}

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.checkpoint.names)

    def _is_stored(self, tensor: str) -> bool:
        """Return whether the file holds `tensor` unchanged, under any name."""
        return tensor not in self.converted and stored_parts(self.model, tensor) == (tensor,)

    def _located(self, name: str, source: WeightSource) -> WeightSource:
        """Return `source` with the name that its tensor has in the file, if the file holds the whole tensor."""
        parts = self.parts(source.tensor)
        if not parts:
            raise InputError(
                f"{self.checkpoint.path}: lacks {source.tensor}, the weight of {name}; it is not of the architecture "
                "that it is taken for"
            )
        return replace(source, tensor=parts[0]) if self._is_stored(source.tensor) else source
