"""Audit `labels-per-row`."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, number
from ftengine_builtins.audits.contradictions import tags_words
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within, split_name
from ftengine_builtins.audits.split_shift import EXPLAINED

FEWEST = 20
"""Rows with a label of both splits below which nothing is compared."""
APART = 0.2
"""Share of rows with several labels in one split, above that of a split in which all rows have one, between the near
ends of both 95 % intervals, for an alarm."""


class LabelsPerRow(Audit):
    """Rows of several labels each that all have exactly one label in one split, and often several in another."""

    name = "labels-per-row"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        if not any(isinstance(view.label, list) for view in islice(data.splits["train"], 100)):
            return
        if tags_words(data):
            return
        counts = {
            split: np.array([len(view.label) if isinstance(view.label, list) else 0 for view in rows])
            for split, rows in data.splits.items()
        }
        for split in list(data.splits)[:0:-1]:  # figures are made on the last
            for single, several in (("train", split), (split, "train")):
                if _differ(*(counts[name][counts[name] > 0] for name in (single, several))):
                    yield _finding(data, single, several, counts)
                    return


def _differ(single: np.ndarray, several: np.ndarray) -> bool:
    """Say whether all of (n,) numbers of labels are 1, while (m,) others surely are not."""
    if min(len(single), len(several)) < FEWEST or single.max() > 1:
        return False
    more = share_within(int((several > 1).sum()), len(several))[0]
    return more - share_within(0, len(single))[1] >= APART


def _finding(data: AuditedData, single: str, several: str, counts: dict[str, np.ndarray]) -> Finding:
    n, mean = int((counts[single] > 0).sum()), float(counts[several][counts[several] > 0].mean())
    lead = f"check whether {split_name(single)} rows were coded in full: each of {n:,} has one label, "
    lead += f"{split_name(several)} rows have {number(mean, 2)} on average"
    rows = np.flatnonzero(counts[single] == 1)[:SHOWN_PLACES]
    return Finding(
        kind="data",
        level="alarm",
        text=f"{capitalized(lead)}. Each label that was left out teaches, or is judged, as one that does not apply.",
        brief=lead,
        explains=EXPLAINED,
        figures={"split": single, "other": several, "rows": n, "other_mean": mean},
        places=tuple(data.splits[single].where(int(row)) for row in rows),
    )
