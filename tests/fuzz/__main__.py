"""Fuzz one of memsim's readers, guided by coverage (atheris, libFuzzer).

    python -m tests.fuzz NAME --inputs 100000
    python -m tests.fuzz NAME --seconds 60 --findings DIR
    python -m tests.fuzz NAME --replay DIR/crash-...

Half of the inputs are made by libFuzzer, half by `tests.fuzz.mutations`. It ends at the first finding, which it leaves
in a file: an exception other than InputError, a crash, 30 s without an answer, or 4 GB of memory. Without atheris (pip
install -e '.[fuzz]') inputs are drawn at random. The last line gives the number of inputs, and the seconds.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from random import Random

import torch

from tests.fuzz.mutations import mutated

try:
    import atheris
except ImportError:
    atheris = None

_REPOSITORY = Path(__file__).parents[2]


def _modules_with_kernels() -> list[str]:
    """Return the modules that numba compiles functions of, which it cannot where they are instrumented."""
    kernels = re.compile(r"^from memsim\.portable\.kernels import .*\b(kernel|inlined)\b", re.MULTILINE)
    files = [file for file in (_REPOSITORY / "memsim").rglob("*.py") if kernels.search(file.read_text())]
    return [".".join(file.relative_to(_REPOSITORY).with_suffix("").parts) for file in files]


with atheris.instrument_imports(include=["memsim"], exclude=_modules_with_kernels()) if atheris else nullcontext():
    from memsim.errors import InputError
    from tests.fuzz.readers import READERS, Reader


_MEMORY = Path("/dev/shm")  # a folder is made and removed for each input: on a disk that is most of the time


class Reading:
    """Gives inputs to a reader, each in a folder of its own, and counts what comes of them."""

    def __init__(self, reader: Reader, root: Path) -> None:
        self._reader, self._root = reader, root
        self.outcomes: Counter[str] = Counter()
        self._started = time.monotonic()

    def __call__(self, document: bytes) -> None:
        folder = self._root / "input"
        folder.mkdir()
        try:
            self._reader.read(document, folder)
            self.outcomes["good"] += 1
        except InputError:
            self.outcomes["refused"] += 1
        finally:
            shutil.rmtree(folder)

    def summary(self) -> str:
        seconds = time.monotonic() - self._started
        count = self.outcomes.total()
        return f"{count:,} inputs ({self.outcomes['refused']:,} refused) in {seconds:.0f} s"


def guided(name: str, reading: Reading, options: argparse.Namespace, corpus: Path) -> None:
    """By atheris, in this process, which libFuzzer ends."""

    def custom_mutator(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            return atheris.Mutate(data, max_size)
        return mutated(data, random)[:max_size]

    def read(document: bytes) -> None:
        reading(document)
        done = reading.outcomes.total()
        if done % 10_000 == 0 or done == options.inputs:
            print(f"{name}: {reading.summary()}", flush=True)

    limits = [f"-max_total_time={options.seconds}"] if options.seconds else [f"-runs={options.inputs}"]
    limits += ["-timeout=30", "-rss_limit_mb=4096", f"-seed={options.seed}", f"-artifact_prefix={options.findings}/"]
    atheris.Setup([sys.argv[0], str(corpus), *limits], read, custom_mutator=custom_mutator)
    atheris.Fuzz()


def at_random(name: str, reading: Reading, options: argparse.Namespace, seeds: list[bytes]) -> None:
    """By mutations alone."""
    random, started = Random(options.seed), time.monotonic()
    while reading.outcomes.total() < options.inputs:
        if options.seconds and time.monotonic() - started > options.seconds:
            break
        document = mutated(random.choice(seeds), random)
        try:
            reading(document)
        except BaseException:
            (options.findings / f"crash-{name}").write_bytes(document)
            raise
    print(f"{name}: {reading.summary()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=READERS)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, help="stop after so long in place of a number of inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path(), metavar="DIR")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--unguided", action="store_true", help="do without atheris")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.findings.mkdir(parents=True, exist_ok=True)
    if atheris is None:
        options.unguided = True
    reader = READERS[options.name]
    seeds = reader.seeds()
    root = Path(tempfile.mkdtemp(prefix="memsim-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
    try:
        reading = Reading(reader, root)
        if options.replay:
            reading(options.replay.read_bytes())
        elif options.unguided:
            at_random(options.name, reading, options, seeds)
        else:
            corpus = root / "corpus"
            corpus.mkdir()
            for number, seed in enumerate(seeds):
                (corpus / str(number)).write_bytes(seed)
            guided(options.name, reading, options, corpus)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
