"""`memsim eval`: a recogniser on simulated chips, beside its digital self."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.cli import decoding, options
from memsim.cli import study as study_options
from memsim.cli.caveats import (
    say_of_prefixes,
    warn_of_clipping,
    warn_of_disturbing_reads,
    warn_of_globs,
    warn_of_other_bits,
    warn_of_transcripts,
)
from memsim.errors import InputError
from memsim.launch import is_first
from memsim.networks.open_checkpoint import default_data, open_checkpoint, open_network
from memsim.units import counted

if TYPE_CHECKING:
    from rich.table import Table

    from memsim.asr.scoring import Score
    from memsim.cli.progress import Draw
    from memsim.evaluation.ablation import AblationStep, Sensitivity
    from memsim.evaluation.network_cost import Cost
    from memsim.evaluation.result import Evaluation
    from memsim.evaluation.study import Point, PointFacts
    from memsim.evaluation.target import EvaluationTarget
    from memsim.nn.budget import Budget
    from memsim.spec import HardwareSpec
    from memsim.storage.checkpoint import Checkpoint


def command(
    context: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A safetensors file, mapped or not, or a bundled one: demo, demo-float. Default: "
            "$MEMSIM_CHECKPOINT, else the newest *.mapped.safetensors here, else demo.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help=f"{options.DATA}. Required, but not with --merge, and of a bundled checkpoint it is demo.",
            rich_help_panel=options.DATA_PANEL,
        ),
    ] = None,
    data_root: options.DataRoot = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="Split of a corpus, such as train, dev (default) or test.",
            rich_help_panel=options.DATA_PANEL,
        ),
    ] = None,
    text_style: options.TextStyle = "kaldi",
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Only the first N utterances.", rich_help_panel=options.DATA_PANEL),
    ] = None,
    architecture: options.Architecture = None,
    architecture_config: options.ArchitectureConfig = None,
    hardware: options.Hardware = None,
    bits: options.Bits = None,
    cell: options.Cell = None,
    set_: study_options.Sweep = None,
    trials: study_options.Trials = 1,
    jobs: study_options.Jobs = 1,
    results: study_options.ResultsOption = None,
    shard: study_options.ShardOption = None,
    merge: study_options.Merge = None,
    figure: study_options.Figure = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="CHECKPOINT", help="Full-precision checkpoint to compare with."),
    ] = None,
    decoder: decoding.Decoder = "greedy",
    lm: decoding.LanguageModel = None,
    lexicon: decoding.Lexicon = None,
    lm_weight: decoding.LmWeight = None,
    prior_weight: decoding.PriorWeight = None,
    beam_size: decoding.BeamSize = None,
    beam_tokens: decoding.BeamTokens = None,
    beam_threshold: decoding.BeamThreshold = None,
    tune: decoding.Tune = False,
    hypotheses: decoding.Hypotheses = None,
    nbest: decoding.NBest = None,
    worst: decoding.Worst = 0,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Seed of the first chip (default 0; of a mapped file, its own)."),
    ] = None,
    budget: options.Budget = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Give the WER with the hardware's effects switched on one after the other.")
    ] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Give the WER with one layer at a time on hardware.")
    ] = False,
    loss: Annotated[
        bool, typer.Option("--loss", help="Give the mean CTC or RNN-T loss a token, too: finer than the WER.")
    ] = False,
    cost: options.Cost = False,
    compute: options.Compute = "auto",
    json_file: options.Json = None,
    report: options.Report = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Evaluate a recogniser on simulated chips: WER and CER, digital against mapped.

    An unmapped checkpoint is mapped in memory on the given hardware. A mapped file runs as it is,
    unless hardware options ask for its levels to be mapped again.
    """
    silent, quiet = quiet, quiet or "-" in (str(json_file), str(hypotheses))
    options.require_page(report, force=True)  # whether it may be written is found out below
    study_options.require_svg(figure)
    shown = Shown(json_file, figure, report, worst, quiet=quiet, silent=silent, verbose=verbose)
    if merge is not None:
        study_options.require_alone(merge, context)
        options.require_outputs((json_file, figure, report), force)
        joined = study_options.merged(merge)
        study_options.require_sweep(figure, len(joined))
        shown.show(joined, Costs(), options.command_line())
        return
    texts = decoding.Decoding(
        decoder=decoder,
        language_model=lm,
        lexicon=lexicon,
        lm_weight=lm_weight,
        prior_weight=prior_weight,
        beam_size=beam_size,
        beam_tokens=beam_tokens,
        beam_threshold=beam_threshold,
        tune=tune,
        hypotheses=hypotheses,
        nbest=nbest,
    )
    data = default_data(checkpoint) if data is None else data
    if tune and options.has_one_split(data):
        raise InputError(f"--tune: {data} has no dev split to tune on; give --lm-weight and --prior-weight")
    if split is not None and options.has_one_split(data):
        raise InputError(f"--split {split}: {data} is not divided into splits; leave --split out")
    sharing = study_options.Sharing.of(jobs, shard, results)
    if shard is not None and (json_file or figure or report or worst):
        with_merge = "--json, --figure, --report and --worst go with --merge"
        raise InputError(f"--shard {shard}: a share has no result of its own; {with_merge}")
    if is_first():
        sharing.require_outputs((json_file, figure, report, hypotheses), (checkpoint, reference), force=force)
    from memsim.cli.progress import pass_progress, say, warn

    with sharing.stop_requests() as stop_request, study_options.eval_workers() as workers:
        quiet = quiet or not workers.is_first
        shown = replace(shown, quiet=quiet)
        opened, said = open_checkpoint(checkpoint, architecture, architecture_config)
        if said and not quiet:
            say(said)
        if not quiet:
            say_of_prefixes(opened)
        from memsim.asr.corpora import load_corpus, with_unwritable

        corpus = load_corpus(data, split=split or "dev", root=data_root, text_style=text_style, limit=limit)
        dev = load_corpus(data, split="dev", root=data_root, text_style=text_style) if tune else None
        if opened.kind == "device":
            raise InputError(f"{opened.path}: a device model; eval takes a recogniser (use it with --cell)")
        from memsim.distributed import own_device
        from memsim.evaluation import ablation
        from memsim.evaluation.network_cost import chip_cost
        from memsim.evaluation.speech import CheckpointNetworks, SpeechTask
        from memsim.evaluation.study import Study
        from memsim.evaluation.sweep import sweep_points
        from memsim.evaluation.target import with_decoder
        from memsim.nn.mapping import mapping_of

        points: tuple[Point, ...] = ()  # a mapped file as it is
        if opened.kind != "mapped":
            points = sweep_points(set_ or [], partial(options.choose_hardware, hardware, bits, cell))
        elif any(option is not None for option in (hardware, bits, cell)) or set_:
            points = sweep_points(set_ or [], partial(_hardware_for_mapped, opened, hardware, bits, cell))
        study_options.require_sweep(figure, len(points))
        alone = len(points) < 2 and shard is None and workers.size == 1
        if not alone:
            study_options.require_no_costs(
                budget=budget, ablate=ablate, sensitivity=sensitivity, cost=cost, hypotheses=hypotheses is not None
            )
        device = str(own_device(options.choose_device(compute)))
        compared = open_network(reference, "--reference", architecture, architecture_config) if reference else None
        networks = CheckpointNetworks(opened, compared)
        target = networks.target(points[0].spec if points else None, seed)
        corpus = with_unwritable(corpus, target.recogniser.tokens)
        if not mapping_of(target.digital).mapped:
            raise InputError(f"{opened.path}: no layer is on arrays; the spec's `digital` leaves none")
        if not quiet:
            _say_what_matters(target, opened)
            warn_of_transcripts(corpus)
        costs = Costs()
        with pass_progress(quiet) as progress:
            search, decoded = texts.search(target, corpus, dev, device=device, progress=progress)
            task = replace(SpeechTask.of(target.recogniser, corpus, loss=loss), decoding=decoded)
            if search is not None:
                networks = replace(networks, decoder=search)
                target = with_decoder(target, search)
            study = Study(task, networks, points, trials, seed)
            reported = alone and report is not None  # a report has what can be found out
            if budget or reported:
                costs.budget = _budget(target, progress, required=budget)
            if sensitivity:
                costs.sensitivity = ablation.sensitivity(target, task, device=device, progress=progress)
            if cost or reported:
                costs.cost = chip_cost(target, corpus, device=device, progress=progress)
            sharing.make_way(workers, force=force)
            done = study_options.run(study, sharing, workers, target, device, progress, stop_request, quiet)
            if ablate:
                costs.steps = ablation.ablate(target, done[0][1], device=device, progress=progress)
            if hypotheses is not None:
                texts.write_hypotheses(done[0][1], target, device=device, progress=progress)
        if done:
            shown.show(done, costs, options.command_line(*(() if checkpoint else (str(opened.path),))))
        if not quiet and sharing.shard:
            say(f"share {shard} is done: {results}; --merge joins all of them")
        if corpus.skipped and workers.is_first:
            warn(f"{corpus.name}: {counted(corpus.skipped, 'utterance')} without words left out")


@dataclass
class Costs:
    """What each effect and each layer costs, where that was asked for."""

    budget: Budget | None = None
    steps: Sequence[AblationStep] = ()
    sensitivity: Sensitivity | None = None
    cost: Cost | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        facts: dict[str, Any] = {"budget": self.budget.to_dict()} if self.budget else {}
        facts |= {"ablation": [step.to_dict() for step in self.steps]} if self.steps else {}
        facts |= {"sensitivity": self.sensitivity.to_dict()} if self.sensitivity else {}
        return facts | ({"cost": self.cost.to_dict()} if self.cost else {})


@dataclass(frozen=True)
class Shown:
    """Where results are shown, and how."""

    json_file: Path | None
    figure: Path | None
    report: Path | None
    worst: int
    quiet: bool
    silent: bool
    """As asked for, not because standard output is another file's: then warnings are left out, too."""
    verbose: bool

    def show(self, points: Sequence[tuple[PointFacts, Evaluation]], costs: Costs, command: str) -> None:
        """Tables, and the files that were asked for, of one point or of a sweep; `command` repeats it."""
        from memsim.cli.progress import say, warn

        study_options.draw_figure(self.figure, points)
        result = points[0][1]
        facts = study_options.sweep_dict(points) if len(points) > 1 else result.to_dict() | costs.to_dict()
        options.write_json(self.json_file, facts)
        if self.report is not None:
            options.write_text(self.report, _page(facts, command))
        if not self.quiet:
            self._render(points, costs)
            if self.report is not None:
                say(f"wrote {self.report}")
        bad = [(point, evaluation) for point, evaluation in points if evaluation.warnings]
        if self.silent or not bad:
            return
        point, evaluation = bad[0]
        for sentence in evaluation.warnings:
            warn(f"{point.label}: {sentence}" if point.label else sentence)
        if len(bad) > 1:
            warn(f"{len(bad)} of {len(points)} points have such warnings; --json holds them all")

    def _render(self, points: Sequence[tuple[PointFacts, Evaluation]], costs: Costs) -> None:
        from memsim.cli.budget import render_ablation, render_budget, render_sensitivity
        from memsim.cli.cost import render_cost
        from memsim.cli.progress import say
        from memsim.evaluation.decoders import describe

        result = points[0][1]
        if len(points) > 1:
            study_options.render_sweep(points)
        else:
            _render(points[0], self.verbose)
            warn_of_clipping(points[0][1])
        if "options" in result.task.decoding:
            say(describe(result.task.decoding))
        decoding.render_worst(result, self.worst)
        if costs.budget:
            render_budget(costs.budget, self.verbose, with_layers=costs.sensitivity is None)
        if costs.steps:
            render_ablation(costs.steps, result.full_precision)
        if costs.sensitivity:
            render_sensitivity(costs.sensitivity, costs.budget, self.verbose)
        if costs.cost:
            render_cost(costs.cost, self.verbose)


def _page(facts: dict[str, Any], command: str) -> str:
    """The report of what --json holds."""
    from memsim.report.drawing import svg_of
    from memsim.report.evaluation_page import evaluation_page
    from memsim.report.sweep_figure import sweep_figure
    from memsim.report.sweep_page import sweep_page

    if "points" not in facts:
        return evaluation_page(facts, command)
    return sweep_page(facts["points"], svg_of(sweep_figure(facts["points"])), command)


def _say_what_matters(target: EvaluationTarget, opened: Checkpoint) -> None:
    """How a mapped file is taken, and warnings."""
    from memsim.cli.progress import say, warn
    from memsim.nn.calibration import silent_inputs
    from memsim.nn.mapping import mapping_of

    plan = mapping_of(target.digital).plan
    if opened.kind == "mapped":
        how = "chip 1 as it is in the file" if target.programmed else f"levels mapped again on {target.spec.title}"
        say(f"{opened.path} is mapped: {how}, further chips are programmed anew")
    else:  # a mapped file does not know what its globs kept digital
        warn_of_globs(plan, target.spec)
        warn_of_other_bits(plan, opened)
    warn_of_disturbing_reads(plan, target.spec)
    if (silent := silent_inputs(plan, target.statistics)) is not None:
        warn(silent)


def _budget(target: EvaluationTarget, progress: Draw, *, required: bool) -> Budget | None:
    """None where there can be none and it is not `required`."""
    from memsim.evaluation.ablation import chip_budget

    try:
        return chip_budget(target, progress=progress)
    except InputError:
        if required:
            raise
        return None


def _hardware_for_mapped(
    opened: Checkpoint, hardware: str | None, bits: int | None, cell: str | None, settings: list[str] | None
) -> HardwareSpec:
    """The spec under which a mapped file's levels are to be mapped again: --hardware, else the file's own, changed."""
    from memsim.mapping import stored_spec
    from memsim.spec import load_hardware

    spec, stored_bits = stored_spec(opened)
    if bits is not None and any(b != bits for b in stored_bits.values()):
        found = ", ".join(map(str, sorted(set(stored_bits.values()))))
        raise InputError(
            f"--bits {bits}: {opened.path} was mapped at {found} bits and holds levels, not weights; "
            "map or evaluate the unmapped checkpoint"
        )
    base = spec if hardware is None else load_hardware(hardware)
    changed = options.change_hardware(base, None, cell, settings)
    for key in ("bits", "scale", "scale_method"):
        wanted = getattr(changed.weights, key)
        if wanted != getattr(base.weights, key) and (key != "bits" or {wanted} != set(stored_bits.values())):
            raise InputError(
                f"--set weights.{key}={wanted}: {opened.path} holds levels, not weights, and they stay as they are; "
                "map or evaluate the unmapped checkpoint"
            )
    return changed


def _render(point: tuple[PointFacts, Evaluation], verbose: bool) -> None:
    """The table of one point, and what there is to say of it."""
    from rich.table import Table

    from memsim.cli.budget import percent
    from memsim.cli.progress import stdout
    from memsim.evaluation.result import spread

    result = point[1]
    stdout.print(study_options.heading([point]), style="bold", highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("")
    loss = [] if result.digital.loss is None else [f"{result.task.loss_name} loss"]
    for column in ("WER %", "std", "min", "max", "CER %", *loss):
        table.add_column(column, justify="right")
    if result.full_precision is not None:
        table.add_row("full precision", *_single(result.full_precision))
    table.add_row("digital, quantised", *_single(result.digital))
    wer = spread([trial.score.wer for trial in result.trials])
    cer = spread([trial.score.cer for trial in result.trials])
    chips = f"mapped, {counted(len(result.trials), 'chip')}"
    means = [percent(cer["mean"])]
    means += [f"{spread(losses)['mean']:.4f}"] if (losses := result.losses) else []
    table.add_row(chips, *(percent(wer[key]) for key in ("mean", "std", "min", "max")), *means)
    stdout.print(table)
    if verbose:
        stdout.print(_clip_table(result))
    facts = result.to_dict()
    lines = [_degradation(result, facts, key) for key in facts["relative_degradation"]]
    clips = [f"{key.upper()} {rate:.3%}" for key, rate in facts["clip_rate"].items() if rate is not None]
    if clips:
        lines.append(f"clipped: {', '.join(clips)}")
    lines.append(f"real-time factor of the simulation: {facts['real_time_factor']:.3f} (no speed of a chip)")
    lines += study_options.unfitted_lines([point])
    if result.task.corpus.synthetic:
        lines.append("the speech is synthetic: this shows that the chain works, and says little of real speech")
    stdout.print("\n".join(lines), highlight=False)


def _clip_table(result: Evaluation) -> Table:
    """Clip rates of every layer on the last chip."""
    from rich.table import Table

    table = Table(title="conversions beyond full scale, last chip", title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("DAC %", "ADC %"):
        table.add_column(column, justify="right")
    for name, rate in result.trials[-1].clip_rates.items():
        table.add_row(name, *("" if r is None else f"{100 * r:.3f}" for r in (rate.dac, rate.adc)))
    return table


def _degradation(result: Evaluation, facts: dict[str, Any], key: str) -> str:
    """The chips against a reference, with its paired interval; or why there is nothing to compare."""
    name, value = key.removeprefix("to_"), facts["relative_degradation"][key]
    said = f"relative degradation {key.replace('_', ' ')}"
    if value is None:
        unusable = next(each for each in (name, "mapped") if each in result.unusable)
        return f"no {said}: {unusable.replace('_', ' ')} is unusable ({result.unusable[unusable]})"
    interval = facts["intervals"][key]["relative"]
    high = "unbounded" if interval["high"] is None else f"{interval['high']:+.1%}"
    return f"{said}: {value:+.1%} ({study_options.interval_name(result)}: {interval['low']:+.1%} to {high})"


def _single(score: Score) -> tuple[str, ...]:
    loss = () if score.loss is None else (f"{score.loss:.4f}",)
    return f"{100 * score.wer:.2f}", "", "", "", f"{100 * score.cer:.2f}", *loss
