"""What data is for: which installed task is made for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ftengine.api import Recognised, RecognisesData
from ftengine.plugins.registry import Entry, Registry

LOOKED_AT = 200
"""Rows that are read."""


@dataclass(frozen=True)
class Seen:
    """What a look into data found.

    Args:
        columns: of the data; empty where there is no such file.
        task: the one that it is for; None where none is.
        found: how that one reads it.
        hint: what may be wrong with the data where no task is for it.
    """

    columns: list[str] = field(default_factory=list)
    task: Entry | None = None
    found: Recognised = field(default_factory=lambda: Recognised(0))
    hint: str = ""


def look(source: str, tasks: Iterable[Entry], registry: Registry) -> Seen:
    """Ask tasks whether the data is of their kind.

    Args:
        source: a file or a folder; of what is not there, such as a data set of the hub, nothing is found.
        registry: has the readers.
        tasks: those to ask; of equally certain ones the first is taken.

    Raises:
        DataError: the file cannot be read.
    """
    from ftengine.data.read import read_rows

    if not Path(source).expanduser().exists():
        return Seen()
    rows = read_rows(source, registry=registry, on_error="skip")
    first = list(islice(rows, LOOKED_AT))
    known = []
    for entry in tasks:
        cls: Any = entry.cls  # the class itself has the ability
        if isinstance(cls, RecognisesData) and (found := cls.recognise(rows.columns, first)) is not None:
            known.append((entry, found))
    if not known:
        return Seen(rows.columns, hint=rows.hint)
    task, found = max(known, key=lambda pair: pair[1].certainty)
    return Seen(rows.columns, task, found)
