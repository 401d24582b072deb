"""NEFTune: noise on the embeddings of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ftengine import api
from ftengine.api import Batch, LoadedModel, Regularizer, RegularizerTraits, Task
from ftengine.errors import RecipeError
from ftengine_builtins.regularizers.randomness import NOISY
from ftengine_builtins.strategies.targets import input_embeddings


class Neftune(Regularizer):
    """Add uniform noise to the embeddings of the input while training (NEFTune, Jain et al. 2023).

    Each number of an embedded input of L tokens and width d gets alpha / √(L d) times a number between -1 and 1
    (arXiv:2310.05914, algorithm 1). L counts an example's real tokens, without padding. Of an encoder-decoder the
    encoder's input gets it; virtual tokens of prompt tuning get none.
    """

    name = "neftune"
    traits = RegularizerTraits(supports_sharding=True)
    paper = "Jain et al. 2023, NEFTune: Noisy Embeddings Improve Instruction Finetuning, arXiv:2310.05914"

    class Config(api.Config):
        alpha: float = Field(5.0, gt=0, description="size of the noise; the paper tries 5, 10 and 15")

    _handles: Sequence[RemovableHandle] = ()
    _tables: Sequence[nn.Module] = ()
    _ids: Tensor | None = None
    _mask: Tensor | None = None
    _added = False

    def attach(self, loaded: LoadedModel, task: Task) -> None:
        module: Any = loaded.module
        table = input_embeddings(module)
        if not isinstance(table, nn.Embedding):
            raise RecipeError(
                f"regularizer neftune adds noise to token embeddings, but {type(module).__name__} has none. Use "
                "augmenters for images."
            )
        # An encoder may have its own embedding module with shared weights.
        self._tables = [m for m in module.modules() if isinstance(m, nn.Embedding) and m.weight is table.weight]
        self._handles = [
            module.register_forward_pre_hook(self._see, with_kwargs=True),
            module.register_forward_hook(self._forget, always_call=True),
            *(t.register_forward_hook(self._add) for t in self._tables),
        ]
        NOISY.update(self._tables)

    def penalty(self, model: nn.Module, batch: Batch, loss: Tensor) -> None:
        if not self._added:
            raise RecipeError(
                f"regularizer neftune cannot add noise: {type(model).__name__} does not look up its input_ids "
                "unchanged in its token embeddings. Remove it from the recipe."
            )

    def detach(self, loaded: LoadedModel) -> None:
        for handle in self._handles:
            handle.remove()
        NOISY.difference_update(self._tables)
        self._handles = self._tables = ()

    def _see(self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if model.training:
            self._ids = inputs.get("input_ids", args[0] if args else None)
            self._mask = inputs.get("attention_mask")

    def _forget(self, *_: Any) -> None:
        self._ids = self._mask = None

    def _add(self, table: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        """Add noise to (examples, tokens, width) embeddings of the model's own input; a decoder's gets none."""
        ids = args[0]
        if self._ids is None or ids.shape != self._ids.shape or ids.data_ptr() != self._ids.data_ptr():
            return None
        self._added = True
        examples, tokens, width = embedded.shape
        if self._mask is None:
            lengths = torch.full((examples,), tokens, device=embedded.device)
        else:
            lengths = self._mask.reshape(examples, -1).sum(dim=1).clamp(min=1)
        size = self.config.alpha / torch.sqrt(lengths.float() * width)
        noise = torch.empty(embedded.shape, device=embedded.device).uniform_(-1, 1)
        return embedded + (noise * size[:, None, None]).to(embedded.dtype)
