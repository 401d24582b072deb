"""What is to be answered: contradictions between equal examples, and how labels are spread over the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftengine.data.personal import masked_names
from ftengine.data.read import Rows

RARE = 10
"""Training examples below which a label is called rare."""
SHOWN_LABELS = 100
"""Labels that the audit lists; further ones are only counted."""
SHOWN_PLACES = 5


def find_contradictions(
    splits: Mapping[str, Rows], unit_of: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Count equal examples with unequal targets, over all splits.

    Args:
        splits: rows by name.
        unit_of: for each split, (rows,) a number that equal examples share, or those of the same words.
        targets: for each split, (rows,) a hash of each target, 0 where there is none.

    Returns:
        "texts" (distinct examples with more than one target), "rows" (that have them), "places" (pairs of rows).
    """
    names = list(splits)
    unit = np.concatenate([unit_of[name] for name in names])
    target = np.concatenate([targets[name] for name in names])
    known = np.flatnonzero(target)
    order = known[np.lexsort((known, unit[known]))]
    first = np.searchsorted(unit[order], unit[order])  # position of the first row of the same unit
    differs = target[order] != target[order[first]]
    torn = np.unique(unit[order[differs]])
    starts = np.cumsum([0, *(len(unit_of[name]) for name in names)])

    def where(row: int) -> str:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return splits[names[number]].where(row - int(starts[number]))

    places = []
    for one in torn[:SHOWN_PLACES]:
        at = int(np.flatnonzero(differs & (unit[order] == one))[0])
        places.append(f"{where(int(order[first[at]]))} ≠ {where(int(order[at]))}")
    return {"texts": len(torn), "rows": int(np.isin(unit[order], torn).sum()), "places": places}


def labels_of(target: Any) -> list[str]:
    """Return the labels of one row's target, as `View.label` gives it; numbers are none."""
    return [str(x) for x in _each(target) if x is not None and not isinstance(x, (float, Mapping))]


def _each(target: Any) -> Sequence[Any]:
    return target if isinstance(target, (list, tuple)) else [target]


class LabelCount:
    """Counts the labels of a split; a list of labels counts each, and numbers are no labels."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._numeric = False
        self.sequences = False
        """Whether targets are sequences, such as a tag for each word: lists that say one thing several times."""

    def add(self, target: Any) -> None:
        """Count one row's target, as `View.label` gives it."""
        if isinstance(target, (list, tuple)) and not self.sequences:
            self.sequences = len(set(map(str, target))) < len(target)
        self._numeric |= any(isinstance(label, float) for label in _each(target))
        self._count.update(labels_of(target))

    def counts(self) -> Counter[str]:
        """Return how often each label occurs; nothing where targets are numbers."""
        return Counter() if self._numeric else self._count


def label_report(counts: Mapping[str, Counter[str]]) -> dict[str, Any]:
    """Return for each split its "counts" (the most frequent labels first), "labels", "rarest" and "missing".

    "missing" are labels of training that do not occur in the split. Likely personal data in labels is masked.
    """
    trained = counts.get("train", Counter())
    known = {name: count for name, count in counts.items() if count}
    frequent = {name: count.most_common(SHOWN_LABELS) for name, count in known.items()}
    rarest = {name: min(count.items(), key=lambda item: (item[1], item[0])) for name, count in known.items()}
    missing = {name: sorted(trained.keys() - count.keys())[:SHOWN_LABELS] for name, count in known.items()}
    listed = [label for name in known for label, _ in (*frequent[name], rarest[name])]
    shown = masked_names(listed + [label for labels in missing.values() for label in labels])
    return {
        name: {
            "labels": len(count),
            "counts": {shown[label]: n for label, n in frequent[name]},
            "rarest": [shown[rarest[name][0]], rarest[name][1]],
            "missing": [shown[label] for label in missing[name]],
        }
        for name, count in known.items()
    }


def label_warnings(report: Mapping[str, Any]) -> list[str]:
    """Say where labels are too rare to be learnt or measured."""
    warnings = []
    train = report.get("train")
    if train:
        rare = [name for name, count in train["counts"].items() if count < RARE]
        if len(train["counts"]) < train["labels"]:  # what is not listed is rarer than what is
            rare = rare or [train["rarest"][0]] * (train["rarest"][1] < RARE)
        if rare:
            label, count = train["rarest"]
            times = "once" if count == 1 else f"{count} times"
            warnings.append(
                f"train: {_some(len(rare), train['labels'])} occur fewer than {RARE} times, the rarest, {label!r}, "
                f"{times}; little can be learnt of them."
            )
    for name, split in report.items():
        if name != "train" and split["missing"]:
            shown = ", ".join(map(repr, split["missing"][:3])) + (", …" if len(split["missing"]) > 3 else "")
            warnings.append(f"{name}: no example of label {shown}; figures say nothing about it.")
    return warnings


def alike_warnings(counts: Mapping[str, Counter[str]]) -> list[str]:
    """Say which labels differ in case or white space only, and so may be one label written in two ways."""
    total = sum(counts.values(), Counter())
    alike: dict[str, list[str]] = {}
    for label in sorted(total, key=lambda label: (-total[label], label)):
        alike.setdefault(" ".join(label.casefold().split()), []).append(label)
    several = [labels for labels in alike.values() if len(labels) > 1]
    shown = masked_names(label for labels in several for label in labels)
    return [
        f"labels {' and '.join(f'{shown[label]!r} ({total[label]})' for label in labels)} differ in case or white "
        f"space only, and count as {len(labels)}; are they one?"
        for labels in several[:SHOWN_PLACES]
    ]


def _some(count: int, of: int) -> str:
    return f"{count} of {of} labels"
