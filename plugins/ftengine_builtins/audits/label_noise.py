"""Audit `label-noise`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, Table
from ftengine.text import capitalized, listed, percent, quoted, short_place
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.one_sided_labels import OneSided, find_one_sided
from ftengine_builtins.audits.word_scores import DrawnRows, WordRidge, draw_rows, one_hot, tf_idf

SAMPLE = 1_500
"""Rows that are looked at, drawn from all; the time grows with their cube, 2 seconds of these on one core."""
FEWEST = 150
"""Distinct rows below which nothing is said: of 100, words taught too little to tell noise from what is hard."""
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
TWIN = 0.6
"""Cosine of two texts' words from which one may have been told by the other: those rows are named last."""
SHOWN = 3
LISTED = 50


class LabelNoise(Audit):
    """Finds labels that contradict their texts' words, if words predict the labels of other rows well.

    A ridge classifier on TF-IDF of words scores each row out of sample. Among the most confident half, rows with
    another label are noise: where words leave no doubt, only the label can be wrong (anchor points, Liu & Tao 2016,
    doi:10.1109/TPAMI.2015.2456899). Says nothing if words predict labels badly, or if contradictions grow as confidence
    falls, since such rows are hard rather than wrong.
    """

    name = "label-noise"

    def examine(self, data: AuditedData) -> Iterator[Finding | Table]:
        rows = draw_rows(data, SAMPLE)
        if rows is None or len(rows.texts) < FEWEST:
            return
        features = tf_idf(rows.texts)
        ridge = WordRidge(features)
        if (one_sided := find_one_sided(ridge, rows.labels)) is not None:
            yield from _of_one_sided(rows, one_sided)
            return
        noise = find_noise(ridge.best(one_hot(rows.labels)), rows.labels)
        if noise is None:
            # Where training alone was relabelled, the other splits' rows hide it.
            trained = _of_training(data, rows)
            if trained is not None and (found := find_one_sided(WordRidge(tf_idf(trained.texts)), trained.labels)):
                yield from _of_one_sided(trained, found)
            return
        surest = sorted(noise.rows, key=lambda row: _has_twin(features, rows.labels, row[0]))
        suspects = [(rows.places[i], rows.names[rows.labels[i]], rows.names[label]) for i, label in surest]
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
        caption = (
            "The surest first; last those of which a near copy has another label. Truly ambiguous texts look the same: "
        )
        caption += "a person has to decide."
        columns = ("row", "label", "by its words rather")
        yield Table(title="Labels that look wrong", columns=columns, rows=tuple(suspects[:LISTED]), caption=caption)


def _has_twin(features: Any, labels: np.ndarray, row: int) -> bool:
    """Say whether a row is nearly the text of another one with another label, which may be the wrong one."""
    cosines = (features @ features[[row]].T).toarray()[:, 0]
    return bool((labels[cosines >= TWIN] != labels[row]).any())


def _of_training(data: AuditedData, rows: DrawnRows) -> DrawnRows | None:
    """Return the rows of the training split; None if these are all rows, or too few."""
    before = sum(len(data.splits[name]) for name in takewhile(lambda name: name != "train", data.splits))
    inside = (rows.rows >= before) & (rows.rows < before + len(data.splits["train"]))
    kept = np.flatnonzero(inside)
    if len(kept) < FEWEST or inside.all():
        return None
    texts, places = ([of[i] for i in kept] for of in (rows.texts, rows.places))
    return DrawnRows(texts, places, rows.labels[kept], rows.names, rows.rows[kept])


def _of_one_sided(rows: DrawnRows, found: OneSided) -> Iterator[Finding | Table]:
    """Name the rows of one class that look like another's."""
    label, other = quoted(rows.names[found.label]), quoted(rows.names[found.other])
    places = tuple(rows.places[i] for i in found.rows[:LISTED])
    brief = f"one-sided confusion: about {percent(found.share)} of the rows labelled {label} look like {other}"
    text = f"{capitalized(brief)} (95 % interval {percent(found.low)} to {percent(found.high)}), and hardly any the "
    text += f"other way round: {len(found.rows):,} of {found.n:,} look more like it than most of its own rows do, "
    text += (
        f"against {found.mirror:,} of {found.mirror_n:,}. Look at {listed([*map(short_place, places[:SHOWN])])}: were "
    )
    text += f"rows of {other} labelled {label}?"
    names = [rows.names[found.label], rows.names[found.other]]
    figures = {"one_sided": names, "share": found.share, "low": found.low, "high": found.high, "n": found.n}
    figures |= {"mirror": found.mirror, "mirror_n": found.mirror_n}
    explains = ("quality", "over-fitting", "classes")
    yield Finding(
        kind="labels", level="alarm", text=text, brief=brief, explains=explains, figures=figures, places=places
    )
    listing = tuple((place, *names) for place in places)
    caption = "The surest first; more rows like these may be among those that are less sure."
    yield Table(
        title="Labels that look wrong", columns=("row", "label", "by its words rather"), rows=listing, caption=caption
    )


@dataclass(frozen=True)
class Noise:
    """The share of labels that look wrong, and the rows, judged by the most confident scores.

    Args:
        share, low, high: share of wrong labels, with its 95 % interval (Wilson).
        count, n: contradicted rows among the most confident ones, and the number of the latter.
        rows: (number, label that the scores prefer) of these, the surest first.
    """

    share: float
    low: float
    high: float
    count: int
    n: int
    rows: tuple[tuple[int, int], ...]


def find_noise(scores: np.ndarray, labels: np.ndarray) -> Noise | None:
    """Judge labels by out-of-sample scores; None if there is no noise, or if scores cannot show it.

    Args:
        scores: (n, K) approximate probabilities of the labels, out of sample.
        labels: (n,) numbers of the given labels.
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
    """Return the ends of the interval of the wrong share; (0, 1) without rows."""
    return share_within(int(wrong.sum()), len(wrong)) if len(wrong) else (0.0, 1.0)


def _rises(wrong: np.ndarray) -> bool:
    """Return whether contradictions grow as confidence falls (Cochran-Armitage); (m,) the most confident first."""
    rank, share = np.arange(len(wrong)) - (len(wrong) - 1) / 2, wrong.mean()
    return bool(rank @ wrong > TREND * np.sqrt(share * (1 - share) * (rank @ rank)))


def _tells(scores: np.ndarray, labels: np.ndarray, share: float) -> bool:
    """Return whether scores predict labels well, once this share of noise is allowed for.

    Evenly spread noise leaves (1 - share / c)² of the variance that can be explained, where c is the probability that
    two rows have different labels.
    """
    given = np.eye(scores.shape[1])[labels]
    explained = 1 - ((given - scores) ** 2).sum() / ((given - given.mean(0)) ** 2).sum()
    differ = 1 - (given.mean(0) ** 2).sum()
    return bool(explained >= max(TELLING_AS_GIVEN, TELLING * max(0.0, 1 - share / differ) ** 2))
