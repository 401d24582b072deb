"""Encoding of rows by a task, and the facts and counts that it reports."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from ftengine.api import Example, Features, Task, overrides
from ftengine.data.row_hashes import to_json
from ftengine.data.rows import DataRows
from ftengine.errors import DataError, PluginError, RefusedRows
from ftengine.plugins.attribution import contract_error, described, named

Encoded = tuple[int, Features | DataError]
"""The number of a row, with the features of an example made of it or the error."""
COUNTS = [
    ("weight", float),
    *((name, int) for name in ("row", "length", "sequence", "truncated", "untruncated", "unknown", "token")),
]
"""The counts that are held in memory for each example."""
TOKENS = ("input_ids", "labels")
"""The usual keys of token ids in the inputs of features."""
UNKNOWN = -1
"""The value of a count that the task does not report."""

COMPARED = 64
"""The first rows of a split, for which it is checked that encoding does not change them."""

PERCENTILES = (5, 25, 50, 75, 95, 99)


@dataclass
class RowFacts:
    """Facts about a split's rows, collected while they are encoded.

    Args:
        counts: what the task counts (`Task.encode`), summed.
        kinds: the first example of each kind that is trained on.
        reasons: the task's reasons why rows are not trained on, with their counts; other untrained rows were cut.
        of: the row number of each example, and of each row that makes none.
    """

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    of: array[int] = field(default_factory=lambda: array("q"))

    def add(self, example: int, features: Features) -> None:
        """Add the facts of an example."""
        self.counts.update(features.counts)
        if features.weight and features.kind:
            self.kinds.setdefault(features.kind, example)
        if not features.weight and features.untrained:
            self.reasons[features.untrained] += 1

    def to_json(self) -> dict[str, Any]:
        """Return the facts for audits."""
        return {"counts": dict(self.counts), "untrained_reasons": dict(self.reasons)}


def percentiles(lengths: np.ndarray, *, longest: bool = False) -> dict[str, int]:
    """Return percentiles of lengths by their number, such as "50"; with `longest`, the maximum ("100") too."""
    at = (*PERCENTILES, 100) if longest else PERCENTILES
    values = np.percentile(lengths, at, method="inverted_cdf")
    return {str(p): int(value) for p, value in zip(at, values, strict=True)}


def longest_sequence(features: Features) -> int:
    """Return the length in tokens of the longest sequence of an example."""
    return int(features.longest or features.length)


def with_following(rows: DataRows, task: Task) -> DataRows:
    """Return rows with `following`, the next row with other inputs, if the task needs it.

    Rows that cannot be read are passed over; a row follows itself if all others have the same inputs.
    """
    if not task.traits.reads_following or rows.following is not None:
        return rows
    inputs = (list(view.inputs) for view in rows.views(task))
    hashes = [blake2b(to_json(texts).encode(), digest_size=16).digest() if texts else b"" for texts in inputs]
    readable = [i for i, digest in enumerate(hashes) if digest]
    following = list(range(len(hashes)))
    for k in reversed(range(2 * len(readable))):  # twice, because the first rows follow the last ones
        i, after = readable[k % len(readable)], readable[(k + 1) % len(readable)]
        following[i] = (
            after if hashes[after] != hashes[i] else following[after] if hashes[following[after]] != hashes[i] else i
        )
    return replace(rows, following=rows.select(following))


def nothing_left(name: str, rows: DataRows, counts: np.ndarray, reasons: Counter[str], skipped: int) -> str:
    """Return a message that explains why no row of a split can be trained on."""
    detail, cut = f"{len(counts):,} have no token to train on", counts["sequence"][counts["truncated"] != 0]
    if reasons:
        causes = (why if times == len(counts) else f"of {times:,} {why}" for why, times in reasons.most_common())
        detail += f" ({'; '.join(causes)})"
    if len(cut):
        detail += f", {len(cut):,} were cut to {cut.max():,} tokens"
    if skipped:
        detail += f", {skipped:,} were skipped"
    return (
        f"the {name} split ({rows.source}) has no row to train on: of {len(rows):,} rows {detail}. Check the columns, "
        "the task's max_length (virtual tokens count towards the model's limit) and which tokens the loss is on."
    )


def require_features(task: Task, features: Any) -> Features:
    """Return what `Task.encode` returned (PluginError: it is no Features, or a field has the wrong type)."""
    if not isinstance(features, Features):
        raise contract_error(task, "encode", features, "api.Features(inputs={…}, length=…, weight=…, truncated=…)")
    for key in ("length", "weight", "truncated"):
        if not isinstance(value := getattr(features, key), (int, float, np.number, np.bool_)):
            raise PluginError(
                f"{named(task)}: encode() returned Features whose {key!r} is {described(value)}; it must be a number."
            )
    return features


def encoded_rows(
    rows: Iterable[Example], task: Task, processor: Any, max_length: int | None, following: DataRows | None
) -> Iterator[Encoded]:
    """Yield the features of each example of each row, or one error for a row that cannot be encoded."""
    divides = overrides(task, "parts")
    for number, row in enumerate(rows):
        before = _written(row) if number < COMPARED else None
        beside = {} if following is None else {"following": following[number]}
        try:
            parts = task.parts(row, processor) if divides else 1
            arguments = [beside if parts == 1 else {**beside, "part": part} for part in range(parts)]
            encoded = [
                require_features(task, task.encode(row, processor, max_length=max_length, **keywords))
                for keywords in arguments
            ]
        except DataError as error:
            yield number, error
        else:
            if before is not None and before != (after := _written(row)):
                raise _changed(task, before, after)
            yield from ((number, features) for features in encoded)


def _written(row: Example) -> dict[str, str]:
    return {name: to_json(value) for name, value in row.items()}


def _changed(task: Task, before: Mapping[str, str], after: Mapping[str, str]) -> PluginError:
    """Return the error for a task that changes rows, which later readers would get changed."""
    name = min(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return PluginError(
        f"{named(task)}: encode() changes {name!r} of the row that it gets. Copy a value before changing it."
    )


def accepted(encoded: Iterable[Encoded], rows: DataRows, on_error: str) -> Iterator[Encoded]:
    """Yield encoded rows (DataError: some cannot be encoded and must not be skipped; it counts them)."""
    refused = RefusedRows()
    for row, features in encoded:
        if isinstance(features, DataError) and on_error == "fail":
            refused.add(rows.where(row), f"{rows.where(row)}: {features}")
            if refused.enough:
                break
        elif not refused.count:
            yield row, features
    if refused.count:
        renamed = ", ".join(f"{theirs} as {ours}" for ours, theirs in rows.names.items() if ours != theirs)
        read = f" The recipe reads {renamed}." if renamed else ""
        raise refused.error(f"{read} (data.on_error=skip leaves such rows out)")


def counted(
    encoded: Iterable[Encoded], rows: DataRows, facts: RowFacts, skipped: dict[int, str]
) -> Iterator[tuple[Any, ...]]:
    """Yield the `COUNTS` of each example; collect facts, and the reasons of skipped rows."""
    for i, (row, features) in enumerate(encoded):
        facts.of.append(row)
        if isinstance(features, DataError):
            skipped[i] = f"{rows.where(row)}: {features}"
        else:
            facts.add(i, features)
            yield _counts(i, features)


def _counts(row: int, features: Features) -> tuple[Any, ...]:
    """Return the `COUNTS` of an example."""
    counts = (UNKNOWN if count is None else count for count in (features.full_length, features.unknown))
    ids = (features.inputs[key] for key in TOKENS if isinstance(features.inputs.get(key), list))
    token = max((max(values, default=UNKNOWN) for values in ids), default=UNKNOWN)
    return (
        features.weight,
        row,
        features.length,
        longest_sequence(features),
        bool(features.truncated),
        *counts,
        token,
    )
