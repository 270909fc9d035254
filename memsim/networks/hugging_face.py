"""The network of a checkpoint that Hugging Face transformers wrote, built from the `config.json` beside the file.

Transformers builds it, where that is installed, without values. Nothing is downloaded, and no code but transformers'
own is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from memsim import rng
from memsim.asr.hugging_face.files import CONFIG, quiet
from memsim.asr.hugging_face.network import class_named, made_config
from memsim.config.json_input import parse_json_object
from memsim.errors import InputError
from memsim.networks.stored_network import StoredNetwork
from memsim.nn.batches import described, run_batch
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.nn.sample_run import SampleRun
from memsim.storage.checkpoint import Checkpoint
from memsim.storage.files import is_file

SAMPLE_TOKENS, SAMPLE_SECONDS, SAMPLE_RATE_HZ = 128, 10.0, 16000
"""The length of a made-up text in tokens, and of a made-up utterance, for a network that memsim has no data for."""


def network_beside(checkpoint: Checkpoint) -> tuple[StoredNetwork | None, str | None]:
    """Return the network that the config beside `checkpoint` describes, and a remark for users.

    The network is None where the file does not hold its matrices; both are None where there is no such config.
    """
    path = checkpoint.path.parent / CONFIG
    if checkpoint.kind != "foreign" or not is_file(path):
        return None, None
    try:
        config = parse_json_object(path.read_text(encoding="utf-8"), CONFIG)
    except (OSError, UnicodeDecodeError, InputError):
        return None, None
    names = config.get("architectures")
    if not isinstance(config.get("model_type"), str) or not isinstance(names, list) or not names:
        return None, None
    name = f"{names[0]!s:.60}"
    told = "layers are found by names and shapes"
    if find_spec("transformers") is None:
        return (
            None,
            f"{CONFIG} beside it names {name}; with transformers installed its layers are known; until then {told}",
        )
    try:
        with quiet():
            model = _built(config, name, len(checkpoint.names))
            network = _found_in(checkpoint, model)
    except Exception as error:  # transformers may raise anything for a config
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return None, f"{CONFIG} beside it names {name}, which cannot be built ({reason:.100}); {told}"
    if misfit := _misfit(network):
        return None, f"{CONFIG} beside it is that of {name}, which {misfit}; {told}"
    return network, f"network: {name}, by the {CONFIG} beside the file"


def sample_batch(model: Any) -> SampleRun | None:
    """Return a run of a network of transformers, of which `model` holds no values, on a batch made up for it.

    The network has random weights, with which it takes the same work. The batch is SAMPLE_TOKENS tokens, an image, or
    SAMPLE_SECONDS of audio. None where the network takes other inputs, or several.
    """
    try:
        batch = _made_up(model)
        with quiet():
            network = type(model)(model.config).eval()
            run_batch(network, batch)
    except Exception:  # transformers may raise anything for a network that it cannot run alone
        return None
    compute = partial(run_batch, network, batch)
    if "input_values" in batch:
        return SampleRun(network, compute, SAMPLE_SECONDS, "audio_second")
    return SampleRun(network, compute, 1.0, "example", described(batch))


def _made_up(model: Any) -> dict[str, Tensor]:
    """Return a batch with one example for `model`. Raises KeyError or AttributeError where it is not known how."""
    config, name, draws = model.config, model.main_input_name, rng.generator("cost")
    if name == "input_ids":
        length = min(SAMPLE_TOKENS, getattr(config, "max_position_embeddings", SAMPLE_TOKENS) - 2)  # some begin at 2
        return {name: torch.randint(2, config.vocab_size, (1, length), generator=draws)}
    if name == "pixel_values":
        height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
        return {name: torch.randn(1, config.num_channels, height, width, generator=draws)}
    if name == "input_values" and config.conv_stride:  # of a network that hears the samples themselves
        return {name: torch.randn(1, int(SAMPLE_SECONDS * SAMPLE_RATE_HZ), generator=draws)}
    raise KeyError(name)


def network_of_recogniser(checkpoint: Checkpoint, model: nn.Module) -> StoredNetwork:
    """Return the network `model` of a folder's recogniser, with the tensors of the file.

    Raises InputError where the file lacks one of its matrices, or has one of another shape.
    """
    with quiet():
        network = _found_in(checkpoint, model)
    if misfit := _misfit(network):
        raise InputError(f"{checkpoint.path}: does not hold the network of its {CONFIG}, which {misfit}")
    return network


def _built(config: Mapping[str, Any], name: str, tensors: int) -> nn.Module:
    """Build the network without values.

    Raises ValueError where transformers has no such network, and where the config describes one that is much larger
    than a file of so many `tensors` can hold.
    """
    numbers = [value for part in (config, *config.values()) if isinstance(part, dict) for value in part.items()]
    if any(key.endswith(("layers", "experts")) and isinstance(n, int) and n > max(1000, tensors) for key, n in numbers):
        raise ValueError(f"it has more layers than the file has tensors, {tensors}")
    kind, made = class_named(config, name), made_config(config)
    with torch.device("meta"):
        model = kind(made)
    model.tie_weights()
    network: nn.Module = model.train(False)
    return network


def _found_in(checkpoint: Checkpoint, model: Any) -> StoredNetwork:
    """Return `model` with the tensors of the file that transformers would rename and convert to load it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    expected = model.state_dict()
    renamed: dict[str, str] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(checkpoint.names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, expected)
        if pattern is not None:
            groups.setdefault(target, []).append((pattern, name))
        elif target != name:
            renamed[target] = name

    def convert(target: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        pattern = groups[target][0][0]
        transform = next(converter for converter in converters if pattern in converter.source_patterns)
        for (pattern, name), tensor in zip(groups[target], tensors, strict=True):
            transform.add_tensor(target, name, pattern, tensor)
        found: dict[str, Tensor] = transform.convert(target, model=model, config=model.config)
        return {name: part[0] if isinstance(part, list) else part for name, part in found.items()}

    converted: dict[str, tuple[str, ...]] = {}
    origins: dict[str, str] = {}
    for target, members in groups.items():
        shapes = [torch.empty(checkpoint.shapes[name], device="meta") for _, name in members]
        for made in convert(target, shapes):
            converted[made] = tuple(name for _, name in members)
            origins[made] = target
    return StoredNetwork(
        checkpoint, model, renamed, converted, lambda name, tensors: convert(origins[name], tensors)[name]
    )


def _misfit(network: StoredNetwork) -> str | None:
    """Return how the file differs from the network in its first differing matrix; None where it has them all."""
    shapes = network.checkpoint.shapes
    expected = {name: tuple(tensor.shape) for name, tensor in network.model.state_dict().items()}
    for name, source in matrix_sources(mappable_layers(network.model)).items():
        parts = network.parts(source.tensor)
        if not parts:
            return f"has {name}, and the file lacks it"
        found = shapes[parts[0]] if source.tensor not in network.converted else None
        wanted = expected.get(source.tensor)
        if found is not None and wanted not in (None, found):
            return f"has {name} of {list(wanted)}, but the file of {list(found)}"
    return None
