"""lm-evaluation-harness on the base and the tuned model: callback `lm-eval`, command `ftengine lm-eval`, and a rule."""

from __future__ import annotations

from ftengine import api, hookimpl
from ftengine_lm_eval.callback import LmEval
from ftengine_lm_eval.rule import Benchmarks

__all__ = ["Benchmarks", "LmEval", "ftengine_callbacks", "ftengine_rules"]


@hookimpl
def ftengine_callbacks() -> list[type[api.Callback]]:
    return [LmEval]


@hookimpl
def ftengine_rules() -> list[type[api.Rule]]:
    return [Benchmarks]
