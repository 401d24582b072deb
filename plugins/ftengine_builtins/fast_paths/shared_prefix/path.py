"""The fast path that computes common prefixes of a batch's rows once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ftengine.api import Batch, Decoder, FastPathTraits, InferencePath, LoadedModel, TrainingContext
from ftengine.model.packing import in_one_row
from ftengine_builtins.fast_paths.frozen_prefix import FrozenPrefix, frozen_blocks
from ftengine_builtins.fast_paths.shared_prefix.sharing import (
    WORTH,
    Calls,
    answering,
    prefix_tree_of,
    probe_result,
    restore_probe_result,
    sharing_prefixes,
    supports_answering,
    supports_prefix_sharing,
    worth_of,
)
from ftengine_builtins.strategies.routing import EVERY_TOKEN

if TYPE_CHECKING:
    from torch import nn

REQUIRES_GRADIENT = "make_inputs_require_grads"
"""The hook of transformers' that has embeddings require a gradient, for checkpointed layers."""


class SharedPrefix(InferencePath):
    """The shared beginning of a batch's rows, such as a system prompt, computed once for all of them, by decoders.

    Padding is not computed either. With dropout, rows share the mask of shared tokens. Without a compiled attention
    kernel, a batch is computed row by row if sharing saves less than a twelfth of its tokens. Models with frozen lowest
    blocks are left to `frozen-prefix`, if that path is allowed and can keep their outputs.
    """

    name = "shared-prefix"
    traits = FastPathTraits(supports_sharding=True, draws_randomness=True)

    _calls: Calls | None = None
    _packed = False

    @contextmanager
    def activate(self, loaded: LoadedModel, context: TrainingContext) -> Iterator[Mapping[str, int] | None]:
        model: Any = loaded.module
        may_keep = context.repeats and context.one_row and FrozenPrefix.name in context.paths
        kept_already = may_keep and frozen_blocks(model)
        layers = 0 if kept_already else supports_prefix_sharing(model)
        if not layers or _changes_embeddings(model) or model in EVERY_TOKEN:
            yield None
            return
        with sharing_prefixes(model) as calls:
            calls.packed, self._calls = self._packed, calls
            try:
                yield {"attention layers": layers}
            finally:
                self._calls, self._packed = None, calls.packed

    def computed_tokens(self, batch: Batch) -> int | None:
        if self._calls is None or _several_inputs(batch):
            return None
        given = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        packed = self._calls.packed and "attention_mask" in given  # by the task, which pads nothing then
        built = prefix_tree_of(in_one_row(given) if packed else given, self._worth(batch))
        if built is not None:
            return built[0].tokens
        return int(given["attention_mask"].sum()) if packed else None

    def order(self, batch: Batch) -> Sequence[int] | None:
        if self._calls is None or "attention_mask" not in batch or _several_inputs(batch):
            return None
        built = prefix_tree_of({name: batch[name] for name in ("input_ids", "attention_mask")}, self._worth(batch))
        if built is None or built[0].tokens > WORTH * int(batch["attention_mask"].sum()):
            return None  # little is shared: rows of like length stay together
        rows = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -1).cpu().numpy()
        return sorted(range(len(rows)), key=lambda i: rows[i].tobytes())

    def suits(self, model: nn.Module) -> bool:
        return supports_prefix_sharing(model) > 0

    def around_prediction(self, model: nn.Module, batch: Batch) -> AbstractContextManager[Any]:
        return nullcontext() if _predicted_tokens(model, batch) is None else sharing_prefixes(model)

    def predicted_tokens(self, model: nn.Module, batch: Batch) -> int | None:
        return None if _several_inputs(batch) else _predicted_tokens(model, batch)

    def decoder(self, model: nn.Module) -> AbstractContextManager[Decoder] | None:
        return answering(model) if supports_answering(model) else None

    def probe_result(self, model: nn.Module) -> list[Any] | None:
        return probe_result(model)

    def restore_probe_result(self, model: nn.Module, result: list[Any]) -> None:
        restore_probe_result(model, result)

    def _worth(self, batch: Batch) -> float:
        assert self._calls is not None
        return worth_of(self._calls.stack, batch["input_ids"].device)


def _predicted_tokens(model: Any, batch: Batch) -> int | None:
    """Return how many tokens of a batch's main input are computed over a prefix tree; None: computed by rows."""
    if not supports_prefix_sharing(model) or "input_ids" not in batch:
        return None
    given = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    built = prefix_tree_of(given, worth_of(model.get_decoder(), batch["input_ids"].device))
    return None if built is None else built[0].tokens


def _several_inputs(batch: Batch) -> bool:
    """Return whether a model is called several times for a batch, as for the two sides of a pair of texts."""
    return any(name != "input_ids" and name.endswith("input_ids") for name in batch)


def _changes_embeddings(model: Any) -> bool:
    """Return whether a regularizer adds noise to the embeddings, different for each row."""
    table = model.get_input_embeddings()
    hooks = [*table._forward_hooks.values(), *table._forward_pre_hooks.values()]
    return any(getattr(hook, "__name__", "") != REQUIRES_GRADIENT for hook in hooks)
