"""Audit `unlabelled-rows`."""

from collections.abc import Iterator
from itertools import islice

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, percent
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within, split_name
from ftengine_builtins.audits.split_shift import EXPLAINED

APART = 0.1
"""By how much larger the share of rows without any label is in one split than in another, between the near ends of both
95 % intervals, for an alarm."""


class UnlabelledRows(Audit):
    """Rows of several labels each that have none, in training and not in a held-out split, or the other way round."""

    name = "unlabelled-rows"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        if not any(isinstance(view.label, list) for view in islice(data.splits["train"], 100)):
            return
        bare = {split: [i for i, view in enumerate(rows) if view.label == []] for split, rows in data.splits.items()}
        for split in list(data.splits)[:0:-1]:  # figures are made on the last
            for more, fewer in (("train", split), (split, "train")):
                counts = [(len(bare[name]), len(data.splits[name])) for name in (more, fewer)]
                if not all(total for _, total in counts):
                    continue
                if share_within(*counts[0])[0] - share_within(*counts[1])[1] >= APART:
                    yield _finding(data, more, fewer, counts, bare[more])
                    return


def _finding(data: AuditedData, more: str, fewer: str, counts: list[tuple[int, int]], rows: list[int]) -> Finding:
    (many, of_more), (few, of_fewer) = counts
    lead = f"leave out rows that were never given labels: {percent(many / of_more)} of the {split_name(more)} rows "
    lead += f"({many:,} of {of_more:,}) have no label, of the {split_name(fewer)} rows {percent(few / of_fewer)}"
    return Finding(
        kind="data",
        level="alarm",
        text=f"{capitalized(lead)}. Each teaches, or is judged, that no label fits.",
        brief=lead,
        explains=EXPLAINED,
        figures={"split": more, "other": fewer, "share": many / of_more, "other_share": few / of_fewer, "rows": many},
        places=tuple(data.splits[more].where(row) for row in rows[:SHOWN_PLACES]),
    )
