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

MULTILINGUAL_VOCABULARY = 51865
"""The least number of tokens of a multilingual Whisper; those for English alone have one token less."""

OTHERWISE = "name a .safetensors file"
OTHER_CONTENTS = {
    "adapter_config.json": "it holds an adapter (LoRA) of a network that is elsewhere; merge_and_unload() of the "
    "package peft puts it into the network's weights, and save_pretrained() of that network writes a whole folder",
    "snapshots/*/config.json": "it is the hub's cache of a model; name one of the folders in its snapshots/",
    "model.bin": "its model.bin is CTranslate2's (faster-whisper); take the folder that it was converted from",
    "*.safetensors": OTHERWISE,
    "*.onnx": "its weights are ONNX's; take the folder that they were exported from",
    "onnx/*.onnx": "its weights are ONNX's; take the folder that they were exported from",
    "weights.npz": "its weights are MLX's; take the folder that they were converted from",
    "*.msgpack": "its weights are Flax's; from_pretrained(..., from_flax=True) of transformers 4 reads them",
    "*.h5": "its weights are TensorFlow's; from_pretrained(..., from_tf=True) of transformers 4 reads them",
}
"""What to do with a folder that has no weights of its own, by a pattern of the files that it has instead."""


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
        reason = f"{folder / CONFIG}: {name or config['model_type']} is no speech recogniser that can be run: {known}; "
        reason += "memsim map takes it, and any network in Python: memsim.evaluate(model, batches, score=...)"
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


_COPY = "copy it from the model that the network was trained from (processor.save_pretrained(FOLDER) writes it)"
"""The remedy for a file that `model.save_pretrained` does not write."""


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
        raise InputError(
            f"{folder}: has no tokenizer (tokenizer.json or vocab.json), so its outputs cannot be read; {_COPY}"
        )
    preprocessor = _preprocessor_in(folder)
    generation = read_files(folder, (GENERATION,)).get(GENERATION)

    from memsim.asr.hugging_face.features import features_of
    from memsim.asr.hugging_face.network import HuggingFaceConfig
    from memsim.asr.hugging_face.tokens import HuggingFaceCTCTokens, HuggingFaceTokens

    if "tokenizer_class" not in parse_json_object(tokenizer.get(TOKENIZER[1], "{}"), TOKENIZER[1]):
        # older folders leave it to the config which tokenizer it is
        kept = ("model_type", "tokenizer_class", "architectures")
        tokenizer[CONFIG] = json.dumps({key: config[key] for key in kept if key in config})
    tokenizer = _with_language(tokenizer, generation, config)
    tokens: HuggingFaceTokens = HuggingFaceTokens(tokenizer)
    if architecture == CTC:
        tokens = HuggingFaceCTCTokens(tokenizer)
        if tokens.blank >= (outputs := config.get("vocab_size", tokens.blank + 1)):
            raise InputError(
                f"{folder}: its tokenizer's pad token, the blank of CTC, has the id {tokens.blank}, and its network "
                f"{outputs} outputs"
            )
        if config.get("pad_token_id") != tokens.blank:  # texts are read by the tokenizer, in transformers, too
            text = json.dumps(config | {"pad_token_id": tokens.blank})
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
        "text_style": "kaldi" if not tokens.writes_case else "whisper" if tokens.writes_english else "whisper-basic",
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
        raise InputError(f"{folder}: has no {own}, which says what its network hears; {_COPY}")
    return found[own]


def _with_language(tokenizer: dict[str, str], generation: str | None, config: dict[str, Any]) -> dict[str, str]:
    """Return the files of a tokenizer, where that of a multilingual Whisper puts a language before any text.

    The language is that of the tokenizer, else of the generation config, else of the tokens that older folders force at
    the beginning, else LANGUAGE; none is detected, so that a loss and a training know it, too.
    """
    options = json.loads(generation or "{}")
    settings = json.loads(tokenizer.get(TOKENIZER[1], "{}"))
    if config["model_type"] != "whisper" or settings.get("language"):
        return tokenizer
    language, task = options.get("language"), options.get("task")
    forced = [] if language or task else _forced_words(tokenizer, [options, config])
    if forced:
        language, task = forced
    elif not _is_multilingual(options, config):
        return tokenizer
    settings |= {"language": str(language or LANGUAGE).strip("<|>"), "task": str(task or "transcribe")}
    return {**tokenizer, TOKENIZER[1]: json.dumps(settings)}


def _forced_words(tokenizer: dict[str, str], settings: list[dict[str, Any]]) -> list[str]:
    """Return the language and the task of `forced_decoder_ids` in the first of `settings` that has them.

    The list is empty where they begin with no language: those of Whispers for English do not.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

    from memsim.asr.hugging_face.tokens import HuggingFaceTokens

    forced = next((found for one in settings if (found := one.get("forced_decoder_ids"))), None)
    try:
        ids = dict(forced or [])
        names = HuggingFaceTokens(tokenizer).tokenizer.convert_ids_to_tokens([ids[1], ids[2]])
    except (KeyError, TypeError, ValueError, OverflowError):  # another form, or no language
        return []
    language, task = (str(name).strip("<|>") for name in names)
    return [language, task if task in TASK_IDS else "transcribe"] if language in LANGUAGES else []


def _is_multilingual(generation: dict[str, Any], config: dict[str, Any]) -> bool:
    """Return whether a Whisper writes several languages; without a word of its files, as OpenAI's code tells it."""
    if "is_multilingual" in generation:
        return bool(generation["is_multilingual"])
    return bool(generation.get("lang_to_id")) or config.get("vocab_size", 0) >= MULTILINGUAL_VOCABULARY


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
    hint = next((hint for pattern, hint in OTHER_CONTENTS.items() if any(folder.glob(pattern))), OTHERWISE)
    raise InputError(f"{folder}: a folder without model.safetensors; {hint}")


def _class_named_in(folder: Path) -> str:
    """Return the class of transformers that the config in a folder names, AutoModel without one."""
    try:
        config = parse_json_object(read_files(folder, (CONFIG,)).get(CONFIG, "{}"), CONFIG)
    except InputError:
        return "AutoModel"
    return _class_of(config) or "AutoModel"
