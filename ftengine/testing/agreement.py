"""How far predictions agree with what rows say, whatever a task's loss is: what a loss must make better."""

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
"""In front of what a task predicts of the two answers of a preference: a number each, larger where it is likelier."""
NEXT_TOKEN = "causal-lm"
"""The head whose logits are of the token behind each."""


def agreement(task: Task, loaded: LoadedModel, batch: Batch, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return numbers that are larger where a model agrees better with the labels of a batch, by what they are.

    They are made of the keys that docs/plugins/predictions.md names, else of the batch's labels and the model's logits,
    else of the metrics of the task's evaluators; none where there is none of these.
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
            said = key.removeprefix(CHOSEN)
            measures.append(
                (f"{said} of chosen less that of rejected answers", partial(_gap, key, other, (None, None)))
            )
            if first.keys() >= {*tokens}:
                measures.append((f"the same of {said} per token", partial(_gap, key, other, tokens)))
    if first.keys() >= {"label", "scores"}:
        measures.append(("the score of each label", _score))
    if first.keys() >= {"target", "value"}:
        measures.append(("the nearness of each value to its target", lambda one: -abs(one["value"] - one["target"])))
    if first.keys() >= {"desirable", "logp"}:
        measures.append(
            (
                "log-probability of desirable less that of other answers",
                lambda one: _signed(one["desirable"], "logp", one),
            )
        )
    return {name: float(np.mean([measure(one) for one in predictions])) for name, measure in measures}


def _gap(chosen: str, rejected: str, tokens: Sequence[str | None], prediction: Prediction) -> float:
    sides = zip((chosen, rejected), tokens, strict=True)
    one, other = (prediction[key] / (prediction[count] if count else 1) for key, count in sides)
    return float(one - other)


def _signed(positive: bool, key: str, prediction: Prediction) -> float:
    return float(prediction[key]) if positive else -float(prediction[key])


def _score(prediction: Prediction) -> float:
    label, scores = prediction["label"], prediction["scores"]
    if isinstance(label, Sequence):  # several labels, each with a choice between two
        return float(np.mean([score if one else 1 - score for one, score in zip(label, scores, strict=True)]))
    return float(scores[label])


def _of_logits(task: Task, loaded: LoadedModel, batch: Batch) -> dict[str, float]:
    """Return the mean log-likelihood of integer labels, where the model's logits are of such; else nothing."""
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return {}
    try:
        with torch.no_grad():
            logits: Any = outputs_of(task, loaded.module, batch).float()
    except Exception:  # what such a model is called with is the task's own affair
        return {}
    if loaded.head == NEXT_TOKEN and logits.ndim == 3:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.shape[:-1] != labels.shape:
        return {}
    loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)
    return {"the mean log-likelihood of the labels": -float(loss)}


def _of_metrics(task: Task, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return the metrics of a task's evaluators, as larger is better."""
    found = dict[str, float]()
    for name in task.evaluators:
        try:
            evaluator = registry().build("evaluator", name, "evaluators")
            evaluator.set_labels(task.name, task.labels)
            scores: Mapping[str, float] = {}
            if evaluator.reads <= predictions[0].keys():
                scores = evaluator.score(rows_of(evaluator, predictions), np.ones(len(predictions)))
        except InputError:  # it is not installed, or measures nothing of these
            continue
        for key, value in scores.items():
            better = evaluator.metrics[key].higher_is_better
            if better is not None and np.isfinite(value):
                found[f"the metric {key}"] = float(value) if better else -float(value)
    return found
