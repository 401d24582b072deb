"""Rule `error-groups`: which rows hold the errors, by their content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftengine import RunRecords
from ftengine.api import Finding, Rule
from ftengine.evaluation import read_predictions
from ftengine.text import capitalized, number, percent
from ftengine_builtins.row_groups import Group, row_groups

if TYPE_CHECKING:
    import numpy as np

MOST_ROWS, FEWEST_ROWS = 1_000, 40
"""Rows of a set that are looked at, the first, and below which nothing is said."""
SHUFFLES = 999
"""Random orders of errors. A group is named where its errors are further from the others' than those of any group in
any of these orders (p = 0.001 over all groups at once; Westfall & Young 1993, Resampling-Based Multiple Testing)."""
MOST_WRONG, TIMES, OF_ALL = 0.5, 3.0, 0.5
"""Share of a group's rows that is wrong, how many times that of other rows, and the group's share of all errors, from
which these rows are of another kind, not only harder."""
OFF = 1.0
"""How far numbers of a group are off on average, in standard deviations of the targets, to be of another kind."""
NEARLY = 0.7
"""Share of the rows of two groups that both have, from which the other one may be what tells them."""
LOSSES = 3.0
"""The loss of a group's tokens over that of others, from which its texts are of another kind: topics differ by up to
twice."""
EXPLAINS = ("quality", "learning", "classes", "over-fitting", "labels", "calibration", "worse", "slices", "splits")


@dataclass(frozen=True)
class Errors:
    """Errors of n rows.

    Args:
        of: (n,) errors: 1 for a wrong answer, or a share; for numbers the error in standard deviations; for texts the
            loss per token.
        strata: (n,) numbers that are equal for rows of one label, as labels differ in difficulty.
        what: "answers", "numbers" or "losses".
    """

    of: np.ndarray
    strata: np.ndarray
    what: str = "answers"


class ErrorGroups(Rule):
    """Finds the rows that hold most errors: those with a value of a column, a word, a length, a date or a place.

    It works for every task with one error per row, and uses all columns, read or not. It looks at the measured rows,
    and at training rows, where rows that a model cannot learn contradict others. It is an alarm if most of a group and
    little else is wrong, and a note if an unread column separates harder rows from others.
    """

    name = "error-groups"
    order = 10

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        names = {run.evaluation.split: f"{run.evaluation.split} rows", "training": "training rows"}
        unread = set(run.audit.encoded["train"].get("unread", ())) - set(run.evaluation.slices)
        for name, rows in names.items():
            table = _first_rows(read_predictions(run.path, name, "tuned")) if name else {}
            errors = errors_of(table)
            if errors is None or len(errors.of) < FEWEST_ROWS or not errors.of.any():
                continue
            labels = run.trained.labels.names if run.trained.labels else ()
            groups = row_groups(table, unread, labels, unread_alone=errors.what != "answers")
            if (finding := _worst(errors, groups, rows)) is not None:
                yield finding
                return


def _first_rows(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the first of each set of duplicate rows in predictions."""
    import numpy as np

    if not table:
        return {}
    numbers = table.get("duplicate", table["row"])
    first = np.sort(np.unique(numbers, return_index=True)[1])[:MOST_ROWS]
    return {name: column[first] for name, column in table.items()}


def errors_of(table: Mapping[str, np.ndarray]) -> Errors | None:
    """Return the errors of predictions of any task; None if answers are neither right nor wrong."""
    import numpy as np

    def right(margins: np.ndarray) -> Errors:
        return Errors((margins <= 0).astype(float), np.zeros(len(margins), dtype=np.int64))

    if {"label", "predicted"} <= table.keys():
        wrong = table["label"] != table["predicted"]
        if wrong.ndim == 1:
            return Errors(wrong.astype(float), np.unique(table["label"], return_inverse=True)[1].ravel())
        return Errors(wrong.any(1).astype(float), np.zeros(len(wrong), dtype=np.int64))
    if {"target", "value"} <= table.keys() and table["target"].ndim == 1:
        spread = float(table["target"].std()) or 1.0
        over = (table["value"] - table["target"]) / spread
        return Errors(over, np.zeros(len(over), dtype=np.int64), "numbers")
    if {"tags", "predicted_tags"} <= table.keys():
        pairs = zip(table["tags"], table["predicted_tags"], strict=True)
        shares = [np.mean(np.asarray(tags) != np.asarray(answers)) if len(tags) else 0.0 for tags, answers in pairs]
        return Errors(np.array(shares, dtype=float), np.zeros(len(shares), dtype=np.int64))
    if {"loss", "tokens"} <= table.keys():
        return Errors(table["loss"] / np.maximum(table["tokens"], 1), np.zeros(len(table["loss"]), np.int64), "losses")
    margins = table.get("triplets.margin", table.get("margin"))
    return None if margins is None or np.isnan(margins).any() else right(margins)


def surest(errors: Errors, groups: list[Group]) -> Iterator[Group]:
    """Yield groups with more errors than chance explains, the most significant first.

    Errors are compared with those of rows of the same label, among which they are shuffled.
    """
    import numpy as np

    shown = np.stack([group.of for group in groups], 1).astype(np.float32)
    share = shown.mean(0)
    shown = (shown - share) / np.sqrt(share * (1 - share))
    size = np.bincount(errors.strata)
    excess = errors.of - (np.bincount(errors.strata, errors.of) / size)[errors.strata]
    if not (spread := float(excess.std())):
        return
    rng, by_label = np.random.default_rng(0), np.argsort(errors.strata, kind="stable")
    orders = np.empty((len(excess), SHUFFLES + 1), dtype=np.float32)
    orders[:, 0] = excess
    for i in range(1, SHUFFLES + 1):
        orders[by_label, i] = excess[np.lexsort((rng.random(len(excess)), errors.strata))]
    scores = shown.T @ orders / (spread * len(excess) ** 0.5)
    scores = np.abs(scores) if errors.what == "numbers" else scores
    chance = float(scores[:, 1:].max())
    yield from (groups[i] for i in np.argsort(-scores[:, 0], kind="stable") if scores[i, 0] > chance)


def _worst(errors: Errors, groups: list[Group], rows: str) -> Finding | None:
    """Return a finding on the most significant group; else one on a column that separates harder rows."""
    found = list(surest(errors, groups)) if groups else []
    of_another_kind = [group for group in found if _is_of_another_kind(errors, group)]
    unread = [group for group in found if group.unread]
    for group, alarm in [*((group, True) for group in of_another_kind[:1]), *((group, False) for group in unread[:1])]:
        inside, outside = (float(errors.of[side].mean()) for side in (group.of, ~group.of))
        n, others = int(group.of.sum()), int((~group.of).sum())
        where = f"{rows} where {group.what}{_or_else(group, of_another_kind if alarm else unread)}"
        if errors.what == "losses":
            fact = f"the loss of a token is {number(inside, 2)} ({n:,} rows), of other rows {number(outside, 2)}"
        elif errors.what == "numbers":
            off = "too high" if inside > outside else "too low"
            fact = f"predicted numbers are {off} by {number(abs(inside), 2)} standard deviations ({n:,} rows), of "
            fact += f"other rows by {number(abs(outside), 2)}"
        else:
            fact = f"{percent(inside)} of {n:,} are answered wrongly, of {others:,} others {percent(outside)}"
        brief = f"look at {where}: {fact}"
        text = f"{capitalized(brief)}. Their content or their labels may differ in kind from the others'."
        figures = {"where": group.what, "rows": n, "others": others, "error": inside, "error_of_others": outside}
        return Finding(
            kind="rows",
            level="alarm" if alarm else "note",
            text=text if alarm else f"Errors are more frequent in {where}: {fact}.",
            brief=brief,
            explains=EXPLAINS if alarm else (),
            figures=figures,
        )
    return None


def _or_else(group: Group, others: Sequence[Group]) -> str:
    """Return " or …" for the next group of nearly the same rows, which may be what they have in common; else ""."""
    near = (x for x in others if x is not group and (x.of & group.of).sum() >= NEARLY * (x.of | group.of).sum())
    other = next(near, None)
    return "" if other is None else f" (or {other.what})"


def _is_of_another_kind(errors: Errors, group: Group) -> bool:
    inside, outside = errors.of[group.of], errors.of[~group.of]
    if errors.what == "losses":
        return float(inside.mean()) >= LOSSES * float(outside.mean())
    if errors.what == "numbers":
        return abs(float(inside.mean())) >= max(OFF, TIMES * abs(float(outside.mean())))
    wrong = float(inside.mean())
    return bool(wrong >= max(MOST_WRONG, TIMES * float(outside.mean())) and inside.sum() >= OF_ALL * errors.of.sum())
