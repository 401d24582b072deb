"""Shipped predictions for checks of evaluators: a few examples of each kind, the same in each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ftengine.api import Labels, Prediction

EXAMPLES = 12


@dataclass(frozen=True)
class Predicted:
    """Predictions of one kind.

    Args:
        name: what is predicted, such as "several labels".
        labels: the task's labels.
        predictions: predictions with the keys of such tasks.
    """

    name: str
    labels: Labels | None
    predictions: tuple[Prediction, ...]

    @property
    def keys(self) -> frozenset[str]:
        """The keys that every prediction has."""
        return frozenset(self.predictions[0])


def predictions() -> list[Predicted]:
    """Return predictions of one label, several labels, a number, tags, losses of texts, and generations.

    Keys are those of ftengine's own tasks: `label`, `predicted`, `scores`, `logits` and `loss` of one label or several
    (ids, or lists of 0 and 1); `target`, `value` and `loss` of a number; `tags` and `predicted_tags`; `loss` and
    `tokens` of texts; `prompt`, `completion` and `reference` (None where a row has none) of generations.
    """
    draw = np.random.default_rng(0)
    names = ("a", "b", "c")
    single = [_single(draw.dirichlet([1, 1, 1]), int(draw.integers(3))) for _ in range(EXAMPLES)]
    several = [_several(draw.random(3).round(2), draw.integers(0, 2, 3).tolist()) for _ in range(EXAMPLES)]
    numbers = [_number(*draw.normal(size=2).tolist()) for _ in range(EXAMPLES)]
    lengths = draw.integers(1, 6, EXAMPLES)
    tags = [
        {"tags": draw.integers(0, 3, k).tolist(), "predicted_tags": draw.integers(0, 3, k).tolist()} for k in lengths
    ]
    losses = [{"loss": float(x), "tokens": k} for k, x in enumerate(draw.random(EXAMPLES) * 9, 1)]
    return [
        Predicted("one label an example", Labels("single", names), tuple(single)),
        Predicted("several labels an example", Labels("multi", names), tuple(several)),
        Predicted("a number an example", Labels("regression", ("label",)), tuple(numbers)),
        Predicted("IOB2 tags of words", Labels("single", ("O", "B-X", "I-X")), tuple(tags)),
        Predicted("plain tags of words", Labels("tags", ("DET", "NOUN", "VERB")), tuple(tags)),
        Predicted("losses of texts", None, tuple(losses)),
        Predicted("generations", None, tuple(_answers(losses))),
    ]


def _single(scores: np.ndarray, label: int) -> Prediction:
    logits = np.log(scores)
    answer = {"label": label, "predicted": int(scores.argmax()), "scores": scores.tolist(), "logits": logits.tolist()}
    return {**answer, "loss": float(-logits[label])}


def _several(scores: np.ndarray, label: list[int]) -> Prediction:
    scores = scores.clip(0.05, 0.95)
    right = np.where(label, scores, 1 - scores)
    return {
        "label": label,
        "predicted": (scores > 0.5).astype(int).tolist(),
        "scores": scores.tolist(),
        "logits": np.log(scores / (1 - scores)).tolist(),
        "loss": float(-np.log(right).mean()),
    }


def _number(target: float, value: float) -> Prediction:
    return {"target": target, "value": value, "loss": (value - target) ** 2}


def _answers(losses: list[Prediction]) -> list[dict[str, Any]]:
    """Return good, bad, empty and refusing answers, some of them to what has no reference."""
    completions = ["a red fox", "I'm sorry, but I cannot help with that.", "", "the fox sleeps here", "A fox!", "no"]
    references = ["a red fox", "the fox sleeps", None]
    return [
        {"prompt": f"question {i}", "completion": completions[i % 6], "reference": references[i % 3], **losses[i]}
        for i in range(len(losses))
    ]
