"""Recognition of a Hugging Face folder as a speech recogniser, and the metadata with which a checkpoint can be run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from memsim.asr.hugging_face.files import (
    CONFIG,
    GENERATION,
    PREPROCESSOR,
    REMEDY,
    TOKENIZER,
    read_files,
)
from memsim.config.json_input import parse_json_object
from memsim.errors import InputError
from memsim.storage.checkpoint import FORMAT, Checkpoint
from memsim.storage.files import is_file

CTC, SEQ2SEQ = "hugging_face_ctc", "hugging_face_seq2seq"
"""The architectures of the two kinds of recognisers."""
SEQ2SEQ_FAMILIES = ("whisper", "moonshine", "speech_to_text")
"""The model types of the encoder-decoders that are run."""
LANGUAGE = "en"
"""The language that a multilingual Whisper writes where its files name none: that of the corpora with names."""


def with_recogniser_beside(checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` as that of a recogniser where the files beside it describe one; else as it is.

    Its `cannot_run` then says in one line what a recogniser lacks. Raises InputError for weights that were quantised
    for other hardware, and for networks that need code of the folder's own.
    """
    folder = checkpoint.path.parent
    if checkpoint.kind != "foreign" or not is_file(folder / CONFIG):
        return checkpoint
    try:
        text = read_files(folder, (CONFIG,))[CONFIG]
        config = parse_json_object(text, CONFIG)
    except InputError:
        return checkpoint  # any file may have that name
    if not isinstance(config.get("model_type"), str):
        return checkpoint
    if isinstance(config.get("quantization_config"), dict):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise InputError(
            f"{folder / CONFIG}: its weights were quantised ({method!s:.40}); take the checkpoint in 16 or 32 bits "
            "that it was made from"
        )
    name, architecture = _recogniser_of(config)
    if architecture is None:
        known = f"CTC networks (...ForCTC), {', '.join(SEQ2SEQ_FAMILIES)}"
        reason = f"{folder / CONFIG}: {name or config['model_type']} is no speech recogniser that can be run: {known}"
        return replace(checkpoint, cannot_run=reason)
    if "auto_map" in config:
        raise InputError(f"{folder / CONFIG}: needs code that comes with the folder (auto_map), which is never run")
    try:
        metadata = _metadata(folder, name, architecture, text, config)
    except InputError as error:
        return replace(checkpoint, cannot_run=str(error))
    return replace(checkpoint, metadata={**checkpoint.metadata, "format": FORMAT, "kind": "model", **metadata})


def _recogniser_of(config: dict[str, Any]) -> tuple[str, str | None]:
    """Return the network class that a config names and its kind of recogniser, None where it is of neither kind."""
    name = _class_of(config)
    if name.endswith("ForCTC"):
        return name, CTC
    # the endings of encoder-decoders are those of text models, too: the families that hear are known by name
    if config["model_type"] in SEQ2SEQ_FAMILIES and name.endswith("ForConditionalGeneration"):
        return name, SEQ2SEQ
    return name, None


def _class_of(config: dict[str, Any]) -> str:
    """Return the class of transformers that a config names; empty where it names none."""
    names = config.get("architectures")
    return f"{names[0]!s:.80}" if isinstance(names, list) and names else ""


def _metadata(folder: Path, name: str, architecture: str, text: str, config: dict[str, Any]) -> dict[str, str]:
    """Return the metadata of the recogniser in `folder`. Raises InputError where a file that it needs is missing."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise InputError(f"{folder}: to run {name}, transformers is needed; {REMEDY}")
    tokenizer = read_files(folder, TOKENIZER)
    if not {"tokenizer.json", "vocab.json"} & tokenizer.keys():
        raise InputError(f"{folder}: has no tokenizer (tokenizer.json or vocab.json), so its outputs cannot be read")
    preprocessor = _preprocessor_in(folder)
    generation = read_files(folder, (GENERATION,)).get(GENERATION)

    from memsim.asr.hugging_face.features import features_of
    from memsim.asr.hugging_face.network import HuggingFaceConfig
    from memsim.asr.hugging_face.tokens import HuggingFaceCTCTokens, HuggingFaceTokens

    tokenizer = _with_language(tokenizer, generation)
    if "tokenizer_class" not in parse_json_object(tokenizer.get(TOKENIZER[1], "{}"), TOKENIZER[1]):
        # older folders leave it to the config which tokenizer it is
        kept = ("model_type", "tokenizer_class", "architectures")
        tokenizer[CONFIG] = json.dumps({key: config[key] for key in kept if key in config})
    tokens = (HuggingFaceCTCTokens if architecture == CTC else HuggingFaceTokens)(tokenizer)
    described = HuggingFaceConfig(
        features=features_of(preprocessor, text),
        tokens=len(tokens),
        network=name,
        config=text,
        generation=generation,
    )
    return {
        "architecture": architecture,
        "architecture_config": described.model_dump_json(),
        "tokens": tokens.to_json(),
        "text_style": "whisper" if tokens.writes_case else "kaldi",
    }


def _preprocessor_in(folder: Path) -> str:
    """Return the text of a feature extractor's settings, from a file of their own or that of the whole processor.

    Raises InputError where neither file has them.
    """
    own, whole = PREPROCESSOR
    found = read_files(folder, PREPROCESSOR)
    settings = parse_json_object(found.get(whole, "{}"), whole).get("feature_extractor")
    if isinstance(settings, dict):
        return json.dumps(settings)
    if own not in found:
        raise InputError(f"{folder}: has no {own}, which says what its network hears")
    return found[own]


def _with_language(tokenizer: dict[str, str], generation: str | None) -> dict[str, str]:
    """Return the files of a tokenizer, where that of a multilingual Whisper puts a language before any text.

    The language is that of the tokenizer, else of the generation config, else LANGUAGE; none is detected, so that a
    loss and a training know it, too.
    """
    options = json.loads(generation or "{}")
    settings = json.loads(tokenizer.get(TOKENIZER[1], "{}"))
    if not options.get("lang_to_id") or settings.get("language"):
        return tokenizer
    language = str(options.get("language") or LANGUAGE).strip("<|>")
    settings |= {"language": language, "task": str(options.get("task") or "transcribe")}
    return {**tokenizer, TOKENIZER[1]: json.dumps(settings)}


def is_in_a_folder(checkpoint: Checkpoint) -> bool:
    """Return whether `checkpoint` is a recogniser by the files beside it, and was not written by memsim."""
    return checkpoint.metadata.get("architecture") in (CTC, SEQ2SEQ) and "memsim_version" not in checkpoint.metadata


def weights_in(folder: Path) -> Path:
    """Return the weights in a folder: `model.safetensors`, or the index of several files.

    Raises InputError that says what to do where there are none, or only pickles.
    """
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if is_file(folder / name):
            return folder / name
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickles:
        convert = f"transformers.{_class_named_in(folder)}.from_pretrained({str(folder)!r})"
        raise InputError(
            f"{folder}: its weights are a pickle ({pickles[0]}), which can run code and is refused; convert it: "
            f"{convert}.save_pretrained({str(folder)!r}) writes model.safetensors beside it"
        )
    raise InputError(f"{folder}: a folder without model.safetensors; name a .safetensors file")


def _class_named_in(folder: Path) -> str:
    """Return the class of transformers that the config in a folder names, AutoModel without one."""
    try:
        config = parse_json_object(read_files(folder, (CONFIG,)).get(CONFIG, "{}"), CONFIG)
    except InputError:
        return "AutoModel"
    return _class_of(config) or "AutoModel"
