"""What is reached without looking at the inputs, from how often each answer is the truth and is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ftengine.api import Baseline

NOTHING = "nothing"
"""What an answer without text is called."""


def of_classes(
    names: Sequence[str], true: np.ndarray, given: np.ndarray, figures: Mapping[str, float], unit: str = "example"
) -> Baseline | None:
    """Return the baseline where there are k answers, of which each example has one; None without examples.

    Args:
        names: k.
        true, given: (k,) how often each is the truth, and the model's answer.
        figures: further metrics, by name.
        unit: what is counted.
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
    """Return the baseline where an example has any of k labels; None without examples.

    Best for micro F1 is always answering the most frequent labels, as many of them as it gains by.

    Args:
        names: k.
        true, given: (n, k) of 0 and 1.
    """
    n = len(true)
    if not n:
        return None
    (answer, often), (most, count) = _most_frequent(true), _most_frequent(given)
    rates = np.sort(true.mean(axis=0))[::-1]
    micro = 2 * np.cumsum(rates) / (np.arange(1, len(rates) + 1) + max(rates.sum(), 1e-12))
    there = rates[rates > 0]
    macro = float((2 * there / (1 + there)).mean()) if len(there) else 0.0

    def called(row: np.ndarray) -> str:
        return ", ".join(name for name, on in zip(names, row, strict=True) if on) or "no label"

    figures = {"subset_accuracy": often / n, "micro_f1": float(micro.max()), "macro_f1": macro}
    return Baseline(answer=called(answer), share=often / n, figures=figures, given=called(most), count=count, total=n)


def _most_frequent(rows: np.ndarray) -> tuple[np.ndarray, int]:
    found, counts = np.unique(rows, axis=0, return_counts=True)
    return found[counts.argmax()], int(counts.max())
