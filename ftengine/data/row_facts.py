"""What a task tells of rows beside numbers of tokens, and how many examples each of them makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ftengine.api import Example, Features, Task, overrides
from ftengine.data.read import DataRows
from ftengine.errors import DataError, PluginError
from ftengine.plugins.blame import named
from ftengine.plugins.returned import described, wrong

PERCENTILES = (5, 25, 50, 75, 95, 99)


@dataclass
class RowFacts:
    """What is gathered of a split's rows as they are encoded.

    Args:
        counts: what the task counts (`Task.encode`), summed.
        kinds: the first row of each kind that is trained on.
        reasons: why rows are not trained on, as the task says, with how many; the others were cut.
    """

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    def gathered(self, encoded: Iterable[Features | DataError]) -> Iterator[Features | DataError]:
        """Yield what was made of rows, and note what is told of them."""
        for i, features in enumerate(encoded):
            if not isinstance(features, DataError):
                self.counts.update(features.get("counts", ()))
                if features["weight"] and "kind" in features:
                    self.kinds.setdefault(features["kind"], i)
                if not features["weight"] and features.get("untrained"):
                    self.reasons[features["untrained"]] += 1
            yield features

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
    return int(features.get("longest") or features["length"])


def in_parts(rows: DataRows, task: Task, processor: Any) -> DataRows:
    """Return rows, each as often as it makes examples."""
    if not overrides(task, "parts"):
        return rows

    def count(row: Example) -> int:
        try:
            return task.parts(row, processor)
        except DataError:  # `encode` will say so, with its place
            return 1

    return rows.in_parts(np.fromiter(map(count, rows), int, len(rows)))


def nothing_left(name: str, rows: DataRows, counts: np.ndarray, reasons: Counter[str], skipped: int) -> str:
    """Say why no row of a split is trained on; the length limit is the one that rows were cut to, whoever set it."""
    detail, cut = f"{len(counts):,} have no token to train on", counts["sequence"][counts["truncated"] != 0]
    if reasons:
        told = (why if times == len(counts) else f"of {times:,} {why}" for why, times in reasons.most_common())
        detail += f" ({'; '.join(told)})"
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
    """Return features as they are (PluginError: without what every task has to tell of an example)."""
    wanted = "a dict with 'length', 'weight' and 'truncated', each a number"
    if not isinstance(features, dict):
        raise wrong(task, "encode", features, wanted)
    for key in ("length", "weight", "truncated"):
        if not isinstance(features.get(key), (int, float, np.number, np.bool_)):
            had = f"whose {key!r} is {described(features[key])}" if key in features else f"without {key!r}"
            raise PluginError(f"{named(task)}: encode() returned a dict {had}; it must return {wanted}.")
    return features
