"""Tasks of lm-evaluation-harness on base and tuned model: evaluator `lm-eval` and a rule."""

from __future__ import annotations

from ftengine import api, hookimpl
from ftengine_lm_eval.evaluator import LmEval
from ftengine_lm_eval.rule import Benchmarks

__all__ = ["Benchmarks", "LmEval", "ftengine_evaluators", "ftengine_rules"]


@hookimpl
def ftengine_evaluators() -> list[type[api.Evaluator]]:
    return [LmEval]


@hookimpl
def ftengine_rules() -> list[type[api.Rule]]:
    return [Benchmarks]
