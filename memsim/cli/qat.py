"""`memsim qat`: training. For now in full precision (`--bits float`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memsim.cli import options
from memsim.errors import InputError

if TYPE_CHECKING:
    from memsim.asr.recogniser import Recogniser
    from memsim.train import EpochResult


def command(
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="DATA",
            help="tedlium2, librispeech or a manifest. Repeatable: all are trained on (named twice, it counts twice); "
            "the first corpus gives the dev set.",
            rich_help_panel=options.DATA_PANEL,
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="The best checkpoint (.safetensors).")],
    bits: Annotated[str, typer.Option("--bits", metavar="float", help="Weight bits; float is full precision.")],
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
        str, typer.Option("--config", metavar="NAME|FILE", help="Training recipe: a shipped name or a YAML file.")
    ] = "float",
    init: Annotated[
        str | None,
        typer.Option(
            "--init", metavar="CHECKPOINT", help="Start from this checkpoint's weights, tokens and text style."
        ),
    ] = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a recogniser on real speech.

    Writes OUT (the best by dev WER, with the input statistics that `map` calibrates from), OUT's *.last.safetensors
    and a CSV log beside it.
    """
    if bits != "float":
        raise InputError(
            f"--bits {bits}: quantization-aware training is not built yet; --bits float trains in full precision"
        )
    options.require_safetensors(out)
    if dev is None and options.has_one_split(data[0]):
        raise InputError(f"--data {data[0]}: has no dev split of its own; name a dev set with --dev DATA")
    for path in (out, out.with_name(f"{out.stem}.last.safetensors"), out.with_suffix(".csv"), json_file):
        options.require_new(path, force)
    import torch

    from memsim.asr.corpora import load_corpus
    from memsim.asr.recogniser import build, load_model_config, load_recogniser
    from memsim.asr.tokens import CharacterTokens
    from memsim.cli.data import open_checkpoint
    from memsim.cli.progress import say
    from memsim.rng import derive_seed
    from memsim.train import load_train_config, train

    recipe = load_train_config(config)
    architecture, model_config = load_model_config(recipe.model)
    corpora = {
        name: load_corpus(name, split="train", root=_root(name, data_root), text_style=text_style) for name in set(data)
    }
    dev_name = dev or data[0]
    dev_corpus = load_corpus(dev_name, split="dev", root=_root(dev_name, data_root), text_style=text_style)
    if init is None:
        tokens = CharacterTokens.from_texts(u.text for name in data for u in corpora[name].utterances)
        torch.manual_seed(derive_seed(seed, "init"))
        recogniser = build(architecture, model_config, tokens, text_style)
    else:
        recogniser = load_recogniser(open_checkpoint(init)[0])
        _require_same_model(init, recogniser, recipe.model, build(architecture, model_config, recogniser.tokens, ""))
    if not quiet:
        size = sum(parameter.numel() for parameter in recogniser.model.parameters())
        count = sum(len(corpora[name].utterances) for name in data)
        say(f"{recipe.model}: {size:,} parameters, {len(recogniser.tokens)} tokens; {count:,} utterances an epoch")
    watcher = _Watcher(recipe.epochs, quiet)
    with watcher:
        best = train(
            recogniser,
            recipe,
            [corpora[name] for name in data],
            dev_corpus,
            out,
            seed=seed,
            provenance={"recipe": recipe.model_dump_json(), "data": ", ".join(map(_without_place, data))},
            watcher=watcher,
        )
    if not quiet:
        say(f"best dev WER {best.wer:.2%}: wrote {out}")
    options.write_json(json_file, {"checkpoint": str(out), "dev": best.to_dict(), "seed": seed})


def _require_same_model(init: str, given: Recogniser, model: str, wanted: Recogniser) -> None:
    """Raise InputError unless the checkpoint holds the model that the recipe trains (dropout may differ)."""
    if (given.architecture, _shape(given)) != (wanted.architecture, _shape(wanted)):
        different = [key for key, value in _shape(wanted).items() if _shape(given).get(key) != value]
        raise InputError(f"--init {init}: is not a {model}: {', '.join(different) or 'architecture'} differ")


def _shape(recogniser: Recogniser) -> dict[str, object]:
    return recogniser.config.model_dump(exclude={"dropout"})


def _without_place(name: str) -> str:
    """A manifest by its folder and file name: where it lay is nobody's business."""
    return "/".join(Path(name).parts[-2:])


def _root(name: str, data_root: Path | None) -> Path | None:
    """--data-root is for the named corpora; manifests say themselves where their audio is."""
    return None if options.has_one_split(name) else data_root


class _Watcher:
    """Shows a training: a bar with the running loss, and a line an epoch."""

    def __init__(self, epochs: int, quiet: bool) -> None:
        from memsim.cli.progress import pass_progress

        self._epochs = epochs
        self._quiet = quiet
        self._context = pass_progress(quiet)
        self._started = time.monotonic()

    def __enter__(self) -> _Watcher:
        self._progress = self._context.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)  # type: ignore[arg-type]

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        self._progress("training", (epoch - 1 + done / total) / self._epochs * 0.999999)

    def epoch(self, result: EpochResult) -> None:
        from memsim.cli.progress import say

        if not self._quiet:
            left = (time.monotonic() - self._started) * (self._epochs / result.epoch - 1) / 60
            short = f", {result.too_short} utterances too short for their text" if result.too_short else ""
            say(
                f"epoch {result.epoch}/{self._epochs}: loss {result.train_loss:.3f}, dev WER {result.dev_wer:.2%}, "
                f"CER {result.dev_cer:.2%}{' (best)' if result.is_best else ''}{short}, about {left:.0f} min left"
            )
