"""Groups of rows by their content: values of columns, words, lengths, dates, places in a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftengine.text import quoted, short
from ftengine_builtins.audits.word_scores import TOKEN

if TYPE_CHECKING:
    import numpy as np

FEWEST = 8
"""Rows that a group has, and rows that are not of it, at least."""
MOST_VALUES, MOST_WORDS = 50, 1_000
"""Values of a column of kinds, and words of a column of texts, the most frequent ones."""
DATE = re.compile(r"\d{4}-\d\d(-\d\d)?\b")
PARTS = 4
"""Numbers, dates, lengths and the file are divided into so many parts of equally many rows."""


@dataclass(frozen=True)
class Group:
    """A group of rows with a common property.

    Args:
        what: description after "where", such as "`export` is “2024-02”".
        of: (n,) whether each row is in the group.
        unread: whether the model does not read it.
    """

    what: str
    of: np.ndarray
    unread: bool


def row_groups(
    table: Mapping[str, np.ndarray], unread: Collection[str], labels: Sequence[str], *, unread_alone: bool = False
) -> list[Group]:
    """Return the distinct groups of rows of a table of predictions.

    Args:
        unread: columns that nothing reads, which come first.
        labels: words that are labels, and so no features.
        unread_alone: whether columns that the model reads are left out.
    """
    columns = {name.removeprefix("row."): of for name, of in table.items() if name.startswith("row.")}
    found: dict[bytes, Group] = {}
    for name in sorted(columns, key=lambda name: name not in unread):
        if unread_alone and name not in unread:
            continue
        for what, of in of_column(name, columns[name], {label.lower() for label in labels}):
            if min(of.sum(), (~of).sum()) >= FEWEST:
                found.setdefault(of.tobytes(), Group(what, of, name in unread))
    if len(table.get("row", ())):
        for what, of in _parts(table["row"], [place.rpartition("/")[2] for place in table["place"]], "place"):
            found.setdefault(of.tobytes(), Group(what, of, unread=True))
    return list(found.values())


def of_column(name: str, column: np.ndarray, labels: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the groups that one column makes: a description, and the rows."""
    import numpy as np

    values = ["" if value is None else value for value in column]
    counts, called = Counter(values), f"`{short(name)}`"
    if len(counts) <= MOST_VALUES and len(counts) * 2 <= len(values):
        for value, _ in counts.most_common():
            yield f"{called} is {quoted(short(value)) if value else 'missing'}", np.array([v == value for v in values])
        return
    numbers = _numbers(values)
    if numbers is not None:
        yield from _parts(numbers, [f"{value:g}" for value in numbers.tolist()], called)
        return
    if all(DATE.match(value) for value in values):
        ranks = np.unique(values, return_inverse=True)[1].ravel()
        yield from _parts(ranks, values, called)
        return
    words = [set(TOKEN.findall(value.lower())) for value in values]
    lengths = [len(value) for value in values]
    yield from _parts(np.array(lengths), [str(length) for length in lengths], f"the length of {called}")
    rows = Counter(word for of in words for word in of if word not in labels)
    for word, _ in rows.most_common(MOST_WORDS):
        yield f"{called} has {quoted(word)}", np.array([word in of for of in words])


def _numbers(values: Sequence[str]) -> np.ndarray | None:
    """Return values as numbers; None if one is not a number."""
    import numpy as np

    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _parts(order: np.ndarray, names: Sequence[str], called: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the rows below and above each quartile of an order."""
    import numpy as np

    for part in range(1, PARTS):
        limit = np.quantile(order, part / PARTS, method="lower")
        below = order <= limit
        if min(below.sum(), (~below).sum()) >= FEWEST:
            name = names[int(np.flatnonzero(order == limit)[0])]
            yield f"{called} is up to {short(name)}", below
            yield f"{called} is beyond {short(name)}", ~below
