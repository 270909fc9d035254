"""Make the tables and the figure of quantization-aware training with `memsim qat` and `memsim eval`.

    python tests/tools/qat_sweep.py --data-root AN4 --synthetic SYNTH/first2000.tsv --second-test HELDOUT/manifest.tsv

It can be stopped at any time (Ctrl-C, SIGTERM) and started again: what is done is kept, and a training goes on where it
was. `--jobs N` runs N at a time. Recipes, checkpoints and results are under --out; the tables, in Markdown, come at the
end, or at once, of what is there, with `--tables`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any

import yaml
from guide_figures import by_bits_row, full_precision_row, training_figure, write_figure, write_table

from memsim.asr.bootstrap import Comparison, compare
from memsim.config.resources import find_config
from memsim.evaluation.result import spread

BITS = (8, 4, 3, 2)
SEVERAL_SEEDS = (3, 2)  # the bits of the rows with three training seeds
NETWORK_BITS = (4, 3)
CHIPS = ("paper", "physical", "best")
ABLATION_EPOCHS = 3
SCRATCH = {"epochs": 30, "learning_rate": [[0, 5.0e-5], [0.1, 2.0e-3], [1, 1.0e-5]]}
ABLATION: dict[str, dict[str, Any]] = {
    "robust": {},
    "scales observed, not learned": {"quantisation.weights.method": "minmax"},
    "a scale a matrix": {"quantisation.weights.scale": "per_tensor"},
    "input ranges observed, not learned": {"quantisation.inputs.method": "minmax"},
    "no spread of programming": {"quantisation.hardware.programming_spread": 0},
    "nothing of the hardware": {"quantisation.hardware": None},
    "no teacher": {"quantisation.teacher": None},
    "no moving average": {"average_decay": 0},
}


@dataclass(frozen=True)
class Training:
    """One `memsim qat`: a shipped recipe with changes to some of its (dotted) keys.

    It starts from --init, or from what another training gave, or from the encoder of one of them, or from scratch.
    """

    recipe: str
    bits: int | None  # None: full precision
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    variant: str = ""  # what the changes are called
    model: str = ""  # the recipe's
    start: Training | None = None
    from_encoder: bool = False
    from_scratch: bool = False

    @property
    def name(self) -> str:
        words = [self.model, self.recipe, *self.variant.replace(",", "").split()]
        return "-".join([*filter(None, words), str(self.bits or "float"), f"seed{self.seed}"])


@dataclass(frozen=True)
class Test:
    """One `memsim eval` of a training's checkpoint."""

    training: Training
    hardware: str
    corpus: str  # an4 or second

    @property
    def name(self) -> str:
        return f"{self.training.name}-{self.hardware}-{self.corpus}"


ROWS = [  # what tells most comes first
    ("robust", 3, 0),
    ("robust", 2, 0),
    ("paper", 3, 0),
    ("paper", 2, 0),
    ("robust", 3, 1),
    ("robust", 2, 1),
    ("robust", 3, 2),
    ("robust", 2, 2),
    ("paper", 3, 1),
    ("paper", 3, 2),
    ("robust", 4, 0),
    ("paper", 4, 0),
    ("robust", 8, 0),
    ("paper", 8, 0),
    ("paper", 2, 1),
    ("paper", 2, 2),
]
MAIN = [Training(recipe, bits, seed) for recipe, bits, seed in ROWS]
LONGER = [Training("robust", None, seed, {"quantisation": None}, "unquantised") for seed in range(3)]
AGAIN = [Training("robust-long", 2, seed) for seed in range(3)]
AGAIN_LONGER = [Training("robust-long", None, 0, {"quantisation": None}, "unquantised")]
FROM_SCRATCH = [Training("paper", 3, 0, SCRATCH, "scratch", from_scratch=True)]
ABLATIONS = [
    Training("robust", bits, 0, {"epochs": ABLATION_EPOCHS, **changes}, f"ablation {what}")
    for what, changes in ABLATION.items()
    for bits in SEVERAL_SEEDS
]
_LSTM = Training("float-lstm", None, model="lstm-small", from_scratch=True)
STARTS = {  # of other networks than --init is of
    "lstm-small": _LSTM,
    "conformer-transducer-small": Training(
        "float-transducer", None, model="conformer-transducer-small", from_encoder=True
    ),
    "lstm-transducer-small": Training(
        "float-transducer", None, model="lstm-transducer-small", start=_LSTM, from_encoder=True
    ),
}
NETWORKS = [
    Training("robust", bits, model=model, start=start) for model, start in STARTS.items() for bits in NETWORK_BITS
]
NETWORKS_LONGER = [
    Training("robust", None, 0, {"quantisation": None}, "unquantised", model, start) for model, start in STARTS.items()
]
GROUPS = {
    "main": MAIN,
    "float": LONGER,
    "again": AGAIN + AGAIN_LONGER,
    "ablation": ABLATIONS,
    "scratch": FROM_SCRATCH,
    "starts": list(STARTS.values()),
    "networks": NETWORKS + NETWORKS_LONGER,
}


def tests_of(training: Training) -> list[Test]:
    if training.bits is None:
        return [Test(training, "ideal", corpus) for corpus in ("an4", "second")]
    if training.variant.startswith("ablation"):
        return [Test(training, "physical", corpus) for corpus in ("an4", "second")]
    headline = training in MAIN + AGAIN + NETWORKS and training.bits in (*SEVERAL_SEEDS, *NETWORK_BITS)
    return [Test(training, chip, "an4") for chip in CHIPS] + [Test(training, "best", "second")] * headline


class StoppedError(Exception):
    """A child was stopped; its work is saved."""


@dataclass
class Sweep:
    arguments: argparse.Namespace
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    locks: defaultdict[str, Lock] = field(default_factory=lambda: defaultdict(Lock))

    @property
    def out(self) -> Path:
        out: Path = self.arguments.out
        return out

    def checkpoint(self, training: Training) -> Path:
        return self.out / f"{training.name}.safetensors"

    def result(self, test: Test) -> Path:
        return self.out / "results" / f"{test.name}.json"

    def train(self, training: Training) -> None:
        """Train it, and what it starts from, unless that is done."""
        if training.start is not None:
            self.train(training.start)
        with self.locks[training.name]:
            self.train_alone(training)

    def train_alone(self, training: Training) -> None:
        checkpoint = self.checkpoint(training)
        done = checkpoint.with_suffix(".done")
        if done.exists():
            return
        recipe = self.out / "recipes" / f"{training.name}.yaml"
        recipe.write_text(yaml.safe_dump(self.changed(training), sort_keys=False))
        names = ["tedlium2", self.arguments.synthetic]
        if training in STARTS.values():
            names = ["tedlium2", "tedlium2", self.arguments.more_synthetic or self.arguments.synthetic]
        data = [str(part) for name in names for part in ("--data", name)]
        command = ["qat", "--bits", training.bits or "float", "--config", recipe, "--seed", training.seed, "--resume"]
        command += ["--model", training.model] if training.model else []
        if not training.from_scratch:
            command += ["--init-encoder" if training.from_encoder else "--init", self.start(training)]
        self.memsim(training.name, *command, *data, "--data-root", self.arguments.data_root, "-o", checkpoint)
        done.touch()

    def start(self, training: Training) -> object:
        return self.checkpoint(training.start) if training.start else self.arguments.init

    def changed(self, training: Training) -> dict[str, Any]:
        """The recipe as a mapping, with the training's changes."""
        recipe: dict[str, Any] = yaml.safe_load(find_config("qat", training.recipe).read_text())
        for dotted, value in training.changes.items():
            *path, key = dotted.split(".")
            section = recipe
            for name in path:
                section = section.setdefault(name, {})
            section[key] = "none" if value is None else value
        return recipe | {"name": training.name}

    def test(self, test: Test) -> None:
        path = self.result(test)
        if path.exists():
            return
        data = ["tedlium2", "--data-root", self.arguments.data_root, "--split", "test"]
        trials = 1 if test.hardware == "ideal" else self.arguments.trials
        command = ["eval", self.checkpoint(test.training), "--hardware", test.hardware, "--trials", trials, "--loss"]
        if test.training not in STARTS.values():
            command += ["--reference", self.start(test.training)]
        command += ["--data", *(data if test.corpus == "an4" else [self.arguments.second_test])]
        self.memsim(test.name, *command, "--json", path)

    def memsim(self, name: str, *command: object) -> None:
        with (self.out / "logs" / f"{name}.log").open("a") as log:
            child = subprocess.Popen([sys.executable, "-m", "memsim", *map(str, command)], stdout=log, stderr=log)
            self.children.append(child)
            status = child.wait()
        if status in (75, 130, -signal.SIGTERM):
            raise StoppedError
        if status:
            raise SystemExit(f"{name}: memsim {command[0]} failed; see {log.name}")
        print(f"done: {name}", file=sys.stderr, flush=True)

    def run(self, trainings: Sequence[Training]) -> None:
        for folder in ("recipes", "results", "logs"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self.arguments.jobs) as pool:
            jobs = [pool.submit(self.train_and_test, training) for training in trainings]
            try:
                for job in jobs:
                    job.result()
            except (StoppedError, SystemExit, KeyboardInterrupt):
                pool.shutdown(wait=False, cancel_futures=True)
                for child in self.children:
                    child.terminate()
                raise

    def train_and_test(self, training: Training) -> None:
        self.train(training)
        for test in tests_of(training):
            self.test(test)

    def load(self, test: Test) -> dict[str, Any] | None:
        path = self.result(test)
        return json.loads(path.read_text()) if path.exists() else None

    def loaded(self, tests: Iterable[Test]) -> list[dict[str, Any]]:
        return [result for test in tests if (result := self.load(test)) is not None]


# --- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Everything that trainings of one kind, which differ in their seeds, gave on one chip."""

    results: list[dict[str, Any]]

    @property
    def chips(self) -> list[dict[str, Any]]:
        return [trial for result in self.results for trial in result["mapped"]["trials"]]

    @property
    def wers(self) -> list[float]:
        return [trial["wer"] for trial in self.chips]

    def loss(self) -> float:
        return fmean(trial["loss"] for trial in self.chips)

    def digital(self, key: str = "wer") -> float:
        return fmean(result["digital"][key] for result in self.results)

    def against(self, baseline: Sequence[Sequence[int]]) -> Comparison:
        """The chips' mean WER against the baseline's, paired over utterances; seeds and chips count alike."""
        words = self.results[0]["data"]["utterance_words"]
        return compare([trial["utterance_errors"] for trial in self.chips], baseline, words)


def percent(wer: float | None) -> str:
    return "" if wer is None else f"{100 * wer:.2f}"


def spread_cells(wers: Sequence[float]) -> str:
    values = spread(list(wers))
    return " | ".join(percent(values[key]) for key in ("mean", "std", "min", "max"))


def relative(comparison: Comparison) -> str:
    assert comparison.relative is not None
    value = comparison.relative
    return f"{100 * value.value:+.0f} % ({100 * value.low:+.0f} to {100 * value.high:+.0f})"


def start_of(sweep: Sweep, corpus: str) -> dict[str, Any] | None:
    """What the full-precision start gives."""
    tests = [test for training in LONGER + MAIN for test in tests_of(training) if test.corpus == corpus]
    return next((result["full_precision"] for result in sweep.loaded(tests)), None)


def main_table(sweep: Sweep, corpus: str) -> list[str]:
    lines = [
        "| recipe | bits | seeds | on | digital | mapped: mean | std | min | max | CTC loss "
        "| to the start | to longer |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    start = start_of(sweep, corpus)
    for row, label, controls in rows(sweep, corpus):
        longer = sweep.loaded(Test(training, "ideal", corpus) for training in controls)
        baselines = [[start["utterance_errors"]]] if start else []
        baselines += [[result["digital"]["utterance_errors"] for result in longer]] if longer else []
        cells = [
            percent(row.digital()),
            spread_cells(row.wers),
            f"{row.loss():.3f}",
            *map(relative, map(row.against, baselines)),
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def rows(sweep: Sweep, corpus: str) -> Iterable[tuple[Row, str, list[Training]]]:
    """Every row with what it is called and the trainings in full precision that took as long."""
    kinds = [
        ("`robust`", "robust", MAIN, LONGER),
        ("`robust-long`", "robust-long", AGAIN, AGAIN_LONGER),
        ("`paper`", "paper", MAIN, LONGER),
        ("`paper`, from scratch", "paper", FROM_SCRATCH, []),
    ]
    for label, recipe, group, controls in kinds:
        for bits in BITS:
            trainings = [training for training in group if (training.recipe, training.bits) == (recipe, bits)]
            for chip in CHIPS:
                if results := sweep.loaded(Test(training, chip, corpus) for training in trainings):
                    yield Row(results), f"{label} | {bits} | {len(results)} | `{chip}`", controls


def float_table(sweep: Sweep, corpus: str) -> list[str]:
    start = start_of(sweep, corpus)
    if start is None:
        return []
    lines = [
        "| full precision | WER: mean | std | min | max | CTC loss |",
        "|---|---|---|---|---|---|",
        f"| the start | {spread_cells([start['wer']])} | {start['loss']:.3f} |",
    ]
    for what, trainings in (("as long", LONGER), ("for twice as long", AGAIN_LONGER)):
        if results := sweep.loaded(Test(training, "ideal", corpus) for training in trainings):
            wers = [result["digital"]["wer"] for result in results]
            loss = Row(results).digital("loss")
            seeds = f"{len(results)} seed{'s' * (len(results) > 1)}"
            lines.append(f"| trained on, {what}, {seeds} | {spread_cells(wers)} | {loss:.3f} |")
    return lines


def ablation_table(sweep: Sweep) -> list[str]:
    lines = [
        "| `robust`, on `physical` | bits | AN4: digital | mapped: mean | std | min | max | CTC loss "
        "| synthetic: digital | mapped: mean | std | min | max | CTC loss |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for training in ABLATIONS:
        cells = [training.variant.removeprefix("ablation "), str(training.bits)]
        for result in sweep.loaded(tests_of(training)):
            row = Row([result])
            cells += [percent(row.digital()), spread_cells(row.wers), f"{row.loss():.3f}"]
        if len(cells) > 2:
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def network_table(sweep: Sweep, corpus: str) -> list[str]:
    """WER of every network in full precision, trained for few bits, digitally and on chips.

    Relative to its start, to that start trained on for as long, and to the same weights without a chip.
    """
    lines = [
        "| network | bits | on | digital | mapped: mean | std | min | max | loss "
        "| to its start | to longer | to digital |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    small = [Training("robust", bits) for bits in NETWORK_BITS]
    for model in ("conformer-small", *STARTS):
        trainings = [training for training in NETWORKS if training.model == model] or small
        controls = [training for training in NETWORKS_LONGER if training.model == model] or LONGER
        tests = [test for training in trainings for test in tests_of(training) if test.corpus == corpus]
        results = [(test, result) for test in tests if (result := sweep.load(test)) is not None]
        longer = sweep.loaded(Test(training, "ideal", corpus) for training in controls)
        baselines = [[result["full_precision"]["utterance_errors"]] for _, result in results[:1]]
        for _, result in results[:1]:
            start = result["full_precision"]
            lines.append(f"| `{model}` | float | | {percent(start['wer'])} | | | | | {start['loss']:.3f} | | | |")
        if longer:
            baselines.append([result["digital"]["utterance_errors"] for result in longer])
            wer, loss = fmean(result["digital"]["wer"] for result in longer), Row(longer).digital("loss")
            lines.append(f"| `{model}` | float, longer | | {percent(wer)} | | | | | {loss:.3f} | | | |")
        for test, result in results:
            row = Row([result])
            against = [relative(row.against(b)) for b in (*baselines, [result["digital"]["utterance_errors"]])]
            cells = [percent(row.digital()), spread_cells(row.wers), f"{row.loss():.3f}", *against]
            lines.append(f"| `{model}` | {test.training.bits} | `{test.hardware}` | {' | '.join(cells)} |")
    return lines


def draw(sweep: Sweep, path: Path) -> None:
    """Write the results of both recipes beside `path`, as CSV, and draw them."""
    start = start_of(sweep, "an4")
    found = [full_precision_row(start["wer"])] if start else []
    for recipe, chip, bits in product(("robust", "paper"), CHIPS, BITS):
        trainings = [training for training in MAIN if (training.recipe, training.bits) == (recipe, bits)]
        if results := sweep.loaded(Test(training, chip, "an4") for training in trainings):
            row = Row(results)
            name = "published" if recipe == "paper" else recipe
            found.append(by_bits_row(f"{name} on {chip}", bits, row.digital(), row.wers))
    if not found:
        print(f"{path}: not drawn, as there are no results of `robust` or `paper` on AN4 yet")
        return
    write_table(path.with_suffix(".csv"), found)
    write_figure(path, training_figure(path.with_suffix(".csv")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="holds AN4 in TED-LIUM 2's layout")
    parser.add_argument("--synthetic", type=Path, required=True, help="manifest of synthetic speech to train on, too")
    parser.add_argument("--more-synthetic", type=Path, help="manifest that the starts of other networks train on")
    parser.add_argument("--second-test", type=Path, required=True, help="manifest of the second test set")
    parser.add_argument("--init", default="demo-float", help="the full-precision start")
    parser.add_argument("--out", type=Path, default=Path("build/qat"))
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="only print what there is")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    sweep = Sweep(arguments)
    if not arguments.tables:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            sweep.run([training for group in arguments.only for training in GROUPS[group]])
        except (StoppedError, KeyboardInterrupt):
            sys.exit("stopped; what is done is kept, and the same command goes on")
    for corpus in ("an4", "second"):
        print(*float_table(sweep, corpus), "", *main_table(sweep, corpus), "", sep="\n")
    print(*ablation_table(sweep), "", sep="\n")
    for corpus in ("an4", "second"):
        print(*network_table(sweep, corpus), "", sep="\n")
    if arguments.figure:
        draw(sweep, arguments.figure)


if __name__ == "__main__":
    main()
