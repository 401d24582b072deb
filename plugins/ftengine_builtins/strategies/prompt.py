"""Prompt tuning: vectors before the token embeddings are all that trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ftengine.api import LoadedModel, StrategyTraits
from ftengine.model.token_loss import is_encoder_decoder
from ftengine_builtins.strategies.prompt_stack import Prompted, PromptedMemory, become
from ftengine_builtins.strategies.virtual_tokens import (
    Ratio,
    VirtualTokenOptions,
    VirtualTokensFile,
    VirtualTokenStrategy,
    starting_tokens,
)

SAMPLED_ROWS = 4096
"""Rows of the embedding table that its scale is measured on; all of a large one would be copied for little."""


class Prompt(VirtualTokenStrategy):
    """Virtual tokens before every input of a frozen model (prompt tuning, Lester et al. 2021, arXiv:2104.08691).

    In an encoder-decoder they precede the encoder's input. Unlike LoRA, a prompt changes the outputs before the first
    step.
    """

    name = "prompt"
    traits = StrategyTraits(supports_sharding=True, learning_rate=1e-2)
    paper = "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv:2104.08691"

    class Config(VirtualTokenOptions):
        class File(VirtualTokensFile):
            peft_type = "PROMPT_TUNING"

        lr_ratio: Ratio = 50.0

    def stack(self, loaded: LoadedModel) -> Any:
        within = super().stack(loaded)
        return loaded.module if _pools_all_positions(loaded) else within

    def enter(self, loaded: LoadedModel, stack: Any) -> None:
        stack.prompt_embeddings = nn.Parameter(self._start(loaded, stack.get_input_embeddings()))
        both = is_encoder_decoder(loaded.module)
        stack.keeps_prompt = both or _pools_all_positions(loaded)
        become(stack, Prompted)
        if both:
            decoder = loaded.module.get_decoder()
            decoder.virtual_tokens = self.config.virtual_tokens
            become(decoder, PromptedMemory)

    @torch.no_grad()
    def _start(self, loaded: LoadedModel, embedding: nn.Embedding) -> Tensor:
        """Return the initial vectors (virtual tokens, width) in float32, on the embedding's device."""
        rows, random = embedding.num_embeddings, self.config.init == "random"
        sample = torch.linspace(0, rows - 1, min(SAMPLED_ROWS, rows)).long()
        ids = sample if random else starting_tokens(loaded, embedding, self.config)
        vectors = embedding(ids.to(embedding.weight.device)).float()
        if not random:
            return vectors
        # Drawn on the CPU, so that a seed means the same on every device.
        return torch.randn(self.config.virtual_tokens, vectors.shape[1]).to(vectors.device) * vectors.std()

    def described(self, loaded: LoadedModel) -> tuple[VirtualTokensFile, Tensor, dict[str, Any]]:
        vectors = self.prepared(loaded).prompt_embeddings
        # Not how training began: PEFT would look for that tokenizer, to make vectors that these then replace.
        start = {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None, "tokenizer_name_or_path": None}
        model = loaded.module.config.get_text_config()
        file = self.config.File(
            virtual_tokens=len(vectors),
            token_dim=vectors.shape[1],
            num_layers=model.num_hidden_layers,
            num_attention_heads=model.num_attention_heads,
        )
        return file, vectors, start


def _pools_all_positions(loaded: LoadedModel) -> bool:
    """Return whether a classifier's pooling includes the prompt, as in PEFT: it does on encoders.

    Encoders read the first position, or a mean by the mask; decoders the last token's position in the input_ids.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING  # half a second of importing, which lists do without

    classifies = loaded.head == "sequence-classification" and not is_encoder_decoder(loaded.module)
    return classifies and type(loaded.module.config) in MODEL_FOR_MASKED_LM_MAPPING
