"""Networks that --architecture names: a registered name, a bundle of torchaudio, or a factory in the user's code.

The code of a factory is loaded only when the user names it, never because a checkpoint does.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memsim.asr.architectures import ARCHITECTURES, Architecture, find_architecture
from memsim.asr.audio_library import torchaudio
from memsim.asr.kinds import CTC
from memsim.asr.models.external_ctc import Factory, FactoryConfig, failure_in
from memsim.asr.models.frontend import RecogniserConfig
from memsim.asr.recogniser import metadata_of, skeleton, stored_config
from memsim.config.resources import find_config
from memsim.config.schema import Schema
from memsim.config.yaml_file import Config, read_config
from memsim.errors import InputError
from memsim.storage.checkpoint import FORMAT, Checkpoint

if TYPE_CHECKING:
    from torchaudio.pipelines import Wav2Vec2ASRBundle

BUNDLE_ARCHITECTURE = "wav2vec2_ctc"


def load_architecture(name: str, config_file: str | Path | None = None) -> tuple[str, RecogniserConfig]:
    """Return the architecture and its config that --architecture and --architecture-config mean together.

    For a bundle, the keys of the file replace the bundle's own. A factory is imported, also from the current folder,
    and registered under its name.

    Raises InputError that lists every problem.
    """
    given = Config.from_mapping({}, f"--architecture {name}")
    if config_file is not None:
        given = read_config(find_config("models", config_file))
        if (stated := given.data.pop("architecture", name)) != name:
            raise InputError(f"{given.mark(('architecture',))}: is {stated}, but --architecture is {name}")
    if ":" in name:
        register_factory(name)
    elif (bundle := bundles().get(name)) is not None:
        schema = Schema(ARCHITECTURES[BUNDLE_ARCHITECTURE].config)
        return BUNDLE_ARCHITECTURE, schema.validate(schema.merge(bundle_config(name, bundle), given))
    try:
        architecture = find_architecture(name)
    except InputError as error:
        remedy = "or name a CTC bundle of torchaudio.pipelines, or MODULE:FACTORY in code of your own"
        raise InputError(f"--architecture {name}: {error}; {remedy}") from None
    return name, Schema(architecture.config).validate(given)


def register_factory(name: str) -> None:
    """Import `package.module:factory` and register it as an architecture. Raises InputError when that fails."""
    module_name, _, attribute = name.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's code may raise anything
        why = error if isinstance(error, ImportError | ValueError) else failure_in(error)
        raise InputError(f"--architecture {name}: {module_name} cannot be imported ({why})") from error
    if not hasattr(module, attribute):
        raise InputError(f"--architecture {name}: {module_name} has no {attribute or 'name after the colon'}")
    function = getattr(module, attribute)
    if not callable(function):
        raise InputError(f"--architecture {name}: is a {type(function).__name__}, not a function that makes a network")
    ARCHITECTURES[name] = Architecture(FactoryConfig, Factory(name, function), CTC())


def bundles() -> dict[str, Wav2Vec2ASRBundle]:
    """Return torchaudio's wav2vec 2.0 and HuBERT recognisers by name; bundles that only align are left out."""
    kind = torchaudio.pipelines.Wav2Vec2ASRBundle
    found = {name: getattr(torchaudio.pipelines, name) for name in dir(torchaudio.pipelines)}
    return {name: bundle for name, bundle in found.items() if type(bundle) is kind}  # no derived class


def bundle_config(name: str, bundle: Wav2Vec2ASRBundle) -> Config:
    """Return the config of a bundle: its shape, and its labels in lower case, as transcripts are.

    Nothing is downloaded: the user names the file with its weights.
    """
    characters = "".join(" " if label == "|" else label.lower() for label in bundle.get_labels()[1:])
    parameters = {key: value for key, value in bundle._params.items() if key != "aux_num_out"}
    shape = {
        "features": {"kind": "waveform", "sample_rate_hz": int(bundle.sample_rate)},
        "characters": characters,
        "normalise_waveform": bundle._normalize_waveform,
        "parameters": parameters,
    }
    return Config.from_mapping(shape, f"torchaudio.pipelines.{name}")


def with_architecture(checkpoint: Checkpoint, name: str | None, config_file: str | Path | None = None) -> Checkpoint:
    """Return `checkpoint` with the metadata of the architecture that the user names; unchanged where none is named.

    A file whose metadata describe a network keeps its config and tokens, and the user may name only the same ones.

    Raises InputError where they differ, and where nothing gives the tokens of the outputs.
    """
    if name is None:
        if config_file is not None:
            raise InputError("--architecture-config: is the config of an --architecture; name that, too")
        return checkpoint
    if checkpoint.kind == "device":
        raise InputError(f"{checkpoint.path}: a device model, which has no --architecture")
    architecture, config = load_architecture(name, config_file)
    if (stored := checkpoint.metadata.get("architecture")) is not None:
        if stored != architecture:
            raise InputError(f"{checkpoint.path}: is a {stored}, not a {architecture} as --architecture says")
        if config_file is not None and (key := _difference(stored_config(checkpoint), config)):
            raise InputError(f"{checkpoint.path}: its {key} is not that of --architecture-config; leave it out")
        return checkpoint
    tokens = config.own_tokens
    if tokens is None:
        raise InputError(
            f"{checkpoint.path}: the meaning of the outputs is unknown; give `characters` in --architecture-config; "
            "networks other than recognisers run in Python: memsim.evaluate(model, batches, score=...)"
        )
    config = config.model_copy(update={"tokens": len(tokens)})
    metadata = metadata_of(architecture, config, tokens, "kaldi")
    kind = "mapped" if checkpoint.kind == "mapped" else "model"
    named = replace(checkpoint, metadata={**checkpoint.metadata, "format": FORMAT, "kind": kind, **metadata})
    if checkpoint.wrappers and set(checkpoint.stored.values()) & skeleton(named).model.state_dict().keys():
        return named.with_prefixes()
    return named


def _difference(one: RecogniserConfig, other: RecogniserConfig) -> str | None:
    """Return the first key other than `tokens` in which two configs differ; None without one."""
    first, second = one.model_dump(), other.model_dump()
    return next((key for key in first if key != "tokens" and first[key] != second.get(key)), None)
