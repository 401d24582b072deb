"""What is wrong with the data although it can be read: duplicates, leaks between splits, skipped rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np

from ftengine.api import Task
from ftengine.data.read import Rows, plain

SHOWN_LEAKS = 5

to_json = json.JSONEncoder(sort_keys=True, default=plain).encode


def identities(rows: Rows, task: Task, seed: int) -> np.ndarray:
    """Hash what makes each row the same as another (`Task.identity`).

    Equal examples have equal hashes under one seed, and the order of hashes is a shuffle by that seed.

    Returns:
        (rows,) 16 bytes each, of dtype S16.
    """
    digests = bytearray()
    for row in rows:
        digests += blake2b(f"{seed} {to_json(task.identity(row))}".encode(), digest_size=16).digest()
    return np.frombuffer(bytes(digests), dtype="S16")


def group_numbers(digests: np.ndarray) -> np.ndarray:
    """Return a number for each hash, equal where the hashes are: the first 8 of its 16 bytes, as uint64.

    Among a million examples two different ones share a number with a probability of 3e-8.
    """
    return np.frombuffer(digests.tobytes(), dtype="<u8")[::2].copy()


def audit_splits(
    splits: Mapping[str, Rows], digests: Mapping[str, np.ndarray], asked: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Count what a reader of the results must know about the data.

    Args:
        splits: rows by split name, training first.
        digests: for each split the hash of each row, from `identities` with one seed.
        asked: for a split that was cut from the training source, the fraction it should have.

    Returns:
        JSON values: "splits" (for each its source, rows, distinct, duplicates, skipped), "leaks" (for each
        pair of splits with rows in common), "warnings" (sentences).
    """
    report = {
        name: {
            "source": rows.source,
            "rows": len(rows),
            "distinct": len(np.unique(digests[name])),
            "duplicates": len(rows) - len(np.unique(digests[name])),
            "skipped": {"count": rows.skipped.count, "first": list(rows.skipped.first)},
        }
        for name, rows in splits.items()
    }
    leaks = [leak for pair in combinations(splits, 2) if (leak := _leak(pair, splits, digests)) is not None]
    warnings = _source_warnings(splits, digests)
    warnings += _size_warnings(splits, asked or {})
    for leak in leaks:
        known, held = leak["between"]
        count = f"{leak['count']} of {len(splits[held])} {held} examples are also in {known}"
        harm = "; figures on them say nothing about new data" if known == "train" else ""
        warnings.append(f"{count} (e.g. {leak['places'][0]}){harm}.")
    return {"splits": report, "leaks": leaks, "warnings": warnings}


def _leak(
    pair: tuple[str, str], splits: Mapping[str, Rows], digests: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    known, held = pair
    distinct, first = np.unique(digests[known], return_index=True)
    found = np.flatnonzero(np.isin(digests[held], distinct))
    if not len(found):
        return None
    shown = found[:SHOWN_LEAKS]
    same = first[np.searchsorted(distinct, digests[held][shown])]
    places = [f"{splits[known].where(a)} = {splits[held].where(b)}" for a, b in zip(same, shown, strict=True)]
    return {"between": [known, held], "count": len(found), "places": places}


def _source_warnings(splits: Mapping[str, Rows], digests: Mapping[str, np.ndarray]) -> list[str]:
    warnings = []
    for source in dict.fromkeys(rows.source for rows in splits.values()):
        names = [name for name, rows in splits.items() if rows.source == source]
        skipped = splits[names[0]].skipped
        if skipped.count:
            warnings.append(f"{source}: {skipped.count} malformed rows were left out, the first: {skipped.first[0]}.")
        total = sum(len(splits[name]) for name in names)
        distinct = len(np.unique(np.concatenate([digests[name] for name in names])))
        if distinct < total:
            only = "only " if distinct < total / 2 else ""
            sides = "; duplicates stay on one side of the split" if len(names) > 1 else ""
            warnings.append(f"{source}: {only}{distinct} of {total} examples are distinct{sides}.")
    return warnings


def _size_warnings(splits: Mapping[str, Rows], asked: Mapping[str, float]) -> list[str]:
    """Speak up where whole groups of duplicates (or very few rows) made a split of quite another size."""
    warnings = []
    for name, fraction in asked.items():
        rows = splits[name]
        total = sum(len(other) for other in splits.values() if other.source == rows.source)
        if abs(len(rows) - fraction * total) > max(1, fraction * total / 2):
            warnings.append(
                f"{rows.source}: {name} has {len(rows)} of {total} examples ({len(rows) / total:.0%}) where "
                f"{fraction:.0%} was asked for, as duplicates stay together."
            )
    return warnings
