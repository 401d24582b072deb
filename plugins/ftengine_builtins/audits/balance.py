"""Audit `balance`."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from ftengine.api import Audit, AuditedData, Display, Finding, Table
from ftengine.text import listed
from ftengine_builtins.tasks.class_labels import MISSING

RARE = 10
"""Training rows below which a label is called rare."""
SHOWN_LABELS = 100
"""Labels that the table lists; further ones are only counted."""
SHOWN = 5
LONG, NEAR, OFTEN, MANY = 6, 0.85, 10, 500
"""Letters of a label that may be misspelt, its likeness to another, how many times as frequent that is; labels of which
each is compared with each."""


class Balance(Audit):
    """How labels are spread over the splits: rare ones, missing ones, alike ones, missing values as labels."""

    name = "balance"

    def examine(self, data: AuditedData) -> Iterator[Finding | Display]:
        counts = count_labels(data)
        if not any(counts.values()):
            return
        train = counts["train"]
        if rare := sorted((count, label) for label, count in train.items() if count < RARE):
            count, label = rare[0]
            occur, which, them = ("occurs", ":", "it") if len(rare) == 1 else ("occur", ", the rarest,", "them")
            text = f"In training, {len(rare):,} of {len(train):,} labels {occur} fewer than {RARE} times{which} "
            text += f"{label!r}, {'once' if count == 1 else f'{count} times'}; too few to learn {them} well."
            figures = {"rare": {label: count for count, label in rare[:SHOWN_LABELS]}, "labels": len(train)}
            yield Finding(kind="labels", level="note", text=text, figures=figures)
        lacking: dict[tuple[str, ...], list[str]] = {}
        for split, count_of in counts.items():
            if missing := tuple(sorted(train.keys() - count_of.keys())):
                lacking.setdefault(missing, []).append(split)
        for missing, splits in lacking.items():
            shown = ", ".join(map(repr, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
            text = f"No {' and no '.join(splits)} row has label {shown}; figures say nothing about it."
            figures = {"splits": splits, "missing": missing[:SHOWN_LABELS]}
            yield Finding(kind="labels", level="note", text=text, figures=figures)
        yield from _alike(counts)
        yield from _missing(counts)
        yield _table(counts)


def count_labels(data: AuditedData) -> dict[str, Counter[str]]:
    """Return for each split how often each label occurs; nothing where a target is a number with a fraction."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in data.splits}
    if not any(targets.any() for targets in data.targets.values()):
        return counts
    for split, rows in data.splits.items():
        for view in rows:
            if isinstance(view.label, float):
                return {split: Counter() for split in data.splits}
            counts[split].update(view.labels)
    return counts


def _alike(counts: Mapping[str, Counter[str]]) -> Iterator[Finding]:
    """Yield labels that differ in case or white space only, and so may be one label written in two ways."""
    total = sum(counts.values(), Counter[str]())
    alike: dict[str, list[str]] = {}
    for label in sorted(total, key=lambda label: (-total[label], label)):
        alike.setdefault(" ".join(label.casefold().split()), []).append(label)
    several = [labels for labels in alike.values() if len(labels) > 1]
    for labels in several[:SHOWN]:
        shown = listed([f"{label!r} ({total[label]:,})" for label in labels])
        text = f"Labels {shown} differ in case or white space only, and are {len(labels)} classes; are they one?"
        yield Finding(kind="labels", level="note", text=text, figures={label: total[label] for label in labels})
    for label, other in list(_misspelt(total))[:SHOWN]:
        text = f"Label {label!r} ({total[label]:,}) is nearly {other!r} ({total[other]:,}), and another class; is it a "
        text += "misspelling?"
        yield Finding(kind="labels", level="note", text=text, figures={one: total[one] for one in (label, other)})


def _misspelt(total: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield rare labels with the frequent one from which a letter or two tell them; numbers make other labels."""
    for label, count in total.items() if len(total) <= MANY else ():
        frequent = [one for one in total if total[one] >= OFTEN * count and _letters(one) != _letters(label)]
        near = difflib.get_close_matches(label, frequent, n=1, cutoff=NEAR) if len(label) >= LONG else ()
        if near and label.casefold().split() != near[0].casefold().split():
            yield label, near[0]


def _letters(label: str) -> str:
    return re.sub(r"\d", "", label)


def _missing(counts: Mapping[str, Counter[str]]) -> Iterator[Finding]:
    total = sum(counts.values(), Counter[str]())
    if marks := {label: total[label] for label in sorted(total) if label.casefold() in MISSING}:
        shown = listed([f"{label!r} ({count:,})" for label, count in marks.items()])
        text = f"Label{'' if len(marks) == 1 else 's'} {shown} may stand for a missing value, but would be learnt as a "
        text += "class."
        yield Finding(kind="labels", level="note", text=text, figures=marks)


def _table(counts: Mapping[str, Counter[str]]) -> Table:
    labels = sorted(set().union(*counts.values()), key=lambda x: (-counts["train"][x], x))
    rows = tuple((label, *(count[label] for count in counts.values())) for label in labels[:SHOWN_LABELS])
    caption = f"{len(labels) - SHOWN_LABELS:,} further labels are rarer." if len(labels) > SHOWN_LABELS else ""
    return Table(title="Labels", columns=("label", *counts), rows=rows, caption=caption)
