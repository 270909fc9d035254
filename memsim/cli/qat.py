"""`memsim qat`: training, for weights of few bits on simulated hardware or in full precision."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memsim.cli import options
from memsim.cli.caveats import warn_of_transcripts
from memsim.cli.signals import noted_stop_signals
from memsim.errors import InputError
from memsim.launch import is_first
from memsim.training.training_files import TrainingFiles
from memsim.units import counted

if TYPE_CHECKING:
    from memsim.asr.corpora import Corpus
    from memsim.asr.tokens import Tokens
    from memsim.nn.quantisation import Quantisation
    from memsim.spec import HardwareSpec
    from memsim.training.recipe import TargetsConfig, TrainConfig
    from memsim.training.state import EpochResult, Progress


def command(
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="DATA",
            help=f"{options.DATA}. Repeatable: all are trained on (named twice, it counts twice); the first corpus "
            "gives the dev set.",
            rich_help_panel=options.DATA_PANEL,
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="The best checkpoint (.safetensors).")],
    bits: Annotated[str, typer.Option("--bits", metavar="B|float", help="Weight bits, 2 to 16, or float.")],
    data_root: options.DataRoot = None,
    dev: Annotated[
        str | None,
        typer.Option(
            "--dev",
            metavar="DATA",
            help="Dev set, when it is not the first corpus's dev split.",
            rich_help_panel=options.DATA_PANEL,
        ),
    ] = None,
    text_style: options.TextStyle = "kaldi",
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="NAME|FILE",
            help="Training recipe: a shipped name or a YAML file. Default: robust; of --bits float, float.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME|FILE", help="Network: a shipped name or a YAML file. Default: the recipe's."
        ),
    ] = None,
    architecture: options.Architecture = None,
    architecture_config: options.ArchitectureConfig = None,
    hardware: options.Hardware = None,
    cell: options.Cell = None,
    set_: options.Set = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="CHECKPOINT",
            help="Start from the weights of this checkpoint of the same architecture, and its tokens.",
        ),
    ] = None,
    init_encoder: Annotated[
        str | None,
        typer.Option(
            "--init-encoder",
            metavar="CHECKPOINT",
            help="Start the encoder alone from this checkpoint, of another architecture (a Transducer's from CTC).",
        ),
    ] = None,
    lexicon: Annotated[
        str | None,
        typer.Option(
            "--lexicon",
            metavar="FILE|cmudict",
            help="Pronunciation lexicon of a recipe with phonemes, in place of the recipe's.",
            rich_help_panel=options.DATA_PANEL,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from where the training that writes OUT was stopped; from the beginning if it never began.",
        ),
    ] = False,
    compute: options.Compute = "auto",
    seed: options.Seed = 0,
    json_file: options.Json = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a recogniser on real speech, for weights of few bits or in full precision.

    With weight bits, the hardware options choose the chip that it is trained for: which layers are on arrays, the grid
    of their inputs and, where the recipe says so, what the training goes through.

    Writes OUT (the best by dev WER; at the end with the input statistics that `map` calibrates from), OUT's
    *.last.safetensors, a CSV log and TensorBoard events (*.tensorboard) beside it. Stopped by SIGTERM (exit 75) or
    Ctrl-C (130), it saves its state; --resume continues exactly there. torchrun trains with several processes.
    """
    weight_bits = _weight_bits(bits)
    if weight_bits is None and (hardware or cell or set_):
        raise InputError("--bits float: full precision has no hardware; leave out --hardware, --cell and --set")
    if architecture is not None and model is not None:
        raise InputError(f"--model {model} --architecture {architecture}: both name the network; leave one out")
    if architecture_config is not None and architecture is None:
        raise InputError("--architecture-config: is the config of an --architecture; name that, too")
    if init is not None and init_encoder is not None:
        raise InputError(f"--init {init} --init-encoder {init_encoder}: both name the start; leave one out")
    options.require_safetensors(out)
    if dev is None and options.has_one_split(data[0]):
        raise InputError(f"--data {data[0]}: has no dev split of its own; name a dev set with --dev DATA")
    files = TrainingFiles(out)
    _require_new_files(files, json_file, [init, init_encoder], resume=resume, force=force)
    with noted_stop_signals() as stop_request, files.held():
        from memsim.asr.corpora import load_corpus, with_unwritable
        from memsim.asr.external import load_architecture
        from memsim.asr.recogniser import load_model_config
        from memsim.cli.caveats import say_of_prefixes
        from memsim.cli.progress import say
        from memsim.distributed import joined_workers
        from memsim.networks.open_checkpoint import open_checkpoint
        from memsim.training import initialise
        from memsim.training.hooks import Hooks
        from memsim.training.loop import Job, train
        from memsim.training.quantised import QuantisedTraining
        from memsim.training.recipe import load_train_config
        from memsim.training.targets import make_tokens

        device = options.choose_device(compute)
        recipe = load_train_config(config or ("float" if weight_bits is None else "robust"))
        if model is not None:
            recipe = recipe.model_copy(update={"model": model})
        if architecture is not None:
            recipe = recipe.model_copy(update={"model": architecture})
            model_kind, model_config = load_architecture(architecture, architecture_config)
        else:
            model_kind, model_config = load_model_config(recipe.model)
        targets = _targets(recipe, lexicon, init)
        quantisation = None
        if weight_bits is not None:
            spec = options.choose_hardware(hardware, weight_bits, cell, set_)
            quantisation = _quantisation(recipe, weight_bits, spec, has_start=init is not None)
        elif recipe.quantisation is not None:
            raise InputError(f"--config {recipe.name}: is for quantised weights; choose their --bits")
        corpora = {
            name: load_corpus(name, split="train", root=_root(name, data_root), text_style=text_style)
            for name in set(data)
        }
        dev_name = dev or data[0]
        dev_corpus = load_corpus(dev_name, split="dev", root=_root(dev_name, data_root), text_style=text_style)
        texts = [utterance.text for name in data for utterance in corpora[name].utterances]
        provenance = {"recipe": recipe.model_dump_json(), "data": ", ".join(map(_without_place, data))}
        if init is None:
            root = _root(data[0], data_root)
            written = model_config.own_tokens or make_tokens(targets, texts, data[0], root)
            recogniser = initialise.fresh(model_kind, model_config, written, text_style, seed)
            if init_encoder is not None:
                provenance["init_encoder_sha256"] = initialise.load_encoder(recogniser, init_encoder, recipe.model)
        else:
            recogniser, provenance["init_sha256"] = initialise.from_checkpoint(
                init, model_kind, model_config, texts, text_style, recipe.model
            )
        dev_corpus = with_unwritable(dev_corpus, recogniser.tokens)
        if not quiet and is_first():
            warn_of_transcripts(dev_corpus)
        corpora = {name: _pronounceable(corpus, recogniser.tokens, quiet) for name, corpus in corpora.items()}
        hooks = Hooks()
        if quantisation is not None:
            provenance |= {"trained_bits": bits, "trained_hardware": quantisation.spec.to_json()}
            hooks = QuantisedTraining(quantisation, recipe, seed).hooks()
        job = Job(recogniser, recipe, [corpora[name] for name in data], dev_corpus, out, seed, provenance, hooks)
        with joined_workers(device) as workers:
            quiet = quiet or not workers.is_first
            if not quiet:
                if start := init or init_encoder:
                    say_of_prefixes(open_checkpoint(start)[0])
                size = sum(parameter.numel() for parameter in recogniser.model.parameters())
                utterances = sum(len(corpora[name].utterances) for name in data)
                tokens = f"{counted(len(recogniser.tokens), 'token')} ({recogniser.tokens.kind})"
                epoch = f"{counted(utterances, 'utterance')} an epoch"
                say(f"{recipe.model}: {counted(size, 'parameter')}, {tokens}; {epoch}")
            if force and workers.is_first:
                files.state.unlink(missing_ok=True)
            workers.wait()
            with _Watcher(recipe.epochs, quiet) as watcher:
                best = train(job, watcher, resume=resume, workers=workers, stop_request=stop_request)
            if not quiet:
                say(f"best dev WER {best.dev['wer']:.2%}, of epoch {best.epoch}: {out}")
            if workers.is_first:
                result = {"checkpoint": str(out), "best_epoch": best.epoch, "dev": best.dev, "seed": seed}
                options.write_json(json_file, result)


def _weight_bits(text: str) -> int | None:
    """The number that --bits means; None for full precision."""
    if text == "float":
        return None
    if not text.isdecimal() or not 2 <= int(text) <= 16:
        raise InputError(f"--bits {text}: expected 2 to 16, or float")
    return int(text)


def _quantisation(recipe: TrainConfig, bits: int, spec: HardwareSpec, *, has_start: bool) -> Quantisation:
    """What the recipe means for these bits on this chip. Raises InputError where it is none for quantised weights."""
    from memsim.nn.quantisation import Quantisation

    if recipe.quantisation is None:
        raise InputError(f"--config {recipe.name}: is a recipe for full precision, it has no section quantisation")
    if recipe.quantisation.teacher is not None and not has_start:
        raise InputError(f"--config {recipe.name}: learns from a teacher; name it with --init CHECKPOINT")
    return Quantisation(recipe.quantisation, bits, spec)


def _targets(recipe: TrainConfig, lexicon: str | None, init: str | None) -> TargetsConfig:
    """The recipe's targets, with the lexicon of --lexicon. Raises InputError where that would mean nothing."""
    if lexicon is None:
        return recipe.targets
    if init is not None:
        raise InputError(f"--lexicon {lexicon}: the tokens, with their lexicon, are those of --init; leave it out")
    if recipe.targets.kind != "phonemes":
        raise InputError(f"--lexicon {lexicon}: the targets of --config {recipe.name} are {recipe.targets.kind}")
    return recipe.targets.model_copy(update={"lexicon": lexicon})


def _require_new_files(
    files: TrainingFiles, json_file: Path | None, starts: Sequence[str | None], *, resume: bool, force: bool
) -> None:
    """Raise InputError when the training must not or cannot write its files. A resumed one goes on with its own."""
    if resume and force:
        raise InputError("--resume goes on with what --force would overwrite; give one of them")
    if not (resume or force):
        files.require_no_state()
    resumed = resume and (files.state.exists() or files.out.exists())
    outputs = (files.out, files.last, files.log, files.state, json_file)
    options.require_outputs(outputs, force, starts, resumed=resumed)
    if files.events.exists() and not (force or resumed):
        raise InputError(f"{files.events}: exists already; --force overwrites it")


def _pronounceable(corpus: Corpus, tokens: Tokens, quiet: bool) -> Corpus:
    """The utterances that can be trained on; of others, a warning."""
    from memsim.cli.progress import warn
    from memsim.training.targets import pronounceable

    kept, missing = pronounceable(corpus, tokens)
    if missing and not quiet:
        some = ", ".join(word for word, _ in missing.most_common(5))
        left_out = f"{len(corpus.utterances) - len(kept.utterances)} of {counted(len(corpus.utterances), 'utterance')}"
        warn(f"{corpus.name} {corpus.split}: {left_out} have words that the lexicon lacks ({some}) and are left out")
    return kept


def _without_place(name: str) -> str:
    """A manifest by its folder and file name: where it lay is nobody's business."""
    return "/".join(Path(name).parts[-2:])


def _root(name: str, data_root: Path | None) -> Path | None:
    """--data-root is for the named corpora; manifests say themselves where their audio is."""
    return None if options.has_one_split(name) else data_root


class _Watcher:
    """Shows a training: a bar with the loss and the last dev WER, and a line an epoch."""

    def __init__(self, epochs: int, quiet: bool) -> None:
        from memsim.cli.progress import pass_progress

        self._epochs = epochs
        self._quiet = quiet
        self._context = pass_progress(quiet)
        self._dev = ""
        self._done_before = 0.0  # the fraction that earlier runs have done

    def __enter__(self) -> _Watcher:
        self._progress = self._context.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)  # type: ignore[arg-type]

    def begin(self, progress: Progress) -> None:
        from memsim.cli.progress import say

        self._started = time.monotonic()
        self._done_before = (progress.epoch - 1) / self._epochs
        if progress.results:
            self._dev = f", dev WER {progress.results[-1].dev_wer:.2%}"
        if progress.step and not self._quiet:
            say(f"resumed in epoch {progress.epoch}, after {progress.batches} of its batches")

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        fraction = (epoch - 1 + done / total) / self._epochs
        detail = f"epoch {epoch}/{self._epochs}, loss {loss:.3f}{self._dev}"
        fraction = min(fraction, 0.999999)  # what evaluates the last epoch is left
        self._progress("training", fraction, detail, self._epochs * total, "batches")

    def epoch(self, result: EpochResult) -> None:
        from memsim.cli.progress import say

        self._dev = f", dev WER {result.dev_wer:.2%}"
        if not self._quiet:
            done = result.epoch / self._epochs
            left = (time.monotonic() - self._started) * (1 - done) / (done - self._done_before) / 60
            short = f", {counted(result.too_short, 'utterance')} too short for their text" if result.too_short else ""
            extra = f" + {result.extra_loss:.3f}" if result.extra_loss else ""
            say(
                f"epoch {result.epoch}/{self._epochs}: loss {result.train_loss:.3f}{extra}, "
                f"dev WER {result.dev_wer:.2%}, CER {result.dev_cer:.2%}{' (best)' if result.is_best else ''}{short}, "
                f"about {left:.0f} min left"
            )
