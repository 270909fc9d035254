"""`memsim eval`: evaluate a recogniser on simulated chips and compare it with its digital version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memsim.asr.corpora import DATA
from memsim.cli import eval_options, options
from memsim.errors import InputError
from memsim.launch import is_first
from memsim.storage.outputs import require_outputs, require_page, write_json

if TYPE_CHECKING:
    from memsim.evaluation.evaluation_result import EvaluationResult


def command(
    context: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A mapped or unmapped safetensors file, a folder of Hugging Face's, or a bundled checkpoint: demo, "
            "demo-float. Default: $MEMSIM_CHECKPOINT, else the newest *.mapped.safetensors in this folder, else demo.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        options.data_option(
            "--data",
            metavar="DATA",
            help=f"{DATA}. Required, except with --merge; a bundled checkpoint defaults to demo.",
        ),
    ] = None,
    data_root: options.DataRoot = None,
    split: Annotated[
        str | None,
        options.data_option(
            "--split", metavar="SPLIT", help="Split of the corpus, such as train, dev (default) or test."
        ),
    ] = None,
    text_style: options.TextStyle = None,
    calibrate: options.Calibrate = None,
    calibration_utterances: options.CalibrationUtterances = 200,
    limit: Annotated[
        int | None, options.data_option("--limit", metavar="N", help="Use only the first N utterances.")
    ] = None,
    architecture: options.Architecture = None,
    architecture_config: options.ArchitectureConfig = None,
    hardware: options.Hardware = None,
    bits: options.Bits = None,
    cell: options.Cell = None,
    set_: eval_options.Sweep = None,
    mapping: eval_options.Mappings = None,
    trials: eval_options.Trials = 1,
    jobs: eval_options.Jobs = 1,
    results: eval_options.ResultsOption = None,
    shard: eval_options.ShardOption = None,
    merge: eval_options.Merge = None,
    figure: eval_options.Figure = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="CHECKPOINT", help="Full-precision checkpoint to compare with.")
    ] = None,
    decoder: eval_options.Decoder = "greedy",
    lm: eval_options.Lm = None,
    lexicon: eval_options.Lexicon = None,
    lm_weight: eval_options.LmWeight = None,
    prior_weight: eval_options.PriorWeight = None,
    beam_size: eval_options.BeamSize = None,
    beam_tokens: eval_options.BeamTokens = None,
    beam_threshold: eval_options.BeamThreshold = None,
    tune: eval_options.Tune = False,
    hypotheses: eval_options.Hypotheses = None,
    nbest: eval_options.NBest = None,
    worst: eval_options.Worst = 0,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Seed of the first chip. Default: 0, or the seed of a mapped file."),
    ] = None,
    budget: options.Budget = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Show the WER as the non-idealities are switched on one by one.")
    ] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Show the WER with one layer at a time on hardware.")
    ] = False,
    loss: Annotated[
        bool,
        typer.Option(
            "--loss",
            help="Also show the mean loss per token (CTC, RNN-T, cross-entropy), a finer measure than the WER.",
        ),
    ] = False,
    cost: options.Cost = False,
    compute: options.Compute = "auto",
    json_file: options.Json = None,
    report: options.Report = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Evaluate a recogniser on simulated chips and compare WER and CER with the digital network.

    The digital network has the same rounded weights and inputs, and exact arithmetic. An unmapped
    checkpoint is mapped in memory on the given hardware. A mapped file runs as it is, unless hardware
    options ask for its levels to be mapped again.
    """
    require_page(report, force=True)  # whether the file may be overwritten is checked below
    eval_options.require_svg(figure)
    import memsim
    from memsim.cli.progress import TerminalListener
    from memsim.evaluation.options import Decoding, Findings, Sharing
    from memsim.evaluation.sweep import is_sweep

    silent, quiet = quiet, quiet or "-" in (str(json_file), str(hypotheses))
    if merge is not None:
        eval_options.require_alone(merge, context)
        require_outputs((json_file, figure, report), force)
        result = memsim.merge_results(merge)
        eval_options.require_sweep(figure, is_sweep=len(result.points) > 1)
    else:
        decoding = Decoding(
            decoder=decoder,
            lm=lm,
            lexicon=lexicon,
            lm_weight=lm_weight,
            prior_weight=prior_weight,
            beam_size=beam_size,
            beam_tokens=beam_tokens,
            beam_threshold=beam_threshold,
            tune=tune,
            nbest=nbest,
        )
        if nbest is not None and hypotheses is None:
            raise InputError("--nbest: the lists are written to a file; name it with --hypotheses FILE")
        sharing = Sharing(jobs, shard, results)
        if shard is not None and (json_file or figure or report or worst):
            with_merge = "use --json, --figure, --report and --worst with --merge"
            raise InputError(f"--shard {shard}: one shard has no result of its own; {with_merge}")
        if is_first():
            files, inputs = (results, json_file, figure, report, hypotheses), (checkpoint, reference)
            require_outputs(files, force, inputs, resumed=sharing.goes_on)
        eval_options.require_sweep(figure, is_sweep=is_sweep(set_ or (), mapping))
        findings = Findings(
            budget=budget or (None if report else False),  # a report includes it where it can be measured
            ablate=ablate,
            sensitivity=sensitivity,
            cost=cost or (None if report else False),
            loss=loss,
            hypotheses=hypotheses is not None,
        )
        with eval_options.stop_requests(results) as stop_request:
            result = memsim.evaluate(
                checkpoint,
                data,
                data_root=data_root,
                split=split,
                text_style=text_style,
                calibrate=calibrate,
                calibration_utterances=calibration_utterances,
                limit=limit,
                architecture=architecture,
                architecture_config=architecture_config,
                reference=reference,
                hardware=hardware,
                bits=bits,
                cell=cell,
                set=set_ or (),
                mapping=mapping,
                trials=trials,
                seed=seed,
                decoding=decoding,
                findings=findings,
                sharing=sharing,
                compute=compute,
                force=force,
                listener=TerminalListener(quiet=quiet, silent=quiet),
                stop_request=stop_request,
            )
    if not result.points:  # a shard, or a process of torchrun other than the first
        return
    try:
        if hypotheses is not None:
            result.write_hypotheses(hypotheses)
        if figure is not None:
            result.write_figure(figure)
        write_json(json_file, result.to_dict())
        if report is not None:
            repeated = () if checkpoint or merge else (str(result.path),)
            result.write_report(report, options.command_line(*repeated))
    finally:  # a full disk does not lose the result, and a reader that leaves does not lose a file
        _show(result, worst, quiet=quiet, silent=silent, verbose=verbose)
    if report is not None and not quiet:
        from memsim.cli.progress import say

        say(f"wrote {report}")


def _show(result: EvaluationResult, worst: int, *, quiet: bool, silent: bool, verbose: bool) -> None:
    """Print the tables, the remarks and the warnings of a result."""
    from memsim.cli.progress import say, stdout, warn
    from memsim.report.text import show

    if not quiet:
        show(stdout, *result.parts(verbose=verbose, worst=worst))
        for line in result.remarks:
            say(line)
    if not silent:
        for sentence in result.warnings:
            warn(sentence)
