"""Counts of rows by split, their wording, and the interval of a share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ftengine.api import AuditedData, Finding
from ftengine.text import listed

SHOWN_PLACES = 5


def split_name(name: str) -> str:
    """Return the name of a split in front of "rows"."""
    return "training" if name == "train" else name


@dataclass(frozen=True)
class FoundRows:
    """Rows with a finding, by split.

    Args:
        text: number and description, e.g. "4 of 200 training rows hold e-mail addresses".
        counts: number of rows by split.
        places: places of the first rows.
        least: near end of the interval of their share of all splits' rows.
    """

    text: str
    counts: dict[str, int]
    places: tuple[str, ...]
    least: float


def found_rows(data: AuditedData, by_split: Mapping[str, Sequence[int]], what: str) -> FoundRows:
    """Count the rows with a finding by split; splits without any are left out.

    Args:
        by_split: for each split the numbers of the rows.
        what: verb and object for several rows, as `counted` takes it.
    """
    places = [data.splits[split].where(row) for split, rows in by_split.items() for row in rows[:SHOWN_PLACES]]
    counts = {split: len(rows) for split, rows in by_split.items()}
    of = {name: len(rows) for name, rows in data.splits.items()}
    least = share_within(sum(counts.values()), sum(of.values()))[0]
    return FoundRows(counted(counts, of, what), counts, tuple(places[:SHOWN_PLACES]), least)


def finding(data: AuditedData, by_split: Mapping[str, Sequence[int]], what: str, figure: str = "rows") -> Finding:
    """Make a finding of rows by split, as `found_rows` counts them, with the first place.

    Args:
        figure: name of the counts among the finding's figures.
    """
    found = found_rows(data, by_split, what)
    text = f"{found.text} (e.g. {found.places[0]})."
    return Finding(kind="data", level="note", text=text, figures={figure: found.counts}, places=found.places)


ONE = {"are": "is", "have": "has", "hold": "holds"}
"""Verbs of findings, of several rows and of one."""


def counted(counts: Mapping[str, int], of: Mapping[str, int], what: str) -> str:
    """Return "4 of 200 training rows and 1 of 20 test rows hold e-mail addresses"; for one row, "holds"."""
    parts = [f"{count:,} of {of[split]:,} {split_name(split)} rows" for split, count in counts.items()]
    singular = sum(counts.values()) == 1
    return f"{listed(parts)} {' '.join(ONE.get(word, word) if singular else word for word in what.split(' '))}"


def share_within(count: int, total: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a share; `total` is at least 1 (Wilson 1927)."""
    z, p = NormalDist().inv_cdf(0.975), count / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    low, high = ((middle + side * half) / (1 + z * z / total) for side in (-1, 1))
    return low if count else 0.0, high if count < total else 1.0
