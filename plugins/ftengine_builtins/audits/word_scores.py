"""Out-of-sample predictions of labels from words, by a ridge classifier on TF-IDF."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftengine.api import AuditedData
from ftengine.text import CJK

CHARACTERS = 2_000
"""Characters of a text that are read."""
FEWEST_OF_LABEL = 5
"""Rows of a label below which its rows are left out: others of it cannot vouch for them."""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TOKEN = re.compile(rf"[^\W{CJK}]+|[{CJK}]")


@dataclass(frozen=True)
class DrawnRows:
    """Sampled rows of all splits.

    Args:
        texts, places: of each row.
        labels: (n,) indices into `names`; all 0 if targets are numbers.
        rows: (n,) row numbers, counted over all splits.
        numbers: (n,) targets that are numbers; None if they are classes.
    """

    texts: list[str]
    places: list[str]
    labels: np.ndarray
    names: list[str]
    rows: np.ndarray
    numbers: np.ndarray | None = None


def choose_rows(distinct: np.ndarray, usable: np.ndarray, most: int) -> set[int]:
    """Sample at most `most` of the usable rows; of equal rows only the first is used.

    Args:
        distinct: (n,) numbers that are equal for equal rows.
        usable: (n,) whether a row may be drawn.
    """
    rows = np.flatnonzero(usable)
    first = rows[np.unique(distinct[rows], return_index=True)[1]]
    return set(np.random.default_rng(0).permutation(first)[:most].tolist())


def rows_by_split(data: AuditedData, drawn: Collection[int]) -> Iterator[tuple[str, int, list[int]]]:
    """Yield each split, the number of rows before it, and its sampled rows in order."""
    start = 0
    for split, rows in data.splits.items():
        yield split, start, sorted(i - start for i in drawn if start <= i < start + len(rows))
        start += len(rows)


def draw_rows(
    data: AuditedData,
    most: int,
    characters: int | None = CHARACTERS,
    *,
    numbers: bool = False,
    among: np.ndarray | None = None,
) -> DrawnRows | None:
    """Sample distinct rows with a text and one class from all splits; None with fewer than two classes.

    Args:
        most: maximal number of sampled rows.
        characters: number of characters read from the beginning of each text; None: all that audits get.
        numbers: whether targets may be numbers with a fraction.
        among: (rows of all splits,) whether a row may be sampled.
    """
    if not any(targets.any() for targets in data.targets.values()):
        return None
    known, distinct = (np.concatenate([of[name] for name in data.splits]) for of in (data.targets, data.distinct))
    chosen = choose_rows(distinct, (known != 0) if among is None else (known != 0) & among, most)
    texts, labels, places, at, fractions = [], list[Any](), [], list[int](), False
    for split, start, numbers_there in rows_by_split(data, chosen):
        rows = data.splits[split].select(numbers_there)
        for i, view in enumerate(rows):
            fractions = fractions or isinstance(view.label, float)
            if fractions and not numbers:
                return None
            if view.label is not None and not isinstance(view.label, (list, tuple, dict)):
                text = " ".join(view.texts)[:characters]
                if text.strip():
                    texts.append(text)
                    labels.append(view.label if fractions else str(view.label))
                    places.append(rows.where(i))
                    at.append(start + numbers_there[i])
    if fractions:
        values = np.array(labels, dtype=float)
        zeros = np.zeros(len(texts), dtype=int)
        return DrawnRows(texts, places, zeros, [], np.array(at), values) if np.ptp(values) else None
    names, classes, counts = np.unique(np.array(labels, dtype=object), return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[classes] >= FEWEST_OF_LABEL)
    names_kept, classes = np.unique(classes[kept], return_inverse=True)
    if len(names_kept) < 2:
        return None
    kept_texts, kept_places = ([of[i] for i in kept] for of in (texts, places))
    return DrawnRows(kept_texts, kept_places, classes, names[names_kept].tolist(), np.array(at)[kept])


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Return (n, labels) with ones at each row's label."""
    return np.eye(labels.max() + 1)[labels]


def out_of_sample(texts: Sequence[str], given: np.ndarray) -> np.ndarray:
    """Return (n, K) scores for (n, K) targets, each row's by a ridge classifier of all the others.

    For `one_hot` targets they are near probabilities. The penalty with the least squared error is used.
    """
    return WordRidge(tf_idf(texts)).best(given)


class WordRidge:
    """Ridge regression on the features of n rows, for any targets, by one decomposition of the (n, n) kernel.

    Args:
        features: sparse (n, d).
    """

    def __init__(self, features: Any) -> None:
        self._features = features
        kernel = (features @ features.T).toarray()
        self._means, self._mean = kernel.mean(0), kernel.mean()
        self._values, self._vectors = np.linalg.eigh(kernel - self._means - self._means[:, None] + self._mean)
        self._values = np.maximum(self._values, 0)
        self._squares = self._vectors**2

    def leave_one_out(self, targets: np.ndarray, penalty: float) -> np.ndarray:
        """Return (n, K) predictions of (n, K) targets, each row's by all the others.

        Leave-one-out residuals of a linear smoother are r / (1 - h), h its leverage (Allen 1974).
        """
        shrunk, centred = self._values / (self._values + penalty), targets - targets.mean(0)
        leverage = np.minimum(self._squares @ shrunk + 1 / len(targets), 0.999)[:, None]
        fitted = self._vectors @ (shrunk[:, None] * (self._vectors.T @ centred))
        return targets - (centred - fitted) / (1 - leverage)

    def leave_pairs_out(self, targets: np.ndarray, penalty: float) -> np.ndarray:
        """Return (2 n, K) predictions of (2 n, K) targets, with rows i and n + i left out together."""
        shrunk, centred = self._values / (self._values + penalty), targets - targets.mean(0)
        residuals = centred - self._vectors @ (shrunk[:, None] * (self._vectors.T @ centred))
        rest = (1 - np.minimum(self._squares @ shrunk + 1 / len(targets), 0.999))[:, None]
        (first, second), (mine, yours), of = np.split(self._vectors, 2), np.split(rest, 2), np.split(residuals, 2)
        shared = ((first * second) @ shrunk + 1 / len(targets))[:, None]
        both = np.concatenate([yours * of[0] + shared * of[1], shared * of[0] + mine * of[1]])
        return targets - both / np.tile(np.maximum(mine * yours - shared**2, 1e-6), (2, 1))

    def leave_out(self, targets: np.ndarray, penalty: float, rows: np.ndarray) -> np.ndarray:
        """Return (m, K) predictions of (n, K) targets for m rows left out together.

        Their residuals are (I - H)⁻¹ r, with the block of the hat matrix H and the residuals r of these rows.

        Args:
            rows: (n,) whether a row is left out.
        """
        shrunk, centred = self._values / (self._values + penalty), targets - targets.mean(0)
        own = self._vectors[rows]
        residuals = centred[rows] - own @ (shrunk[:, None] * (self._vectors.T @ centred))
        smoother = (own * shrunk) @ own.T + 1 / len(targets)
        return targets[rows] - np.linalg.solve(np.eye(len(own)) * (1 + 1e-6) - smoother, residuals)

    def best(self, targets: np.ndarray) -> np.ndarray:
        """Return (n, K) predictions as `leave_one_out` does, with the penalty of the least squared error."""
        best, least = targets, np.inf
        for penalty in PENALTIES:
            predicted = self.leave_one_out(targets, penalty)
            if (error := float(((targets - predicted) ** 2).sum())) < least:
                best, least = predicted, error
        return best

    def predict(self, features: Any, targets: np.ndarray, penalty: float) -> np.ndarray:
        """Return (m, K) predictions for further rows' features, (m, d), from the n rows' targets, (n, K)."""
        projected = self._vectors.T @ (targets - targets.mean(0)) / (self._values + penalty)[:, None]
        kernel = (features @ self._features.T).toarray()
        kernel -= self._means + kernel.mean(1)[:, None] - self._mean
        return targets.mean(0) + kernel @ (self._vectors @ projected)


def tf_idf(texts: Sequence[str]) -> Any:
    """Return a sparse (n, words) matrix: 1 + ln(count) times 1 + ln((1 + n) / (1 + rows that have the word)).

    Rows have length 1. As scikit-learn's with `sublinear_tf`, which takes two seconds to import.
    """
    from scipy.sparse import csr_array

    columns: dict[str, int] = {}
    counts = [Counter(TOKEN.findall(text.lower())) for text in texts]
    places = np.array([columns.setdefault(word, len(columns)) for words in counts for word in words], dtype=np.int64)
    starts = np.cumsum([0, *map(len, counts)])
    rarity = 1 + np.log((1 + len(texts)) / (1 + np.bincount(places)))
    values = (1 + np.log([count for words in counts for count in words.values()])) * rarity[places]
    lengths = np.sqrt(np.bincount(np.repeat(np.arange(len(texts)), np.diff(starts)), values**2, len(texts)))
    values /= np.repeat(lengths, np.diff(starts))
    return csr_array((values, places, starts), shape=(len(texts), len(columns)))
