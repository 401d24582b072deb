"""Rows by split, with the hashes by which they are compared."""

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
    """Return a value as JSON by which it is compared: texts as `comparable` makes them."""
    text = to_json(value)
    return to_json(comparable(value)) if "\\u" in text else text


@dataclass(frozen=True)
class RowHashes:
    """Rows by split, and hashes of what they are divided and compared by.

    Args:
        splits: rows by name, training first.
        digests: for each split the hash of each row.
        targets: for each split the hash of what each row is to answer, 0 where that is nothing.
        keys: for each split what the division goes by: a hash of each row's group, or its time; empty with neither.
    """

    splits: Mapping[str, DataRows]
    digests: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    keys: Mapping[str, np.ndarray]

    def without(self, reasons: Mapping[str, str]) -> RowHashes:
        """Return the same but for training rows at some places, each with the reason why it is skipped."""
        train = self.splits["train"]
        stays = np.array([train.where(i) not in reasons for i in range(len(train))], dtype=bool)

        def chosen(facts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[stays] if name == "train" else values for name, values in facts.items()}

        splits = {**self.splits, "train": train.without(reasons)}
        return RowHashes(splits, chosen(self.digests), chosen(self.targets), chosen(self.keys))

    def divided(self, sides: Mapping[str, np.ndarray]) -> RowHashes:
        """Return the same with training divided; `sides` has for each part the indices of its rows."""
        training, splits = self.splits["train"], dict(self.splits)
        for name, rows in sides.items():
            # What could not be read is counted once, with the training split.
            splits[name] = replace(training.select(rows), skipped=training.skipped if name == "train" else NO_SKIPS)
        splits = {name: splits[name] for name in ("train", "validation", "test") if name in splits}

        def divided(facts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: facts["train"][sides[name]] if name in sides else facts[name] for name in splits}

        keys = divided(self.keys) if self.keys else {}
        return RowHashes(splits, divided(self.digests), divided(self.targets), keys)


def identities(rows: DataRows, task: Task, seed: int) -> np.ndarray:
    """Hash what makes each row the same as another (`View.identity`): (rows,) 16 bytes each, of dtype S16.

    Equal examples have equal hashes under one seed, and the order of hashes is a shuffle by that seed.
    """
    return fingerprints(rows, task, seed)[0]


def fingerprints(rows: DataRows, task: Task, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows,) what `identities` does, and (rows,) int64 hashes of `View.label`, 0 where there is none."""
    digests, targets = bytearray(), bytearray()
    nothing = bytes(8)
    for view in rows.views(task):
        digests += blake2b(f"{seed} {comparable_json(view.identity)}".encode(), digest_size=16).digest()
        label = view.label
        targets += nothing if label is None else blake2b(comparable_json(label).encode(), digest_size=8).digest()
    return np.frombuffer(bytes(digests), dtype="S16"), np.frombuffer(bytes(targets), dtype=np.int64)


def connected(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (n,) numbers that are equal for things connected by equal values of either array, directly or through
    others; they are numbers from 0 on."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first_numbers, other = (np.unique(values, return_inverse=True)[1].ravel() for values in (first, second))
    size = max(first_numbers.max(initial=-1), other.max(initial=-1)) + 1
    links = coo_array(
        (np.ones(len(first_numbers), dtype=bool), (first_numbers, other + size)), shape=(2 * size, 2 * size)
    )
    return np.asarray(connected_components(links, directed=False)[1][first_numbers])


def duplicate_numbers(digests: np.ndarray) -> np.ndarray:
    """Return a number for each hash, equal where the hashes are: the first 8 of its 16 bytes, as uint64.

    Among a million examples two different ones share a number with a probability of 3e-8.
    """
    return np.frombuffer(digests.tobytes(), dtype="<u8")[::2].copy()
