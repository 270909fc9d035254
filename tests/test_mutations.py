"""Mutations of memsim, one at a time: the tests of each part must detect them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """In `file`, `right` (found once) becomes `wrong`; one of `tests`, a file or a test in it, must fail."""

    file: str
    right: str
    wrong: str
    tests: str


FAULTS = {
    "plane weights doubled": Fault(
        "crossbar/encode.py", "return (2.0**cell_bits) **", "return 2 * (2.0**cell_bits) **", "crossbar/test_encode.py"
    ),
    "sign of a weight lost": Fault(
        "crossbar/encode.py", "(digit * levels.sign()).to(", "(digit * 1).to(", "crossbar/test_encode.py"
    ),
    "kernel transposed": Fault(
        "nn/sources.py", "[slice(*self.rows)]).flatten(1)", "[slice(*self.rows)]).transpose(1, -1).flatten(1)",
        "nn/test_convolution.py",
    ),
    "kernel of transposed convolutions not transposed": Fault(
        "nn/sources.py", "blocks.flatten(2).transpose(1, 2).flatten(0, 1)", "blocks.flatten(2).flatten(0, 1)",
        "nn/test_convolution.py",
    ),
    "polarity of the second phase": Fault(
        "crossbar/drive.py", "significance = (sign or 1) *", "significance = abs(sign or 1) *", "crossbar/test_drive.py"
    ),
    "DAC truncates": Fault(
        "crossbar/convert.py", ".round_().clamp_(-largest, largest)\n\n\ndef dac_fractions",
        ".trunc_().clamp_(-largest, largest)\n\n\ndef dac_fractions", "crossbar/test_convert.py",
    ),
    "DAC of 256 levels": Fault(
        "crossbar/convert.py", 'levels."""\n    return (1 << (bits - 1)) - 1', 'levels."""\n    return 1 << (bits - 1)',
        "crossbar/test_convert.py",
    ),
    "ADC a bit short": Fault(
        "crossbar/convert.py", "largest = (1 << (config.bits - 1)) - 1", "largest = (1 << (config.bits - 2)) - 1",
        "crossbar/test_convert.py",
    ),
    "ADC wraps instead of clipping": Fault(
        "crossbar/compiled.py", "value = min(max(value, -full_scale), full_scale)",
        "value = value if abs(value) <= full_scale else -value", "crossbar/test_read.py",
    ),
    "noise shared across the batch": Fault(
        "crossbar/compiled.py", "uint32(first_frame + n), uint32(first_tile + tile)",
        "uint32(first_frame), uint32(first_tile + tile)", "crossbar/test_read_noise.py",
    ),
    "noise shared by tiles": Fault(
        "crossbar/compiled.py", "uint32(first_frame + n), uint32(first_tile + tile)",
        "uint32(first_frame + n), uint32(0)", "crossbar/test_read_noise.py",
    ),
    "noise variance not scaled as a square": Fault(
        "crossbar/read.py", ".flatten(2) * codes_per_signal.square()", ".flatten(2) * codes_per_signal",
        "crossbar/test_read.py",
    ),
    "UR aliased": Fault(
        "device/cycles/cells.py", "start_volts, start_r = self.reset_volts.index_select(0, cells)",
        "start_volts, start_r = self.features[UR].index_select(0, cells)", "device/cycles/test_cells.py",
    ),
    "cells programmed in reverse": Fault(
        "crossbar/program.py", "= tiling.digits(levels, part),", "= tiling.digits(levels, part).flip(0),",
        "crossbar/test_program.py",
    ),
    "relaxation in proportion to the state": Fault(
        "crossbar/compiled_cells.py", "after[j] = (r[j] - open_state) *", "after[j] = r[j] *",
        "crossbar/test_ageing.py",
    ),
    "trim of the wrong sign": Fault(
        "post_training/trims.py", "return centre + change", "return centre - change",
        "post_training/test_trims.py::test_known_gains_and_offsets_are_found",
    ),
    "trims upon trims": Fault(
        "post_training/trims.py", "quiet.set_trims(None, None)", "pass",
        "post_training/test_trims.py::test_known_gains_and_offsets_are_found",
    ),
    "trims of what is digital": Fault(
        "post_training/trims.py", "wanted = wanted - matrix.offset.cpu()", "wanted = wanted + matrix.offset.cpu()",
        "post_training/test_trims.py::test_offsets_of_the_levels_are_not_trimmed",
    ),
    "compensation twice": Fault(
        "nn/chip.py", "matrix.set_trims(found.gain, found.offset)", "matrix.set_trims(found.gain**2, found.offset)",
        "crossbar/test_levels.py",
    ),
    "drift from zero seconds": Fault(
        "device/levels/ageing.py", "math.log2(1 + seconds / file.drift", "math.log2(seconds / file.drift",
        "device/levels/test_published.py",
    ),
    "drift with any reference time": Fault(
        "device/levels/ageing.py", "math.log2(1 + seconds / file.drift.reference_seconds)", "math.log2(1 + seconds)",
        "device/levels/test_published.py",
    ),
    "drift of retention with any reference time": Fault(
        "crossbar/ageing.py", "math.log2(1 + seconds / retention.reference_seconds)", "math.log2(1 + seconds)",
        "crossbar/test_ageing.py",
    ),
    "noise since programming redrawn": Fault(
        "device/levels/ageing.py", 'rng.derive_seed(key, "accumulated noise")',
        'rng.derive_seed(key, "accumulated noise", np.random.randint(1 << 30))', "crossbar/test_levels.py",
    ),
    "read noise once a chip": Fault(
        "crossbar/read_context.py", '"read", self.batch, self._calls[name])', '"read")', "crossbar/test_matrix.py"
    ),
    "cells of the first part": Fault(
        "post_training/fitting.py", ".inputs(place * size, (place + 1) * size)", ".inputs(0, size)",
        "post_training/test_refinement.py",
    ),
    "tiles of the first part": Fault(
        "post_training/refinement.py", "divmod(part * size, inputs)", "part * size // inputs, 0",
        "post_training/test_refinement.py",
    ),
    "second moments of the first layer": Fault(
        "nn/calibration.py", "own = moments.get(name)", "own = moments.get(next(iter(moments), name))",
        "post_training/test_moments.py",
    ),
    "shrinkage inverted": Fault(
        "post_training/moments.py", "return inputs / (inputs + rows)", "return rows / (inputs + rows)",
        "post_training/test_moments.py",
    ),
    "rotation not undone in digital rows": Fault(
        "crossbar/input_transform.py", "x[:, self.digital_rows].double() @", "self(x)[:, self.digital_rows].double() @",
        "crossbar/test_input_transform.py",
    ),
    "order of feedback not undone": Fault(
        "post_training/feedback.py", "levels[:, order] = found", "levels[:] = found", "post_training/test_feedback.py"
    ),
    "cells of other inputs read back": Fault(
        "post_training/feedback.py", "as_array(parts), as_array(order), cell_bits",
        "as_array(parts), as_array(order.sort().values), cell_bits",
        "post_training/test_read_back.py::test_each_step_is_that_of_least_squares",
    ),
    "ADC of twice the range": Fault(
        "crossbar/convert.py", "return adc_range / largest, largest", "return 2 * adc_range / largest, largest",
        "crossbar/test_convert.py",
    ),
    "failed SETs dropped by the fit": Fault(
        "fit/failures.py", "rows[row] = [share, *", "rows[row] = [share * row, *", "fit/test_failures.py"
    ),
    "failed SETs dropped by compiled pulses": Fault(
        "device/cycles/programming.py", " or self._device.failures is not None:", ":",
        "device/test_optional_parts.py",
    ),
    "shared ADCs counted for each column": Fault(
        "chip/estimate.py", "math.ceil(tile.cols / chip.core.columns_per_adc)", "tile.cols", "chip/test_estimate.py"
    ),
    "latency without buses": Fault(
        "chip/schedule.py", "way.hops * chip.network.seconds_per_hop + way.links * chip.links.seconds", "0.0",
        "chip/test_schedule.py",
    ),
    "buses that carry anything": Fault(
        "chip/schedule.py", "max(period, way.most_bytes_of_core / chip.network.bytes_per_second)", "period",
        "chip/test_schedule.py",
    ),
    "teacher forcing a token too late": Fault(
        "asr/hugging_face/kinds.py", "start), padded[:, :-1]], dim=1)", "start), padded], dim=1)[:, 1:]",
        "asr/test_hugging_face.py::test_the_loss_is_that_of_transformers",
    ),
    "padding in the loss": Fault(
        "asr/hugging_face/kinds.py", "return -(chosen * valid).sum(dim=1)", "return -chosen.sum(dim=1)",
        "asr/test_hugging_face.py::test_the_loss_is_that_of_transformers",
    ),
    "padding in the teacher's loss": Fault(
        "training/teacher.py", "(divergence.flatten(1) * valid).sum(dim=1)", "divergence.flatten(1).sum(dim=1)",
        "training/test_kinds.py::test_a_teacher_teaches_at_every_place",
    ),
    "a shard read twice": Fault(
        "evaluation/run.py", "share(items, shard[0] - 1, shard[1])", "share(items, 0, shard[1])",
        "evaluation/test_run.py::test_shards_are_the_whole",
    ),
    "utterances of a resumed evaluation counted twice": Fault(
        "evaluation/results_file.py", "parts = known.parts\n", "parts = [*known.parts, *known.parts]\n",
        "evaluation/test_run.py::test_a_stopped_study_goes_on",
    ),
    "rows of small calls lost at the end": Fault(
        "nn/collect.py", "        for collector in gathered.values():\n            collector.pass_on()\n", "",
        "nn/test_collect.py::test_rows_of_small_calls_count_like_others",
    ),
    "rows of small calls after those of later ones": Fault(
        "nn/collect.py", "            self.pass_on()\n            self._pass(rows)\n", "            self._pass(rows)\n",
        "nn/test_collect.py::test_rows_of_small_calls_count_like_others",
    ),
    "bfloat16 without units for it": Fault(
        "precision.py", 'return bool(found.get("avx512_bf16") or found.get("amx_bf16"))', "return True",
        "test_precision.py",
    ),
    "epoch of most dev loss kept": Fault(
        "training/state.py", "self.dev_loss is None else self.dev_loss", "self.dev_loss is None else -self.dev_loss",
        "training/test_loop.py::test_the_dev_loss_is_that_of_the_network_that_is_kept",
    ),
    "offset of a trim with the wrong sign": Fault(
        "post_training/trims.py", "found[:, -1].float()", "-found[:, -1].float()",
        "post_training/test_trims.py::test_known_gains_and_offsets_are_found",
    ),
    "offsets of a chip in the loop learn away from their gradient": Fault(
        "nn/trained_chip.py", "gradient.sum(dim=0)", "-gradient.sum(dim=0)", "nn/test_trained_chip.py"
    ),
    "Fourier transform not counted": Fault(
        "nn/operations.py", '("argmax", "max", "_fft_r2c")', '("argmax", "max")', "nn/test_operations.py"
    ),
    "budget of allotted bits exceeded by rounding": Fault(
        "post_training/allotment.py", "return -(-cost * steps // left)", "return cost * steps // left",
        "post_training/test_allotment.py",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository, to plant faults in."""
    folder = tmp_path_factory.mktemp("mutated")
    for name in ("memsim", "tests", "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    return folder


def run(copy: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """The tests of the copy, on the copy's memsim."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" for name in tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_can_be_planted(name: str) -> None:
    fault = FAULTS[name]
    assert (REPOSITORY / "memsim" / fault.file).read_text().count(fault.right) == 1, "the code has changed: plant anew"
    assert (REPOSITORY / "tests" / fault.tests.partition("::")[0]).is_file()


@pytest.mark.slow
def test_without_a_fault_they_pass(copy: Path) -> None:
    done = run(copy, sorted({fault.tests for fault in FAULTS.values()}))
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_seen(copy: Path, name: str) -> None:
    fault = FAULTS[name]
    source = copy / "memsim" / fault.file
    right = source.read_text()
    source.write_text(right.replace(fault.right, fault.wrong))
    try:
        done = run(copy, [fault.tests])
    finally:
        source.write_text(right)
    assert done.returncode == 1, f"nobody saw it:\n{done.stdout}"
