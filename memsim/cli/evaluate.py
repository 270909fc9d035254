"""`memsim eval`: a recogniser on simulated chips, beside its digital self."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from memsim.cli import options
from memsim.cli.caveats import warn_of_disturbing_reads, warn_of_globs, warn_of_other_bits
from memsim.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from memsim.asr.scoring import Score
    from memsim.budget import Budget
    from memsim.checkpoint import Checkpoint
    from memsim.cli.progress import Draw
    from memsim.evaluate import Evaluation, Subject
    from memsim.spec import HardwareSpec


def command(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="demo, tedlium2, librispeech, or a manifest (.tsv, .jsonl).",
            rich_help_panel=options.DATA_PANEL,
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A safetensors file, mapped or not, or demo-float. Default: $MEMSIM_CHECKPOINT, else the newest "
            "*.mapped.safetensors here, else the bundled demo.",
            show_default=False,
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
    hardware: options.Hardware = None,
    bits: options.Bits = None,
    cell: options.Cell = None,
    set_: options.Set = None,
    trials: Annotated[int, typer.Option("--trials", metavar="N", min=1, help="How many chips.")] = 1,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="CHECKPOINT", help="Full-precision checkpoint to compare with."),
    ] = None,
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
    cost: options.Cost = False,
    compute: options.Compute = "auto",
    json_file: options.Json = None,
    report: options.Report = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Evaluate a recogniser on simulated chips: WER and CER, digital against mapped.

    An unmapped checkpoint is mapped in memory on the given hardware; a mapped file runs as it is, unless hardware
    options ask for its levels to be mapped again.
    """
    options.require_new(json_file, force)
    options.require_page(report, force)
    from memsim.cli.data import open_checkpoint
    from memsim.cli.progress import pass_progress, say, warn

    if split is not None and options.has_one_split(data):
        raise InputError(f"--split {split}: {data} is not divided into splits; leave --split out")
    quiet = quiet or str(json_file) == "-"
    opened, said = open_checkpoint(checkpoint)
    if said and not quiet:
        say(said)
    from memsim.asr.corpora import load_corpus

    corpus = load_corpus(data, split=split or "dev", root=data_root, text_style=text_style, limit=limit)
    wants_hardware = any((hardware, bits is not None, cell, set_))
    if opened.kind == "device":
        raise InputError(f"{opened.path}: a device model; eval takes a recogniser (use it with --cell)")
    spec = None
    if opened.kind != "mapped":
        spec = options.choose_hardware(hardware, bits, cell, set_)
    elif wants_hardware:
        spec = _hardware_for_mapped(opened, hardware, bits, cell, set_)
    from memsim import ablation
    from memsim.cli.budget import render_ablation, render_budget, render_sensitivity
    from memsim.cli.cost import render_cost
    from memsim.cost import chip_cost
    from memsim.evaluate import evaluate, prepare
    from memsim.nn.mapping import mapping_of

    device = options.choose_device(compute)
    subject = prepare(opened, spec=spec, seed=seed, reference=open_checkpoint(reference)[0] if reference else None)
    if opened.kind == "mapped" and not quiet:
        how = "chip 1 as it is in the file" if subject.programmed else f"levels mapped again on {subject.spec.name}"
        say(f"{opened.path} is mapped: {how}, further chips are programmed anew")
    if not quiet:
        plan = mapping_of(subject.digital).plan
        if opened.kind != "mapped":  # a mapped file does not know what its globs kept digital
            warn_of_globs(plan, subject.spec)
            warn_of_other_bits(plan, opened)
        warn_of_disturbing_reads(plan, subject.spec)
    cost = cost or report is not None
    with pass_progress(quiet) as progress:
        errors = _budget(subject, progress, required=budget) if budget or report is not None else None
        layers = ablation.sensitivity(subject, corpus, device=device, progress=progress) if sensitivity else None
        taken = chip_cost(subject, corpus, device=device, progress=progress) if cost else None
        result = evaluate(subject, corpus, trials=trials, device=device, progress=progress)
        steps = ablation.ablate(subject, result, device=device, progress=progress) if ablate else ()
    if not quiet:
        _render(result, verbose)
        if errors:
            render_budget(errors, verbose)
        if steps:
            render_ablation(steps, result.full_precision)
        if layers:
            render_sensitivity(layers, verbose)
        if taken:
            render_cost(taken, verbose)
    facts = result.to_dict()
    facts |= {"budget": errors.to_dict()} if errors else {}
    facts |= {"ablation": [step.to_dict() for step in steps]} if steps else {}
    facts |= {"sensitivity": layers.to_dict()} if layers else {}
    facts |= {"cost": taken.to_dict()} if taken else {}
    options.write_json(json_file, facts)
    if report is not None:
        from memsim.report.evaluation import evaluation_page

        again = options.command_line(*(() if checkpoint else (str(opened.path),)))
        options.write_text(report, evaluation_page(facts, again))
        if not quiet:
            say(f"wrote {report}")
    if corpus.skipped:
        warn(f"{corpus.name}: {corpus.skipped} utterances without words were left out")


def _budget(subject: Subject, progress: Draw, *, required: bool) -> Budget | None:
    """None where there can be none and it is not `required`."""
    from memsim.ablation import chip_budget

    try:
        return chip_budget(subject, progress=progress)
    except InputError:
        if required:
            raise
        return None


def _hardware_for_mapped(
    opened: Checkpoint, hardware: str | None, bits: int | None, cell: str | None, settings: list[str] | None
) -> HardwareSpec:
    """The spec under which a mapped file's levels are to be mapped again: --hardware, else the file's own, changed."""
    from memsim.mapped import stored_spec
    from memsim.spec import load_hardware

    spec, stored_bits = stored_spec(opened)
    if bits is not None and any(b != bits for b in stored_bits.values()):
        found = ", ".join(map(str, sorted(set(stored_bits.values()))))
        raise InputError(
            f"--bits {bits}: {opened.path} was mapped at {found} bits and holds levels, not weights; "
            "map or evaluate the unmapped checkpoint"
        )
    return options.change_hardware(load_hardware(hardware) if hardware else spec, None, cell, settings)


def _render(result: Evaluation, verbose: bool) -> None:
    from rich.table import Table

    from memsim.cli.progress import stdout
    from memsim.evaluate import spread

    corpus = result.corpus
    kind = "synthetic speech" if corpus.synthetic else "speech"
    bits = sorted({layer.tiling.bits for layer in result.mapping.mapped})
    title = (
        f"{corpus.name} {corpus.split}: {len(corpus.utterances)} utterances, {corpus.words} words, "
        f"{result.seconds:.0f} s of {kind}\n"
        f"{result.checkpoint.path.name} on {result.spec.name}, {'/'.join(map(str, bits))}-bit weights, "
        f"{len(result.mapping.mapped)} layers on {sum(layer.tiling.tiles for layer in result.mapping.mapped):,} arrays"
    )
    stdout.print(title, style="bold", highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("")
    for column in ("WER %", "std", "min", "max", "CER %"):
        table.add_column(column, justify="right")
    if result.full_precision is not None:
        table.add_row("full precision", *_single(result.full_precision))
    table.add_row("digital, quantised", *_single(result.digital))
    wer = spread([trial.score.wer for trial in result.trials])
    cer = spread([trial.score.cer for trial in result.trials])
    chips = f"mapped, {len(result.trials)} chip" + ("s" if len(result.trials) > 1 else "")
    table.add_row(
        chips, *(f"{100 * wer[key]:.2f}" for key in ("mean", "std", "min", "max")), f"{100 * cer['mean']:.2f}"
    )
    stdout.print(table)
    if verbose:
        stdout.print(_clip_table(result))
    facts = result.to_dict()
    lines = [
        f"relative degradation {key.replace('_', ' ')}: {value:+.1%} ({_interval(facts['intervals'], key)})"
        for key, value in facts["relative_degradation"].items()
    ]
    clips = [f"{key.upper()} {rate:.3%}" for key, rate in facts["clip_rate"].items() if rate is not None]
    if clips:
        lines.append(f"clipped: {', '.join(clips)}")
    lines.append(f"real-time factor on chips: {facts['real_time_factor']:.3f}")
    if corpus.synthetic:
        lines.append("the speech is synthetic: this shows that the chain works, and says little of real speech")
    stdout.print("\n".join(lines), highlight=False)


def _clip_table(result: Evaluation) -> Table:
    """Clip rates of every layer on the last chip."""
    from rich.table import Table

    table = Table(title="conversions beyond full scale, last chip", title_justify="left")
    table.add_column("layer", overflow="fold")
    for column in ("DAC %", "ADC %"):
        table.add_column(column, justify="right")
    for name, rate in result.mapping.clip_rates().items():
        table.add_row(name, *("" if r is None else f"{100 * r:.3f}" for r in (rate.dac, rate.adc)))
    return table


def _interval(intervals: dict[str, Any], key: str) -> str:
    """What is between the parentheses: the paired interval of a relative degradation."""
    interval = intervals[key]["relative"]
    high = "unbounded" if interval["high"] is None else f"{interval['high']:+.1%}"
    return f"{intervals['confidence']:.0%} interval {interval['low']:+.1%} to {high}"


def _single(score: Score) -> tuple[str, ...]:
    return f"{100 * score.wer:.2f}", "", "", "", f"{100 * score.cer:.2f}"
