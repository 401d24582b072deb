"""Audits `label-spellings` and `joined-labels`: labels that are misspelt, or several in one."""

from collections import Counter
from collections.abc import Iterable, Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import listed
from ftengine_builtins.audits.balance import count_labels

SHOWN = 5
SEPARATORS = (";", ",", "|", "/")
FEWEST_JOINED, JOINED = 2, 0.02
"""Labels that are lists, and their share of all, from which it is said."""
ALARM = 0.1
"""Share of all labels from which it is an alarm, if most labels are lists."""
EXPLAINS = ("quality", "learning", "rows", "classes", "labels", "calibration", "worse", "data", "over-fitting")
"""What follows where several labels are read as one: each combination is a class of few rows."""


class LabelSpellings(Audit):
    """Finds labels that may be one in two spellings: they differ in case or white space only."""

    name = "label-spellings"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        total = sum(count_labels(data).values(), Counter[str]())
        for labels in list(_alike(total))[:SHOWN]:
            shown = listed([f"{label!r} ({total[label]:,})" for label in labels])
            text = f"Write a label in one way: {shown} differ in case or white space only, and count as classes. "
            figures = {"spellings": {label: total[label] for label in labels}}
            yield Finding(kind="labels", level="note", text=f"{text}Are they one?", figures=figures)


class JoinedLabels(Audit):
    """Finds labels that are several labels joined by a separator that the recipe does not set.

    Their parts are labels, or parts of other labels. If rows write lists of labels in two ways, only one of them is
    read as a list.
    """

    name = "joined-labels"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        total = sum(count_labels(data).values(), Counter[str]())
        for separator in SEPARATORS:
            joined = {label: total[label] for label in _joined(total, separator)}
            times = sum(joined.values())
            if len(joined) < FEWEST_JOINED or times < JOINED * total.total():
                continue
            first = max(joined, key=lambda label: (joined[label], label))
            text = f"{len(joined):,} of {len(total):,} labels consist of labels joined by {separator!r}, e.g. "
            text += f"{first!r} ({joined[first]:,}), and are classes of their own. If they are lists, write one "
            text += f"separator in all rows and name it: task.kind=multi, task.separator={separator!r}."
            figures = {"separator": separator, "labels": len(joined), "times": times}
            frequent = times >= ALARM * total.total() and len(joined) > len(total) / 2
            yield Finding(
                kind="labels",
                level="alarm" if frequent and not _is_tree(joined, separator) else "note",
                text=text,
                brief=f"set task.kind=multi and task.separator={separator!r}: {text.partition(', e.g. ')[0]}",
                explains=EXPLAINS,
                figures=figures,
            )
            return


def _joined(total: Counter[str], separator: str) -> list[str]:
    """Return the labels whose parts all occur in other labels as well."""
    parts = {label: {part.strip() for part in label.split(separator)} for label in total}
    times = Counter(part for own in parts.values() for part in own)
    return [label for label, own in parts.items() if len(own) > 1 and all(times[part] > 1 for part in own)]


def _is_tree(joined: Iterable[str], separator: str) -> bool:
    """Return whether labels may be paths ("Sport/Football"): each part always has the same parts before it."""
    before: dict[str, set[tuple[str, ...]]] = {}
    for label in joined:
        parts = [part.strip() for part in label.split(separator)]
        for i, part in enumerate(parts):
            before.setdefault(part, set()).add(tuple(parts[:i]))
    return all(len(paths) == 1 for paths in before.values())


def _alike(total: Counter[str]) -> Iterator[list[str]]:
    """Yield labels that differ in case or white space only, the most frequent first."""
    alike: dict[str, list[str]] = {}
    for label in sorted(total, key=lambda label: (-total[label], label)):
        alike.setdefault(" ".join(label.casefold().split()), []).append(label)
    yield from (labels for labels in alike.values() if len(labels) > 1)
