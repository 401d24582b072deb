"""Columns of the data, and keys of messages in them, that change nothing of what a model is given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftengine.api import Example
from ftengine.data.encoding import EncodedSplit

Path = tuple[str, ...]
"""A column, or a column of lists and a key of the objects in these."""

LOOKED_AT = 200
"""Rows among which some with a value are sought."""
TRIED = 5
"""Rows that are encoded with other values."""


def find_unread(train: EncodedSplit, used: Collection[str] = ()) -> dict[str, str]:
    """Return columns and keys of objects in lists ("messages.weight") whose values change nothing that is encoded.

    Each comes with the place of the first row that has it; those in `used` are read by something else than the task.
    """
    having: dict[Path, list[int]] = {(column,): [] for column in train.rows.columns if column not in used}
    rows: dict[int, Example] = {}
    for number in map(int, train.index[:LOOKED_AT]):
        row = rows[number] = train.rows[number]
        for column in [path[0] for path in having if len(path) == 1]:
            if row[column] is not None:
                having[column,].append(number)
            entries = row[column] if isinstance(row[column], list) else []
            for key in {key for one in entries if isinstance(one, dict) for key in one if one[key] is not None}:
                having.setdefault((column, key), []).append(number)
    tried = {path: numbers[:TRIED] for path, numbers in sorted(having.items()) if numbers}
    trial = _Trial(train, rows, {number: _seen(rows[number], number, train) for number in set().union(*tried.values())})
    return {".".join(path): train.rows.where(tried[path][0]) for path in trial.without_effect(tried)}


@dataclass(frozen=True)
class _Trial:
    """Rows by number, and what the task makes of each as it stands."""

    train: EncodedSplit
    rows: Mapping[int, Example]
    seen: Mapping[int, Any]

    def without_effect(self, tried: Mapping[Path, Sequence[int]]) -> list[Path]:
        """Return those paths whose values, in the rows tried for each, change nothing.

        Many are changed at one time, and halved where that makes a difference: most columns of a wide table are unread.
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
        """Try other values, not only none, as a key that is read may hold what also goes without saying."""
        paths: dict[int, list[Path]] = {}
        for path, numbers in tried.items():
            for number in numbers:
                paths.setdefault(number, []).append(path)
        return any(
            _seen(_with(self.rows[number], changed, value), number, self.train) != self.seen[number]
            for number, changed in paths.items()
            for value in (None, 0, "?")
        )


def _with(row: Example, paths: Iterable[Path], value: Any) -> Example:
    """Return a row with another value in some columns, or under a key of every object of a column's list."""
    changed = dict(row)
    for column, *keys in sorted(paths, key=len, reverse=True):  # a column as a whole goes after keys of it
        new = value
        for key in keys:
            new = [{**one, key: value} if isinstance(one, dict) and key in one else one for one in changed[column]]
        changed[column] = new
    return changed


def _seen(row: Example, number: int, train: EncodedSplit) -> Any:
    """Return what the task makes of a row, comparable by ==; None where it cannot read it.

    Values are made up here, which nobody promised a task: whatever it raises, it has read them.
    """
    try:
        features = train.encode(row, number)
    except Exception:
        return None
    inputs = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in features.inputs.items()}
    return replace(features, inputs=inputs)
