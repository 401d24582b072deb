"""PEFT's files for prompt tuning and prefix tuning: one tensor `prompt_embeddings`, and modules trained whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ftengine.api import LoadedModel
from ftengine.errors import BaseMismatch, RunError
from ftengine.model import copy_into
from ftengine_builtins.strategies import peft_format
from ftengine_builtins.strategies.targets import whole_modules

EMBEDDINGS = "prompt_embeddings"
PREFIX = "base_model."
"""Before a module's path in the keys of modules trained whole; PEFT's adapters of layers have one step more."""


@dataclass(frozen=True)
class PromptConfig:
    """What an adapter_config.json says of virtual tokens; field names are PEFT's.

    Args:
        peft_type: "PROMPT_TUNING" or "PREFIX_TUNING".
        num_virtual_tokens: how many there are.
        token_dim: width of a virtual token; of a prefix, of one layer's keys.
        num_layers, num_attention_heads: of the model; of a prefix, the heads of its keys.
        num_transformer_submodules: 1; PEFT's prompts for encoder-decoders may have 2, of which it uses the first.
    """

    peft_type: str
    num_virtual_tokens: int
    token_dim: int
    num_layers: int
    num_attention_heads: int
    num_transformer_submodules: int = 1


# What prompt files say beside `PromptConfig` without a bearing on outputs: `prompt_embeddings` holds what training made
# of the initialisation, and what a prefix's projection came to.
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_hidden_size", "prefix_projection", "init_weights", "modules_to_save"),
}


def write(loaded: LoadedModel, directory: Path, config: PromptConfig, embeddings: Tensor) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        loaded: the model, for its task, its source and the modules that train whole.
        directory: where to.
        config: what was trained.
        embeddings: the virtual tokens as PEFT stores them.

    Raises:
        RunError: a file cannot be written.
    """
    content: dict[str, Any] = asdict(config)
    content["modules_to_save"] = list(peft_format.modules_to_save(loaded.module, whole_modules(loaded))) or None
    if config.peft_type == "PROMPT_TUNING":
        # Not how training began: PEFT would look for that tokenizer, to make vectors that these then replace.
        content |= {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None, "tokenizer_name_or_path": None}
    else:
        # A projection is multiplied out, so that whoever reads the file needs none.
        content |= {"prefix_projection": False, "encoder_hidden_size": config.token_dim}
    peft_format.write_json(directory, content, loaded)
    peft_format.write_weights(directory, {EMBEDDINGS: embeddings, **peft_format.whole_tensors(loaded, PREFIX)})


def read_config(directory: Path, peft_type: str) -> PromptConfig:
    """Read adapter_config.json.

    Raises:
        RunError: it is missing, of another type, or uses an option of PEFT that ftengine does not have.
    """
    content, file = peft_format.read_json(directory, peft_type)
    known = PromptConfig.__dataclass_fields__.keys()
    used = {key: value for key, value in content.items() if value and key not in known and key not in _WITHOUT_EFFECT}
    if used:
        shown = ", ".join(f"{key}={value!r}" for key, value in sorted(used.items()))
        raise RunError(f"{str(file)!r} uses what ftengine does not have: {shown}. Use that adapter with PEFT.")
    if content.get("num_transformer_submodules") is None:  # PEFT's default, filled in when it prepares a model
        content["num_transformer_submodules"] = 2 if content.get("task_type") == "SEQ_2_SEQ_LM" else 1
    numbers = {key: content.get(key) for key in known if key != "peft_type"}
    wrong = [f"{key}={value!r}" for key, value in numbers.items() if type(value) is not int or value < 1]
    if wrong:
        raise RunError(f"{str(file)!r} has no usable value for {', '.join(wrong)}; it must be as PEFT wrote it.")
    return PromptConfig(peft_type, **numbers)


def read(directory: Path, expected: PromptConfig) -> tuple[PromptConfig, dict[str, Tensor]]:
    """Read a folder that must fit a prepared model.

    Args:
        directory: the adapter's folder.
        expected: what the model is prepared for.

    Returns:
        The folder's config and its tensors by key.

    Raises:
        RunError: the folder is no adapter that can be read.
        BaseMismatch: its virtual tokens are of another number or shape.
    """
    config = read_config(directory, expected.peft_type)
    if config.num_virtual_tokens != expected.num_virtual_tokens:
        raise BaseMismatch(
            f"the adapter in {str(directory)!r} has {config.num_virtual_tokens} virtual tokens; this model is prepared "
            f"for {expected.num_virtual_tokens}. Set strategy.virtual_tokens={config.num_virtual_tokens}, or choose "
            "the adapter that belongs here."
        )
    return config, peft_format.read_weights(directory)


def fill(loaded: LoadedModel, embeddings: Tensor, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy a folder's tensors into a prepared model, all or none.

    Args:
        loaded: the model.
        embeddings: where `prompt_embeddings` goes.
        tensors: by PEFT's keys.
        origin: where they come from, for the message.

    Raises:
        BaseMismatch: keys are missing or unexpected, or a shape differs.
    """
    copy_into({EMBEDDINGS: embeddings, **peft_format.whole_tensors(loaded, PREFIX)}, tensors, origin)
