"""Audit `split-support`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from math import lgamma, log

import numpy as np

from ftengine.api import Audit, AuditedData, Finding, Level
from ftengine.text import capitalized, counted, listed, number, percent, quoted
from ftengine_builtins.audits.column_values import are_ids, are_kinds, read_values, unread_columns
from ftengine_builtins.audits.contradictions import are_numbers, tags_words
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within, split_name
from ftengine_builtins.audits.number_forms import are_rounded, scaled_form, significant_digits
from ftengine_builtins.audits.split_shift import EXPLAINED, draw, find_shift, is_nonrandom_split
from ftengine_builtins.tasks.class_labels import as_number

FEWEST = 20
"""Rows of a split below which nothing is compared."""
AT_BOUND, TIMES = 0.05, 5
"""Share of a split's numbers that are exactly its largest, or least, at the interval's near end, and how many times the
count of any other number it is: grades have a highest that many rows have, and others that many have."""
BEYOND = 0.02
"""Share of the other split's numbers that lie beyond, near end. Of one source, one in n + 1 lies beyond the largest of
n."""
FREE_BEYOND, SURE = 0.05, 1e-6
"""The same where no number of the first split stands out, and the probability up to which it is no chance that so many
of the largest numbers of both are in one."""
FREQUENT, RARER = 0.1, 5
"""Share of the training numbers that are one number, near end, and how many times as rare it is in the other split, far
end, from which it is a default."""
OFTEN_ENOUGH = 0.05
"""The same share where the other file has it that much more rarely beyond chance (Fisher's exact test, CLEAR over all
numbers)."""
LACKING = 0.02
"""Share of a held-out split's rows, near end, that have a label which training lacks."""
ELSEWHERE, MOST_VALUES, MOST_ROWS = 0.5, 50, 5_000
"""Share of the held-out rows, near end, whose value of a column training lacks; values of such a column, and rows of a
split that are looked at, the first."""
OFTEN, FAR, CLEAR = 0.1, 2.0, 1e-5
"""Share of one file's rows that have a label or tag among several, how many times their share in the other file it is,
and the probability by chance, times the labels, up to which it was left out there, or added here."""
POINTS = 0.2
"""By how much larger the share of a class is in training, and FAR times, for a note."""
SHOWN = 4


class SplitSupport(Audit):
    """Finds what one split has and the other lacks: labels, tags, numbers beyond a bound, values of unread columns.

    Of rows with several labels, and of tagged words, it also finds a label that is far more frequent in one, and of
    numbers one that is far more frequent in training, such as a default. Looks at splits of a source of their own, and
    at those that a column divides.
    """

    name = "split-support"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        held = [split for split in data.splits if split != "train" and is_nonrandom_split(data, split)]
        numbers = {split: _numbers(data, split) for split in ("train", *held)} if held and are_numbers(data) else {}
        for split in reversed(held):  # figures are made on the last
            finding = _range(data, split, numbers) if numbers else _labels(data, split) or _shares(data, split)
            finding = finding or (None if numbers else _of_classes(data, split))
            if finding is not None:
                yield finding
                break
        for split in reversed(held):
            yield from islice(_columns(data, split), 1)


def _numbers(data: AuditedData, split: str) -> np.ndarray:
    """Return (rows,) numbers, nan where a row has none."""
    values = (as_number(view.label) for view in data.splits[split])
    return np.array([np.nan if value is None else value for value in values])


def _range(data: AuditedData, split: str, numbers: Mapping[str, np.ndarray]) -> Finding | None:
    """Return a finding on numbers that pass a bound of the other split, or on a number that training has too often."""
    known = {name: of[~np.isnan(of)] for name, of in numbers.items()}
    for here, there in (("train", split), (split, "train")):
        if scaled_form(known[here], known[there]) is not None:
            return None  # which audit `misplaced-labels` finds
        if are_rounded(known[here], known[there]):
            return _of_rounding(data, split, here, there, known)
    for least in (BEYOND, FREE_BEYOND):
        for here, there in (("train", split), (split, "train"))[: 1 if least == FREE_BEYOND else 2]:
            for sign in (1, -1):
                if _is_passed(sign * numbers[here], sign * numbers[there], least):
                    return _of_bound(data, split, here, there, sign, numbers)
    return _of_default(data, split, numbers)


def _is_passed(side: np.ndarray, other: np.ndarray, least: float) -> bool:
    """Say whether significantly many of (m,) numbers exceed the maximum of (n,) others, which many of these equal.

    Args:
        least: share that exceeds it, near end; with FREE_BEYOND the maximum may be a single number.
    """
    side, other = side[~np.isnan(side)], other[~np.isnan(other)]
    if min(len(side), len(other)) < FEWEST:
        return False
    if least == BEYOND:
        counts = np.unique(side, return_counts=True)[1]
        at_bound = share_within(int(counts[-1]), len(side))[0] >= AT_BOUND
        if len(counts) < 2 or not at_bound or counts[-1] < TIMES * counts[:-1].max():
            return False
    beyond = int((other > side.max()).sum())
    if share_within(beyond, len(other))[0] < least:
        return False
    # Hypergeometric: how often as many of all numbers, drawn at random, would all be of the other file.
    return least == BEYOND or _log_comb(len(other), beyond) <= log(SURE) + _log_comb(len(side) + len(other), beyond)


def _log_comb(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _of_bound(
    data: AuditedData, split: str, here: str, there: str, sign: int, numbers: Mapping[str, np.ndarray]
) -> Finding:
    ours, theirs = numbers[here], numbers[there]
    bound = float(sign * np.nanmax(sign * ours))
    at, beyond = np.flatnonzero(ours == bound), int((sign * theirs > sign * bound).sum())
    known = [int((~np.isnan(of)).sum()) for of in (ours, theirs)]
    passing = percent(beyond / known[1])
    if share_within(len(at), known[0])[0] >= AT_BOUND:
        end, past = ("capped", "above") if sign > 0 else ("cut off", "below")
        lead = f"check whether {split_name(here)} numbers are {end} at {number(bound)}: {percent(len(at) / known[0])} "
        lead += f"of {known[0]:,} rows have exactly that and none is {past}, {passing} of {known[1]:,} "
        lead += f"{split_name(there)} rows are"
        then = f"Export {data.splits[here].source} with its true numbers, or remove these rows."
    else:
        end, past = ("above", "largest") if sign > 0 else ("below", "least")
        lead = f"add training rows with numbers {end} {number(bound)}: that is the {past} of {known[0]:,} training "
        lead += f"rows, and {passing} of {known[1]:,} {split_name(there)} numbers are {end} it"
        then = (
            f"Were rows left out when {data.splits[here].source} was exported? A model does not answer what it never "
        )
        then += "saw."
    return Finding(
        kind="splits",
        level="alarm",
        text=f"{capitalized(lead)}. {then}",
        brief=lead,
        explains=EXPLAINED,
        figures={"split": split, "capped": here, "bound": bound, "share": len(at) / known[0],
                 "beyond": beyond / known[1]},
        places=tuple(data.splits[here].where(int(row)) for row in at[:SHOWN_PLACES]),
    )  # fmt: skip


def _of_rounding(data: AuditedData, split: str, here: str, there: str, numbers: Mapping[str, np.ndarray]) -> Finding:
    digits = {name: int(np.median(significant_digits(numbers[name]))) for name in (here, there)}
    distinct = len(np.unique(numbers[here]))
    lead = f"check whether {split_name(here)} numbers were rounded, or cut to whole ones: they have "
    lead += f"{counted(digits[here], 'digit')}, {distinct:,} are distinct; {split_name(there)} numbers have "
    lead += f"{counted(digits[there], 'digit')}"
    return Finding(
        kind="splits",
        level="alarm",
        text=f"{capitalized(lead)}. Export {data.splits[here].source} with all digits.",
        brief=lead,
        explains=EXPLAINED,
        figures={"split": split, "rounded": here, "distinct": distinct, "digits": digits},
    )


def _of_default(data: AuditedData, split: str, numbers: Mapping[str, np.ndarray]) -> Finding | None:
    train, held = (of[~np.isnan(of)] for of in (numbers["train"], numbers[split]))
    if min(len(train), len(held)) < FEWEST:
        return None
    values, counts = np.unique(train, return_counts=True)
    value, count = float(values[counts.argmax()]), int(counts.max())
    there = int((held == value).sum())
    often = share_within(count, len(train))[0] >= max(FREQUENT, RARER * share_within(there, len(held))[1])
    if not often and not _is_rarer(count, len(train), there, len(held), len(values)):
        return None
    lead = f"check whether {number(value)} is a default: {percent(count / len(train))} of the training numbers are "
    lead += f"exactly that, of the {split_name(split)} numbers {percent(there / len(held))}"
    rows = np.flatnonzero(numbers["train"] == value)[:SHOWN_PLACES]
    return Finding(
        kind="splits",
        level="alarm",
        text=f"{capitalized(lead)}. Leave rows without a true number out of training.",
        brief=lead,
        explains=EXPLAINED,
        figures={"split": split, "default": value, "share": count / len(train), "held_out": there / len(held)},
        places=tuple(data.splits["train"].where(int(row)) for row in rows),
    )


def _is_rarer(count: int, n: int, there: int, m: int, tried: int) -> bool:
    """Say whether a number is rarer in the other file than in training, beyond chance over all numbers."""
    from scipy.stats import fisher_exact

    if share_within(count, n)[0] < OFTEN_ENOUGH or RARER * there / m > count / n:
        return False
    return bool(fisher_exact([[count, n - count], [there, m - there]]).pvalue * tried <= CLEAR)


def _labels(data: AuditedData, split: str) -> Finding | None:
    """Return a finding on labels or tags that training lacks."""
    tagged = tags_words(data)
    train, held = (_counts(data, name) for name in ("train", split))
    lacking = {label: count for label, count in held.items() if label not in train}
    if min(train.total(), held.total()) < FEWEST or not lacking:
        return None
    rows = [i for i, view in enumerate(data.splits[split]) if not lacking.keys().isdisjoint(view.labels)]
    share = share_within(len(rows), len(data.splits[split]))[0]
    if share < LACKING:
        return None
    unit, name = ("word", "tag") if tagged else ("row", "label")
    shown = [quoted(label) for label in sorted(lacking, key=lambda label: -lacking[label])]
    more = [f"{len(shown) - SHOWN:,} others"] if len(shown) > SHOWN else []
    lead = f"add training rows with {listed([*shown[:SHOWN], *more])}: no training row has this {name}"
    lead = lead if len(shown) == 1 else lead.replace(f"this {name}", f"one of these {name}s")
    total = held.total() if tagged else len(data.splits[split])
    lead += f", {sum(lacking.values()):,} of {total:,} {split_name(split)} {unit}s do"
    instead = _instead(train, held, lacking)
    then = "A model cannot answer what it never saw. Were they called otherwise, or left out, in "
    then += f"{data.splits['train'].source}?"
    if instead:
        then += f" {capitalized(listed([*map(quoted, instead)]))} {'is' if len(instead) == 1 else 'are'} more frequent "
        then += f"in training than in {split_name(split)}."
    return Finding(
        kind="splits",
        level="alarm",
        text=f"{capitalized(lead)}. {then}",
        brief=lead,
        explains=EXPLAINED,
        figures={"split": split, "lacking": lacking, "rows": len(rows), "share": len(rows) / len(data.splits[split]),
                 "instead": instead},
        places=tuple(data.splits[split].where(row) for row in rows[:SHOWN_PLACES]),
    )  # fmt: skip


def _shares(data: AuditedData, split: str) -> Finding | None:
    """Return a finding on one of several labels, or tags, of a row that one file has far more often, texts alike."""
    from scipy.stats import fisher_exact

    ours, theirs = (_rows_by_label(data, name) for name in ("train", split))
    n, m = (sum(1 for view in data.splits[name] if view.labels) for name in ("train", split))
    if min(n, m) < FEWEST or not (tags_words(data) or any(len(view.labels) > 1 for view in data.splits["train"])):
        return None
    best = (CLEAR, "")
    every = ours.keys() | theirs.keys()
    for label in every:
        a, b = ours[label], theirs[label]
        low, high = sorted((a / n, b / m))
        if high >= max(OFTEN, FAR * low):
            best = min(best, (float(fisher_exact([[a, n - a], [b, m - b]]).pvalue) * len(every), label))
    if not (label := best[1]) or find_shift(*(draw(data, name).texts for name in ("train", split))) is not None:
        return None
    shares = {"train": ours[label] / n, split: theirs[label] / m}
    here, there = sorted(shares, key=lambda name: shares[name])
    lead = f"check whether {quoted(label)} was left out in {split_name(here)} rows: {percent(shares[here])} of them "
    lead += f"have it, and {percent(shares[there])} of {split_name(there)} rows, whose texts are alike"
    then = f"Label {data.splits[here].source} in full, or was it given too often in {data.splits[there].source}?"
    figures = {"split": split, "label": label, "left_out": here, "share": shares["train"], "held_out": shares[split]}
    # Training with more of a rare label may have been drawn so on purpose.
    level: Level = "alarm" if here == "train" or tags_words(data) else "note"
    return Finding(kind="splits", level=level, text=f"{capitalized(lead)}. {then}", brief=lead, explains=EXPLAINED,
                   figures=figures)  # fmt: skip


def _of_classes(data: AuditedData, split: str) -> Finding | None:
    """Return a note on a class that is far more frequent in training than in the other file, in rows of one label."""
    from scipy.stats import fisher_exact

    train, held = (_counts(data, name) for name in ("train", split))
    n, m = train.total(), held.total()
    if min(n, m) < FEWEST or tags_words(data) or n != sum(1 for view in data.splits["train"] if view.labels):
        return None
    label = max(train, key=lambda label: train[label] / n - held[label] / m)
    here, there = train[label] / n, held[label] / m
    table = [[train[label], n - train[label]], [held[label], m - held[label]]]
    if here - there < POINTS or here < FAR * there or float(fisher_exact(table).pvalue) * len(train) > CLEAR:
        return None
    lead = f"check whether training labels were filled in: {quoted(label)} is the label of {percent(here)} of the "
    lead += f"training rows and of {percent(there)} of the {split_name(split)} rows"
    then = f"Is it a default of {data.splits['train'].source}, or was {data.splits[split].source} balanced on purpose?"
    return Finding(kind="splits", level="note", text=f"{capitalized(lead)}. {then}", brief=lead,
                   figures={"split": split, "frequent": label, "share": here, "held_out": there})  # fmt: skip


def _rows_by_label(data: AuditedData, split: str) -> Counter[str]:
    """Return the number of rows that have each label, or a word with the tag."""
    return Counter(label for view in data.splits[split] for label in {*view.labels})


def _counts(data: AuditedData, split: str) -> Counter[str]:
    return Counter(label for view in data.splits[split] for label in view.labels)


def _instead(train: Counter[str], held: Counter[str], lacking: Collection[str]) -> list[str]:
    """Return the labels that take the place of lacking ones in training: they are surely more frequent there."""
    sure = {
        label: share_within(count, train.total())[0] - share_within(held[label], held.total())[1]
        for label, count in train.items()
    }
    return [label for label in sorted(sure, key=lambda label: -sure[label]) if sure[label] > 0][: len(lacking)][:SHOWN]


def _columns(data: AuditedData, split: str) -> Iterator[Finding]:
    """Yield the unread columns of kinds of which most held-out rows have a value that training lacks."""
    names = unread_columns(data)
    sides = [[*zip(*read_values(data, name, names, MOST_ROWS), strict=True)] for name in ("train", split)]
    for name, train, held in zip(names, *sides, strict=True) if all(sides) else ():
        known, others = ([value for value in side if value is not None] for side in (train, held))
        kinds = {*known, *others} if are_kinds(known) and are_kinds(others) else set()
        if not 1 < len(kinds) <= MOST_VALUES or min(len(known), len(others)) < FEWEST:
            continue
        if are_ids(name, set(known), len(known)) or len(kinds) * FEWEST > len(known) + len(others):
            continue
        new = Counter(value for value in others if value not in set(known))
        if share_within(new.total(), len(others))[0] < ELSEWHERE:
            continue
        ours, theirs = (listed([quoted(str(value)) for value, _ in of.most_common(2)]) for of in (Counter(known), new))
        lead = f"compare rows by `{name}`: {percent(new.total() / len(others))} of the {split_name(split)} rows have a "
        lead += f"value that no training row has ({theirs}; in training {ours})"
        text = f"{capitalized(lead)}. Add such rows to training, or hold out a random part of all rows."
        yield Finding(kind="splits", level="note", text=text, brief=lead,
                      figures={"split": split, "column": name, "share": new.total() / len(others)})  # fmt: skip
