"""Audit `number-targets`."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from ftengine.api import Audit, AuditedData, AuditedRows, Finding
from ftengine.text import capitalized, counted, number, percent, short_place
from ftengine_builtins.audits.contradictions import are_numbers
from ftengine_builtins.audits.counting import SHOWN_PLACES
from ftengine_builtins.audits.missing_codes import find_code
from ftengine_builtins.audits.mixed_units import Scale, converted_fit, find_percents, find_scale
from ftengine_builtins.audits.number_forms import are_row_numbers, significant_digits
from ftengine_builtins.audits.one_answer import ALARM as NEARLY_ALL
from ftengine_builtins.audits.one_answer import NOTE as SAME
from ftengine_builtins.tasks.class_labels import as_number

MOST = 0.5
"""Share of all squared distances to the median that FEW of the rows, or those with a code, have where they outweigh the
others."""

FEW = 0.01

LOST = (10, 100, 1000, 10_000)
"""By how much a number grows whose decimal point is lost."""

GAP, FEWEST, MOST_BACK = 5.0, 3, 0.9
"""How many times the largest of the others the least of them is, how many there are at least, and the share of them
that lies among the others once the point is put back. Numbers of any size, such as incomes, have no such gap."""

BETTER = 0.1
"""By how much the correlation with what words predict rises once percentages are divided by a hundred, for an alarm."""

UNLIKE = 0.05
"""Probability by chance (Kolmogorov-Smirnov) below which numbers are not those of the others, point or not."""

MOST_ROWS = 5_000
"""Rows whose texts are read, the first."""
DIGITS, FEWEST_LONG, MOSTLY = 2, 20, 0.6
"""Digits of a number that does not stand in a text by chance, how many have them, and the share of these that do stand
in their texts."""
IN_ORDER = 0.9
"""Share of the rows whose number is larger than that of the row before, or smaller, for numbers in order."""
VARIED = 20
"""Distinct numbers beside one that nearly all rows have, from which it is where a scale ends; beside 0 there are two:
most claims are for nothing."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

EXPLAINED = ("quality", "learning", "rows", "over-fitting", "worse")
"""What follows from numbers that are not what they seem."""


class NumberTargets(Audit):
    """Finds target numbers that outweigh all others, lost their decimal point, have two scales, or are a code."""

    name = "number-targets"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        if not are_numbers(data):
            return
        rows = data.splits["train"]
        # Whole numbers among others are read as names until the data is bound.
        labels = ((as_number(view.label), i) for i, view in enumerate(rows))
        numbered = [(value, i) for value, i in labels if value is not None]
        if not numbered:
            return
        values = np.array([value for value, _ in numbered])
        yield from _written(rows, numbered)
        if are_row_numbers(values):
            ids = _of_row_numbers(values, rows.where(numbered[0][1]))
            yield ids
            if ids.level == "alarm":
                return
        if (same := _of_one_number(rows, numbered, values)) is not None:
            yield same
            if same.level == "alarm":
                return
        if (code := find_code(values)) is not None:
            yield _of_code(rows, numbered, values, *code)
            return
        if (lost := _lost_points(values)) is not None:
            yield _of_lost_points(rows, numbered, *lost)
            return
        if (percents := find_percents(values)) is not None:
            yield _of_percents(data, rows, numbered, percents)
            return
        if (scaled := find_scale(data)) is not None:
            yield _of_scale(*scaled)
            return
        median = float(np.median(values))
        figures = {"median": median, "least": float(values.min()), "most": float(values.max())}
        squared = (values - median) ** 2
        order = np.argsort(-squared, kind="stable")[: max(1, int(FEW * len(values)))]
        share = float(squared[order].sum() / squared.sum()) if squared.any() else 0.0
        if share >= MOST and len(values) >= 1 / FEW:
            places = tuple(rows.where(numbered[i][1]) for i in order[:SHOWN_PLACES])
            outliers, first = counted(len(order), "outlier"), number(float(values[order[0]]))
            text = f"Look at {outliers} among the target numbers, such as {first} at {places[0]}: of all squared "
            text += f"distances to the median, {percent(share)} are in {counted(len(order), 'row')} of {len(values):,}."
            yield Finding(kind="labels", level="note", text=text, figures={**figures, "share": share}, places=places)


def _written(rows: AuditedRows, numbered: Sequence[tuple[float, int]]) -> Iterator[Finding]:
    """Find texts in which their own number is written."""
    first = numbered[:MOST_ROWS]
    numbers = {i: value for value, i in first}
    digits = significant_digits(np.array([value for value, _ in first]))
    long = {i for (_, i), count in zip(first, digits.tolist(), strict=True) if count >= DIGITS}
    if len(long) < FEWEST_LONG:
        return
    found = list[int]()
    for i, view in enumerate(islice(rows, max(long) + 1)):
        words = NUMBER.findall(" ".join(view.texts)) if i in long else ()
        if any(as_number(word.replace(",", "")) == numbers[i] for word in words):
            found.append(i)
    if len(found) < MOSTLY * len(long):
        return
    places = tuple(rows.where(i) for i in found[:SHOWN_PLACES])
    brief = (
        f"check whether the text may hold its own number: {percent(len(found) / len(long))} of the training texts do "
    )
    brief += f"({number(numbers[found[0]])} in {short_place(places[0])})"
    yield Finding(
        kind="labels",
        level="note",
        text=f"{capitalized(brief)}. A model learns to copy it. Take it out if it is unknown when the model is asked.",
        brief=brief,
        figures={"written": len(found), "rows": len(long)},
        places=places,
    )


def _of_row_numbers(values: np.ndarray, place: str) -> Finding:
    """Name numbers that count rows; an alarm where they do so in the order of the file, as ranks hardly do."""
    brief = f"check that the target is not an id: all {len(values):,} training numbers differ by whole steps, from "
    brief += f"{number(float(values.min()))} to {number(float(values.max()))}, and hardly any is left out"
    text = f"{capitalized(brief)} ({place}), as numbers of rows are. Name the column of the target in data.columns."
    figures = {"ids": len(values), "least": float(values.min()), "most": float(values.max())}
    rising = float((np.diff(values) > 0).mean())
    level, explains = ("alarm", EXPLAINED) if max(rising, 1 - rising) >= IN_ORDER else ("note", ())
    return Finding(kind="labels", level=level, text=text, brief=brief, explains=explains, figures=figures)


def _of_one_number(rows: AuditedRows, numbered: Sequence[tuple[float, int]], values: np.ndarray) -> Finding | None:
    """Name the number that nearly all rows have."""
    distinct, counts = np.unique(values, return_counts=True)
    value, share = float(distinct[counts.argmax()]), float(counts.max() / len(values))
    if len(values) < FEWEST_LONG or share < SAME:
        return None
    place = rows.where(numbered[int(np.flatnonzero(values == value)[0])][1])
    alarm = share >= NEARLY_ALL and len(distinct) <= (VARIED if value else 2)
    brief = f"check the numbers of training: {percent(share)} of {len(values):,} are {number(value)}"
    return Finding(
        kind="labels",
        level="alarm" if alarm else "note",
        text=f"{capitalized(brief)}, so that hardly anything else can be learnt. Is it a default?",
        brief=brief,
        explains=(*EXPLAINED, "data") if alarm else (),
        figures={"same": value, "share": share, "rows": len(values)},
        places=(place,),
    )


def _of_code(
    rows: AuditedRows, numbered: Sequence[tuple[float, int]], values: np.ndarray, code: float, written: bool
) -> Finding:
    """Name many equal numbers far from all others; an alarm if they outweigh the others and look like a code."""
    found = np.flatnonzero(values == code)
    squared = (values - np.median(values)) ** 2
    share = float(squared[found].sum() / squared.sum())
    places = tuple(rows.where(numbered[i][1]) for i in found[:SHOWN_PLACES])
    brief = f"check whether {number(code)} stands for a missing value: {len(found):,} of {len(values):,} training rows "
    brief += f"have it ({short_place(places[0])}), far from all others"
    then = "If so, leave these rows out, or correct them." if written else "Is it a value or a code?"
    return Finding(
        kind="labels",
        level="alarm" if written and share >= MOST else "note",
        text=f"{capitalized(brief)}. {then}",
        brief=brief,
        explains=EXPLAINED,
        figures={"code": code, "count": len(found), "rows": len(values), "share": share},
        places=places,
    )


def _of_percents(
    data: AuditedData, rows: AuditedRows, numbered: Sequence[tuple[float, int]], percents: np.ndarray
) -> Finding:
    """Name numbers a hundred times the others; an alarm if words predict them better once they are divided."""
    fractions = len(numbered) - len(percents)
    places = tuple(rows.where(numbered[i][1]) for i in percents[:SHOWN_PLACES])
    brief = f"write percentages and fractions alike: {counted(len(percents), 'number')} such as "
    brief += f"{number(numbered[percents[0]][0])} ({short_place(places[0])}) are spread as the "
    brief += f"{fractions:,} from 0 to 1 are, a hundred times as large"
    figures = {"percents": len(percents), "fractions": fractions, "rows": len(numbered)}
    fit = converted_fit(data)
    sure = fit is not None and fit[1] >= fit[0] + BETTER
    correlations = ""
    if fit is not None:
        figures |= {"fit": fit[0], "converted": fit[1]}
        correlations = (
            f" What words predict correlates with them by {number(fit[0], 2)}, by {number(fit[1], 2)} once they "
        )
        correlations += "are divided."
    return Finding(
        kind="labels",
        level="alarm" if sure else "note",
        text=f"{capitalized(brief)}.{correlations}",
        brief=brief,
        explains=EXPLAINED,
        figures=figures,
        places=places,
    )


def _of_scale(scale: Scale, places: Sequence[str], values: np.ndarray) -> Finding:
    """Name numbers that are too small by a factor."""
    found, others = np.flatnonzero(scale.small), np.flatnonzero(~scale.small)
    by_words = scale.after is not None and scale.before is not None
    why = f"they differ by {scale.factor:,.0f}" if by_words else "a thousands point was read as a decimal one"
    brief = f"write all numbers in one scale, {why}: {percent(len(found) / len(values))} of {len(values):,} are such "
    brief += f"as {number(float(values[found[0]]))} ({short_place(places[found[0]])}), the others such as "
    brief += number(float(values[others[0]]))
    text = f"{capitalized(brief)}. Multiply the former by {scale.factor:,.0f}, or divide the others, in all files."
    if by_words:
        text += f" Words then predict them better: the correlation is {number(scale.after, 2)}, as they are "
        text += f"{number(scale.before, 2)}."
    return Finding(
        kind="labels",
        level="alarm",
        text=text,
        brief=brief,
        explains=EXPLAINED,
        figures={"scaled": len(found), "factor": scale.factor, "rows": len(values)},
        places=tuple(places[i] for i in found[:SHOWN_PLACES]),
    )


def _of_lost_points(
    rows: AuditedRows, numbered: Sequence[tuple[float, int]], factor: int, found: np.ndarray, sure: bool
) -> Finding:
    """Name the numbers that are too large by a factor, because of a lost point or for another reason."""
    places = tuple(rows.where(numbered[i][1]) for i in found[:SHOWN_PLACES])
    such = f"{counted(len(found), 'number')} such as {number(numbered[found[0]][0])} ({short_place(places[0])})"
    brief = f"put the decimal point back in {such}: divided by {factor:,}, they lie among the others"
    figures = {"lost_points" if sure else "far": len(found), "factor": factor, "rows": len(numbered)}
    if not sure:
        text = f"Look at {such}, which are far above all others: another unit, or a code?"
        return Finding(kind="labels", level="note", text=text, figures=figures, places=places)
    return Finding(
        kind="labels",
        level="alarm",
        text=f"{capitalized(brief)}.",
        brief=brief,
        explains=EXPLAINED,
        figures=figures,
        places=places,
    )


def _lost_points(values: np.ndarray) -> tuple[int, np.ndarray, bool] | None:
    """Return a factor, the indices of numbers too large by it, and whether they lost a decimal point; else None.

    They are at most a tenth of the numbers, none negative, separated by a gap, and lie among the others once divided.
    They lost a point if they are whole and the others are not, and if they are distributed like the others, so that
    they are no single code.
    """
    from scipy.stats import ks_2samp

    order, first = np.argsort(values, kind="stable"), len(values) - len(values) // 10
    if len(values) < 10 * FEWEST or values.min() < 0 or values[order[first - 1]] <= 0:
        return None
    gaps = values[order[first:]] / values[order[first - 1 : -1]]
    start = first + int(gaps.argmax())
    usual, far = values[order[:start]], order[start:]
    if gaps.max() < GAP or len(far) < FEWEST:
        return None
    for factor in LOST:
        back = values[far] / factor
        if ((back >= usual.min()) & (back <= usual.max())).mean() >= MOST_BACK:
            exact = _whole(values[far]) and _whole(usual * factor) and not _whole(usual)
            several = np.unique(back, return_counts=True)[1].max() <= len(back) / 2
            alike = ks_2samp(back, usual).pvalue >= UNLIKE and _same_fractions(back, usual)
            return factor, np.sort(far), bool(exact and several and alike)
    return None


def _same_fractions(back: np.ndarray, usual: np.ndarray) -> bool:
    """Return whether numbers may have the fractions of others: 749 is not 7.49 if other prices end in .99.

    A new number has a new fraction with the probability of fractions seen once (Good 1953).
    """
    from scipy.stats import binom, ks_2samp

    ours, theirs = ((np.rint(of % 1 * max(LOST)) % max(LOST)).astype(int) for of in (back, usual))
    known, counts = np.unique(theirs, return_counts=True)
    new = int((~np.isin(ours, known)).sum())
    by_chance = binom.sf(new - 1, len(ours), ((counts == 1).sum() + 1) / (len(theirs) + 1))
    return bool(min(by_chance, ks_2samp(ours, theirs).pvalue) >= UNLIKE)


def _whole(values: np.ndarray) -> bool:
    """Return whether nearly all numbers have no fraction, as far as they are exact."""
    return bool((np.abs(values - np.rint(values)) < 1e-6).mean() >= MOST_BACK)
