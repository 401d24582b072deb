"""Shipped records of finished runs, for checks of rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftengine.run.evaluation_result import EvaluationResult
from ftengine.run.recipe import Recipe
from ftengine.run.records import AuditResult, Environment, RunRecords, TrainedPart, TrainingResult

STEPS = 100
METRIC = "right_answers"
LABELS = ("business", "politics", "sports")


def stored_runs() -> dict[str, RunRecords]:
    """Return the records of three runs by description: a sound one, an over-fitted one, and one without held-out data.

    The first two are of a classifier with a metric "right_answers" and its intervals; the third has neither validation
    nor figures.
    """
    sound = stored_run((0.62, 0.35, 0.24, 0.21, 0.205), base=0.65, tuned=0.93, on_training=0.95)
    fitted = stored_run((0.62, 0.35, 0.40, 0.55, 0.80), base=0.65, tuned=0.61, on_training=0.999)
    return {"a sound run": sound, "an over-fitted run": fitted, "a run without held-out data": _without_held_out()}


def stored_run(validation: tuple[float, ...], base: float, tuned: float, on_training: float) -> RunRecords:
    """Return the records of a run of 100 steps and 400 test examples.

    Args:
        validation: validation losses at equal intervals of steps.
        base, tuned: the models' shares of right answers on the test split.
        on_training: the tuned model's share of right answers on training rows.
    """
    every = STEPS // len(validation)
    lines: list[dict[str, Any]] = [
        {"step": i, "epoch": i // every, "loss": 1.1 * 0.96**i + 0.05, "learning_rate": 2e-4 * (1 - i / (STEPS + 1))}
        for i in range(1, STEPS + 1)
    ]
    lines += [
        {"step": every * i, "epoch": i, "validation_loss": loss, "training_loss": 1.1 * 0.96 ** (every * i) + 0.05}
        for i, loss in enumerate(validation, 1)
    ]
    best = min(range(len(validation)), key=validation.__getitem__)
    change = {"value": tuned - base, "low": tuned - base - 0.04, "high": tuned - base + 0.04, "p": 0.001}
    declared = {"label": "right answers", "higher_is_better": True, "proportion": True, "evaluator": "an-evaluator"}
    evaluation = {
        "split": "test",
        "metrics": {METRIC: declared},
        **_figures(400, base, tuned),
        "difference": {METRIC: {**change, "better": tuned > base}},
        "training": {"n": 200, **_figures(200, base, on_training)},
    }
    lines.sort(key=lambda line: line["step"])
    splits = {"train": 1600, "validation": 200, "test": 400}
    return _records(splits, lines, evaluation, every * (best + 1), min(validation))


def _without_held_out() -> RunRecords:
    lines = [{"step": i, "epoch": 0, "loss": 3.0 - 0.02 * i, "learning_rate": 2e-4} for i in range(1, STEPS + 1)]
    nothing: dict[str, Any] = {"split": None, "metrics": {}, "base": {}, "tuned": {}, "difference": {}}
    return _records({"train": 1600}, lines, nothing, None, None)


def _figures(n: int, base: float, tuned: float) -> dict[str, Any]:
    """Return a share of right answers among n, with its interval, before and after."""
    return {
        who: {METRIC: {"value": value, "low": value - 0.03, "high": min(value + 0.03, 1.0), "n": n}}
        for who, value in (("base", base), ("tuned", tuned))
    }


def _records(
    splits: dict[str, int],
    lines: list[dict[str, Any]],
    evaluation: dict[str, Any],
    best: int | None,
    loss: float | None,
) -> RunRecords:
    labelled = evaluation["split"] is not None
    base = {"source": "a-model", "weights": "a" * 32, "processor": "b" * 32}
    strategy, task = {"name": "a-strategy"}, {"name": "a-task"}
    data = {"train": "rows.jsonl", "validation": 0.1 if labelled else None}
    recipe = {"model": {"source": "a-model"}, "task": task, "data": data, "strategy": strategy, "output": "a-run"}
    computed = {"compute": "float32", "frozen_weights": "float32", "reason": "the recipe asks for it"}
    machine = {"processor": "CPU", "cores": 2, "gpus": []}
    environment = {"versions": {}, "plugins": (), "hardware": machine, "build": {}, "device": "cpu", "processes": 1}
    counts = {"distinct": 0, "duplicates": 0, "near_duplicates": 0, "skipped": {"count": 0, "first": ()}}
    encoded = {"longest": 128, "truncated": 0, "untrained_rows": 0, "skipped": 0}
    audit = {
        "splits": {n: {**counts, "source": "rows.jsonl", "rows": k, "distinct": k} for n, k in splits.items()},
        "split": {"by": "random"},
        "encoded": {
            n: {**encoded, "examples": k, "tokens": 64 * k, "trained_tokens": k, "content": f"content of {n}"}
            for n, k in splits.items()
        },
    }
    steps = {"steps": STEPS, "planned_steps": STEPS, "stopped_early": False, "best_step": best, "best_loss": loss}
    cost = {"seconds": 61.5, "trainable_parameters": 339_845, "total_parameters": 23_053_061}
    labels = {"kind": "single", "names": LABELS} if labelled else None
    trained = {"ftengine": None, "base": base, "strategy": strategy, "task": task, "labels": labels, "new_modules": ()}
    return RunRecords(
        Path("a-run"),
        Recipe.model_validate(recipe),
        Environment.model_validate({**environment, "precision": computed, "strategy": {}, "base": base}),
        AuditResult.model_validate({**audit, "findings": (), "displays": (), "facts": {"leaks": []}}),
        TrainingResult.model_validate({**steps, **cost, "regularizers": (), "peak_memory_bytes": 1_179_746_304}),
        EvaluationResult.model_validate({**evaluation, "details": {}, "displays": {}}),
        TrainedPart.model_validate(trained),
        tuple(lines),
    )
