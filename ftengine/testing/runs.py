"""Records of finished runs, made in code: what rules judge."""

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
    """Return the records of three runs, by what they are: a sound one, an over-fitted one, one without held-out data.

    The first two are of a classifier with a metric "right_answers" and its intervals; the third has neither validation
    nor figures.
    """
    sound = stored_run((0.62, 0.35, 0.24, 0.21, 0.205), base=0.65, tuned=0.93, on_training=0.95)
    fitted = stored_run((0.62, 0.35, 0.40, 0.55, 0.80), base=0.65, tuned=0.61, on_training=0.999)
    return {"a sound run": sound, "an over-fitted run": fitted, "a run without held-out data": _without_held_out()}


def stored_run(validation: tuple[float, ...], base: float, tuned: float, on_training: float) -> RunRecords:
    """Return the records of a run of 100 steps and 400 test examples.

    Args:
        validation: losses, evenly over the steps.
        base, tuned: shares of right answers on the test split.
        on_training: that of the tuned model on training rows.
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
        "base": {METRIC: _figure(base, 400)},
        "tuned": {METRIC: _figure(tuned, 400)},
        "difference": {METRIC: {**change, "better": tuned > base}},
        "details": {},
        "displays": {},
        "training": {
            "n": 200,
            "base": {METRIC: _figure(base, 200)},
            "tuned": {METRIC: _figure(on_training, 200)},
        },
    }
    splits = {"train": 1600, "validation": 200, "test": 400}
    return _records(
        splits, sorted(lines, key=lambda line: line["step"]), evaluation, every * (best + 1), min(validation)
    )


def _without_held_out() -> RunRecords:
    lines = [{"step": i, "epoch": 0, "loss": 3.0 - 0.02 * i, "learning_rate": 2e-4} for i in range(1, STEPS + 1)]
    nothing: dict[str, Any] = {"split": None, "metrics": {}, "base": {}, "tuned": {}, "difference": {}}
    return _records({"train": 1600}, lines, {**nothing, "details": {}, "displays": {}}, None, None)


def _figure(value: float, n: int) -> dict[str, Any]:
    return {"value": value, "low": value - 0.03, "high": min(value + 0.03, 1.0), "n": n}


def _records(
    splits: dict[str, int],
    lines: list[dict[str, Any]],
    evaluation: dict[str, Any],
    best: int | None,
    loss: float | None,
) -> RunRecords:
    base = {"source": "a-model", "weights": "a" * 32, "processor": "b" * 32}
    labelled = evaluation["split"] is not None
    return RunRecords(
        path=Path("a-run"),
        recipe=Recipe.model_validate(
            {
                "model": {"source": "a-model"},
                "task": {"name": "a-task"},
                "data": {"train": "rows.jsonl", "validation": 0.1 if labelled else None},
                "strategy": {"name": "a-strategy"},
                "output": "a-run",
            }
        ),
        environment=_environment(base),
        audit=_audit(splits),
        training=TrainingResult(
            steps=STEPS,
            planned_steps=STEPS,
            stopped_early=False,
            best_step=best,
            best_loss=loss,
            seconds=61.5,
            regularizers=(),
            trainable_parameters=339_845,
            total_parameters=23_053_061,
            peak_memory_bytes=1_179_746_304,
        ),
        evaluation=EvaluationResult.model_validate(evaluation),
        trained=TrainedPart.model_validate(
            {
                "ftengine": None,
                "base": base,
                "strategy": {"name": "a-strategy"},
                "task": {"name": "a-task"},
                "labels": {"kind": "single", "names": LABELS} if labelled else None,
                "new_modules": (),
            }
        ),
        lines=tuple(lines),
    )


def _environment(base: dict[str, str]) -> Environment:
    return Environment.model_validate(
        {
            "versions": {},
            "plugins": (),
            "hardware": {"processor": "CPU", "cores": 2, "gpus": []},
            "build": {},
            "device": "cpu",
            "processes": 1,
            "precision": {"compute": "float32", "frozen_weights": "float32", "reason": "the recipe asks for it"},
            "strategy": {},
            "base": base,
        }
    )


def _audit(splits: dict[str, int]) -> AuditResult:
    counts = {"distinct": 0, "duplicates": 0, "near_duplicates": 0, "skipped": {"count": 0, "first": ()}}
    return AuditResult.model_validate(
        {
            "splits": {n: {**counts, "source": "rows.jsonl", "rows": k, "distinct": k} for n, k in splits.items()},
            "split": {"by": "random"},
            "encoded": {
                n: {"examples": k, "tokens": 64 * k, "trained_tokens": k, "longest": 128, "truncated": 0}
                | {"untrained_rows": 0, "skipped": 0, "content": f"content of {n}"}
                for n, k in splits.items()
            },
            "findings": (),
            "displays": (),
            "facts": {"leaks": []},
        }
    )
