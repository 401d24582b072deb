"""The modules that a method adapts, and those that train as a whole, by PEFT's rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ftengine import api
from ftengine.errors import NoMatch
from ftengine.model import find_modules, matches_name
from ftengine_peft.options import ALL_LINEAR

HEADS = ("classifier", "score")
"""Modules that PEFT trains and saves whole where a model classifies sequences or tokens."""

TASK_TYPES = {
    "causal-lm": "CAUSAL_LM",
    "feature-extraction": "FEATURE_EXTRACTION",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}
"""PEFT's task types, by what the model has on top."""


def heads_of(loaded: api.LoadedModel) -> tuple[str, ...]:
    """Return the names of heads that PEFT treats as new for such a model."""
    return HEADS if TASK_TYPES.get(loaded.head) in ("SEQ_CLS", "TOKEN_CLS") else ()


def whole_modules(loaded: api.LoadedModel) -> list[str]:
    """Return the paths of modules that train and are saved whole: new ones, and heads of classifiers."""
    heads = heads_of(loaded)
    paths = [p for p, _ in loaded.module.named_modules() if p in loaded.new_modules or matches_name(p, heads)]
    return [path for path in paths if not _inside(path.rpartition(".")[0], paths)]


def modules_to_save(loaded: api.LoadedModel, whole: Iterable[str]) -> list[str] | None:
    """Return PEFT's `modules_to_save`: its own names for heads, and the paths of other modules."""
    heads = heads_of(loaded)
    return [*heads, *(path for path in whole if not matches_name(path, heads))] or None


def chosen(targets: Any, loaded: api.LoadedModel, whole: Collection[str]) -> Any:
    """Return PEFT's `target_modules` from the recipe's option, with all-linear as a set of paths.

    Raises:
        NoMatch: a pattern matches no module, or one that trains whole.
    """
    module: Any = loaded.module
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        paths = {
            path
            for path, part in module.named_modules()
            if isinstance(part, (nn.Linear, Conv1D)) and part is not head and not _inside(path, whole)
        }
        if not paths:
            raise NoMatch(f"strategy.target_modules: {type(module).__name__} has no linear layer; name others.")
        return paths
    for taken in find_modules(module, targets or [], "strategy.target_modules").values():
        if all(_inside(path, whole) for path in taken):
            raise NoMatch(f"strategy.target_modules: {taken[0]!r} trains whole, as part of the head. Leave it out.")
    return targets


def require_outside(adapted: Iterable[str], whole: Collection[str]) -> None:
    """Refuse modules that would be adapted and also train as a whole (NoMatch)."""
    for path in adapted:
        if _inside(path, whole):
            raise NoMatch(
                f"strategy.target_modules takes {path!r}, which trains whole, as part of the head. "
                "Write names or paths that leave it out."
            )


def _inside(path: str, whole: Iterable[str]) -> bool:
    return any(path == parent or path.startswith(f"{parent}.") for parent in whole)
