"""Audit `balance`."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from ftengine.api import Audit, AuditedData, Display, Finding, Table
from ftengine.text import capitalized, listed
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.tasks.class_labels import MISSING

EMPTY, OFTEN = {"nan", "<na>", "nat", "#n/a"}, 0.02
"""Labels that no one gives to a class, and their share of the rows, near end, from which they are an alarm."""
RARE = 10
"""Training rows below which a label is called rare."""
SHOWN_LABELS = 100
"""Labels that the table lists; further ones are only counted."""
SHOWN = 5


class Balance(Audit):
    """Finds rare labels, labels that a held-out split lacks, and missing values as labels."""

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
        yield from _missing(counts)
        yield _table(counts)


def count_labels(data: AuditedData) -> dict[str, Counter[str]]:
    """Return the number of rows of each label by split; nothing if a target is a number with a fraction.

    Of rows with equal targets only one is read.
    """
    counts: dict[str, Counter[str]] = {split: Counter() for split in data.splits}
    for split, rows in data.splits.items():
        targets = data.targets[split]
        _, firsts, times = np.unique(targets, return_index=True, return_counts=True)
        of = dict(zip(firsts.tolist(), times.tolist(), strict=True)) if targets.any() else {}
        for i, view in enumerate(islice(rows, max(of, default=-1) + 1)):
            if i not in of:
                continue
            if isinstance(view.label, float):
                return {split: Counter() for split in data.splits}
            for label in view.labels:
                counts[split][label] += of[i]
    return counts


def _missing(counts: Mapping[str, Counter[str]]) -> Iterator[Finding]:
    total = sum(counts.values(), Counter[str]())
    if marks := {label: total[label] for label in sorted(total) if label.casefold() in MISSING}:
        shown = listed([f"{label!r} ({count:,})" for label, count in marks.items()])
        text = f"Label{'' if len(marks) == 1 else 's'} {shown} may stand for a missing value, but would be learnt as a "
        text += "class."
        missing = sum(count for label, count in marks.items() if label.casefold() in EMPTY)
        if missing and share_within(missing, total.total())[0] >= OFTEN:
            brief = (
                f"leave out rows without a label: {shown} may stand for a missing value, and would be learnt as a class"
            )
            yield Finding(kind="labels", level="alarm", text=f"{capitalized(brief)}.", brief=brief, figures=marks,
                          explains=("quality", "learning", "rows", "labels", "classes", "splits"))  # fmt: skip
            return
        yield Finding(kind="labels", level="note", text=text, figures=marks)


def _table(counts: Mapping[str, Counter[str]]) -> Table:
    labels = sorted(set().union(*counts.values()), key=lambda x: (-counts["train"][x], x))
    rows = tuple((label, *(count[label] for count in counts.values())) for label in labels[:SHOWN_LABELS])
    caption = f"{len(labels) - SHOWN_LABELS:,} further labels are rarer." if len(labels) > SHOWN_LABELS else ""
    return Table(title="Labels", columns=("label", *counts), rows=rows, caption=caption)
