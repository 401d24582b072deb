"""Audit `pairs-by-column`."""

from __future__ import annotations

import operator as op
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, counted, listed, percent, quoted
from ftengine_builtins.audits.column_values import first_values, read_values, unread_columns
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within
from ftengine_builtins.audits.labels_by_column import EXPLAINS
from ftengine_builtins.audits.split_shift import PENALTY
from ftengine_builtins.audits.word_scores import CHARACTERS, WordRidge, tf_idf

MOST_PAIRS, FEWEST = 500, 20
"""Training pairs that are looked at, the first, and pairs of a value and of all others, at least."""
TIED, CONTRARY = 0.2, 0.1
"""Shares of the pairs, near end, whose ratings are equal, for an alarm, or go against the preference, for a note:
people and a model that rates disagree about many pairs that are right."""
MOST_VALUES = 20
"""Values of a column that has kinds of rows."""
TRIED = 3
"""Values whose other pairs are looked at as well, of those that words prefer least."""
SURE, TOLD = 1e-3, 0.65
"""Probability by chance, times the values that were looked at, up to which words prefer a value's rejected answers, and
share of all other pairs of which they prefer the chosen one."""


class PairsByColumn(Audit):
    """Finds pairs that unread columns contradict: exchanged where one has a value, or rated equal or the other way.

    A ridge classifier on the difference of both answers' words, which learns from all other training pairs, prefers the
    rejected ones of that value, and the chosen ones of others that it has not seen.
    """

    name = "pairs-by-column"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        names = unread_columns(data)
        yield from _ratings(data, names)
        views = list(islice(data.splits["train"], MOST_PAIRS)) if names else []
        answers = [answer for view in views for answer in _answers(view)]
        if len(views) < 2 * FEWEST or len(answers) < 2 * len(views):
            return
        words, signs = tf_idf(answers), np.where(np.arange(len(views)) % 2, 1.0, -1.0)
        pairs = (words[0::2] - words[1::2]) * signs[:, None]
        groups = [
            (name, value, np.array([item == value for item in of]))
            for name, of in ((name, [*map(str, of)]) for name, of in first_values(data, names, MOST_PAIRS))
            if len(of) == len(views) and len({*of}) <= MOST_VALUES
            for value in dict.fromkeys(of)
        ]
        groups = [group for group in groups if min(group[2].sum(), (~group[2]).sum()) >= FEWEST]
        for i in _least_likely(pairs, signs, [of for _, _, of in groups]) if groups else ():
            right, n, by_others, m = _preferred(pairs, signs, groups[i][2])
            if by_others >= TOLD * m:
                yield _finding(*groups[i], right, n, by_others, m)
                return


def _ratings(data: AuditedData, names: Sequence[str]) -> Iterator[Finding]:
    """Find two columns of numbers, one of each answer, that are equal or go against the preference in many pairs."""
    for name in names:
        other = name.replace("chosen", "rejected")
        if other == name or other not in names:
            continue
        pairs = [*enumerate(read_values(data, "train", (name, other)))]
        rated = [(i, a, b) for i, (a, b) in pairs if isinstance(a, (int, float)) and isinstance(b, (int, float))]
        if len(rated) < FEWEST:
            continue
        equal, against = ([i for i, a, b in rated if side(a, b)] for side in (op.eq, op.lt))
        if sum(a > b for _, a, b in rated) < len(against):
            continue  # less is better, as of ranks
        tied, contrary = (share_within(len(rows), len(rated))[0] for rows in (equal, against))
        if max(tied / TIED, contrary / CONTRARY) < 1:
            continue
        facts = [(len(equal), f"equals `{other}`"), (len(against), f"is below `{other}`")]
        shown = listed([f"{what} in {percent(count / len(rated))}" for count, what in facts if count])
        is_tied = tied >= TIED
        lead = "leave out pairs whose ratings show no preference" if is_tied else "check pairs that ratings contradict"
        brief = f"{lead}: `{name}` {shown} of {counted(len(rated), 'training pair')}"
        text = f"{capitalized(brief)}{', and which answer is the chosen one is chance there' if is_tied else ''}."
        figures = {"columns": [name, other], "equal": len(equal), "against": len(against), "pairs": len(rated)}
        places = tuple(data.splits["train"].where(i) for i in (*equal, *against)[:SHOWN_PLACES])
        level, explains = ("alarm", EXPLAINS) if is_tied else ("note", ())
        yield Finding(kind="labels", level=level, text=text, brief=brief, explains=explains, figures=figures,
                      places=places)  # fmt: skip
        return


def _answers(view: Any) -> list[str]:
    """Return the chosen and the rejected answer of a row; [] of another one."""
    target = view.target if not view.classes and isinstance(view.target, dict) else {}
    sides = [target.get(side) for side in ("chosen", "rejected")]
    last = [side[-1] if isinstance(side, list) and side else side for side in sides]
    return [str(answer)[:CHARACTERS] for answer in last if answer is not None]


def _preferred(pairs: Any, signs: np.ndarray, of: np.ndarray) -> tuple[int, int, int, int]:
    """Return how many pairs of a value are preferred rightly by all others' words, of how many, and others likewise."""
    others = WordRidge(pairs[~of])
    right = others.predict(pairs[of], signs[~of][:, None], PENALTY)[:, 0] * signs[of] > 0
    by_others = others.leave_one_out(signs[~of][:, None], PENALTY)[:, 0] * signs[~of] > 0
    return int(right.sum()), len(right), int(by_others.sum()), len(by_others)


def _least_likely(pairs: Any, signs: np.ndarray, groups: Sequence[np.ndarray]) -> list[int]:
    """Return the values of whose chosen answers so few are preferred that it is no chance, the surest first.

    All others' words prefer them, by one decomposition for all values.
    """
    from scipy.stats import binom

    likely = list[tuple[float, int]]()
    ridge = WordRidge(pairs)
    for i, of in enumerate(groups):
        right = ridge.leave_out(signs[:, None], PENALTY, of)[:, 0] * signs[of] > 0
        likely.append((float(binom.cdf(right.sum(), len(right), 0.5)) * len(groups), i))
    return [i for p, i in sorted(likely)[:TRIED] if p <= SURE]


def _finding(name: str, value: str, of: np.ndarray, right: int, n: int, by_others: int, m: int) -> Finding:
    brief = (
        f"check which answers are the chosen ones where `{name}` is {quoted(value)} ({counted(n, 'training pair')}) "
    )
    brief += f"and where it is not: by the words of the others, {percent(right / n)} of their chosen answers are "
    brief += f"preferred, of the others' own {percent(by_others / m)}"
    text = f"{capitalized(brief)}. On one side chosen and rejected are exchanged."
    figures = {"column": name, "value": value, "right": right, "pairs": n, "others": by_others, "of_others": m}
    return Finding(kind="labels", level="alarm", text=text, brief=brief, explains=EXPLAINS, figures=figures)
