"""Audit `label-spellings`."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import listed
from ftengine_builtins.audits.balance import count_labels

SHOWN = 5
LONG, NEAR, OFTEN, MANY = 6, 0.85, 10, 500
"""Letters of a label that may be misspelt, its likeness to another, how many times as frequent that is; labels of which
each is compared with each."""


class LabelSpellings(Audit):
    """Labels that may be one in two spellings: they differ in case or white space only, or a rare one is misspelt."""

    name = "label-spellings"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        total = sum(count_labels(data).values(), Counter[str]())
        for labels in list(_alike(total))[:SHOWN]:
            what = "differ in case or white space only, and are as many classes"
            yield _finding(labels, total, what)
        for labels in list(_misspelt(total))[:SHOWN]:
            yield _finding(labels, total, "are nearly one, which may be misspelt, and are two classes")


def _alike(total: Counter[str]) -> Iterator[list[str]]:
    """Yield labels that differ in case or white space only, the most frequent first."""
    alike: dict[str, list[str]] = {}
    for label in sorted(total, key=lambda label: (-total[label], label)):
        alike.setdefault(" ".join(label.casefold().split()), []).append(label)
    yield from (labels for labels in alike.values() if len(labels) > 1)


def _misspelt(total: Counter[str]) -> Iterator[list[str]]:
    """Yield frequent labels with a rare one that a letter or two tell from them; numbers make other labels."""
    for label, count in total.items() if len(total) <= MANY else ():
        frequent = [one for one in total if total[one] >= OFTEN * count and _letters(one) != _letters(label)]
        near = difflib.get_close_matches(label, frequent, n=1, cutoff=NEAR) if len(label) >= LONG else ()
        if near and label.casefold().split() != near[0].casefold().split():
            yield [near[0], label]


def _letters(label: str) -> str:
    return re.sub(r"\d", "", label)


def _finding(labels: list[str], total: Counter[str], what: str) -> Finding:
    shown = listed([f"{label!r} ({total[label]:,})" for label in labels])
    text = f"Write a label in one way: {shown} {what}. Are they one?"
    return Finding(kind="labels", level="note", text=text, figures={"spellings": {one: total[one] for one in labels}})
