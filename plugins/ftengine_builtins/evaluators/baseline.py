"""Figures of constant answers, from the frequencies of true labels and of the model's answers."""

from collections.abc import Mapping, Sequence

import numpy as np

from ftengine.api import Baseline
from ftengine_builtins.evaluators.weighted import mean_of_finite, means

NOTHING = "nothing"
"""What an answer without text is called."""


def of_classes(
    names: Sequence[str], true: np.ndarray, given: np.ndarray, figures: Mapping[str, float], unit: str = "example"
) -> Baseline | None:
    """Return the baseline for k exclusive classes; None without examples.

    `true` and `given` are (k,): how often each class is the label, and the model's answer. `figures` are further
    metrics.
    """
    total = int(true.sum())
    if not total:
        return None
    best, most = int(true.argmax()), int(given.argmax())
    return Baseline(
        answer=names[best],
        share=float(true[best] / total),
        figures=dict(figures),
        given=names[most],
        count=int(given[most]),
        total=total,
        unit=unit,
        classes=tuple((name, int(t), int(g)) for name, t, g in zip(names, true, given, strict=True)),
    )


def of_sets(names: Sequence[str], true: np.ndarray, given: np.ndarray) -> Baseline | None:
    """Return the baseline if an example has any of k labels, from (n, k) of 0 and 1; None without examples."""
    n = len(true)
    if not n:
        return None
    (answer, often), (most, count) = _most_frequent(true), _most_frequent(given)

    def called(row: np.ndarray) -> str:
        return ", ".join(name for name, on in zip(names, row, strict=True) if on) or "no label"

    figures = {name: float(array[0]) for name, array in always(true, np.ones((1, n))).items() if np.isfinite(array[0])}
    return Baseline(answer=called(answer), share=often / n, figures=figures, given=called(most), count=count, total=n)


def always(true: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of the best constant sets of labels, (B,) by metric, for (n, k) of 0 and 1 and weights (B, n).

    For micro F1 the best set is the most frequent labels, as many as improve it; for macro F1 all labels.
    """
    rates, order = true.mean(axis=0), np.argsort(-true.mean(axis=0), kind="stable")
    most = int((np.cumsum(rates[order]) / (np.arange(1, len(rates) + 1) + max(rates.sum(), 1e-12))).argmax()) + 1
    drawn = means(weights, true)
    there = np.where(drawn > 0, drawn, np.nan)
    return {
        "subset_accuracy": means(weights, (true == _most_frequent(true)[0]).all(axis=1))[:, 0],
        "micro_f1": 2 * drawn[:, order[:most]].sum(axis=1) / (most + drawn.sum(axis=1)),
        "macro_f1": mean_of_finite(2 * there / (1 + there)),
    }


def _most_frequent(rows: np.ndarray) -> tuple[np.ndarray, int]:
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    return distinct[counts.argmax()], int(counts.max())
