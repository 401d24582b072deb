"""Audit `label-noise`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, Table
from ftengine.text import listed, percent, quoted, short_place
from ftengine_builtins.audits.counting import share_within

SAMPLE = 1_500
"""Rows that are looked at, drawn from all; the time grows with their cube, 2 seconds of these on one core."""
CHARACTERS = 2_000
"""Characters of a text that are read."""
FEWEST = 150
"""Distinct rows below which nothing is said: of 100, words taught too little to tell noise from what is hard."""
FEWEST_OF_LABEL = 5
"""Rows of a label below which its rows are left out: others of it cannot vouch for them."""
ALARM = 0.02
"""Share of rows with another label than their words tell, at the interval's near end, for an alarm; as many as
contradict one another are one."""
ELSEWHERE = 0.01
"""The same without the label that words suggest most often: a label that words show in some of its rows only makes the
others look like another one, and no row look like it."""
TELLING = 0.55
"""Share of the labels' variance that words must explain once the noise that was found is accounted for. Below, they
tell labels too badly for a contradiction to mean anything."""
TELLING_AS_GIVEN = 0.05
"""The same of the labels as they are: nothing is left of labels that were dealt out at random."""
TREND = 1.645
"""Standard errors by which the surer rows may be contradicted less (5 %, one-sided): noise does not depend on how sure
words are, and what is hard to tell does."""
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHOWN = 3
LISTED = 50
# A word, or one sign of a script that writes no spaces between words.
_TOKEN = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")


class LabelNoise(Audit):
    """Labels that contradict the words of their texts, where other rows show that words tell labels well.

    A ridge classifier on TF-IDF of words scores each row without having seen its label. Of the half that it is surest
    of, those whose label is another are the noise: where the words leave no doubt, nothing else is left to disagree
    (anchor points, Liu & Tao 2016, doi:10.1109/TPAMI.2015.2456899). Says nothing where words tell labels badly, or
    where rows are contradicted the more the less sure it is, since these are hard rather than wrong.
    """

    name = "label-noise"

    def examine(self, data: AuditedData) -> Iterator[Finding | Table]:
        rows = _drawn(data)
        if rows is None:
            return
        noise = find_noise(out_of_sample(rows.texts, rows.labels), rows.labels)
        if noise is None:
            return
        suspects = [(rows.places[i], rows.names[rows.labels[i]], rows.names[label]) for i, label in noise.rows]
        shown = [f"{short_place(place)} ({quoted(old)}, rather {quoted(new)})" for place, old, new in suspects[:SHOWN]]
        text = f"Look at the labels of {listed(shown)}: about {percent(noise.share)} of all labels look wrong (95 % "
        text += f"interval {percent(noise.low)} to {percent(noise.high)}). Of the {noise.n:,} rows whose words tell "
        text += f"their label best, {noise.count:,} have another one."
        figures = {
            "share": noise.share,
            "low": noise.low,
            "high": noise.high,
            "n": noise.n,
            "looked_at": len(rows.texts),
        }
        places = tuple(place for place, *_ in suspects[:LISTED])
        brief = f"look at the labels of {listed(shown[:1])} and others: about {percent(noise.share)} look wrong"
        yield Finding(
            kind="labels",
            level="alarm",
            text=text,
            brief=brief,
            explains=("quality",),
            figures=figures,
            places=places,
        )
        caption = "The surest first. Truly ambiguous texts look the same: a person has to decide."
        columns = ("row", "label", "by its words rather")
        yield Table(title="Labels that look wrong", columns=columns, rows=tuple(suspects[:LISTED]), caption=caption)


@dataclass(frozen=True)
class _Drawn:
    """Rows that are looked at: their texts, labels as numbers of names, and places."""

    texts: list[str]
    labels: np.ndarray
    names: list[str]
    places: list[str]


def _drawn(data: AuditedData) -> _Drawn | None:
    """Draw distinct rows with a text and a label of their own from all splits; None where there are too few."""
    if not any(targets.any() for targets in data.targets.values()):
        return None
    rng, known = np.random.default_rng(0), np.concatenate([data.targets[name] for name in data.splits])
    equal = np.concatenate([data.distinct[name] for name in data.splits])
    first = np.unique(np.where(known != 0, equal, -1), return_index=True)[1]
    first = first[known[first] != 0]
    chosen = set(rng.permutation(first)[:SAMPLE].tolist())
    texts, labels, places, start = [], list[str](), [], 0
    for rows in data.splits.values():
        for i, view in enumerate(rows):
            if isinstance(view.label, float):
                return None
            if start + i in chosen and len(view.labels) == 1 and not isinstance(view.label, (list, tuple)):
                text = " ".join(view.texts)[:CHARACTERS]
                if text.strip():
                    texts.append(text)
                    labels.append(view.labels[0])
                    places.append(rows.where(i))
        start += len(rows)
    names, numbers, counts = np.unique(np.array(labels, dtype=object), return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[numbers] >= FEWEST_OF_LABEL)
    names_kept, numbers = np.unique(numbers[kept], return_inverse=True)
    if len(kept) < FEWEST or len(names_kept) < 2:
        return None
    return _Drawn([texts[i] for i in kept], numbers, names[names_kept].tolist(), [places[i] for i in kept])


def out_of_sample(texts: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Return (n, labels) scores, each row's by a ridge classifier of all the others; they are near probabilities.

    Leave-one-out residuals of a linear smoother are r / (1 - h), h its leverage (Allen 1974): one decomposition of the
    (n, n) kernel serves all rows, labels and penalties, of which the one with the least squared error is taken.
    """
    words = _tf_idf(texts)
    kernel = (words @ words.T).toarray()
    kernel -= kernel.mean(0)
    kernel -= kernel.mean(1)[:, None]
    values, vectors = np.linalg.eigh(kernel)
    given = np.eye(labels.max() + 1)[labels]
    centred = given - given.mean(0)
    projected, squares = vectors.T @ centred, vectors**2
    best, least = given, np.inf
    for penalty in PENALTIES:
        shrunk = np.maximum(values, 0) / (np.maximum(values, 0) + penalty)
        leverage = np.minimum(squares @ shrunk + 1 / len(labels), 0.999)[:, None]
        scores = given - (centred - vectors @ (shrunk[:, None] * projected)) / (1 - leverage)
        if (error := float(((given - scores) ** 2).sum())) < least:
            best, least = scores, error
    return best


def _tf_idf(texts: Sequence[str]) -> Any:
    """Return a sparse (n, words) matrix: 1 + ln of the count times 1 + ln((1 + n) / (1 + rows that have the word)).

    Rows have length 1. As scikit-learn's with `sublinear_tf`, which takes two seconds to import.
    """
    from scipy.sparse import csr_array

    columns: dict[str, int] = {}
    counts = [Counter(_TOKEN.findall(text.lower())) for text in texts]
    places = np.array([columns.setdefault(word, len(columns)) for words in counts for word in words], dtype=np.int64)
    starts = np.cumsum([0, *map(len, counts)])
    rarity = 1 + np.log((1 + len(texts)) / (1 + np.bincount(places)))
    values = (1 + np.log([count for words in counts for count in words.values()])) * rarity[places]
    lengths = np.sqrt(np.bincount(np.repeat(np.arange(len(texts)), np.diff(starts)), values**2, len(texts)))
    values /= np.repeat(lengths, np.diff(starts))
    return csr_array((values, places, starts), shape=(len(texts), len(columns)))


@dataclass(frozen=True)
class Noise:
    """How many labels look wrong, by the rows that scores are surest of.

    Args:
        share, low, high: of wrong ones, with its 95 % interval (Wilson).
        count, n: contradicted ones among the surest rows.
        rows: (number, label that the scores prefer) of these, the surest first.
    """

    share: float
    low: float
    high: float
    count: int
    n: int
    rows: tuple[tuple[int, int], ...]


def find_noise(scores: np.ndarray, labels: np.ndarray) -> Noise | None:
    """Judge labels by out-of-sample scores; None where no noise is found, or scores cannot find it.

    Args:
        scores: (n, K), near the probabilities of labels, each row's by a model that has not seen its label.
        labels: (n,) numbers of the labels as given.
    """
    preferred, ranked = scores.argmax(1), np.sort(scores, axis=1)
    order = np.argsort(ranked[:, -2] - ranked[:, -1], kind="stable")[: len(labels) // 2]
    wrong = (preferred != labels)[order]
    share = min(wrong.mean(), wrong[: len(wrong) // 2].mean())
    if wrong.mean() < ALARM or _rises(wrong) or not _tells(scores, labels, share):
        return None
    low, high = _within(wrong)
    told_as = preferred[order]
    if low < ALARM or _within(wrong[told_as != np.bincount(told_as[wrong]).argmax()])[0] < ELSEWHERE:
        return None
    doubted = order[wrong]
    gap = scores[doubted, preferred[doubted]] - scores[doubted, labels[doubted]]
    rows = [(int(i), int(preferred[i])) for i in doubted[np.argsort(-gap, kind="stable")]]
    return Noise(float(wrong.mean()), low, high, int(wrong.sum()), len(wrong), tuple(rows))


def _within(wrong: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval of the share that is wrong; of no rows nothing is known."""
    return share_within(int(wrong.sum()), len(wrong)) if len(wrong) else (0.0, 1.0)


def _rises(wrong: np.ndarray) -> bool:
    """Say whether rows are contradicted more the less sure the scores are (Cochran-Armitage); (m,) the surest first."""
    rank, share = np.arange(len(wrong)) - (len(wrong) - 1) / 2, wrong.mean()
    return bool(rank @ wrong > TREND * np.sqrt(share * (1 - share) * (rank @ rank)))


def _tells(scores: np.ndarray, labels: np.ndarray, share: float) -> bool:
    """Say whether scores tell labels well, apart from this share of noise.

    Noise that deals labels out evenly takes all but (1 - share / c)² of the variance that can be explained, c being how
    often two rows differ in their labels.
    """
    given = np.eye(scores.shape[1])[labels]
    explained = 1 - ((given - scores) ** 2).sum() / ((given - given.mean(0)) ** 2).sum()
    differ = 1 - (given.mean(0) ** 2).sum()
    return bool(explained >= max(TELLING_AS_GIVEN, TELLING * max(0.0, 1 - share / differ) ** 2))
