"""The networks of Hugging Face recognisers: built by transformers from a folder's config, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from memsim.asr.features import Features
from memsim.asr.hugging_face.files import GENERATION, as_folder, quiet, require_transformers
from memsim.asr.models.frontend import RecogniserConfig
from memsim.config.json_input import parse_json_object
from memsim.errors import InputError


class HuggingFaceConfig(RecogniserConfig):
    """The texts of a folder's files, and the class of transformers that its config names."""

    features: Features
    network: str
    """The name of the class, such as WhisperForConditionalGeneration."""
    config: str
    """The text of `config.json`."""
    generation: str | None = None
    """The text of `generation_config.json`; None without one."""


def class_named(config: Mapping[str, Any], name: str) -> type[Any]:
    """Return transformers' network class `name`. Raises ValueError where there is none, or it would download."""
    transformers = require_transformers("networks of Hugging Face")
    if any(part.get("use_pretrained_backbone") for part in (config, *config.values()) if isinstance(part, dict)):
        raise ValueError("it would download its backbone")
    if "auto_map" in config:
        raise ValueError("it needs code that comes with the folder, which is not run")
    kind = getattr(transformers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise ValueError("transformers has no such network")
    return kind


def made_config(config: Mapping[str, Any]) -> Any:
    """Return transformers' config of a folder. Raises ValueError for a model type that it does not know."""
    transformers = require_transformers("networks of Hugging Face")
    try:
        kind = transformers.CONFIG_MAPPING[config["model_type"]]
    except KeyError:
        raise ValueError(
            f"transformers {transformers.__version__} knows no model type {config['model_type']}"
        ) from None
    made = kind.from_dict(dict(config))
    made.dtype = torch.float32
    return made


def hugging_face_network(config: HuggingFaceConfig) -> nn.Module:
    """Build the network without the values of parameters, which are on the meta device; its buffers have values.

    Raises InputError where transformers cannot build it.
    """
    from transformers.initialization import no_init_weights

    from memsim.asr.hugging_face.attention import call_layers

    data = parse_json_object(config.config, "config.json")
    try:
        with quiet(), torch.device("cpu"), no_init_weights():  # buffers such as rotary angles are computed here
            made = made_config(data)
            network: Any = class_named(data, config.network)(made)
            network.tie_weights()
            call_layers(network)
            if config.generation is not None and hasattr(network, "generation_config"):
                with as_folder({GENERATION: config.generation}) as folder:
                    network.generation_config = require_transformers("generation").GenerationConfig.from_pretrained(
                        folder, local_files_only=True
                    )
    except InputError:
        raise
    except Exception as error:  # transformers may raise anything for a config
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{config.network} cannot be built ({reason:.150})") from None
    _forget_values(network)
    built: nn.Module = network.train(False)
    return built


def _forget_values(network: nn.Module) -> None:
    """Move the parameters of `network` to the meta device; those that layers share stay shared."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in made:
                made[parameter] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = made[parameter]
