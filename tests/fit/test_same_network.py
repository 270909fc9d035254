"""A network behaves the same on refitted cells as on the measured ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from memsim.asr.corpora import load_corpus
from memsim.config.resources import ASSETS
from memsim.device import DeviceModel, draw_states, load_device, save_device
from memsim.fit import FitOptions, Measurements, fit_model, read_measurements
from memsim.hardware import load_hardware
from memsim.nn.chip import mapping_of
from memsim.storage.checkpoint import load_checkpoint
from tests.evaluation.calls import evaluate, prepare
from tests.tools.example_measurements import feature_table, write

CHIPS = 10


def test_states_of_programmed_cells_are_as_before(measured: Measurements, device: DeviceModel) -> None:
    """128 devices tell a mean to a tenth of its spread: a Kolmogorov-Smirnov distance of 0.04, five times over."""
    fitted = fit_model(measured, FitOptions(components=1)).model
    for value in (True, False):
        mask = torch.full((50_000,), value)
        ours, theirs = (draw_states(model, mask, torch.arange(len(mask)), 1) for model in (fitted, device))
        assert scipy.stats.ks_2samp(ours, theirs).statistic < 0.1


@pytest.mark.slow
def test_word_error_rates_are_distributed_as_before(device: DeviceModel, tmp_path: Path) -> None:
    """Refitted from 512 devices x 3000 cycles: 3 bits, ten chips each, on the demo."""
    write([feature_table(device, 512, 3000, 0)], tmp_path / "t.parquet")
    save_device(fit_model(read_measurements(tmp_path / "t.parquet")).model, tmp_path / "mine.safetensors")
    checkpoint = load_checkpoint(ASSETS / "checkpoints" / "demo-float.safetensors")
    corpus = load_corpus("demo")
    rates, errors = [], []
    for cell in ("synaptogen", str(tmp_path / "mine.safetensors")):
        spec = load_hardware("physical").with_settings({"weights.bits": 3, "cell": cell})
        target = prepare(checkpoint, spec=spec)
        result = evaluate(target, corpus, trials=CHIPS)
        rates.append([trial.score.wer for trial in result.trials])
        errors.append([np.mean(list(mapping_of(target.chip(trial)).programming_errors().values())) for trial in (0, 1)])
    print("WER %", [(100 * np.mean(r), 100 * np.std(r, ddof=1)) for r in rates], "programming", np.mean(errors, axis=1))
    # programming errors average over 1.3 million weights: what is left is the fit's, 3 % of a spread with 512 devices
    assert np.mean(errors[1]) == pytest.approx(np.mean(errors[0]), rel=0.04)
    # Welch's test and Levene's, one false alarm in a thousand each
    assert scipy.stats.ttest_ind(*rates, equal_var=False).pvalue > 1e-3
    assert scipy.stats.levene(*rates).pvalue > 1e-3
    assert load_device(tmp_path / "mine.safetensors").order == 10
