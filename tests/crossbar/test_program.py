"""Programming of cells: targets, states and counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from memsim import rng
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.program import STATE_DTYPE, mean_window, program, program_matrix
from memsim.crossbar.tiling import Tiling
from memsim.device import DeviceModel, state_means
from memsim.device.cycles.features import state_law
from memsim.device.cycles.programming import POPULATION_CELLS, make_programmer, mean_states
from memsim.errors import InputError
from memsim.hardware import Cycling, IncrementalReset, Scheme, SinglePulse, WriteVerify, load_hardware
from memsim.portable import elementwise
from tests.crossbar.by_hand import spec_of

SINGLE = SinglePulse()
CYCLED = SinglePulse(history="zero", cycling=Cycling(rounds=1, pulses_per_round=5))
WEAKER = SinglePulse(set_volts=-1.9)  # pulse by pulse, though nearly the same
VERIFIED = WriteVerify(scheme="write_verify")
INCREMENTAL = IncrementalReset(scheme="incremental_reset")
SCHEMES = {
    "single": SINGLE,
    "cycled": CYCLED,
    "weaker": WEAKER,
    "write_verify": VERIFIED,
    "incremental_reset": INCREMENTAL,
}


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
def test_set_cells_are_in_lrs_and_the_others_in_hrs(config: Scheme, device: DeviceModel) -> None:
    """Cells of r < 0.5 are those that the level sets: orientation, polarity, planes, copies and tiles in one."""
    levels = torch.randint(-7, 8, (5, 9), generator=generator())
    states, report = program(levels, Tiling(4, 2, 5, 9, 4, copies=2), config, device, 1)
    assert states.shape == (3, 2, 2, 9, 5)
    assert report.cells == states.numel()
    assert states.dtype == STATE_DTYPE
    assert states.isfinite().all()
    for out in range(5):
        for row in range(9):
            magnitude = [int(bit) for bit in f"{abs(int(levels[out, row])):03b}"[::-1]]
            for plane, copy in product(range(3), range(2)):
                positive, negative = (states[plane, polarity, copy, row, out] < 0.5 for polarity in (0, 1))
                assert positive == (magnitude[plane] == 1 and levels[out, row] > 0)
                assert negative == (magnitude[plane] == 1 and levels[out, row] < 0)


@pytest.mark.parametrize("cell_bits", [1, 2, 3, 4])
def test_cells_of_several_levels_hold_the_digits(cell_bits: int, device: DeviceModel) -> None:
    """8-bit weights: 7 bits of magnitude in slices of 1 to 4 bits. A digit is the nearest of the targets."""
    levels = torch.randint(-127, 128, (11, 13), generator=generator())
    tiling = Tiling(4, 2, 11, 13, 8, cell_bits)
    states, report = program(levels, tiling, INCREMENTAL, device, 1)
    programmer = make_programmer(INCREMENTAL, device, 2**cell_bits)
    currents = programmer.scale.currents(states.float())
    digits = (currents[..., None] - programmer.targets).abs().argmin(-1).squeeze(2)
    significances = (2**cell_bits) ** torch.arange(tiling.slices)
    wrong = torch.einsum("s,sio->oi", significances, digits[:, 0] - digits[:, 1]) != levels
    assert wrong.sum() <= report.failures <= 3
    assert [level.cells for level in report.levels] == tiling.digits(levels).bincount(minlength=2**cell_bits).tolist()


def test_closed_loops_need_pulses_that_switch(device: DeviceModel) -> None:
    levels = torch.ones(2, 2, dtype=torch.int8)
    for changes in ({"set_volts": -1.9}, {"reset_volts": 1.4}):
        for config in (VERIFIED, INCREMENTAL):
            with pytest.raises(InputError, match=r"set_volts at most -2\.0 .*, reset_volts at least 1\.46"):
                program(levels, Tiling(4, 4, 2, 2, 2), config.model_copy(update=changes), device, 1)


def test_single_pulses_draw_what_full_simulation_draws(device: DeviceModel) -> None:
    levels = torch.randint(-1, 2, (100, 100), generator=generator())
    tiling = Tiling(64, 64, 100, 100, 2)
    drawn = program(levels, tiling, SINGLE, device, 1)[0].float()
    pulsed = program(levels, tiling, WEAKER, device, 2)[0].float()
    is_set = tiling.digits(levels).view(tiling.shape) > 0
    for cells in (is_set, ~is_set):
        n, spread = int(cells.sum()), drawn[cells].std()
        assert abs(drawn[cells].mean() - pulsed[cells].mean()) < 5 * spread * math.sqrt(2 / n)
        assert pulsed[cells].std() == pytest.approx(spread.item(), rel=0.1)  # heavy tails: no simple standard error


@pytest.mark.parametrize("history", ["stationary", "zero"])
def test_the_mean_window_is_that_of_many_cells(history: str, device: DeviceModel) -> None:
    config = SinglePulse(history=history)
    levels = torch.ones(200, 200, dtype=torch.int8)
    states = program(levels, Tiling(128, 128, 200, 200, 2), config, device, 1)[0].float()
    difference = states[0, 0] - states[0, 1]
    standard_error = float(difference.std()) / 200
    assert float(difference.mean()) == pytest.approx(mean_window(config, device), abs=5 * standard_error)
    assert mean_window(config, device) == state_means(device, history)[0] - state_means(device, history)[1] < 0


@pytest.mark.parametrize(("config", "cell_bits"), [(VERIFIED, 1), (INCREMENTAL, 1), (INCREMENTAL, 2), (INCREMENTAL, 4)])
def test_the_mean_window_of_closed_loops_is_that_of_many_cells(
    config: Scheme, cell_bits: int, device: DeviceModel
) -> None:
    """Least squares through the means that digits get; both sides are samples, so five standard errors of their sum."""
    means = mean_states(config, device, 1 << cell_bits)
    digits = torch.arange(2**cell_bits, dtype=torch.int32)
    spread = 0.0
    for digit, mean in zip(digits.tolist(), means, strict=True):
        drawn = make_programmer(config, device, len(digits))(
            torch.full((20_000,), digit, dtype=torch.int32), torch.arange(20_000), 1
        )
        spread = max(spread, drawn.r.std().item())
        standard_error = spread * math.sqrt(1 / 20_000 + 1 / POPULATION_CELLS)
        assert drawn.r.double().mean().item() == pytest.approx(mean, abs=5 * standard_error)
    window = mean_window(config, device, cell_bits)
    assert window < 0
    steps = torch.tensor(means).diff()
    assert steps.max() / window > 0.9  # levels are equally spaced, but for overshoots that differ
    assert steps.min() / window < 1.1
    if cell_bits == 1:
        assert window == pytest.approx(means[1] - means[0])
    else:
        fitted = (digits[1:] * (torch.tensor(means[1:]) - means[0])).sum() / digits.square().sum()
        assert window == pytest.approx(fitted.item(), rel=1e-5)


def test_the_mean_window_does_not_depend_on_what_was_drawn_before(device: DeviceModel) -> None:
    mean_states.cache_clear()
    first = mean_window(INCREMENTAL, device, 2)
    torch.rand(5)
    program(torch.ones(9, 9, dtype=torch.int8), Tiling(8, 8, 9, 9, 2), INCREMENTAL, device, 1)
    mean_states.cache_clear()
    assert mean_window(INCREMENTAL, device, 2) == first


@pytest.mark.parametrize("config", [SINGLE, INCREMENTAL], ids=["single", "incremental_reset"])
def test_half_precision_states_are_close_to_the_drawn_ones(
    config: Scheme, device: DeviceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the least spread, 1.2e-3 of the LRS current, they keep all but a hundredth."""
    levels = torch.randint(-3, 4, (40, 40), generator=generator())
    tiling = Tiling(8, 8, 40, 40, 3)
    stored, _ = program(levels, tiling, config, device, 1)
    monkeypatch.setattr("memsim.crossbar.program.STATE_DTYPE", torch.float32)
    exact, report = program(levels, tiling, config, device, 1)
    difference = stored.double() - exact.double()
    assert difference.abs().max() <= 2.5e-4
    assert difference.square().mean().sqrt() < 1.5e-4
    low = tiling.digits(levels).view(tiling.shape) == 0
    assert stored[low].double().std() == pytest.approx(exact[low].double().std().item(), rel=0.02)
    assert report.levels[0].spread is not None


def test_states_are_a_function_of_seed_and_name() -> None:
    levels = torch.randint(-3, 4, (20, 20), generator=generator())
    spec = spec_of(3)

    def states(name: str, seed: int) -> torch.Tensor:
        programmed = MappedMatrix.from_levels(name, levels, torch.ones(20), spec, seed).states
        assert programmed is not None
        return programmed

    first = states("a", 1)
    assert (states("b", 1) != first).float().mean() > 0.99
    torch.rand(5)  # no global generator
    rng.generator(1, "other", "programming")
    assert torch.equal(states("a", 1), first)
    assert (states("a", 2) != first).float().mean() > 0.99


@pytest.mark.parametrize("config", [SINGLE, VERIFIED, INCREMENTAL], ids=["single", "write_verify", "incremental_reset"])
def test_the_cells_of_a_matrix_are_independent(config: Scheme, device: DeviceModel) -> None:
    """Correlations of states over 3,600 pairs: of the two cells of a pair, of copies, of planes, of neighbours."""
    levels = torch.full((60, 60), 3, dtype=torch.int8)
    states = program(levels, Tiling(16, 16, 60, 60, 3, copies=2), config, device, 1)[0].double()
    pairs = [
        (states[0, 0, 0], states[0, 1, 0]),
        (states[0, 0, 0], states[0, 0, 1]),
        (states[0, 0, 0], states[1, 0, 0]),
        (states[0, 0, 0, 1:], states[0, 0, 0, :-1]),
        (states[0, 0, 0, :, 1:], states[0, 0, 0, :, :-1]),
    ]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(a.numel())


# What it takes: order, threads, memory


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
def test_programming_is_a_function_of_the_key_whatever_the_threads(config: Scheme, device: DeviceModel) -> None:
    levels = torch.randint(-3, 4, (100, 120), generator=generator())
    programmed = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        programmed.append(program(levels, Tiling(64, 64, 100, 120, 3), config, device, 9))
    torch.set_num_threads(1)
    assert torch.equal(programmed[0][0], programmed[1][0])
    assert programmed[0][1] == programmed[1][1]


WITH_ALL = {
    "programming": {"relaxation": 0.02},
    "retention": {"age_seconds": 1e4, "exponent_std": 0.002},
    "faults": {"stuck_lrs": 0.01, "stuck_hrs": 0.02, "dead_rows": 0.01, "dead_cols": 0.02},
}
"""All that is drawn for the cells of a chip after their programming."""


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
def test_a_chip_does_not_depend_on_chunks(config: Scheme, device: DeviceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = torch.randint(-3, 4, (90, 110), generator=generator())
    tiling = Tiling(64, 64, 90, 110, 3)
    whole = program(levels, tiling, config, device, 9)
    for size in (1024, 3 * 1024):
        monkeypatch.setattr(
            "memsim.portable.chunks.chunks",
            lambda n, _, size=size: (slice(i, min(i + size, n)) for i in range(0, n, size)),
        )
        states, report = program(levels, tiling, config, device, 9)
        assert torch.equal(states, whole[0])
        assert report == whole[1]


def test_what_follows_programming_does_not_depend_on_chunks_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = torch.randint(-3, 4, (90, 110), generator=generator())
    spec = spec_of(3, **WITH_ALL)
    whole, _ = program_matrix("layer", levels, spec, 9)
    assert whole is not None
    monkeypatch.setattr(
        "memsim.portable.chunks.chunks", lambda n, _: (slice(i, min(i + 1024, n)) for i in range(0, n, 1024))
    )
    torch.set_num_threads(2)
    again, _ = program_matrix("layer", levels, spec, 9)
    torch.set_num_threads(1)
    assert again is not None
    assert torch.equal(again, whole)


def test_a_chip_is_what_its_definition_in_torch_operations_gives(device: DeviceModel) -> None:
    """Single pulses, relaxation and drift with no compiled code: what a GPU computes."""
    levels = torch.randint(-3, 4, (90, 110), generator=generator())
    spec = spec_of(3, **{key: WITH_ALL[key] for key in ("programming", "retention")})
    programmed, _ = program_matrix("layer", levels, spec, 9)
    tiling = Tiling(spec.tile.rows, spec.tile.cols, 90, 110, 3)
    cells = torch.arange(math.prod(tiling.shape))

    def key(purpose: str) -> int:
        return rng.derive_seed(9, "layer", purpose)

    def normals(purpose: str) -> torch.Tensor:
        return elementwise.normal_pair(*elementwise.random_words(key(purpose), cells)[:2])[0]

    is_set = tiling.digits_by_definition(levels, slice(0, len(cells))) > 0
    words = elementwise.random_words(key("programming"), cells)
    r = state_law(device, spec.programming.history).states(is_set, words).half().float()
    llrs, hhrs = device.reference_conductances_siemens
    open_state = llrs / (llrs - hhrs)
    r = (r - open_state) * (normals("relaxation") * 0.02 + 1.0).clamp(min=0) + open_state
    age = math.log2(1 + 1e4)
    left = elementwise.exp2(normals("retention") * (-0.002 * age) - 0.005 * age)
    r = r.half().float()
    assert torch.equal(programmed.flatten(), ((1.0 - r) * (1.0 - left) + r).half())


MEMORY = """
import ctypes, json, re, torch
from pathlib import Path
from memsim.crossbar.program import program
from memsim.crossbar.tiling import Tiling
from memsim.device import load_device
from memsim.hardware import load_hardware

SCHEMES = {
    "single": {},
    "cycled": {"history": "zero", "cycling": {"pulses_per_round": 5}},
    "write_verify": {"scheme": "write_verify"},
    "incremental_reset": {"scheme": "incremental_reset"},
}

def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def overhead_bytes(scheme, cells):
    config = load_hardware({"programming": SCHEMES[scheme]}).programming
    width = int((cells / 4) ** 0.5)
    levels = torch.randint(-3, 4, (width, width), dtype=torch.int8)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before counts when it is used again
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = kilobytes("VmRSS")
    states, _ = program(levels, Tiling(128, 128, width, width, 3), config, device, 0)
    return 1024 * (kilobytes("VmHWM") - before) - states.numel() * states.element_size()

torch.set_num_threads(1)
device = load_device("synaptogen")
overheads = {}
for scheme, cells in (("single", 1e7), ("cycled", 3e6), ("write_verify", 3e6), ("incremental_reset", 3e6)):
    overhead_bytes(scheme, 1e4)  # libraries and tables
    overheads[scheme] = [overhead_bytes(scheme, share * cells) for share in (0.25, 1)]
print(json.dumps(overheads))
"""


@pytest.fixture(scope="module")
def overheads() -> dict[str, list[int]]:
    """By scheme: bytes of peak memory beyond levels and states, for some million cells: a quarter of them, and all."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is asked of Linux")
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True)
    measured: dict[str, list[int]] = json.loads(done.stdout)
    return measured


@pytest.mark.parametrize("scheme", ["single", "cycled", "write_verify", "incremental_reset"])
def test_memory_of_programming_does_not_grow_with_the_matrix(scheme: str, overheads: dict[str, list[int]]) -> None:
    """Less than 64 MB, and no 8 MB more for the three quarters of cells more; one float32 each would be 9 to 30 MB."""
    quarter, whole = overheads[scheme]
    assert 0 < whole < 64e6
    assert whole - quarter < 8e6


@pytest.mark.parametrize("scheme", ["single_pulse", "write_verify", "incremental_reset"])
def test_exact_programming_gives_every_cell_the_mean_of_its_level(scheme: str) -> None:
    spec = load_hardware({"programming": {"scheme": scheme, "exact": True}, "weights": {"bits": 3}})
    levels = torch.randint(-3, 4, (70, 90), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    matrix = MappedMatrix.from_levels("layer", levels, torch.ones(1), spec, 0)
    assert matrix.states is not None
    assert matrix.programming is not None
    assert len(matrix.states.unique()) == 2
    assert matrix.programming_error() < 1e-3  # the states are rounded to 16 bits
    assert matrix.programming.pulses == 0
