"""Audit `capped-targets`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, number, percent
from ftengine_builtins.audits.contradictions import are_numbers
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within, split_name
from ftengine_builtins.audits.split_shift import EXPLAINED, is_nonrandom_split
from ftengine_builtins.tasks.class_labels import as_number

FEWEST = 20
"""Numbers of a split below which nothing is compared."""
AT_BOUND, TIMES = 0.05, 5
"""Share of a split's numbers that are exactly its largest, or least, at the interval's near end, and how many times the
count of any other number it is: grades have a highest that many rows have, and others that many have."""
BEYOND = 0.02
"""Share of the other split's numbers that lie beyond, near end. Of one source, one in n + 1 lies beyond the largest of
n."""


class CappedTargets(Audit):
    """Finds numbers of a split with a bound that many equal exactly, while another split's numbers exceed it."""

    name = "capped-targets"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        held = [split for split in data.splits if split != "train" and is_nonrandom_split(data, split)]
        if not held or not are_numbers(data):
            return
        numbers = {split: _numbers(data, split) for split in ("train", *held)}
        for split in reversed(held):  # figures are made on the last
            for capped, other in (("train", split), (split, "train")):
                for sign in (1, -1):
                    if _is_capped(sign * numbers[capped], sign * numbers[other]):
                        yield _finding(data, split, capped, other, sign, numbers)
                        return


def _numbers(data: AuditedData, split: str) -> np.ndarray:
    """Return (rows,) numbers, nan where a row has none."""
    values = (as_number(view.label) for view in data.splits[split])
    return np.array([np.nan if value is None else value for value in values])


def _is_capped(one: np.ndarray, other: np.ndarray) -> bool:
    """Say whether many of (n,) numbers equal their maximum, and significantly many of (m,) others exceed it."""
    one, other = one[~np.isnan(one)], other[~np.isnan(other)]
    if min(len(one), len(other)) < FEWEST:
        return False
    counts = np.unique(one, return_counts=True)[1]
    if (
        len(counts) < 2
        or share_within(int(counts[-1]), len(one))[0] < AT_BOUND
        or counts[-1] < TIMES * counts[:-1].max()
    ):
        return False
    return share_within(int((other > one.max()).sum()), len(other))[0] >= BEYOND


def _finding(
    data: AuditedData, split: str, capped: str, other: str, sign: int, numbers: dict[str, np.ndarray]
) -> Finding:
    here, there = numbers[capped], numbers[other]
    bound = float(sign * np.nanmax(sign * here))
    at, beyond = np.flatnonzero(here == bound), int((sign * there > sign * bound).sum())
    known = [int((~np.isnan(of)).sum()) for of in (here, there)]
    end, past = ("capped", "above") if sign > 0 else ("cut off", "below")
    lead = f"check whether {split_name(capped)} numbers are {end} at {number(bound)}: {percent(len(at) / known[0])} of "
    lead += f"{known[0]:,} rows have exactly that and none is {past}, {percent(beyond / known[1])} of {known[1]:,} "
    lead += f"{split_name(other)} rows are"
    text = f"{capitalized(lead)}. Export {data.splits[capped].source} with its true numbers, or remove these rows."
    return Finding(
        kind="splits",
        level="alarm",
        text=text,
        brief=lead,
        explains=EXPLAINED,
        figures={"split": split, "capped": capped, "bound": bound, "share": len(at) / known[0],
                 "beyond": beyond / known[1]},
        places=tuple(data.splits[capped].where(int(row)) for row in at[:SHOWN_PLACES]),
    )  # fmt: skip
