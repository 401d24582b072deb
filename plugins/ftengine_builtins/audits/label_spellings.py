"""Audit `label-spellings`."""

from collections import Counter
from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import listed
from ftengine_builtins.audits.balance import count_labels

SHOWN = 5


class LabelSpellings(Audit):
    """Labels that may be one in two spellings: they differ in case or white space only."""

    name = "label-spellings"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        total = sum(count_labels(data).values(), Counter[str]())
        for labels in list(_alike(total))[:SHOWN]:
            shown = listed([f"{label!r} ({total[label]:,})" for label in labels])
            text = f"Write a label in one way: {shown} differ in case or white space only, and are as many classes. "
            figures = {"spellings": {label: total[label] for label in labels}}
            yield Finding(kind="labels", level="note", text=f"{text}Are they one?", figures=figures)


def _alike(total: Counter[str]) -> Iterator[list[str]]:
    """Yield labels that differ in case or white space only, the most frequent first."""
    alike: dict[str, list[str]] = {}
    for label in sorted(total, key=lambda label: (-total[label], label)):
        alike.setdefault(" ".join(label.casefold().split()), []).append(label)
    yield from (labels for labels in alike.values() if len(labels) > 1)
