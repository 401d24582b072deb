"""What rows of a batch begin with alike, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ftengine.api import Batch, FastPath, FastPathTraits, LoadedModel, TrainingContext
from ftengine.model.forest import forest_of, forests, keeps_to_forests
from ftengine_builtins.fast_paths.frozen_prefix import frozen_blocks

REQUIRES_GRADIENT = "make_inputs_require_grads"
"""The hook of transformers' that has embeddings require a gradient, for checkpointed layers."""


class SharedBeginnings(FastPath):
    """What rows of a batch begin with alike, such as a system prompt, computed once for all of them, by decoders.

    Nothing that pads a batch is computed either. With dropout, rows share the mask of what they share. A batch in which
    that saves less than a twelfth of its tokens is computed row by row, as are models whose lowest blocks are frozen
    and whose outputs `frozen-prefix` may keep.
    """

    name = "shared-beginnings"
    traits = FastPathTraits(supports_sharding=True, draws_randomness=True)

    _active = False

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        model: Any = loaded.module
        kept_already = context.repeats and frozen_blocks(model)
        layers = 0 if kept_already else keeps_to_forests(model)
        if not layers or _changes_embeddings(model):
            yield None
            return
        self._active = True
        try:
            with forests(model):
                yield {"attention layers": layers}
        finally:
            self._active = False

    def computed_tokens(self, batch: Batch) -> int | None:
        if not self._active:
            return None
        found = forest_of({name: batch[name] for name in ("input_ids", "attention_mask") if name in batch})
        return None if found is None else found[0].tokens


def _changes_embeddings(model: Any) -> bool:
    """Say whether something changes what tokens are looked up as, by their rows: noise of a regularizer."""
    table = model.get_input_embeddings()
    hooks = [*table._forward_hooks.values(), *table._forward_pre_hooks.values()]
    return any(getattr(hook, "__name__", "") != REQUIRES_GRADIENT for hook in hooks)
