"""Slices: the held-out examples divided by a column's values, and whether one is served worse than the others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.data.encoding import EncodedSplit
from ftengine.data.read import Rows
from ftengine.errors import RecipeError, did_you_mean
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare_among_many, to_json
from ftengine.evaluation.gaps import Gap, gap_between
from ftengine.evaluation.judgements import Judgements, mcnemar, share_right
from ftengine.evaluation.multiple import holm
from ftengine.evaluation.resampling import CONFIDENCE

MOST_VALUES = 50
"""Values of a column that become slices, the most frequent ones; the examples of all others are counted together."""

MISSING = "(missing)"
LONGEST_VALUE = 100


@dataclass(frozen=True)
class Slicing:
    """How a column divides the examples of a split.

    Args:
        values: the slices, most frequent first.
        codes: (examples,) int8: the slice of each example, -1 for what is left out.
    """

    values: Sequence[str]
    codes: np.ndarray


@dataclass(frozen=True)
class Judged:
    """Who answered which example rightly.

    Args:
        base, tuned: the two models' judgements by one evaluator.
    """

    base: Judgements
    tuned: Judgements


def require_column(rows: Rows, column: str) -> None:
    """Refuse to divide rows by a column that they lack.

    Raises:
        RecipeError: names the columns that there are.
    """
    if column not in rows.columns:
        raise RecipeError(
            f"evaluation.slices: {rows.source} has no column {column!r} (columns: {', '.join(rows.columns)})."
            + did_you_mean(column, rows.columns)
        )


def slicing(split: EncodedSplit, column: str) -> Slicing:
    """Divide a split by a column's values. Takes 8 bytes an example while it works, and keeps one."""
    keys = np.fromiter((_key(value) for value in _values(split, column)), dtype=np.uint64, count=len(split))
    found, first, counts = np.unique(keys, return_index=True, return_counts=True)
    order = sorted(range(len(found)), key=lambda i: (-counts[i], first[i]))[:MOST_VALUES]
    codes = np.full(len(split), -1, dtype=np.int8)
    for code, i in enumerate(order):
        codes[keys == found[i]] = code
    names = [_text(split.rows[int(split.index[first[i]])].get(column)) for i in order]
    return Slicing(names, codes)


def _values(split: EncodedSplit, column: str) -> Iterator[Any]:
    for row in split.index:
        yield split.rows[int(row)].get(column)


def _key(value: Any) -> int:
    return int.from_bytes(blake2b(_text(value, None).encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _text(value: Any, longest: int | None = LONGEST_VALUE) -> str:
    """Return a value as a reader knows it."""
    if value is None or value == "":
        return MISSING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


def slice_report(
    slicing: Slicing,
    base: tuple[Accumulator, Sequence[Accumulator]],
    tuned: tuple[Accumulator, Sequence[Accumulator]],
    small: int,
    judged: Judged | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return what evaluation.json says of one column.

    Each slice's gap is its figure minus that of all other examples. p-values are adjusted by Holm's method for all
    slices that are large enough to be judged, and the gaps' intervals hold for all of them at once (Bonferroni). The
    worst slice is the one most surely behind: the near end of its interval is furthest on the wrong side.
    Base and tuned are compared within a slice by McNemar's exact test where the metric is the share of right answers.

    Args:
        slicing: the column's values.
        base, tuned: each the accumulator of all examples and one a slice, of a single evaluator.
        small: examples below which a slice is called small, and not compared with the others.
        judged: that evaluator's judgements.
        groups: (examples,) equal for duplicates, -1 for what was not measured; None where there are no duplicates.
    """
    better = tuned[0].evaluators[0].higher_is_better
    metric = next((name for name, more in better.items() if more is not None), None)
    slices = [
        _slice(value, before, after, small, _exact(metric, before, after, slicing.codes == i, judged, groups))
        for i, (value, before, after) in enumerate(zip(slicing.values, base[1], tuned[1], strict=True))
    ]
    report: dict[str, Any] = {"metric": metric, "slices": slices, "worst": None, "gap": None, "base_gap": None}
    report["left_out"] = int((slicing.codes < 0).sum())
    if metric is None:
        return report
    _adjust([one["difference"][metric] for one in slices if metric in one["difference"] and not one["small"]])
    gaps = {i: gap_of(*tuned, i, metric, slicing.codes, groups) for i, one in enumerate(slices) if not one["small"]}
    known = {i: gap for i, gap in gaps.items() if gap is not None}
    # Where two slices are all that there is, the gap of one is that of the other: one question, not two.
    same = len(slices) == 2 and not report["left_out"]
    confidence = 1 - (1 - CONFIDENCE) / (1 if same else max(1, len(known)))
    for i, gap in known.items():
        slices[i]["gap"] = gap.to_json(confidence)
    _adjust([slices[i]["gap"] for i in known], once=same)
    if len(slices) > 1 and known:
        worst = min(known, key=lambda i: _near_end(slices[i]["gap"], higher_is_better=bool(better[metric])))
        report["worst"] = slices[worst]["value"]
        report["gap"] = slices[worst]["gap"] | {"p": slices[worst]["gap"]["p_adjusted"]}
        before = gap_of(*base, worst, metric, slicing.codes, groups)
        report["base_gap"] = None if before is None else before.to_json(CONFIDENCE)
    return report


def _near_end(gap: Mapping[str, Any], *, higher_is_better: bool) -> tuple[bool, float]:
    """Return a key that is least for the slice most surely behind; slices without an interval come last."""
    end = gap["high"] if higher_is_better else gap["low"]
    value = gap["value"] if end is None else end
    return end is None, value if higher_is_better else -value


def _slice(value: str, base: Accumulator, tuned: Accumulator, small: int, exact: Mapping[str, float]) -> dict[str, Any]:
    return {
        "value": value,
        "examples": tuned.examples,
        "small": tuned.independent < small,
        "base": {name: to_json(metric) for name, metric in base.results().items()},
        "tuned": {name: to_json(metric) for name, metric in tuned.results().items()},
        "difference": {name: to_json(one) for name, one in compare_among_many(base, tuned, exact).items()},
        "gap": None,
    }


def _exact(
    metric: str | None,
    base: Accumulator,
    tuned: Accumulator,
    inside: np.ndarray,
    judged: Judged | None,
    groups: np.ndarray | None,
) -> dict[str, float]:
    """Return McNemar's p-value of a slice by metric; {} where the metric is not the share of right answers."""
    if judged is None or metric is None:
        return {}
    sides = [Judgements(one.scores[inside], one.right[inside]) for one in (judged.base, judged.tuned)]
    for side, accumulator in zip(sides, (base, tuned), strict=True):
        share = share_right(side)
        if share is None or not math.isclose(share, accumulator.results()[metric].value, abs_tol=1e-9):
            return {}
    found = mcnemar(sides[0], sides[1], None if groups is None else groups[inside])
    return {} if found is None else {metric: found["p"]}


def gap_of(
    whole: Accumulator,
    slices: Sequence[Accumulator],
    number: int,
    metric: str,
    codes: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Gap | None:
    """Return how far a slice lies from all other examples; None where one side has no figure.

    Args:
        whole, slices: accumulators of all examples and of each slice.
        number: which slice.
        metric: which figure.
        codes: (examples,) the slice of each example.
        groups: (examples,) as `slice_report` takes them.
    """
    part, distinct, overlap = slices[number], None, False
    if codes is not None and groups is not None:
        measured = groups >= 0
        inside = np.unique(groups[measured & (codes == number)])
        outside = np.unique(groups[measured & (codes != number)])
        distinct, overlap = len(outside), len(np.intersect1d(inside, outside, assume_unique=True)) > 0
    rest = whole.without(part, distinct)
    own, others = part.figures().get(metric), rest.figures().get(metric)
    if own is None or others is None or math.isnan(own.value) or math.isnan(others.value):
        return None
    return gap_between(others, own, overlap=overlap)


def _adjust(tests: Sequence[dict[str, Any]], *, once: bool = False) -> None:
    """Put Holm's adjusted p-value beside each p; `once` where all are one test, which needs no adjusting."""
    known = [test for test in tests if test["p"] is not None and not once]
    for test in tests:
        test["p_adjusted"] = test["p"] if once else None
    for test, adjusted in zip(known, holm([test["p"] for test in known]), strict=True):
        test["p_adjusted"] = adjusted


def adjust_over_columns(columns: Mapping[str, dict[str, Any]]) -> None:
    """Adjust the p-values of several columns' reports over all slices of all of them, in place.

    Whoever looks at several columns asks more questions than at one; this p is the one that is shown and judged by.
    The gap of a column of two slices, which is the same seen from either, counts once.

    Args:
        columns: what `slice_report` says of each.
    """
    gaps, differences = [], []
    for column in columns.values():
        tested = [one["gap"] for one in column["slices"] if one["gap"] is not None and one["gap"]["p"] is not None]
        same = len(column["slices"]) == 2 and not column["left_out"]
        gaps += [tested] if same and tested else [[gap] for gap in tested]
        differences += [
            one["difference"][column["metric"]]
            for one in column["slices"]
            if column["metric"] in one["difference"] and not one["small"]
        ]
    for group, p in zip(gaps, holm([group[0]["p"] for group in gaps]), strict=True):
        for gap in group:
            gap["p_adjusted"] = p
    _adjust(differences)
    for column in columns.values():
        worst = next((one for one in column["slices"] if one["value"] == column["worst"]), None)
        if worst is not None and column["gap"] is not None:
            column["gap"]["p"] = worst["gap"]["p_adjusted"]


def directions(evaluators: Sequence[Any]) -> Mapping[str, bool]:
    """Return for each metric of some evaluators whether more is better."""
    return {metric: better for evaluator in evaluators for metric, better in evaluator.higher_is_better.items()}
