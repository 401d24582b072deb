"""Rows by split, with hashes to compare and divide them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.api import Task
from ftengine.data.read import plain
from ftengine.data.rows import NO_SKIPS, DataRows
from ftengine.text import comparable

to_json = json.JSONEncoder(sort_keys=True, default=plain).encode


def comparable_json(value: Any) -> str:
    """Return a value as JSON in which texts are normalised by `comparable`."""
    text = to_json(value)
    return to_json(comparable(value)) if "\\u" in text else text


@dataclass(frozen=True)
class RowHashes:
    """Rows by split, with hashes to compare and divide them.

    Args:
        splits: rows by name, training first.
        digests: for each split the hash of each row.
        targets: for each split the hash of each row's target, 0 if it has none.
        keys: for each split the hash of each row's group, or its time, if the division needs one; else empty.
    """

    splits: Mapping[str, DataRows]
    digests: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    keys: Mapping[str, np.ndarray]

    def without(self, reasons: Mapping[str, str]) -> RowHashes:
        """Return the same without the training rows at some places, which are skipped for the given reasons."""
        train = self.splits["train"]
        stays = np.array([train.where(i) not in reasons for i in range(len(train))], dtype=bool)

        def chosen(facts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[stays] if name == "train" else values for name, values in facts.items()}

        splits = {**self.splits, "train": train.without(reasons)}
        return RowHashes(splits, chosen(self.digests), chosen(self.targets), chosen(self.keys))

    def divided(self, sides: Mapping[str, np.ndarray]) -> RowHashes:
        """Return the same with the training split divided; `sides` has the row indices of each part."""
        training, splits = self.splits["train"], dict(self.splits)
        for name, rows in sides.items():
            # Rows that could not be read, or are excluded, are counted once, with the training split.
            first = name == "train"
            skipped, excluded = (training.skipped, training.excluded) if first else (NO_SKIPS, 0)
            splits[name] = replace(training.select(rows), skipped=skipped, excluded=excluded)
        splits = {name: splits[name] for name in ("train", "validation", "test") if name in splits}

        def divided(facts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: facts["train"][sides[name]] if name in sides else facts[name] for name in splits}

        keys = divided(self.keys) if self.keys else {}
        return RowHashes(splits, divided(self.digests), divided(self.targets), keys)


def identities(rows: DataRows, task: Task, seed: int) -> np.ndarray:
    """Return (rows,) hashes of `View.identity`, 16 bytes each (dtype S16).

    Equal examples have equal hashes for the same seed, and the order of hashes is a shuffle by that seed.
    """
    return fingerprints(rows, task, seed)[0]


def fingerprints(rows: DataRows, task: Task, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of `identities`, and (rows,) int64 hashes of `View.label`, 0 if there is none."""
    digests, targets = bytearray(), bytearray()
    nothing = bytes(8)
    for view in rows.views(task):
        digests += blake2b(f"{seed} {comparable_json(view.identity)}".encode(), digest_size=16).digest()
        label = view.label
        targets += nothing if label is None else blake2b(comparable_json(label).encode(), digest_size=8).digest()
    return np.frombuffer(bytes(digests), dtype="S16"), np.frombuffer(bytes(targets), dtype=np.int64)


def connected(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (n,) numbers from 0 of the connected components of n elements, where elements with equal values in either
    array are connected."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = (np.unique(values, return_inverse=True)[1].ravel() for values in (first, second))
    size = max(left.max(initial=-1), right.max(initial=-1)) + 1
    links = coo_array((np.ones(len(left), dtype=bool), (left, right + size)), shape=(2 * size, 2 * size))
    return np.asarray(connected_components(links, directed=False)[1][left])


def duplicate_numbers(digests: np.ndarray) -> np.ndarray:
    """Return (rows,) uint64 numbers that are equal for equal hashes: the first 8 of their 16 bytes.

    Among a million examples two different ones share a number with a probability of 3e-8.
    """
    return np.frombuffer(digests.tobytes(), dtype="<u8")[::2].copy()
