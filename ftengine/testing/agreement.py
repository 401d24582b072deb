"""Measures of how well predictions agree with labels, independent of a task's loss, which training must improve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ftengine.api import Batch, LoadedModel, Prediction, Task
from ftengine.engine.merge import outputs_of
from ftengine.errors import InputError
from ftengine.model import IGNORED
from ftengine.testing.evaluators import rows_of
from ftengine.testing.samples import registry

CHOSEN, REJECTED = "chosen_", "rejected_"
"""Prefixes of a task's predictions for the two answers of a preference; numbers that are larger if likelier."""
NEXT_TOKEN = "causal-lm"
"""The head whose logits predict the next token."""


def agreement(task: Task, loaded: LoadedModel, batch: Batch, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return measures, by name, that are larger if a model agrees better with the labels of a batch.

    They use the keys in docs/plugins/predictions.md, or else the batch's labels and the model's logits, or else the
    metrics of the task's evaluators. If none of these exists, the result is empty.
    """
    of_predictions = _of_predictions(predictions)
    return of_predictions or _of_logits(task, loaded, batch) or _of_metrics(task, predictions)


def _of_predictions(predictions: Sequence[Prediction]) -> dict[str, float]:
    first = predictions[0]
    measures: list[tuple[str, Callable[[Prediction], float]]] = []
    for key in first:
        other = REJECTED + key.removeprefix(CHOSEN)
        tokens = CHOSEN + "tokens", REJECTED + "tokens"
        if key.startswith(CHOSEN) and other in first and key not in tokens:
            measure_name = key.removeprefix(CHOSEN)
            measures.append(
                (f"{measure_name} of chosen less that of rejected answers", partial(_gap, key, other, (None, None)))
            )
            if first.keys() >= {*tokens}:
                measures.append((f"the same of {measure_name} per token", partial(_gap, key, other, tokens)))
    if first.keys() >= {"label", "scores"}:
        measures.append(("the score of each label", _score))
    if first.keys() >= {"target", "value"}:
        measures.append(
            (
                "the nearness of each value to its target",
                lambda prediction: -abs(prediction["value"] - prediction["target"]),
            )
        )
    if first.keys() >= {"desirable", "logp"}:
        measures.append(
            (
                "log-probability of desirable less that of other answers",
                lambda prediction: _signed(prediction["desirable"], "logp", prediction),
            )
        )
    return {name: float(np.mean([measure(prediction) for prediction in predictions])) for name, measure in measures}


def _gap(chosen: str, rejected: str, tokens: Sequence[str | None], prediction: Prediction) -> float:
    sides = zip((chosen, rejected), tokens, strict=True)
    chosen_value, other = (prediction[key] / (prediction[count] if count else 1) for key, count in sides)
    return float(chosen_value - other)


def _signed(positive: bool, key: str, prediction: Prediction) -> float:
    return float(prediction[key]) if positive else -float(prediction[key])


def _score(prediction: Prediction) -> float:
    label, scores = prediction["label"], prediction["scores"]
    if isinstance(label, Sequence):  # several labels, each with a choice between two
        return float(np.mean([score if is_true else 1 - score for is_true, score in zip(label, scores, strict=True)]))
    return float(scores[label])


def _of_logits(task: Task, loaded: LoadedModel, batch: Batch) -> dict[str, float]:
    """Return the mean log-likelihood of integer labels if the model's logits are for them; else {}."""
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return {}
    try:
        with torch.no_grad():
            logits: Any = outputs_of(task, loaded.module, batch).float()
    except Exception:  # the task may call such a model with other arguments
        return {}
    if loaded.head == NEXT_TOKEN and logits.ndim == 3:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.shape[:-1] != labels.shape:
        return {}
    loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)
    return {"the mean log-likelihood of the labels": -float(loss)}


def _of_metrics(task: Task, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return the metrics of a task's evaluators, negated if smaller is better."""
    measures = dict[str, float]()
    for name in task.evaluators:
        try:
            evaluator = registry().build("evaluator", name, "evaluators")
            evaluator.set_labels(task.name, task.labels)
            scores: Mapping[str, float] = {}
            if evaluator.reads <= predictions[0].keys():
                scores = evaluator.score(rows_of(evaluator, predictions), np.ones(len(predictions)))
        except InputError:  # not installed, or not for these predictions
            continue
        for key, value in scores.items():
            better = evaluator.metrics[key].higher_is_better
            if better is not None and np.isfinite(value):
                measures[f"the metric {key}"] = float(value) if better else -float(value)
    return measures
