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
    trials = {path: numbers[:TRIED] for path, numbers in sorted(rows_with.items()) if numbers}
    trial = _Trial(
        train, rows, {number: _seen(rows[number], number, train) for number in set().union(*trials.values())}
    )
    return {".".join(path): train.rows.where(trials[path][0]) for path in trial.without_effect(trials)}


@dataclass(frozen=True)
class _Trial:
    """Rows by number, and what the task makes of each as it stands."""

    train: EncodedSplit
    rows: Mapping[int, Example]
    seen: Mapping[int, Any]

    def without_effect(self, trials: Mapping[Path, Sequence[int]]) -> list[Path]:
        """Return those paths whose values, in the rows tried for each, change nothing.

        Many are changed at one time, and halved where that makes a difference: most columns of a wide table are unread.
        """
        if not trials or not self._matter(trials):
            return list(trials)
        if len(trials) == 1:
            return []
        paths, half = list(trials), len(trials) // 2
        return [
            path for part in (paths[:half], paths[half:]) for path in self.without_effect({p: trials[p] for p in part})
        ]

    def _matter(self, trials: Mapping[Path, Sequence[int]]) -> bool:
        """Try other values, not only none, as a key that is read may hold what also goes without saying."""
        paths: dict[int, list[Path]] = {}
        for path, numbers in trials.items():
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
            new = [
                {**entry, key: value} if isinstance(entry, dict) and key in entry else entry
                for entry in changed[column]
            ]
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
