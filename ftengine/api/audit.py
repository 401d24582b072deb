"""Audits, which look for problems in data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ftengine.api.component import Component
from ftengine.api.display import Display, Finding
from ftengine.api.types import View

if TYPE_CHECKING:
    import numpy as np


class AuditedRows(Protocol):
    """The rows of one split, as an audit sees them. They can be iterated any number of times."""

    source: str
    """The file, or whatever else they were read from."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[View]:
        """Yield each row's view, in the file's order."""

    def texts(self) -> Iterator[str]:
        """Yield the texts of each row as one string, one per line; "" for a row without text.

        A very long row is cut to its first 131,072 characters. This is faster than reading the views, as texts are
        cached in memory up to a limit.
        """

    def values(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Yield each row's values in some columns of the data; None where it has none."""

    def select(self, rows: Sequence[int]) -> AuditedRows:
        """Return the rows at the given positions, in that order, without reading the others."""

    def where(self, row: int) -> str:
        """Return a row's place for a message, e.g. "train.jsonl:17"."""


@dataclass(frozen=True)
class AuditedData:
    """All data of a run, and what reading and dividing it found.

    Args:
        splits: rows by name, "train" first, then "validation" and "test" where there are such.
        task: the task's name.
        distinct: for each split, (rows,) int64 numbers that equal rows share over all splits.
        same_words: as `distinct`, but equal for rows with the same words in the same order; None if words were not
            compared.
        targets: for each split, (rows,) int64 numbers that are equal for equal labels, 0 without a label.
        facts: results of reading and dividing, as JSON values (docs/data.md lists them).
        encoded: for each split facts of the encoded examples (number, tokens, length percentiles, truncated), as JSON
            values.
        settings: the recipe's `data`, as JSON values.
        near: for each split, (rows,) int64 numbers that equal and near-equal rows share, connected ones all; None where
            near duplicates were not searched for.
    """

    splits: Mapping[str, AuditedRows]
    task: str
    distinct: Mapping[str, np.ndarray]
    same_words: Mapping[str, np.ndarray] | None
    targets: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    encoded: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    near: Mapping[str, np.ndarray] | None = None


class Audit(Component):
    """Examines the data before training; every installed audit examines the data of every run.

    What an audit finds is shown by `plan` and `train`, kept in audit.json, and read by rules and report.
    """

    @abstractmethod
    def examine(self, data: AuditedData) -> Iterable[Finding | Display]:
        """Yield findings, the most important first, and tables or charts with the details."""
