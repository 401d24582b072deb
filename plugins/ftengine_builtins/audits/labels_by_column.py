"""Audit `labels-by-column`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, counted, listed, number, percent, quoted
from ftengine_builtins.audits.column_values import (
    are_kinds,
    first_values,
    is_named_as_id,
    read_values,
    unread_columns,
    values_of,
)
from ftengine_builtins.audits.split_shift import PENALTY, find_shift
from ftengine_builtins.audits.word_scores import FEWEST_OF_LABEL, DrawnRows, WordRidge, draw_rows, one_hot, tf_idf
from ftengine_builtins.label_fit import Swap, confusion_of, find_swap, signed_correlation
from ftengine_builtins.row_groups import DATE, of_column

SAMPLE = 800
"""Rows that are looked at, drawn from all; the time grows with their cube, half a second of these on one core."""
FEWEST, FEWEST_OTHERS = 30, 60
"""Rows of a value, and of all others, below which nothing is said of it."""
MOST_VALUES, LOOKED_AT = 50, 1_000
"""Values of a column, at most, and training rows, the first, by which columns are chosen."""
TRIED = 3
"""Values that are compared with a classifier of all other rows, those that differ most by one of all rows."""
SURE = 1e-3
"""Probability by chance, times the values that were looked at, up to which labels of a value differ."""
SURER = 2.0
"""Standard errors by which they differ among the half of the rows that words are surest of as well: elsewhere texts may
be hard to tell, and no label wrong."""
MORE, TIMES = 0.1, 2.0
"""How much more of a value's labels than of others' words contradict, in points and as a factor, at least."""
WRONG, WRONG_TIMES = 0.25, 3.0
"""The same from which labels are wrong, or depend on the column: texts that are only harder are not so often answered
surely and otherwise."""
CONFUSED = 3
"""Rows of one label that are rather another, from which it is named."""
EXCHANGED = 0.5
"""How surely answers go against exchanged labels, at least, as a part of how surely they agree with those of others:
twice a share less one, of the rows that are answered as one of both. Where it is less, texts may be harder."""
MOST_REPEATED, SEVERAL_TEXTS, SEVERAL_LABELS = 20_000, 3, 0.3
"""Training rows, the first, among which equal texts are looked for; how many texts several values of a column have with
several labels, at least, and their share of those that several values have, from which it is asked for each value by
itself, as of an aspect."""
LEAST_FACTOR = 5.0
"""Ratio of medians from which it is named."""
UNITS = (24.0, 60.0, 1440.0, 3600.0, 86_400.0, *(10.0**power for power in range(1, 10)))
"""Factors between units of time, and of metric units. With all others, most ratios would be near to one."""
OFF, ERRORS = 0.1, 2.6
"""Standard error of the ratio's logarithm up to which a factor can be told, and at most how far the ratio may be from
it; and standard errors that it may be."""
OTHERWISE, ALIKE = 1e-6, 0.2
"""Probability by chance up to which a value's numbers are of another distribution, and the distance (Kolmogorov &
Smirnov) up to which they are of the same one once they are converted."""
FEW = 0.5
"""Rows of a value, as a part of those of a column's only other value, up to which it is the odd one of the two."""
EXPLAINS = (
    "quality", "learning", "labels", "classes", "over-fitting", "calibration", "worse", "slices", "rows", "data",
    "splits",
)  # fmt: skip


class LabelsByColumn(Audit):
    """Finds values of an unread column whose labels, or units of numbers, do not fit the texts.

    For example an annotator who confuses two classes, or a clinic that reports hours instead of days. A ridge
    classifier on TF-IDF of words, trained on all other rows, answers the rows of a value; its errors are compared with
    its out-of-sample errors on other rows of the same labels (Mantel & Haenszel 1959).
    """

    name = "labels-by-column"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        values = first_values(data, unread_columns(data), LOOKED_AT)
        names = [name for name, of in values if _are_few_kinds(of) or (_are_ordered(of) and not is_named_as_id(name))]
        names = [name for name in names if not _is_asked(data, name)]
        rows = draw_rows(data, SAMPLE, numbers=True) if names else None
        if rows is None or len(rows.texts) < FEWEST + FEWEST_OTHERS:
            return
        groups = _groups(data, names, rows)
        if rows.numbers is not None:
            yield from _units(rows, rows.numbers, groups)
            yield from _negatively_correlated(rows, rows.numbers, groups)
        elif groups:
            yield from _contradicted(rows, groups)


@dataclass(frozen=True)
class _Group:
    """The rows with one value of a column, or on one side of a bound.

    Args:
        value: the value; "" where rows have none, or for a bound.
        of: (n,) bool.
        where: the value or the bound in words, such as "is “mk”".
        other: the column's only other value in words, where it is about as frequent or rarer, so that either may be the
            odd one.
    """

    column: str
    value: str
    of: np.ndarray
    where: str = ""
    other: str = ""

    @property
    def figures(self) -> dict[str, Any]:
        return {"column": self.column, "value": self.value}


def _groups(data: AuditedData, names: Sequence[str], rows: DrawnRows) -> list[_Group]:
    """Return the rows of each value of columns of kinds, if enough rows have the value and enough have not."""
    groups = list[_Group]()
    for name, of in values_of(data, names, rows.rows):
        column = np.array(["" if value is None else str(value) for value in of], dtype=object)
        if len(values := sorted({*column})) < 2:
            continue
        if _are_few_kinds([value for value in of if value is not None]):
            wheres = [f"is {_named(value)}" for value in values]
            others = [_equal(column, value, values) for value in values]
            parts = zip(values, wheres, others, strict=True)
            every = [_Group(name, value, column == value, at, other) for value, at, other in parts]
        elif rows.numbers is None and _are_ordered(of):
            parts = of_column(name, column, ())
            every = [_Group(name, "", inside, what.partition("` ")[2]) for what, inside in parts]
        else:
            continue
        groups += [group for group in every if group.of.sum() >= FEWEST and (~group.of).sum() >= FEWEST_OTHERS]
    return groups


def _equal(column: np.ndarray, value: str, values: Sequence[str]) -> str:
    """Return the only other value of a column, in words, unless it has far more rows; else ""."""
    if len(values) != 2:
        return ""
    rows = int((column == value).sum())
    return "" if rows <= FEW * (len(column) - rows) else _named(values[1 - values.index(value)])


def _named(value: str) -> str:
    return quoted(value) if value else "blank"


def _are_few_kinds(values: Sequence[Any]) -> bool:
    return are_kinds(values) and len(set(values)) <= MOST_VALUES


def _are_ordered(values: Sequence[Any]) -> bool:
    """Say whether values are numbers, or dates as text, in which a bound divides rows."""
    kinds = {type(value) for value in values}
    return (bool(kinds) and kinds <= {int, float}) or (kinds == {str} and all(DATE.match(value) for value in values))


def _is_asked(data: AuditedData, name: str) -> bool:
    """Return whether equal training texts often have different labels under different values, like two aspects."""
    values, labels = dict[int, set[str]](), dict[int, set[int]]()
    numbers = (data.distinct["train"], data.targets["train"])
    for (value,), text, target in zip(read_values(data, "train", [name], MOST_REPEATED), *numbers, strict=False):
        if value is not None and target:
            values.setdefault(int(text), set()).add(str(value))
            labels.setdefault(int(text), set()).add(int(target))
    repeated = [text for text, of in values.items() if len(of) > 1]
    several = sum(len(labels[text]) > 1 for text in repeated)
    return several >= max(SEVERAL_TEXTS, SEVERAL_LABELS * len(repeated))


@dataclass(frozen=True)
class Excess:
    """Contradicted labels in a value's rows, and in as many other rows with the same labels.

    Args:
        share, others: contradicted rows of the value, and of others, as shares.
        n: rows of the value that are compared.
        errors: standard errors between the two (Mantel & Haenszel).
    """

    share: float
    others: float
    n: int
    errors: float

    @property
    def is_large(self) -> bool:
        return self.share >= max(self.others + MORE, TIMES * self.others)


def excess(wrong: np.ndarray, labels: np.ndarray, of: np.ndarray) -> Excess:
    """Compare (n,) contradictions of a value's rows with those of other rows, within each label of both."""
    n, count, expected, over, variance = 0, 0, 0.0, 0.0, 0.0
    for label in np.unique(labels[of]):
        inside, outside = wrong[of & (labels == label)], wrong[~of & (labels == label)]
        g, m = len(inside), len(outside)
        if m < FEWEST_OF_LABEL:
            continue  # then no row vouches for the label
        w = int(inside.sum() + outside.sum())
        n, count, expected = n + g, count + int(inside.sum()), expected + g * float(outside.mean())
        over += float(inside.sum()) - g * w / (g + m)
        variance += g * m * w * (g + m - w) / ((g + m) ** 2 * (g + m - 1))
    return Excess(count / max(1, n), expected / max(1, n), n, over / math.sqrt(variance) if variance else 0.0)


def _contradicted(rows: DrawnRows, groups: Sequence[_Group]) -> Iterator[Finding]:
    """Name the value whose labels words contradict most, beyond chance."""
    features, targets = tf_idf(rows.texts), one_hot(rows.labels)
    ridge = WordRidge(features)
    every, screened = ridge.leave_one_out(targets, PENALTY), list[tuple[float, int]]()
    for i, group in enumerate(groups):
        answers = every.copy()
        answers[group.of] = ridge.leave_out(targets, PENALTY, group.of)
        screened.append((excess(answers.argmax(1) != rows.labels, rows.labels, group.of).errors, i))
    sure, best = SURE / len(groups), None
    for errors, i in sorted(screened, reverse=True)[:TRIED]:
        if errors >= SURER and (found := _compared(rows, features, targets, groups[i].of, sure)) is not None:
            best = (found, groups[i]) if best is None or found.excess.errors > best[0].excess.errors else best
    if best is not None:
        found, group = best
        texts = ([rows.texts[j] for j in np.flatnonzero(side)] for side in (~group.of, group.of))
        if found.are_swapped or find_shift(*texts) is None:
            yield _of_labels(group, found, rows.names)


@dataclass(frozen=True)
class _Compared:
    """A value's rows against all others: contradictions, (K, K) labels by answers, and whether classes are swapped."""

    excess: Excess
    confusion: np.ndarray
    are_swapped: bool


def _compared(rows: DrawnRows, features: Any, targets: np.ndarray, of: np.ndarray, sure: float) -> _Compared | None:
    """Compare the rows of a value with others, by a classifier of the others; None if they hardly differ.

    If answers contradict two labels of the value and not of others, the labels are swapped, however weakly words
    predict.
    """
    others, answers, size = WordRidge(features[~of]), np.empty(targets.shape), targets.shape[1]
    answers[~of] = others.leave_one_out(targets[~of], PENALTY)
    answers[of] = others.predict(features[of], targets[~of], PENALTY)
    preferred, ranked = answers.argmax(1), np.sort(answers, axis=1)
    wrong, margin = preferred != rows.labels, ranked[:, -1] - ranked[:, -2]
    found = excess(wrong, rows.labels, of)
    inside, outside = (confusion_of(rows.labels[side], preferred[side], size) for side in (of, ~of))
    swap = find_swap(inside, sure) if found.errors >= SURER else None
    if swap is not None and find_swap(outside) is None and _is_exchange(swap, outside):
        return _Compared(found, inside, are_swapped=True)
    clear = margin >= np.median(margin[~of])
    clearer = excess(wrong[clear], rows.labels[clear], of[clear])
    differ = found.errors >= NormalDist().inv_cdf(1 - sure) and clearer.errors >= SURER
    return _Compared(found, inside, False) if differ and found.is_large and clearer.is_large else None


def _is_exchange(swap: Swap, outside: np.ndarray) -> bool:
    """Return whether answers contradict a value's labels about as clearly as they confirm the same labels of others."""
    right = sum(int(outside[i, i]) for i, _ in swap.classes)
    wrong = sum(int(outside[i, j]) for i, j in swap.classes)
    against = 2 * swap.fit / max(1, swap.fit + swap.own) - 1
    return against >= EXCHANGED * (2 * right / max(1, right + wrong) - 1)


def _of_labels(group: _Group, found: _Compared, names: Sequence[str]) -> Finding:
    """Return an alarm if labels are exchanged; a note if texts may be harder, or labels depend on the column."""
    excess, confusion = found.excess, found.confusion
    wrong = confusion - np.diag(np.diag(confusion))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:2].tolist()
    pairs = [divmod(at, len(names)) for at in worst if wrong.flat[at] >= CONFUSED]
    confused = [(names[i], names[j], int(wrong[i, j])) for i, j in pairs]
    mostly = listed([f"{quoted(label)} -> {quoted(answer)} ({count:,})" for label, answer, count in confused])
    either = f", or where it is {group.other}" if found.are_swapped and group.other else ""
    what = (
        f"labels of rows where `{group.column}` {group.where}{either}: a classifier of the other rows disagrees with "
    )
    what += f"{percent(excess.share)} of these labels, with {percent(excess.others)} of the others'"
    what += f"; mostly {mostly}" if mostly else ""
    text = f"If labels depend on `{group.column}`, read it (write it into the text); else check the {what}. "
    text += f"{capitalized(counted(excess.n, 'row'))} were compared with rows of the same labels. "
    text += "Correct what is wrong or leave it out"
    text += "." if found.are_swapped else "; texts of this value may also be harder, and no label wrong."
    figures = {**group.figures, "share": excess.share, "others": excess.others, "n": excess.n, "confused": confused}
    if not found.are_swapped and (excess.share < WRONG or excess.share < WRONG_TIMES * excess.others):
        return Finding(kind="labels", level="note", text=text, figures=figures)
    brief = f"check the {what}"
    return Finding(kind="labels", level="alarm", text=text, brief=brief, explains=EXPLAINS, figures=figures)


def _units(rows: DrawnRows, numbers: np.ndarray, groups: Sequence[_Group]) -> Iterator[Finding]:
    """Yield one value of each column whose numbers equal the others' in distribution once scaled.

    Known units come first, then the value with the fewest rows.
    """
    from scipy.stats import ks_2samp

    found = dict[str, tuple[_Group, float | None]]()
    for group in sorted(groups, key=lambda group: int(group.of.sum())):
        own, others = numbers[group.of], numbers[~group.of]
        ratio = _ratio(own, others)
        if max(ratio, 1 / ratio) < LEAST_FACTOR or ks_2samp(own, others, method="asymp").pvalue > OTHERWISE:
            continue
        if ks_2samp(own / ratio, others, method="asymp").statistic > ALIKE:
            continue
        factor = _factor(ratio, math.hypot(_median_error(own), _median_error(others)))
        if group.column in found and (factor is None or found[group.column][1] is not None):
            continue
        if find_shift(*([rows.texts[i] for i in np.flatnonzero(side)] for side in (~group.of, group.of))) is None:
            found[group.column] = (group, factor)
    for group, factor in found.values():
        yield _of_unit(group, numbers[group.of], numbers[~group.of], factor)


def _negatively_correlated(rows: DrawnRows, numbers: np.ndarray, groups: Sequence[_Group]) -> Iterator[Finding]:
    """Name the value whose numbers run against what words of all other rows predict, and the others' with it."""
    if not groups:
        return
    features, best = tf_idf(rows.texts), None
    ridge, every = WordRidge(features), numbers[:, None]
    # The rarer of two values is the odd one: from the others' view, either runs back.
    for group in sorted(groups, key=lambda group: int(group.of.sum())):
        there = signed_correlation(ridge.leave_out(every, PENALTY, group.of)[:, 0], numbers[group.of])
        if not there[1] or (best is not None and there[0] >= best[1]):
            continue
        others = WordRidge(features[~group.of]).leave_one_out(every[~group.of], PENALTY)[:, 0]
        own, _, runs_on = signed_correlation(others, numbers[~group.of])
        if runs_on:
            best = (group, there[0], own)
    if best is not None:
        group, there, own = best
        either = f", or where it is {group.other}" if group.other else ""
        brief = f"check which way numbers run where `{group.column}` {group.where}{either}: with what the words of "
        brief += f"other rows predict they correlate by {number(there, 2)}, the others by {number(own, 2)}"
        text = (
            f"{capitalized(brief)}. If a small number means much there (1 is best, elsewhere worst), turn these round."
        )
        figures = {**group.figures, "correlation": there, "others": own, "n": int(group.of.sum())}
        yield Finding(kind="labels", level="alarm", text=text, brief=brief, explains=EXPLAINS, figures=figures)


def _ratio(numbers: np.ndarray, others: np.ndarray) -> float:
    """Return the ratio of two medians; 1 if one is 0 or their signs differ."""
    middle, of_others = float(np.median(numbers)), float(np.median(others))
    return middle / of_others if middle * of_others > 0 else 1.0


def _median_error(numbers: np.ndarray) -> float:
    """Return the standard error of the logarithm of a median, from its neighbours in order; inf if signs differ."""
    half = 0.5 / math.sqrt(len(numbers))
    low, high = np.quantile(numbers, [0.5 - half, 0.5 + half]).tolist()
    return abs(math.log(high / low)) / 2 if low * high > 0 else math.inf


def _factor(ratio: float, error: float) -> float | None:
    """Return the factor between two units that equals a ratio of medians within its error; None if there is none.

    Args:
        error: standard error of the ratio's logarithm.
    """
    nearest = min(
        (factor for unit in UNITS for factor in (unit, 1 / unit)), key=lambda factor: abs(math.log(ratio / factor))
    )
    return nearest if error <= OFF and abs(math.log(ratio / nearest)) <= min(OFF, ERRORS * error) else None


def _short(value: float) -> str:
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 else f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:g}"


def _of_unit(group: _Group, own: np.ndarray, others: np.ndarray, factor: float | None) -> Finding:
    """Return an alarm if the ratio of medians is the factor of a unit, else a note."""
    middle, of_others = float(np.median(own)), float(np.median(others))
    ratio, value = middle / of_others, f"{group.column} {_named(group.value)}"
    value += f", or of {group.other}" if group.other else ""
    times = f"{_short(ratio)} times" if ratio > 1 else f"1/{_short(1 / ratio)} of"
    median = f"{times} that of others ({_short(middle)}, {_short(of_others)})"
    figures = {**group.figures, "ratio": ratio, "median": middle, "others": of_others, "n": len(own)}
    if factor is None:
        text = f"The median of the numbers of {value} is {median}, though the texts are alike. If numbers depend on "
        text += f"`{group.column}`, read it (write it into the text); are they in one unit?"
        return Finding(kind="labels", level="note", text=text, figures=figures)
    which = f"{_named(group.value)} has a median of" if group.other else "their median is"
    brief = f"convert the numbers of {value}, which are in another unit: {which} {median}"
    ways, by = ("divided", factor) if factor > 1 else ("multiplied", 1 / factor)
    like = f"those of {_named(group.value)}" if group.other else "they"
    text = f"{capitalized(brief)}, though the texts are alike; {ways} by {by:,.0f} {like} are like the others. If they "
    text += f"depend on `{group.column}` by design, read it instead (write it into the text)."
    figures["factor"] = factor
    return Finding(kind="labels", level="alarm", text=text, brief=brief, explains=EXPLAINS, figures=figures)
