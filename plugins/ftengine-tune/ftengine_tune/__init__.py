"""Hyperparameter search by successive halving with paired tests: command `ftengine tune`, and `tune` from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftengine_tune.search import tune

__all__ = ["tune"]


def __getattr__(name: str) -> Any:
    if name != "tune":
        raise AttributeError(f"module 'ftengine_tune' has no attribute {name!r}")
    from ftengine_tune.search import tune

    return tune
