"""Run the command line on small examples and pin what comes out, bit by bit: hashes in tests/same_bits.json.

    python tests/same_bits.py                  # pin today's results for this machine; prints what changed
    python tests/same_bits.py map --keep made  # the same of one group, and leave the files that were hashed in made/

tests/test_same_bits.py compares. Renew the hashes when a change is meant to change results, and say in the commit
which ones and why. Everything goes through `memsim` commands and the files that they write, so the test outlives any
change of the code behind them.

Floats depend on the CPU and on the versions of the libraries that compute them. The commands run on one thread with
the instructions that any x86 CPU since 2013 has, and hashes are kept for each kind of machine (`machine()`). On a
machine without hashes only what holds everywhere is compared: edit counts, levels of weights, names and shapes of
tensors. To add a machine, run the first line there, at a commit whose results are known to be right, and commit the
JSON. Cases that changed lose their hashes for all other machines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
PINNED = Path(__file__).with_suffix(".json")
PUBLISHED = REPOSITORY / "tests" / "published" / "0.1.0"
SPECS = sorted(path.stem for path in (REPOSITORY / "configs" / "hardware").glob("*.yaml"))

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
SAME_INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    # X86_V4 is what numpy calls AVX512_SKX from 2.4 on; names that a version does not know do nothing
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V4",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt,+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt",
}

CONFORMER = """
architecture: conformer_ctc
features: {mel_bins: 16}
frontend: [{channels: 2, stride_time: 2, stride_frequency: 2}, {channels: 2, stride_time: 2, stride_frequency: 4}]
width: 8
blocks: 1
heads: 2
feed_forward_width: 12
kernel_frames: 3
"""
LSTM = """
architecture: lstm_ctc
features: {mel_bins: 16}
frontend: [{channels: 2, stride_time: 2, stride_frequency: 2}, {channels: 2, stride_time: 2, stride_frequency: 4}]
width: 8
layers: 1
hidden: 6
"""
TRANSDUCER = LSTM.replace("lstm_ctc", "lstm_transducer") + (
    "prediction: {embedding: 4, hidden: 6, layers: 1}\njoiner_width: 8\n"
)
RECIPE = """
model: conformer.yaml
epochs: 1
batch_seconds: 8
learning_rate: [[0, 1.0e-2], [1, 1.0e-3]]
"""
ROBUST = RECIPE + "quantisation: {}\n"  # the defaults: through the hardware, with a teacher
PLAIN = RECIPE + "quantisation: {inputs: none, hardware: none, teacher: none}\n"

ONE_BLOCK = ("output*", "frontend.*", "blocks.[1-5].*", "*.feed_forward_*", "*.pointwise_*", "*.depthwise")
"""Layers of `demo` that stay digital where few arrays will do: the attention of block 0 is mapped."""
FEW_LAYERS = f"digital={json.dumps(ONE_BLOCK)}"


def case(name: str, *arguments: str, outputs: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Run one command in the current folder, and return its results: hashes, and what holds on every machine."""
    files = {option: f"{name}.{suffix}" for option, suffix in OUTPUTS.items() if option in outputs}
    words = [*arguments, *(word for pair in files.items() for word in pair), "--quiet"]
    if status := memsim(words):
        sys.exit(f"exit status {status}: memsim {' '.join(words)}")
    found: dict[str, dict[str, Any]] = {"exact": {}, "everywhere": {}}
    for option, file in files.items():
        for kind, parts in READERS[option](Path(file)).items():
            found[kind] |= parts
    if arguments[0] != "map":
        found["everywhere"].pop("integers", None)  # they are made from floats by a training
    return found


def memsim(words: list[str]) -> int:
    """The exit status of `python -m memsim WORDS`, run in this process, which saves the imports."""
    sys.argv = ["memsim", *words]
    try:
        runpy.run_module("memsim", run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def digest(*values: Any) -> str:
    """A short hash of bytes, or of anything that JSON can hold."""
    found = hashlib.sha256()
    for value in values:
        found.update(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode())
    return found.hexdigest()[:16]


def read_tensors(path: Path) -> dict[str, dict[str, Any]]:
    """Hashes of a safetensors file: its tensors by name, its layout, its integers, and its metadata."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = [
        (name, entry["dtype"], entry["shape"], content[start:][slice(*entry["data_offsets"])])
        for name, entry in sorted(header.items())
    ]
    kept = {key: value for key, value in metadata.items() if key != "memsim_version" and not key.endswith("sha256")}
    kept["format"] = "memsim/1"  # that of the first hashes, which a new one does not change
    # how long a distribution of inputs is depends on the inputs
    layout = [tensor[:2] if tensor[0].startswith("statistics/") else tensor[:3] for tensor in tensors]
    integers = [value for tensor in tensors if tensor[1].startswith(("I", "U")) for value in tensor]
    return {
        "exact": {"tensors": digest(*(value for tensor in tensors for value in tensor)), "metadata": digest(kept)},
        "everywhere": {"layout": digest(layout), "integers": digest(*integers)},
    }


def read_result(path: Path) -> dict[str, dict[str, Any]]:
    """The hash of a result's numbers, and the edits of an evaluation: hits, substitutions, insertions, deletions."""
    result = json.loads(path.read_text())
    for key in ("memsim", "checkpoint", "reference", "measurements", "hardware", "out", "real_time_factor"):
        result.pop(key, None)
    everywhere = {}
    if "digital" in result and "mapped" in result:
        systems = [result["digital"], *result["mapped"]["trials"]]
        names = ("hits", "substitutions", "insertions", "deletions")
        everywhere["edits"] = [" ".join(str(system[name]) for name in names) for system in systems]
    return {"exact": {"result": digest(result)}, "everywhere": everywhere}


def read_hypotheses(path: Path) -> dict[str, dict[str, Any]]:
    """The hash of a file of hypotheses, line by line."""
    return {"exact": {"hypotheses": digest(path.read_bytes())}, "everywhere": {}}


OUTPUTS = {"-o": "safetensors", "--json": "json", "--hypotheses": "jsonl"}
READERS: dict[str, Callable[[Path], dict[str, dict[str, Any]]]] = {
    "-o": read_tensors,
    "--json": read_result,
    "--hypotheses": read_hypotheses,
}

Cases = Iterator[tuple[str, dict[str, dict[str, Any]]]]


def map_cases() -> Cases:
    """`memsim map` on every shipped spec, of other kinds of layers, without statistics, and of an old file."""
    outputs = ("-o", "--json")
    for spec in SPECS:
        attention = ("map", "demo", "--hardware", spec, "--set", FEW_LAYERS)
        yield spec, case(f"map-{spec}", *attention, outputs=outputs)
    convolution = ("map", "demo", "--include", "blocks.0.convolution.*", "--set", 'digital=["output*"]')
    yield "convolution", case("map-convolution", *convolution, "--seed", "7", outputs=outputs)
    estimates = ("--set", FEW_LAYERS, "--budget", "--cost")
    yield "estimates", case("map-estimates", "map", "demo", "--hardware", "best", *estimates, outputs=outputs)
    write_network(Path("network.safetensors"))
    for spec in ("physical", "multilevel"):
        network = ("map", "network.safetensors", "--bits", "4", "--hardware", spec)
        yield f"network-{spec}", case(f"map-network-{spec}", *network, outputs=outputs)
    yield "published", case("map-published", "map", str(PUBLISHED / "model.safetensors"), outputs=outputs)


def eval_cases() -> Cases:
    """`memsim eval` on every shipped spec, step by step, and of old files."""
    outputs = ("--json", "--hypotheses")
    data = ("--data", "demo", "--limit", "2", "--loss", "--compute", "cpu", "--jobs", "1")
    for spec in SPECS:
        demo = ("eval", "demo", *data, "--trials", "2", "--hardware", spec, "--set", FEW_LAYERS)
        yield spec, case(f"eval-{spec}", *demo, outputs=outputs)
    # without an ADC that rounds it away, loud noise shows small changes of it
    loud = ("--set", "adc=none", "--set", "read_noise.shot_scale=20", "--set", "read_noise.johnson_scale=20")
    analog = ("eval", "demo", *data, "--set", FEW_LAYERS, *loud)
    yield "analog", case("eval-analog", *analog, outputs=outputs)
    steps = ("eval", "demo", *data, "--set", FEW_LAYERS, "--bits", "4", "--reference", "demo-float", "--ablate")
    yield "steps", case("eval-steps", *steps, outputs=("--json",))
    for kind in ("model", "mapped", "trained"):
        published = ("eval", str(PUBLISHED / f"{kind}.safetensors"), *data, "--trials", "2")
        yield f"published-{kind}", case(f"eval-published-{kind}", *published, outputs=outputs)


def qat_cases() -> Cases:
    """`memsim qat` for one epoch of few steps; then what else takes its files: a map and an eval of an LSTM."""
    qat, outputs = write_training(), ("-o",)
    for name in ("conformer", "lstm"):
        float_training = (*qat, "recipe.yaml", "--bits", "float", "--model", f"{name}.yaml")
        yield name, case(f"qat-{name}", *float_training, outputs=outputs)
    few_bits = ("--bits", "3", "--init", "qat-conformer.safetensors")
    yield "few-bits", case("qat-few-bits", *qat, "plain.yaml", *few_bits, outputs=outputs)
    yield "hardware", case("qat-hardware", *qat, "robust.yaml", *few_bits, "--hardware", "paper", outputs=outputs)
    yield "map-lstm", case("map-lstm", "map", "qat-lstm.safetensors", "--bits", "3", outputs=("-o", "--json"))
    evaluation = ("eval", "map-lstm.safetensors", "--data", "demo", "--limit", "4", "--loss", "--jobs", "1")
    yield "eval-lstm", case("eval-lstm", *evaluation, outputs=("--json", "--hypotheses"))


def fit_cases() -> Cases:
    """`memsim fit-device` on a small table of features."""
    write_measurements(Path("few.csv"), devices=16, cycles=30)
    fit = ("fit-device", "few.csv", "--order", "1", "--components", "1")
    yield "features", case("fit-features", *fit, outputs=("-o", "--json"))


def whole_cases() -> Cases:
    """All layers of the bundled recogniser, on every shipped spec; a Transducer; a fit of a mixture: minutes."""
    transducer = (*write_training(), "recipe.yaml", "--bits", "float", "--model", "transducer.yaml")
    yield "transducer", case("whole-transducer", *transducer, outputs=("-o",))
    write_measurements(Path("many.csv"), devices=40, cycles=60)
    fit = ("fit-device", "many.csv", "--order", "3", "--components", "2")
    yield "fit", case("whole-fit", *fit, outputs=("-o", "--json"))
    for spec in SPECS:
        demo = ("eval", "demo", "--data", "demo", "--limit", "4", "--loss", "--compute", "cpu", "--hardware", spec)
        yield spec, case(f"whole-{spec}", *demo, outputs=("--json", "--hypotheses"))


GROUPS = {"map": map_cases, "eval": eval_cases, "qat": qat_cases, "fit": fit_cases, "whole": whole_cases}


def write_network(path: Path) -> None:
    """A file of float32 weights as any other program would write it: a table, linear, convolution and LSTM layers."""
    from safetensors.numpy import save_file

    drawn = np.random.RandomState(0)
    shapes = {
        "embedding.weight": (20, 12),
        "convolution.weight": (10, 12, 3),
        "convolution.bias": (10,),
        "lstm.weight_ih_l0": (32, 10),
        "lstm.weight_hh_l0": (32, 8),
        "lstm.bias_ih_l0": (32,),
        "lstm.bias_hh_l0": (32,),
        "linear.weight": (150, 8),
    }
    weights = {name: drawn.randint(-1000, 1001, shape) / np.float32(4000) for name, shape in shapes.items()}
    save_file({name: weight.astype(np.float32) for name, weight in weights.items()}, path)


def write_training() -> tuple[str, ...]:
    """The beginning of a `memsim qat` command, which the name of a recipe follows; its files are written here."""
    for name, text in (("conformer", CONFORMER), ("lstm", LSTM), ("transducer", TRANSDUCER)):
        Path(f"{name}.yaml").write_text(text)
    for name, text in (("recipe", RECIPE), ("robust", ROBUST), ("plain", PLAIN)):
        Path(f"{name}.yaml").write_text(text)
    write_corpus(Path("few.tsv"), utterances=8)
    return ("qat", "--data", "few.tsv", "--dev", "few.tsv", "--compute", "cpu", "--config")


def write_corpus(path: Path, utterances: int) -> None:
    """A manifest of the first utterances of the bundled speech, with the audio beside it."""
    (bundled,) = REPOSITORY.glob("memsim/**/demo/manifest.tsv")
    rows = bundled.read_text().splitlines()[: 1 + utterances]
    path.write_text("\n".join(rows) + "\n")
    for row in rows[1:]:
        shutil.copy(bundled.parent / row.split("\t")[0], path.parent)


def write_measurements(path: Path, devices: int, cycles: int) -> None:
    """A CSV of features: each device has a mean of its own, and its cycles follow one another."""
    drawn = np.random.RandomState(0)
    rows = ["device,cycle,hrs_ohms,us_volts,lrs_ohms,ur_volts"]
    for device in range(devices):
        mean, state = drawn.uniform(-1, 1, 4), np.zeros(4)
        for cycle in range(1, cycles + 1):
            state = 0.6 * state + drawn.uniform(-1, 1, 4)
            hrs, us, lrs, ur = mean + state
            values = (1e5 * (1 + 0.2 * hrs), -0.8 + 0.05 * us, 4e3 * (1 + 0.05 * lrs), 0.9 + 0.05 * ur)
            rows.append(f"{device},{cycle}," + ",".join(f"{value:.6g}" for value in values))
    path.write_text("\n".join(rows) + "\n")


def machine() -> str:
    """What bits depend on: CPU, its instructions that are used, and versions of the libraries that compute."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    makers = [line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")]
    libraries = ("numba", "numpy", "scipy", "scikit-learn")
    parts = [platform.machine(), *makers[:1], torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}"]
    return ", ".join([*parts, *(f"{name} {version(name)}" for name in libraries)])


def results_of(group: str, folder: Path) -> dict[str, Any]:
    """`{"machine": ..., "cases": ...}` of one group, from a process of its own on one thread."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MEMSIM_", "TORCH"))}
    environment |= dict.fromkeys(THREADS, "1") | {"CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
    # numba does not see that a constant changed in another module than that of the function which it compiled
    sources = digest(*(path.read_bytes() for path in sorted((REPOSITORY / "memsim").rglob("*.py"))))
    environment["NUMBA_CACHE_DIR"] = str(REPOSITORY / "build" / "numba" / sources)
    if platform.machine() == "x86_64":
        environment |= SAME_INSTRUCTIONS
    folder.mkdir(parents=True)
    command = [sys.executable, "-P", str(Path(__file__).resolve()), group, "--here"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{group}: {done.stdout}{done.stderr}")
    return json.loads((folder / "same_bits.json").read_text())


def renew(groups: list[str], folder: Path) -> None:
    """Pin the results of `groups` for this machine, and print what changed."""
    pinned = json.loads(PINNED.read_text()) if PINNED.exists() else {"everywhere": {}, "machines": {}}
    for group in groups:
        found = results_of(group, folder / group)
        kept = pinned["machines"].setdefault(found["machine"], {})
        for name in [name for name in kept if name.startswith(f"{group} ") and name not in found["cases"]]:
            print(f"gone: {name}")
            for values in (pinned["everywhere"], *pinned["machines"].values()):
                values.pop(name, None)
        for name, results in found["cases"].items():
            changed = [part for part, value in results["exact"].items() if kept.get(name, {}).get(part) != value]
            if name in kept and changed:
                print(f"changed: {name}: {', '.join(changed)}")
                for other in pinned["machines"].values():
                    other.pop(name, None)
            kept[name], pinned["everywhere"][name] = results["exact"], results["everywhere"]
    PINNED.write_text(json.dumps(pinned, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the files there; it must not exist")
    parser.add_argument("--here", action="store_true", help="run the commands in this process and folder; pin nothing")
    options = parser.parse_args()
    groups = options.groups or list(GROUPS)
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}: there are {', '.join(GROUPS)}")
    if options.here:
        cases = {f"{group} {name}": results for group in groups for name, results in GROUPS[group]()}
        Path("same_bits.json").write_text(json.dumps({"machine": machine(), "cases": cases}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        renew(groups, options.keep.resolve() if options.keep else Path(temporary))


if __name__ == "__main__":
    main()
