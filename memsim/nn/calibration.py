"""Calibration: statistics of the inputs of a network's matrices, and the ranges of their converters."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from memsim.crossbar.calibrator import Calibrator
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.ranges import needs_calibration
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.nn.batches import Progress, reported, run_batch
from memsim.nn.collect import MOST_ROWS, Collector, Collectors, collecting, statistics_collectors
from memsim.nn.deviation import first_few
from memsim.nn.layer_adapters import mappable_layers, matrix_sources, quantised_matrices
from memsim.nn.plan import Plan
from memsim.nn.sensitivity import LossSensitivity, losses_of_outputs, noting_products
from memsim.post_training.moments import MomentCollector

Calibration = Mapping[str, InputStatistics] | Callable[[nn.Module], object] | Iterable[Any]


class CalibrationData:
    """A network and the data that calibrate it, which can be run any number of times.

    The batches of an iterator, which can be read only once, are kept in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Callable[[nn.Module], object] | Iterable[Any],
        progress: Progress = lambda name, done: None,
        losses: Callable[[nn.Module], Iterable[Tensor]] | None = None,
    ) -> None:
        """Take `data`: batches (see `map_model`), or a function that runs the network it is given.

        `losses` gives the network's loss of each utterance, with gradients; without it, the change of the network's
        outputs is taken for it.
        """
        self._losses = losses
        self._model = model
        self._progress = progress
        self._layers = [
            layer for layer in mappable_layers(model) if not layer.is_lookup
        ]  # the inputs of a look-up are known
        if callable(data):
            self._run: Callable[[str], object] = lambda name: data(model)
        else:
            batches = list(data) if isinstance(data, Iterator) else data

            def run(name: str) -> None:
                for batch in reported(batches, name, progress):
                    run_batch(model, batch)

            self._run = run

    def collect(self, collectors: Mapping[str, Collector], name: str = "calibration") -> None:
        """Run the network in evaluation mode, with a collector for the inputs of each matrix, by the matrix's name.

        Progress is reported as `name`.
        """
        with evaluating(self._model), torch.no_grad(), collecting(self._layers, collectors):
            self._progress(name, 0.0)
            self._run(name)
            self._progress(name, 1.0)

    def sensitivities(self) -> dict[str, float]:
        """Return the sensitivity of the loss to each matrix, by name (see `LossSensitivity.result`).

        Matrices that have no part in it, or whose network computes without gradients, are left out.
        """
        found, name = LossSensitivity(), "sensitivity"
        with evaluating(self._model), torch.enable_grad(), noting_products(self._layers, found):
            if self._losses is not None:
                for loss in self._losses(self._model):
                    found.add(loss)
            else:
                with losses_of_outputs(self._model, found):
                    self._run(name)
        self._progress(name, 1.0)
        return found.result()

    def statistics(
        self,
        names: Container[str] | None = None,
        most_rows: int = MOST_ROWS,
        *,
        with_moments: bool = False,
        with_sensitivity: bool = False,
    ) -> dict[str, InputStatistics]:
        """Return the statistics of each matrix's inputs, except matrices that the data never reach and embeddings.

        With `names`, only these matrices are measured: the windows of convolutions that stay digital are many times
        the inputs of all other layers. The inputs of a convolution are its windows. In a recurrent layer, one matrix
        has the layer's inputs, another its hidden states at all steps. `Plan.completed` adds those of embeddings. The
        sample of a matrix's inputs has up to `most_rows` rows. `with_moments`, their second moments are measured in the
        same run; `with_sensitivity`, that of the loss is measured in another (see `sensitivities`).
        """
        collectors = statistics_collectors(self._layers, most_rows)
        if names is not None:
            collectors = {name: collector for name, collector in collectors.items() if name in names}
        sources = matrix_sources(self._layers)
        moments = {name: MomentCollector(sources[name].groups) for name in collectors} if with_moments else {}
        self.collect(
            {name: Collectors(own, moments[name]) for name, own in collectors.items()} if moments else collectors
        )
        sensitivities = self.sensitivities() if with_sensitivity else {}
        quantised = quantised_matrices(self._layers)
        results = {}
        for name, collector in collectors.items():
            if (result := collector.result()) is not None:
                full_scale = quantised[name].full_scale if name in quantised else None
                own = moments.get(name)
                found, mean = (None, None) if own is None else (own.result(), own.mean())
                sensitivity = sensitivities.get(name)
                results[name] = replace(
                    result, full_scale=full_scale, moments=found, mean=mean, sensitivity=sensitivity
                )
        return results


def given_statistics(calibration: Mapping[str, InputStatistics]) -> dict[str, InputStatistics]:
    """Return a copy of the statistics that a user gives. Raises InputError for a mapping of anything else."""
    if not all(isinstance(value, InputStatistics) for value in calibration.values()):
        raise InputError("calibration: a mapping must hold statistics; a batch of named arguments goes in a list")
    return dict(calibration)


def calibrate(
    matrices: Mapping[str, MappedMatrix], statistics: Mapping[str, InputStatistics], data: CalibrationData | None
) -> None:
    """Calibrate the `matrices` that have `statistics`; with `data`, by all inputs, in one run of the network."""
    calibrators = {
        name: Calibrator(matrix.arrays, statistics[name]) for name, matrix in matrices.items() if name in statistics
    }
    needy = {name: calibrator for name, calibrator in calibrators.items() if calibrator.needs_inputs}
    if data is not None and needy:
        data.collect(needy, "converter ranges")
    for name, calibrator in calibrators.items():
        matrices[name].set_ranges(calibrator.finish())


def without_ranges(plan: Plan, statistics: Mapping[str, InputStatistics]) -> str | None:
    """Return a warning that names the matrices whose ranges calibration left open; None where there is none."""
    names = [layer.name for layer in plan.mapped if needs_calibration(layer.spec) and layer.name not in statistics]
    return f"calibration did not reach {first_few(names)}, so the converter ranges there are not set" if names else None


def silent_inputs(plan: Plan, statistics: Mapping[str, InputStatistics]) -> str | None:
    """Return a warning that names the matrices whose calibration inputs were all 0; None where there is none."""
    names = [
        layer.name
        for layer in plan.mapped
        if needs_calibration(layer.spec) and layer.name in statistics and not statistics[layer.name].absmax
    ]
    if not names:
        return None
    return (
        f"calibration saw only zeros at the input of {first_few(names)}, so the ranges there are guesses; "
        "calibrate with data that reach them, or keep them digital"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep all of `model` in evaluation mode, and torch's fused kernels, which skip its layers, switched off.

    In training mode, reading a computed weight (spectral norm) may change it.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training
