"""What a task makes of rows, and what it tells of them."""

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
"""The number of a row with the features of it, or of one of the examples that it makes, or why there are none."""
COUNTS = [
    ("weight", float),
    *((name, int) for name in ("row", "length", "sequence", "truncated", "untruncated", "unknown", "token")),
]
"""What is kept of an example's features."""
TOKENS = ("input_ids", "labels")
"""Where the inputs of features have ids of tokens, as a rule."""
UNKNOWN = -1
"""What stands for a count that the task does not tell."""

COMPARED = 64
"""Rows of a split that are compared with what they were before they were encoded."""

PERCENTILES = (5, 25, 50, 75, 95, 99)


@dataclass
class RowFacts:
    """What is gathered of a split's rows as they are encoded.

    Args:
        counts: what the task counts (`Task.encode`), summed.
        kinds: the first example of each kind that is trained on.
        reasons: why rows are not trained on, as the task says, with how many; the others were cut.
        of: the number of each example's row; that of a row without any too.
    """

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    of: array[int] = field(default_factory=lambda: array("q"))

    def add(self, example: int, features: Features) -> None:
        """Note what is told of an example."""
        self.counts.update(features.counts)
        if features.weight and features.kind:
            self.kinds.setdefault(features.kind, example)
        if not features.weight and features.untrained:
            self.reasons[features.untrained] += 1

    def to_json(self) -> dict[str, Any]:
        """Return what audits see."""
        return {"counts": dict(self.counts), "untrained_reasons": dict(self.reasons)}


def percentiles(lengths: np.ndarray, *, longest: bool = False) -> dict[str, int]:
    """Return the lengths that so many percent do not exceed; with `longest`, that of all ("100") too."""
    at = (*PERCENTILES, 100) if longest else PERCENTILES
    values = np.percentile(lengths, at, method="inverted_cdf")
    return {str(p): int(value) for p, value in zip(at, values, strict=True)}


def longest_sequence(features: Features) -> int:
    """Return the longest sequence that the model reads of an example."""
    return int(features.longest or features.length)


def with_following(rows: DataRows, task: Task) -> DataRows:
    """Return rows that have the next one with other inputs as `following`, where a task asks for it.

    A row that cannot be read follows none, and where all others have a row's inputs it has itself.
    """
    if not task.traits.reads_following or rows.following is not None:
        return rows
    inputs = (list(view.inputs) for view in rows.views(task))
    hashes = [blake2b(to_json(one).encode(), digest_size=16).digest() if one else b"" for one in inputs]
    readable = [i for i, one in enumerate(hashes) if one]
    following = list(range(len(hashes)))
    for k in reversed(range(2 * len(readable))):  # twice, since the first rows follow the last ones
        i, after = readable[k % len(readable)], readable[(k + 1) % len(readable)]
        following[i] = (
            after if hashes[after] != hashes[i] else following[after] if hashes[following[after]] != hashes[i] else i
        )
    return replace(rows, following=rows.select(following))


def nothing_left(name: str, rows: DataRows, counts: np.ndarray, reasons: Counter[str], skipped: int) -> str:
    """Say why no row of a split is trained on; the length limit is the one that rows were cut to, whoever set it."""
    detail, cut = f"{len(counts):,} have no token to train on", counts["sequence"][counts["truncated"] != 0]
    if reasons:
        causes = (why if times == len(counts) else f"of {times:,} {why}" for why, times in reasons.most_common())
        detail += f" ({'; '.join(causes)})"
    if len(cut):
        detail += f", {len(cut):,} were cut to {cut.max():,} tokens"
    if skipped:
        detail += f", {skipped:,} were skipped"
    return (
        f"nothing is left to learn from in the {name} split ({rows.source}): of {len(rows):,} rows {detail}. Check the "
        "columns, the task's max_length (virtual tokens count towards the model's limit) and which tokens the loss is "
        "on."
    )


def whole(task: Task, features: Any) -> Features:
    """Return features as they are (PluginError: they are none, or a field is of the wrong kind)."""
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
    """Yield what is made of rows: features of each example, or why there are none, not of one of them alone."""
    divides = overrides(task, "parts")
    for number, row in enumerate(rows):
        before = _written(row) if number < COMPARED else None
        beside = {} if following is None else {"following": following[number]}
        try:
            parts = task.parts(row, processor) if divides else 1
            arguments = [beside if parts == 1 else {**beside, "part": part} for part in range(parts)]
            encoded = [whole(task, task.encode(row, processor, max_length=max_length, **one)) for one in arguments]
        except DataError as error:
            yield number, error
        else:
            if before is not None and before != (after := _written(row)):
                raise _changed(task, before, after)
            yield from ((number, features) for features in encoded)


def _written(row: Example) -> dict[str, str]:
    return {name: to_json(value) for name, value in row.items()}


def _changed(task: Task, before: Mapping[str, str], after: Mapping[str, str]) -> PluginError:
    """Return the error that a task writes into rows: whatever reads one next would read another."""
    name = min(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return PluginError(
        f"{named(task)}: encode() changes {name!r} of the row that it is given; it must leave rows as they are: copy "
        "what it changes."
    )


def accepted(encoded: Iterable[Encoded], rows: DataRows, on_error: str) -> Iterator[Encoded]:
    """Yield what is made of rows (DataError: nothing is of some, which are counted, and they are not to be skipped)."""
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
    """Yield what `COUNTS` names of each example, and note facts, and why rows were skipped."""
    for i, (row, features) in enumerate(encoded):
        facts.of.append(row)
        if isinstance(features, DataError):
            skipped[i] = f"{rows.where(row)}: {features}"
        else:
            facts.add(i, features)
            yield _counts(i, features)


def _counts(row: int, features: Features) -> tuple[Any, ...]:
    """Return what `COUNTS` names of an example."""
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
