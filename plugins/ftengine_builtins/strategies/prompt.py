"""Prompt tuning: vectors before the token embeddings are all that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from ftengine.api import LoadedModel
from ftengine.model import copy_into
from ftengine_builtins.strategies import peft_format
from ftengine_builtins.strategies.adapter_config import require_same
from ftengine_builtins.strategies.prompt_stack import Prompted, PromptedMemory, become, is_encoder_decoder
from ftengine_builtins.strategies.virtual_tokens import (
    EMBEDDINGS,
    VirtualTokenOptions,
    VirtualTokensFile,
    VirtualTokenStrategy,
    starting_vectors,
)


class PromptFile(VirtualTokensFile):
    """What an adapter_config.json says of prompt tuning."""

    peft_type = "PROMPT_TUNING"


class PromptOptions(VirtualTokenOptions):
    """Options of prompt tuning."""

    File = PromptFile

    init: Literal["vocabulary", "text", "random"] = Field(
        "vocabulary",
        description="what virtual tokens start as: tokens drawn from the vocabulary, a text, or normal random "
        "vectors of the embeddings' scale",
    )
    lr_ratio: float = Field(
        50.0, gt=0, allow_inf_nan=False, description="learning rate of virtual tokens over train.learning_rate"
    )


class Prompt(VirtualTokenStrategy):
    """Virtual tokens before every input, of a frozen model (prompt tuning, Lester et al. 2021, arXiv:2104.08691).

    They go before the encoder's input where a model has an encoder and a decoder. Unlike a LoRA, a prompt changes
    the outputs before the first step.
    """

    name = "prompt"
    Config = PromptOptions
    citation = "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv:2104.08691"

    def stack(self, loaded: LoadedModel) -> Any:
        within = super().stack(loaded)
        return loaded.module if _pools_all_positions(loaded) else within

    def enter(self, loaded: LoadedModel, stack: Any) -> None:
        config, embedding = self.config, stack.get_input_embeddings()
        vectors = starting_vectors(loaded, embedding, config.init, config.text, config.virtual_tokens)
        stack.prompt_embeddings = nn.Parameter(vectors)
        both = is_encoder_decoder(loaded.module)
        stack.keeps_prompt = both or _pools_all_positions(loaded)
        become(stack, Prompted)
        if both:
            decoder = loaded.module.get_decoder()
            decoder.virtual_tokens = config.virtual_tokens
            become(decoder, PromptedMemory)

    def save(self, loaded: LoadedModel, directory: Path) -> None:
        """Write a PEFT prompt: adapter_config.json and adapter_model.safetensors."""
        vectors = self.prepared(loaded).prompt_embeddings
        # Not how training began: PEFT would look for that tokenizer, to make vectors that these then replace.
        start = {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None, "tokenizer_name_or_path": None}
        model: Any = loaded.module.config
        model = model.get_text_config()
        config = PromptFile(
            virtual_tokens=len(vectors),
            token_dim=vectors.shape[1],
            num_layers=model.num_hidden_layers,
            num_attention_heads=model.num_attention_heads,
        )
        self.write(loaded, directory, config, vectors, **start)

    def load(self, loaded: LoadedModel, directory: Path) -> None:
        """Read a PEFT prompt, trained here or by PEFT, into a prepared model.

        Raises:
            RunError: the folder is no prompt that can be read.
            BaseMismatch: number or width of the virtual tokens differ, or keys are missing or unexpected.
        """
        vectors, config = self.prepared(loaded).prompt_embeddings, PromptFile.read(directory)
        require_same(self.config, config, ["virtual_tokens"], directory)
        tensors = peft_format.read_weights(directory)
        if config.num_transformer_submodules == 2 and is_encoder_decoder(loaded.module) and EMBEDDINGS in tensors:
            # PEFT makes a second half for the decoder, and never uses it.
            tensors[EMBEDDINGS] = tensors[EMBEDDINGS][: len(vectors)]
        copy_into(self.tensors(loaded, vectors), tensors, str(directory))


def _pools_all_positions(loaded: LoadedModel) -> bool:
    """Say whether a classifier's pooling is to see the prompt as well, as in PEFT: those on encoders.

    They read the first position, or a mean by the attention mask. Those on decoders look for the last token by its
    place among the input_ids.
    """
    classifies = loaded.head == "sequence-classification" and not is_encoder_decoder(loaded.module)
    return classifies and type(loaded.module.config) in MODEL_FOR_MASKED_LM_MAPPING
