"""How well each single example was answered: who got right what the other got wrong, and where most changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from ftengine.api import Evaluator, Judgement

SHOWN = 10
"""Examples that are shown on each side."""

NOISE = 0.05
"""Change of the score of an answer, 0 to 1, that is not worth a look: every step of training makes such."""

UNKNOWN = -1


@dataclass
class Judgements:
    """One evaluator's judgements, five bytes an example.

    Args:
        scores: (examples,) float32, higher is better; nan where an example was not judged.
        right: (examples,) int8: 1, 0, or -1 where it is neither.
    """

    scores: np.ndarray
    right: np.ndarray

    @classmethod
    def blank(cls, examples: int) -> Judgements:
        """Return judgements of no example yet."""
        return cls(np.full(examples, np.nan, dtype=np.float32), np.full(examples, UNKNOWN, dtype=np.int8))

    def put(self, member: int, judgement: Judgement | None) -> None:
        """Note a judgement of one example."""
        if judgement is not None:
            self.scores[member] = judgement.score
            self.right[member] = UNKNOWN if judgement.right is None else int(judgement.right)

    def merge(self, other: Judgements) -> None:
        """Take over what another process judged."""
        judged = ~np.isnan(other.scores)
        self.scores[judged], self.right[judged] = other.scores[judged], other.right[judged]


class Spool:
    """Answers on disk, one an example, so that memory need not hold them: 8 bytes an example."""

    def __init__(self, examples: int) -> None:
        self._file = TemporaryFile("w+b")  # noqa: SIM115 (it lives as long as the spool)
        self._starts = np.full(examples, UNKNOWN, dtype=np.int64)

    def put(self, member: int, answer: Mapping[str, Any]) -> None:
        """Keep an answer."""
        self._file.seek(0, 2)
        self._starts[member] = self._file.tell()
        self._file.write(json.dumps(_brief(answer), ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def get(self, member: int) -> dict[str, Any] | None:
        """Return an answer that was kept here."""
        if self._starts[member] == UNKNOWN:
            return None
        self._file.seek(self._starts[member])
        return json.loads(self._file.readline())


def judges(evaluator: Evaluator) -> bool:
    """Say whether an evaluator judges single examples."""
    return type(evaluator).judge is not Evaluator.judge


def judging(base: Mapping[str, Judgements], tuned: Mapping[str, Judgements]) -> str | None:
    """Return the evaluator that examples are compared by: the first that says right or wrong, else the first."""
    scored = [name for name in tuned if _both(base, tuned, name).any()]
    decided = [name for name in scored if ((base[name].right >= 0) & (tuned[name].right >= 0)).any()]
    return next(iter([*decided, *scored]), None)


def _both(base: Mapping[str, Judgements], tuned: Mapping[str, Judgements], name: str) -> np.ndarray:
    if name not in base:
        return np.zeros(len(tuned[name].scores), dtype=bool)
    return ~np.isnan(base[name].scores) & ~np.isnan(tuned[name].scores)


def share_right(judgements: Judgements) -> float | None:
    """Return the share of right answers; None where an example was neither right nor wrong."""
    right = judgements.right
    return float(right.mean()) if len(right) and (right != UNKNOWN).all() else None


def mcnemar(base: Judgements, tuned: Judgements, groups: np.ndarray | None) -> dict[str, Any] | None:
    """Count what both, one or neither got right, and test whether tuned is right more or less often.

    McNemar's exact test: under no difference, the examples that only one of the two got right fall to either
    like the toss of a coin (McNemar 1947, "Note on the sampling error of the difference between correlated
    proportions or percentages"). Of duplicates, one counts.

    Args:
        base, tuned: judgements of the same examples.
        groups: (examples,) equal for duplicates; None where there are none.

    Returns:
        {"both", "only_base", "only_tuned", "neither", "p"}; None where nothing is right or wrong.
    """
    from scipy.stats import binomtest

    members = np.flatnonzero((base.right >= 0) & (tuned.right >= 0))
    if not len(members):
        return None
    if groups is not None:
        members = members[np.unique(groups[members], return_index=True)[1]]
    before, after = base.right[members] == 1, tuned.right[members] == 1
    only_base, only_tuned = int((before & ~after).sum()), int((~before & after).sum())
    differing = only_base + only_tuned
    return {
        "both": int((before & after).sum()),
        "only_base": only_base,
        "only_tuned": only_tuned,
        "neither": int((~before & ~after).sum()),
        "p": float(binomtest(only_base, differing).pvalue) if differing else 1.0,
    }


def most_changed(
    base: Judgements, tuned: Judgements, groups: np.ndarray | None, count: int = SHOWN
) -> tuple[list[int], list[int]]:
    """Return the members whose score rose most and those whose score fell most, most first, each group once.

    Members whose score did not change are in neither, nor are those whose score changed by less than `NOISE` while
    the answer stayed right or stayed wrong; where nothing is right or wrong, scores have no scale that is known.
    """
    change = tuned.scores.astype(np.float64) - base.scores
    change[(np.abs(change) < NOISE) & (tuned.right == base.right) & (tuned.right != UNKNOWN)] = 0
    known = np.flatnonzero(~np.isnan(change))
    order = known[np.argsort(change[known], kind="stable")]
    improved = _first(order[::-1][change[order[::-1]] > 0], groups, count)
    return improved, _first(order[change[order] < 0], groups, count)


def _first(members: Iterable[int], groups: np.ndarray | None, count: int) -> list[int]:
    chosen: dict[int, int] = {}
    for member in members:
        chosen.setdefault(int(member if groups is None else groups[member]), int(member))
        if len(chosen) == count:
            break
    return list(chosen.values())


def _brief(value: Any) -> Any:
    """Return a JSON value whose numbers have four digits: answers are for reading."""
    if isinstance(value, Mapping):
        return {str(key): _brief(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_brief(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
