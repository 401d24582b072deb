"""The table of predictions: a model's output for each example, stored as a Parquet file.

Columns: `row` (position in the split's source), `place` (file and line), `group` (equal for
rows that were not drawn independently, duplicates among them), `duplicate` (equal for duplicates),
`slice.COLUMN` (the value, as text, by which figures are divided), `column.COLUMN` (what evaluators read of the user's
row), `row.COLUMN` (the beginning of each column's value as text, for rules), the task's keys, `EVALUATOR.KEY` (what an
evaluator keeps), and `answered` with the keys of generations, which are null in rows that were not answered. Rows stand
in the order of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ftengine.api import Evaluator, Example, Prediction
from ftengine.errors import PluginError, RunError
from ftengine.evaluation.weights import Weights
from ftengine.plugins.attribution import contract_error

FOLDER = "predictions"
ROWS = 4096
"""Rows of a group that is written at once."""
MEMBER = "member"
OWN = frozenset({"row", "place", "group", "duplicate", "answered", MEMBER})
"""Columns that no prediction may be called."""


def equal(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Return whether two tables have the same columns with the same values; nan equals nan."""
    pairs = [(column, second.get(name)) for name, column in first.items()]
    return len(first) == len(second) and all(
        b is not None and np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f") for a, b in pairs
    )


def kept_by(evaluator: Evaluator, prediction: Prediction) -> Mapping[str, Any]:
    """Return the values that an evaluator keeps of a prediction (PluginError: it returned no mapping)."""
    columns = evaluator.keep(prediction)
    if not isinstance(columns, Mapping):
        raise contract_error(evaluator, "keep", columns, "a mapping of names to numbers")
    return columns


Answering = Callable[[Sequence[Example]], Sequence[Mapping[str, Any]]]
"""`Task.infer` of a model."""


def kept_together(evaluator: Evaluator, table: Predictions, answer: Answering | None = None) -> dict[str, np.ndarray]:
    """Return the columns that an evaluator computes from all examples at once (PluginError: not one number each)."""
    columns = evaluator.keep_together(table.rows(evaluator), answer) if len(table) else {}
    if not isinstance(columns, Mapping) or any(
        len(x) != len(table) or x.dtype.kind not in "bif" for x in columns.values()
    ):
        raise contract_error(
            evaluator, "keep_together", columns, f"a mapping of names to {len(table)} numbers, one an example"
        )
    return {f"{evaluator.name}.{name}": column for name, column in columns.items()}


class Writer:
    """Collects predictions in any order in a temporary file, which is deleted with the process."""

    def __init__(self) -> None:
        self._file = TemporaryFile(prefix="ftengine-")  # noqa: SIM115
        self._waiting: list[Mapping[str, Any]] = []
        self._parts = 0

    def put(self, member: int, prediction: Prediction) -> None:
        """Add one example: its position in the split, and columns by name."""
        if clash := OWN & prediction.keys():
            raise PluginError(f"a prediction has the key {min(clash)!r}, which the table of predictions uses itself.")
        self._waiting.append({MEMBER: member, **prediction})
        if len(self._waiting) == ROWS:
            self._flush()

    def finish(self) -> pa.Table:
        """Return all examples as a table, and remove the file."""
        self._flush()
        self._file.seek(0)
        parts = [pa.ipc.open_stream(self._file).read_all() for _ in range(self._parts)]
        self._file.close()
        empty = pa.table({MEMBER: pa.array([], pa.int64())})
        return pa.concat_tables(parts, promote_options="permissive") if parts else empty

    def _flush(self) -> None:
        if not self._waiting:
            return
        names = list(dict.fromkeys(name for row in self._waiting for name in row))
        table = pa.table({name: _array(name, [row.get(name) for row in self._waiting]) for name in names})
        with pa.ipc.new_stream(self._file, table.schema) as stream:
            stream.write_table(table)
        self._waiting, self._parts = [], self._parts + 1


def _array(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except pa.ArrowException as error:
        raise PluginError(
            f"key {name!r} of the predictions holds values that do not fit one column, such as {values[0]!r}: {error}."
        ) from None


def merged(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several tables, sorted by member."""
    return pa.concat_tables(tables, promote_options="permissive").sort_by(MEMBER)


def judged(
    table: pa.Table, evaluators: Sequence[Evaluator], columns_of: Callable[[int], Mapping[str, Any]]
) -> pa.Table:
    """Add the columns that evaluators read of the user's rows, and those that they keep, to a table of predictions.

    Evaluators read the values as stored in the table, so that new and reused predictions give the same result.

    Args:
        columns_of: returns the values that evaluators read from a member's row, by column.
    """
    further = Writer()
    for batch in table.to_batches(max_chunksize=ROWS):
        for prediction in batch.to_pylist():
            member = prediction.pop(MEMBER)
            columns = columns_of(member)
            # What the task says wins: a column of the same name is no answer of the model.
            known_values = {**columns, **prediction}
            read = {f"column.{name}": value for name, value in columns.items() if name not in prediction}
            own_columns = {
                f"{e.name}.{key}": value for e in evaluators for key, value in kept_by(e, known_values).items()
            }
            further.put(member, read | own_columns)
    added = further.finish()
    for name in added.column_names[1:]:
        table = table.append_column(name, added[name])
    return table


@dataclass(frozen=True)
class Predictions:
    """A model's output for n examples: columns by name, (n,) or (n, k).

    Texts and lists of different lengths are objects; missing numbers are nan.
    """

    columns: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, table: pa.Table) -> Predictions:
        return cls({name: _numpy(table[name]) for name in table.column_names})

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read a file (RunError: it is missing or damaged)."""
        try:
            return cls.of(pq.read_table(path))
        except FileNotFoundError:
            raise RunError(f"{str(path)!r} is missing.") from None
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{str(path)!r} cannot be read: {error}.") from None

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the examples of several disjoint sets, such as folds, with distinct group numbers."""
        columns = {name: [part.columns[name] for part in parts] for name in parts[0].columns}
        for name in ("group", "duplicate"):
            numbers = [part.groups if name == "group" else part.duplicates for part in parts]
            starts = np.cumsum([0, *(int(numbers_of_part.max(initial=-1)) + 1 for numbers_of_part in numbers)])
            columns[name] = [numbers_of_part + start for numbers_of_part, start in zip(numbers, starts, strict=False)]
        return cls({name: _stacked(values) for name, values in columns.items()})

    def __len__(self) -> int:
        return len(self.columns["row"])

    @property
    def groups(self) -> np.ndarray:
        """(n,) int64, equal for rows that were not drawn independently: duplicates, and what the data groups."""
        return self.columns["group"]

    @property
    def duplicates(self) -> np.ndarray:
        """(n,) int64, equal for duplicates; in tables of older runs they are the groups."""
        return self.columns.get("duplicate", self.groups)

    def weights(self, seed: int, resamples: int) -> Weights:
        """Return the weights of the rows in each resample."""
        return Weights(self.groups, seed, resamples, duplicates=self.duplicates)

    @cached_property
    def answered(self) -> np.ndarray:
        """(n,) whether the model generated an answer to the example."""
        return self.columns["answered"].astype(bool) if "answered" in self.columns else np.zeros(len(self), dtype=bool)

    @property
    def keys(self) -> frozenset[str]:
        """The task's keys, and the columns of the user's rows that evaluators read."""
        return frozenset(self._columns_by_key())

    def equals(self, other: Predictions) -> bool:
        """Return whether another table has the same columns with the same values."""
        return equal(self.columns, other.columns)

    def take(self, chosen: np.ndarray) -> Predictions:
        """Return some of the examples; `chosen` is a mask or positions."""
        return Predictions({name: column[chosen] for name, column in self.columns.items()})

    def by_key(self) -> dict[str, np.ndarray]:
        """Return the task's outputs, and the columns of the user's rows that evaluators read, by key."""
        return {key: self.columns[name] for key, name in self._columns_by_key().items()}

    def rows(self, evaluator: Evaluator) -> dict[str, np.ndarray]:
        """Return the columns as an evaluator sees them: all keys, columns that it reads, and what it kept."""
        return {**self.by_key(), **_beginning(f"{evaluator.name}.", self.columns)}

    def prediction(self, i: int) -> dict[str, Any]:
        """Return the task's output for one example, as plain values."""
        return {key: _python_value(self.columns[name][i]) for key, name in self._columns_by_key().items()}

    def keeping(self, evaluator: Evaluator) -> Predictions:
        """Return the table with the columns that a further evaluator keeps."""
        first = kept_by(evaluator, self.prediction(0)) if len(self) else {}
        rows = [kept_by(evaluator, self.prediction(i)) for i in range(len(self))] if first else []
        columns = {
            f"{evaluator.name}.{name}": _numpy(pa.chunked_array([_array(name, [row[name] for row in rows])]))
            for name in first  # every example gives equally many
        }
        table = Predictions({**self.columns, **columns})
        return Predictions({**table.columns, **kept_together(evaluator, table)})

    def slices(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each column that defines slices, with its values as texts, (n,)."""
        yield from _beginning("slice.", self.columns).items()

    def _columns_by_key(self) -> dict[str, str]:
        """Return column names by key."""
        plain = {name: name for name in self.columns if "." not in name and name not in OWN}
        return {name.removeprefix("column."): name for name in self.columns if name.startswith("column.")} | plain


def _beginning(prefix: str, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): column for name, column in columns.items() if name.startswith(prefix)}


def _stacked(values: list[np.ndarray]) -> np.ndarray:
    """Return columns concatenated; lists of different lengths become objects."""
    if len({value.shape[1:] for value in values}) > 1:
        values = [_objects(value.tolist()) for value in values]
    return np.concatenate(values)


def _objects(values: Sequence[Any]) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))  # lists of equal length stay lists


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Return numbers as (n,), lists of equally many numbers as (n, k), everything else as objects."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.to_numpy()
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8()).to_numpy()
    if pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        lists = column.combine_chunks()
        lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
        lengths = lists.value_lengths().drop_null().to_numpy()
        flat = lists.flatten()
        if len(lengths) and lengths.min() == lengths.max() > 0 and not flat.null_count:
            matrix = flat.to_numpy(zero_copy_only=False).reshape(len(lengths), -1)
            if not lists.null_count:
                return matrix
            padded = np.full((len(lists), matrix.shape[1]), np.nan)
            padded[lists.is_valid().to_numpy(zero_copy_only=False)] = matrix
            return padded
    return _objects(column.to_pylist())


def _python_value(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
