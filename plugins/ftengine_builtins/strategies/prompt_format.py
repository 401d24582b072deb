"""PEFT's files for prompt tuning and prefix tuning: one tensor `prompt_embeddings`, and modules trained whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import Tensor

from ftengine.api import LoadedModel
from ftengine.model import copy_into
from ftengine_builtins.strategies import peft_format
from ftengine_builtins.strategies.peft_format import AdapterConfig

EMBEDDINGS = "prompt_embeddings"
PREFIX = "base_model."
"""Before a module's path in the keys of modules trained whole; PEFT's adapters of layers have one step more."""

Count = Annotated[int, Field(ge=1)]


class VirtualTokensFile(AdapterConfig):
    """What an adapter_config.json says of virtual tokens; subclasses say of which method.

    Args:
        virtual_tokens: how many there are.
        token_dim: width of a virtual token; of a prefix, of one layer's keys.
        num_layers, num_attention_heads: of the model; of a prefix, the heads of its keys.
        num_transformer_submodules: 1; PEFT's prompts for encoder-decoders may have 2, of which it uses the first.
    """

    advice = "Use that adapter with PEFT."
    # `prompt_embeddings` holds what training made of the initialisation, and what a prefix's projection came to.
    without_effect = AdapterConfig.without_effect | {
        *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
        *("encoder_hidden_size", "prefix_projection", "init_weights"),
    }

    virtual_tokens: Count = Field(alias="num_virtual_tokens")
    token_dim: Count
    num_layers: Count
    num_attention_heads: Count
    num_transformer_submodules: Count

    @model_validator(mode="before")
    @classmethod
    def _submodules(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Fill in PEFT's default, as it does when it prepares a model."""
        return {"num_transformer_submodules": 2 if content.get("task_type") == "SEQ_2_SEQ_LM" else 1, **content}


def write(loaded: LoadedModel, directory: Path, config: VirtualTokensFile, embeddings: Tensor, **others: Any) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        loaded: the model, for its task, its source and the modules that train whole.
        directory: where to.
        config: what was trained.
        embeddings: the virtual tokens as PEFT stores them.
        others: what else PEFT asks of such a config.

    Raises:
        RunError: a file cannot be written.
    """
    config = config.model_copy(update={"modules_to_save": peft_format.modules_to_save(loaded)})
    config.write(directory, loaded, **others)
    peft_format.write_weights(directory, {EMBEDDINGS: embeddings, **peft_format.whole_tensors(loaded, PREFIX)})


def fill(loaded: LoadedModel, embeddings: Tensor, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy a folder's tensors, by PEFT's keys, into a prepared model, all or none; `embeddings` are the virtual tokens.

    Raises:
        BaseMismatch: keys are missing or unexpected, or a shape differs.
    """
    copy_into({EMBEDDINGS: embeddings, **peft_format.whole_tensors(loaded, PREFIX)}, tensors, origin)
