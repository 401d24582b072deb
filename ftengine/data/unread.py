"""Columns of the data, and keys of messages in them, that do not affect the model's input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftengine.api import Example
from ftengine.data.encoding import EncodedSplit

Path = tuple[str, ...]
"""A column, or a column of lists with a key of the objects in them."""

LOOKED_AT = 200
"""Rows that are searched for values."""
TRIED = 5
"""Rows that are encoded with other values, for each column or key."""


def find_unread(train: EncodedSplit, used: Collection[str] = ()) -> dict[str, str]:
    """Return columns and keys of objects in lists ("messages.weight") whose values change nothing that is encoded.

    The result gives the place of the first row with a value. Columns in `used`, which other parts read, are not tried.
    """
    rows_with: dict[Path, list[int]] = {(column,): [] for column in train.rows.columns if column not in used}
    rows: dict[int, Example] = {}
    for number in map(int, train.index[:LOOKED_AT]):
        row = rows[number] = train.rows[number]
        for column in [path[0] for path in rows_with if len(path) == 1]:
            if row[column] is not None:
                rows_with[column,].append(number)
            entries = row[column] if isinstance(row[column], list) else []
            for key in {key for entry in entries if isinstance(entry, dict) for key in entry if entry[key] is not None}:
                rows_with.setdefault((column, key), []).append(number)
    tried = {path: numbers[:TRIED] for path, numbers in sorted(rows_with.items()) if numbers}
    trial = _Trial(
        train, rows, {number: _features_of(rows[number], number, train) for number in set().union(*tried.values())}
    )
    return {".".join(path): train.rows.where(tried[path][0]) for path in trial.without_effect(tried)}


@dataclass(frozen=True)
class _Trial:
    """Rows by number, and the features of each unchanged row."""

    train: EncodedSplit
    rows: Mapping[int, Example]
    features: Mapping[int, Any]

    def without_effect(self, tried: Mapping[Path, Sequence[int]]) -> list[Path]:
        """Return the paths whose values do not affect the features, judged by the given rows.

        Many paths are changed together, and halved if that has an effect, because most columns of a wide table are
        unread.
        """
        if not tried or not self._matter(tried):
            return list(tried)
        if len(tried) == 1:
            return []
        paths, half = list(tried), len(tried) // 2
        return [
            path for part in (paths[:half], paths[half:]) for path in self.without_effect({p: tried[p] for p in part})
        ]

    def _matter(self, tried: Mapping[Path, Sequence[int]]) -> bool:
        """Return whether other values have an effect; not only None, because a key may hold the default value."""
        paths: dict[int, list[Path]] = {}
        for path, numbers in tried.items():
            for number in numbers:
                paths.setdefault(number, []).append(path)
        return any(
            _features_of(_with(self.rows[number], changed, value), number, self.train) != self.features[number]
            for number, changed in paths.items()
            for value in (None, 0, "?")
        )


def _with(row: Example, paths: Iterable[Path], value: Any) -> Example:
    """Return a row with another value in some columns, or under a key of every object of a column's list."""
    changed = dict(row)
    for column, *keys in sorted(paths, key=len, reverse=True):  # first keys of a column, then the column itself
        new = value
        for key in keys:
            new = [
                {**entry, key: value} if isinstance(entry, dict) and key in entry else entry
                for entry in changed[column]
            ]
        changed[column] = new
    return changed


def _features_of(row: Example, number: int, train: EncodedSplit) -> Any:
    """Return the features of a row, comparable by ==; None if the task cannot encode it.

    The values are invented, so a task may raise any error; an error shows that it has read them.
    """
    try:
        features = train.encode(row, number)
    except Exception:
        return None
    inputs = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in features.inputs.items()}
    return replace(features, inputs=inputs)
