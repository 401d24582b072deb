"""The data that audits examine, and how they are run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from ftengine.api import AuditedData, Display, Finding, Task, View
from ftengine.api.display import LEVELS
from ftengine.data.distinct import Distinct, text_of
from ftengine.data.near import Near
from ftengine.data.row_hashes import RowHashes
from ftengine.data.rows import DataRows
from ftengine.data.split_columns import find_overlap
from ftengine.plugins.attribution import each
from ftengine.plugins.registry import Entry
from ftengine.run.recipe import DataSection
from ftengine.run.records import AuditResult

SHOWN_PLACES = 5
COMPARED_PAIRS = 500
"""Pairs of near duplicates of which labels are compared, the first."""
KEPT_BYTES = 64 << 20
"""Bytes of texts held in memory, so that several audits read the data once; each reads the rest again."""


class AuditRows:
    """The rows of a split as views and texts (`ftengine.api.AuditedRows`); at most `room` bytes of texts are cached."""

    def __init__(self, rows: DataRows, task: Task, room: int) -> None:
        self.source = rows.source
        self._rows, self._task, self._room = rows, task, room
        self._kept: list[str] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[View]:
        for i, view in enumerate(self._rows.views(self._task)):
            self._keep(i, view)
            yield view

    def texts(self) -> Iterator[str]:
        """Yield the text of each row."""
        count = len(self._kept)
        yield from self._kept[:count]
        if count == len(self):
            return
        for i, view in enumerate(self._rows.select(range(count, len(self))).views(self._task), count):
            self._keep(i, view)
            yield text_of(view)

    def values(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Yield each row's values in some columns; None if a row lacks the column."""
        for row in self._rows:
            yield tuple(row.get(name) for name in columns)

    def select(self, rows: Sequence[int]) -> AuditRows:
        """Return some of the rows, in the order of `rows`."""
        return AuditRows(self._rows.select(rows), self._task, 0)

    def _keep(self, row: int, view: View) -> None:
        if row == len(self._kept) and self._room > 0:
            self._kept.append(text_of(view))
            self._room -= sys.getsizeof(self._kept[-1]) + 8

    def where(self, row: int) -> str:
        """Return a row's place."""
        return self._rows.where(row)


def to_audit(
    hashes: RowHashes,
    distinct: Distinct,
    near: Near | None,
    leaks: list[dict[str, Any]],
    section: DataSection,
    task: Task,
    *,
    remaining: np.ndarray | None,
    left_out: Mapping[str, Sequence[int]],
    shares: Mapping[str, float],
) -> AuditedData:
    """Return the data for the audits.

    Args:
        near: near duplicates among distinct rows; None if they were not searched for.
        leaks: from `find_leaks`.
        remaining: training rows that remain after leaks were dropped; None if none were dropped.
        left_out: by split, remaining rows that cannot be encoded and that data.on_error leaves out.
        shares: for each split that is cut from the training source, the share that it should have.
    """
    splits, of, targets = dict(hashes.splits), dict(distinct.of), dict(hashes.targets)
    times = dict(hashes.keys) if section.split.by == "time" else {}
    dropped = 0

    def keep(name: str, rows: np.ndarray) -> None:
        splits[name], of[name], targets[name] = splits[name].select(rows), of[name][rows], targets[name][rows]
        times.update({name: times[name][rows]} if times else {})

    if remaining is not None:
        dropped = len(splits["train"]) - len(remaining)
        keep("train", remaining)
    for name, rows in left_out.items():
        if len(rows):
            keep(name, np.delete(np.arange(len(splits[name])), rows))
    files = [name for name in splits if name != "train" and name not in shares]
    total = sum(map(len, splits.values()))
    return AuditedData(
        {name: AuditRows(rows, task, KEPT_BYTES * len(rows) // total) for name, rows in splits.items()},
        task.name,
        of,
        None if near is None else {name: near.same[numbers] for name, numbers in of.items()},
        targets,
        {
            "splits": {name: _counts(rows, of[name], near) for name, rows in splits.items()},
            "sources": _sources(splits, of, near, distinct),
            "sizes": _sizes(hashes.splits, shares),
            "leaks": [leak | {"dropped": dropped if leak["between"][0] == "train" else 0} for leak in leaks],
            "dropped": dropped,
            "overlap": find_overlap(splits, times, section.split.column or "", files) if times else [],
            "near_duplicates": _near_report(near, distinct),
        },
        {},
        section.model_dump(mode="json"),
        None if near is None else {name: near.groups[numbers] for name, numbers in of.items()},
    )


def audit_order(finding: Finding) -> tuple[int, bool]:
    """Return the sort key of an audit's finding: alarms first, and those about labels and splits before other data."""
    return LEVELS.index(finding.level), finding.kind == "data"


def run_audits(data: AuditedData, encoded: Mapping[str, Mapping[str, Any]], audits: Iterable[Entry]) -> AuditResult:
    """Run audits on the data; `encoded` has facts of each split after encoding."""
    data, findings, displays = replace(data, encoded=encoded), list[Finding](), list[Display]()
    for entry in audits:
        audit = entry.cls()
        for result in each(audit, "examine", audit.examine(data), (Finding, *get_args(Display))):  # type: ignore[attr-defined]
            if isinstance(result, Finding):
                findings.append(result.model_copy(update={"source": entry.name}))
            else:
                displays.append(result)
    findings.sort(key=audit_order)
    facts = dict(data.facts)
    return AuditResult(
        splits=facts.pop("splits"),
        split=data.settings["split"],
        encoded={name: dict(counts) for name, counts in encoded.items()},
        findings=tuple(findings),
        displays=tuple(displays),
        facts=facts,
    )


def _counts(rows: DataRows, numbers: np.ndarray, near: Near | None) -> dict[str, Any]:
    distinct = np.unique(numbers)
    return {
        "source": rows.source,
        "rows": len(rows),
        "distinct": len(distinct),
        "duplicates": len(rows) - len(distinct),
        "near_duplicates": 0 if near is None else len(distinct) - len(np.unique(near.groups[distinct])),
        "skipped": rows.skipped.model_dump(mode="json"),
        "excluded": rows.excluded,
    }


def _sources(
    splits: Mapping[str, DataRows], of: Mapping[str, np.ndarray], near: Near | None, distinct: Distinct
) -> list[dict[str, Any]]:
    """Count the copies within each source, over all splits that were cut from it."""
    result = []
    for source in dict.fromkeys(rows.source for rows in splits.values()):
        names = [name for name, rows in splits.items() if rows.source == source]
        members = np.unique(np.concatenate([of[name] for name in names]))
        inside = [] if near is None else near.pairs[np.isin(near.pairs, members).all(axis=1)][:SHOWN_PLACES].tolist()
        first = splits[names[0]]
        result.append(
            {
                "source": source,
                "splits": names,
                "rows": sum(len(splits[name]) for name in names),
                "distinct": len(members),
                "near_duplicates": 0 if near is None else len(members) - len(np.unique(near.groups[members])),
                "places": [f"{distinct.where(a)} ≈ {distinct.where(b)}" for a, b in inside],
                "note": first.note,
                "skipped": first.skipped.model_dump(mode="json"),
                "excluded": first.excluded,
            }
        )
    return result


def _sizes(splits: Mapping[str, DataRows], shares: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return for each part of the training source its configured and its actual share."""
    total = sum(len(rows) for rows in splits.values() if rows.source == splits["train"].source)
    return {
        name: {"source": splits[name].source, "asked": share, "rows": len(splits[name]), "of": total}
        for name, share in shares.items()
    }


def _near_report(near: Near | None, distinct: Distinct) -> dict[str, Any] | None:
    if near is None:
        return None
    return {
        "threshold": near.threshold,
        "distinct": len(near.groups),
        "examples": len(near.groups) - len(np.unique(near.groups)),
        "places": [f"{distinct.where(a)} ≈ {distinct.where(b)}" for a, b in near.pairs[:SHOWN_PLACES].tolist()],
        "labels": _compare_labels(near, distinct),
        "shared_words": near.shared,
        "mostly_shared": near.boilerplate,
        "short": near.short,
    }


def _compare_labels(near: Near, distinct: Distinct) -> dict[str, int]:
    """Count pairs of near duplicates with labels, and those of them with other labels; numbers differ by what is much.

    A tenth of the standard deviation of all these numbers is much.
    """
    pairs = [(distinct.label(a), distinct.label(b)) for a, b in near.pairs[:COMPARED_PAIRS].tolist()]
    pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
    numbers = [x for pair in pairs for x in pair]
    if numbers and all(isinstance(x, float) for x in numbers):
        least = float(np.std(numbers)) / 10
        return {"pairs": len(pairs), "other": sum(abs(a - b) > least for a, b in pairs)}
    return {"pairs": len(pairs), "other": sum(a != b for a, b in pairs)}
