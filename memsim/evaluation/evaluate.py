"""Evaluation of a checkpoint on data, as `memsim eval` does it, in one call."""

from __future__ import annotations

import glob
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from memsim.arguments import require_types
from memsim.asr.corpora import Corpus, chosen_split, has_one_split, load_corpus, with_unwritable
from memsim.asr.data import with_unheard
from memsim.asr.running import STATISTICS_UTTERANCES
from memsim.asr.text import AS_PEOPLE_WRITE
from memsim.distributed import Workers, choose_device, joined_workers, own_device
from memsim.errors import InputError
from memsim.evaluation.ablation import ablate, chip_budget, sensitivity
from memsim.evaluation.decoders import hypotheses, make_decoder
from memsim.evaluation.evaluation_result import EvaluatedPoint, EvaluationResult
from memsim.evaluation.merge import merge
from memsim.evaluation.module_batches import Batches
from memsim.evaluation.modules import ModuleNetworks, ModuleTask, ScoreFunction, calibration_of
from memsim.evaluation.network_cost import chip_cost, estimate_cost
from memsim.evaluation.options import Decoding, Findings, Sharing
from memsim.evaluation.result import Evaluation
from memsim.evaluation.results_file import remove_results
from memsim.evaluation.run import run_study
from memsim.evaluation.speech import SpeechTask
from memsim.evaluation.study import Point, PointFacts, Study
from memsim.evaluation.sweep import mapped_points, points_of, recipes_of
from memsim.evaluation.target import CheckpointNetworks, Target, with_decoder
from memsim.evaluation.task import Task
from memsim.hardware.options import Hardware, choose_hardware
from memsim.listener import Listener
from memsim.networks.open_checkpoint import default_data, open_checkpoint, open_network
from memsim.networks.plan_warnings import bits_warnings, disturbance_warnings, glob_warnings, rounding_warnings
from memsim.networks.programming import is_full_precision
from memsim.networks.whole_chip import chip_of
from memsim.nn.budget import Budget
from memsim.nn.calibration import Calibration, silent_inputs, without_ranges
from memsim.nn.chip import mapping_of
from memsim.nn.layer_cost import Cost
from memsim.post_training.recipe import MappingRecipe, default_mapping
from memsim.storage.checkpoint import Checkpoint
from memsim.units import counted

PATIENCE = timedelta(days=7)
"""The time for which the processes of a torchrun wait for the slowest of them."""


class _Silent(Listener):
    """The listener of a process whose results another one shows."""

    def warn(self, message: str) -> None:
        """Say nothing."""


def evaluate(
    checkpoint: str | Path | nn.Module | None = None,
    data: str | Path | Iterable[Any] | None = None,
    *,
    score: ScoreFunction | None = None,
    lower_is_better: bool = False,
    calibration: Calibration | None = None,
    data_root: str | Path | None = None,
    split: str | None = None,
    text_style: str | None = None,
    calibrate: str | Path | None = None,
    calibration_utterances: int = STATISTICS_UTTERANCES,
    limit: int | None = None,
    architecture: str | None = None,
    architecture_config: str | Path | None = None,
    reference: str | Path | None = None,
    hardware: Hardware | None = None,
    bits: int | None = None,
    cell: str | Path | None = None,
    set: Sequence[str] = (),
    mapping: MappingRecipe | str | Path | Mapping[str, Any] | None = None,
    trials: int = 1,
    seed: int | None = None,
    decoding: Decoding | None = None,
    findings: Findings | None = None,
    sharing: Sharing | None = None,
    compute: str = "auto",
    force: bool = False,
    listener: Listener | None = None,
    stop_request: Callable[[], int | None] = lambda: None,
) -> EvaluationResult:
    """Evaluate a recogniser, or any module, on simulated chips; compare it with its digital network and full precision.

    An unmapped checkpoint is mapped in memory on the given hardware. A mapped file runs as it is, unless hardware
    arguments ask for its levels to be mapped again. A module, which stays untouched, is evaluated on batches by a
    `score`; arguments for speech or checkpoints are refused with it.

    Args:
        checkpoint: a safetensors file, mapped or not, or a bundled one: `demo`, `demo-float`. By default
            $MEMSIM_CHECKPOINT, else the newest `*.mapped.safetensors` in the folder, else `demo`. Or a module.
        data: `demo`, the name of a corpus, or a manifest (.tsv, .jsonl); by default the demo for a bundled
            checkpoint. For a module: batches, such as a `DataLoader` that does not shuffle; (inputs, targets) pairs,
            (argument, ..., targets) tuples, or mappings with a label.
        score: for a module: `score(outputs, targets)` gives a value for each example of a batch, or their mean. Values
            must be finite and not negative.
        lower_is_better: whether a smaller `score` is a better one.
        calibration: for a module: what `map_model` takes, to set converter ranges; by default `data` without its
            targets.
        data_root: the root of the corpus; by default $MEMSIM_DATA/NAME. It is that of `calibrate`, too, where both are
            corpora with names or both manifests.
        split: the split of a corpus, such as `train`, `dev` (default) or `test`.
        text_style: the convention of the transcripts: `kaldi`, `rwth`, `whisper` or `whisper-basic`; by
            default `whisper` for a recogniser that writes case or punctuation, `whisper-basic` for one that writes
            them in another language than English, else `kaldi`.
        calibrate: data to run an unmapped recogniser on to set converter ranges, named as `data` is; their split is dev
            unless NAME:SPLIT names another. Without it the statistics in the checkpoint set them.
        calibration_utterances: the largest number of utterances of it that are run, evenly spaced.
        limit: the number of utterances, from the first on.
        architecture: the network of a checkpoint that memsim did not write.
        architecture_config: its features, characters and options, a YAML file.
        reference: a full-precision checkpoint to compare with.
        hardware: a shipped spec by name, a YAML file, a mapping or a `HardwareSpec`; by default `physical`.
        bits: weight bits, 2 to 16, in place of the spec's.
        cell: the device model of the cells, a name or a file, in place of the spec's.
        set: changes of single keys, such as `adc.bits=6`. `KEY=V1,V2,...` evaluates each value, and of several such
            keys the whole grid.
        mapping: the recipe by which the weights of an unmapped network become levels: a name, a file or a mapping (see
            configs/mapping). None is `feedback` where `calibrate` gives data for weights in full precision, else
            `nearest`. `NAME,NAME,...` evaluates each of several names or files.
        trials: the number of chips, with the seeds `seed`, `seed` + 1, ...
        seed: the seed of the first chip; by default 0, or that of a mapped file.
        decoding: the decoder.
        findings: the results that are wanted besides the scores.
        sharing: the processes and shards of the work, and the file of its results.
        compute: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        force: replace old results.
        listener: follows the call.
        stop_request: asked after every batch; a signal's number stops the call, its work saved.

    Returns:
        The scores of every chip, and the findings. It has no points for a shard, and in all but the first of the
        processes of a torchrun.

    Raises:
        InputError: something does not fit or cannot be read; one line that names the remedy.
        Stopped: `stop_request` asked for it and something is left to do.

    >>> result = memsim.evaluate("demo", limit=2, hardware="ideal")
    >>> result.digital.wer == result.trials[0].score.wer
    True

    >>> import torch
    >>> model = torch.nn.Linear(64, 10)
    >>> batches = [(torch.randn(32, 64), torch.randint(10, (32,))) for _ in range(3)]
    >>> def accuracy(outputs, targets):
    ...     return outputs.argmax(1) == targets
    >>> result = memsim.evaluate(model, batches, score=accuracy, hardware="physical", bits=4, trials=2)
    >>> len(result.trials), len(result.digital.contributions)
    (2, 96)
    """
    require_types(evaluate, locals())
    trials, seed = int(trials), None if seed is None else int(seed)  # of numpy's numbers
    listener, decoding = listener or Listener(), decoding or Decoding()
    findings, sharing = findings or Findings(), sharing or Sharing()
    recipes = recipes_of(mapping)
    recipe, swept = recipes[0], recipes if len(recipes) > 1 else ()
    if isinstance(checkpoint, nn.Module):
        given = {
            "data_root": data_root, "split": split, "text_style": text_style, "calibrate": calibrate, "limit": limit,
            "architecture": architecture, "architecture_config": architecture_config, "reference": reference,
            "decoding": decoding != Decoding(),
            "findings.loss": findings.loss, "findings.hypotheses": findings.hypotheses,
        }  # fmt: skip
        if wrong := [name for name, value in given.items() if value]:
            raise InputError(f"{wrong[0]}: only for a recogniser's checkpoint; a module is evaluated on batches")
        if score is None or data is None or isinstance(data, str | Path):
            raise InputError("a module is evaluated on batches by a score: evaluate(model, batches, score=accuracy)")
        batches = Batches(data)
        if calibration is None:
            listener.say("converter ranges are set by the data itself; use calibration= for other batches")
            calibration = calibration_of(batches)
        modules = ModuleNetworks(checkpoint, calibration, type(checkpoint).__name__, recipe, swept)
        points = mapped_points(recipes, hardware, bits, cell, set)
        _require_chips(points, findings)
        with _joined(sharing, listener, force=force) as (workers, listener):
            work = _Work(findings, sharing, workers, compute, force, listener, stop_request)
            work.require_possible(points)
            study = Study(
                ModuleTask.of(checkpoint, batches, score, lower_is_better=lower_is_better),
                modules,
                points,
                trials,
                seed,
            )
            return work.module_result(study)
    if score is not None or calibration is not None or lower_is_better:
        raise InputError("score, lower_is_better, calibration: only for a module; checkpoints are scored by WER")
    if data is not None and not isinstance(data, str | Path):
        raise InputError("data: expected the name of a corpus or a manifest; batches need a module and a score")
    name = None if checkpoint is None else str(checkpoint)
    data = default_data(name) if data is None else str(data)
    if decoding.tune and has_one_split(data):
        raise InputError(f"--tune: {data} has no dev split to tune on; give --lm-weight and --prior-weight")
    data, split = chosen_split(data, split)
    with _joined(sharing, listener, force=force) as (workers, listener):
        opened, said = open_checkpoint(name, architecture, architecture_config)
        for line in filter(None, (said, opened.prefix_note)):
            listener.say(line)

        own_style = opened.metadata.get("text_style")
        writes_as_people = own_style in AS_PEOPLE_WRITE
        style = text_style or (own_style if own_style in AS_PEOPLE_WRITE else "kaldi")

        def load(part: str, limit: int | None = None) -> Corpus:
            root = None if data_root is None else Path(data_root)
            return load_corpus(data, split=part, root=root, text_style=style, limit=limit)

        corpus = load(split or "dev", limit)
        dev = load("dev") if decoding.tune else None
        if opened.kind == "device":
            raise InputError(f"{opened.path}: a device model; eval takes a recogniser (use it with --cell)")
        if opened.kind == "mapped" and mapping is not None:
            raise InputError(
                f"--mapping {recipe.name}: {opened.path} is mapped, and its levels are set; name the recipe when it is "
                "mapped (memsim map --mapping)"
            )
        if mapping is None and calibrate is not None and opened.kind != "mapped" and is_full_precision(opened):
            plain = choose_hardware(hardware, None, cell, ())
            recipes = (recipe := default_mapping(plain, set, is_calibrated=True),)
            listener.say(f"weights become levels by the recipe {recipe.name}; --mapping names another")
        points = points_of(opened, hardware, bits, cell, set, recipes)
        _require_chips(points, findings)
        work = _Work(findings, sharing, workers, compute, force, listener, stop_request)
        work.require_possible(points)
        device = work.device
        compared = None
        if reference is not None:
            compared = open_network(str(reference), "--reference", architecture, architecture_config)
        networks = CheckpointNetworks(opened, compared, recipe=recipe, swept=swept)
        if calibrate is not None:
            same_kind = has_one_split(str(calibrate)) == has_one_split(data) and str(calibrate) != "demo"
            with listener.working():
                root = data_root if same_kind else None
                networks = networks.calibrated(str(calibrate), root, calibration_utterances, listener.progress)
        target = networks.target(points[0].spec if points else None, seed)
        target.require_chips(trials)
        corpus = with_unheard(with_unwritable(corpus, target.template.tokens), target.template.features)
        task = SpeechTask.of(target.template, corpus, loss=findings.loss)
        study = Study(task, networks, points, trials, seed)
        plan = mapping_of(target.digital).plan
        if not plan.mapped:
            raise InputError(f"{opened.path}: no layer is on arrays; the spec's `digital` leaves none")
        _say_what_matters(target, opened, corpus, listener)
        for warning in rounding_warnings(plan, opened) if mapping is None and calibrate is None else ():
            listener.warn(warning)
        with listener.working():
            search, decoded = make_decoder(decoding, target, opened, corpus, dev, device, listener.progress)
            if search is not None:
                target = with_decoder(target, search)
                task, networks = replace(task, decoding=decoded), replace(networks, decoder=search)
                study = replace(study, task=task, networks=networks)
            found = work.before(target, study)
            done = work.run(study, target, found)
            if done:
                found["point_costs"] = work.costs_of_points(study)
            if findings.hypotheses:
                nbest = decoding.nbest or 0
                rows = hypotheses(done[0][1], target, nbest=nbest, device=device, progress=listener.progress)
                found["hypotheses"] = tuple(rows)
        if corpus.skipped:
            listener.warn(f"{corpus.name}: {counted(corpus.skipped, 'utterance')} without words left out")
        return EvaluationResult(tuple(EvaluatedPoint(*point) for point in done), path=opened.path, **found)


def merge_results(results: str | Path | Sequence[str | Path]) -> EvaluationResult:
    """Join the results files of all shards of an evaluation, or read the one file of a whole evaluation.

    Args:
        results: a glob, or the files.

    Raises:
        InputError: files are missing, unfinished, given twice, or of another evaluation.

    >>> sharing = memsim.Sharing(results="results.jsonl")
    >>> whole = memsim.evaluate("demo", limit=2, hardware="ideal", sharing=sharing)
    >>> memsim.merge_results("results.jsonl").digital == whole.digital
    True
    """
    require_types(merge_results, locals())
    if isinstance(results, str | Path):
        paths = [Path(path) for path in glob.glob(str(results), recursive=True)]  # noqa: PTH207 - it may be absolute
        if not paths:
            raise InputError(f"--merge {results}: no such files")
    else:
        paths = [Path(path) for path in results]
    return EvaluationResult(tuple(EvaluatedPoint(*point) for point in merge(paths)))


def _say_what_matters(target: Target, opened: Checkpoint, corpus: Corpus, listener: Listener) -> None:
    """Report how a mapped file is used, and warn about what may distort the result."""
    plan = mapping_of(target.digital).plan
    warnings: list[str] = []
    if opened.kind == "mapped":
        how = "chip 1 is the one in the file" if target.programmed else f"levels mapped again on {target.spec.title}"
        listener.say(f"{opened.path} is mapped: {how}, further chips are programmed anew")
    else:  # a mapped file does not store which globs kept layers digital
        warnings += [*glob_warnings(plan, target.spec), *bits_warnings(plan, opened)]
    warnings += disturbance_warnings(plan, target.spec)
    warnings += filter(None, [silent_inputs(plan, target.statistics)])
    for warning in (*warnings, *corpus.warnings()):
        listener.warn(warning)


def _require_chips(points: Sequence[Point], findings: Findings) -> None:
    """Raise InputError for a chip file that cannot be read, before anything runs."""
    for point in points if findings.cost else ():
        chip_of(point.spec)


@contextmanager
def _joined(sharing: Sharing, listener: Listener, *, force: bool) -> Iterator[tuple[Workers, Listener]]:
    """Join the processes of this torchrun; all but the first of them are silent."""
    with joined_workers("cpu", PATIENCE) as workers:
        if workers.is_first:
            sharing.require_file(force=force)
        yield workers, listener if workers.is_first else _Silent()


@dataclass(frozen=True)
class _Work:
    """The part of an evaluation that knows only a task and networks."""

    findings: Findings
    sharing: Sharing
    workers: Workers
    compute: str
    force: bool
    listener: Listener
    stop_request: Callable[[], int | None]

    @cached_property
    def device(self) -> str:
        """The device of this process."""
        return str(own_device(choose_device(self.compute)))

    def is_alone(self, points: Sequence[Point]) -> bool:
        """Return whether this process evaluates a single point whole."""
        return len(points) < 2 and self.sharing.shard is None and self.workers.size == 1

    def require_possible(self, points: Sequence[Point]) -> None:
        """Raise InputError for findings that need a single point here, and for a device that is not there."""
        if not self.is_alone(points):
            self.findings.require_single_point(shared=not self.is_alone(points[:1]))
        self.device  # noqa: B018 - raises

    def before(self, target: Target, study: Study) -> dict[str, Any]:
        """Compute the findings that do not need the scores of chips, by the names of the result's fields."""
        if not self.is_alone(study.points):
            return {}
        found = self._find(self.findings, target, study.task)
        rest = Findings(
            budget=None if self.findings.budget is False else False, cost=None if found.get("cost") is None else False
        )
        return found | {"for_report": partial(self._find, rest, target, study.task)}

    def _find(self, findings: Findings, target: Target, task: Task) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if findings.budget is not False:
            found["budget"] = _budget(target, self.listener, required=findings.budget is True)
        if findings.sensitivity:
            found["sensitivity"] = sensitivity(target, task, device=self.device, progress=self.listener.progress)
        if findings.cost is not False:
            with nullcontext() if findings.cost else suppress(InputError):  # such as a core that is too small
                found["cost"] = self._cost(target, task)
        return found

    def _cost(self, target: Target, task: Task) -> Cost:
        if isinstance(task, SpeechTask):
            return chip_cost(target, task.corpus, device=self.device, progress=self.listener.progress)
        assert isinstance(task, ModuleTask)
        return estimate_cost(target.chip(0).to(self.device), task.first_inputs(self.device), examples=task.sizes[0])

    def run(self, study: Study, target: Target, found: dict[str, Any]) -> list[tuple[PointFacts, Evaluation]]:
        """Run `study`, whose first point has the networks `target`, and add findings that need scores to `found`."""
        self._make_way()
        sharing, listener = self.sharing, self.listener
        done = run_study(
            study,
            device=self.device,
            jobs=sharing.jobs,
            shard=sharing.numbers,
            results=sharing.file,
            workers=self.workers,
            target=target,
            listener=listener,
            stop_request=self.stop_request,
        )
        if self.findings.ablate:
            found["ablation"] = ablate(target, done[0][1], device=self.device, progress=listener.progress)
        if sharing.shard:
            listener.say(f"shard {sharing.shard} is done: {sharing.results}; --merge joins all shards")
        return done

    def costs_of_points(self, study: Study) -> tuple[Cost, ...]:
        """Estimate the cost of each point of a sweep, where that is asked for."""
        if not self.findings.cost or len(study.points) < 2:
            return ()
        return tuple(self._cost(study.target(number), study.task) for number in range(len(study.points)))

    def module_result(self, study: Study) -> EvaluationResult:
        """Run the study of a module."""
        if self.sharing.jobs > 1:
            try:
                pickle.dumps(study)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise InputError(
                    f"jobs={self.sharing.jobs}: the module or its score cannot be sent to other processes ({error}); "
                    "define them at the top of a file, or use jobs=1"
                ) from None
        target = study.target()
        plan = mapping_of(target.digital).plan
        if not plan.mapped:
            raise InputError(f"{study.networks.facts.path}: no layer is on arrays")
        silent = silent_inputs(plan, target.statistics)
        doubts = [*glob_warnings(plan, target.spec), *disturbance_warnings(plan, target.spec), silent]
        for doubt in filter(None, [*doubts, without_ranges(plan, target.statistics)]):
            self.listener.warn(doubt)
        with self.listener.working():
            found = self.before(target, study)
            done = self.run(study, target, found)
            if done:
                found["point_costs"] = self.costs_of_points(study)
        return EvaluationResult(tuple(EvaluatedPoint(*point) for point in done), **found)

    def _make_way(self) -> None:
        """Remove old results if `force`, once everything else has been checked; only the first process does this."""
        if self.sharing.file is not None and self.force:
            if self.workers.is_first:
                remove_results(self.sharing.file)
            self.workers.wait()


def _budget(target: Target, listener: Listener, *, required: bool) -> Budget | None:
    """Measure the error budget; return None where that is impossible and it is not `required`."""
    try:
        return chip_budget(target, progress=listener.progress)
    except InputError:
        if required:
            raise
        return None
