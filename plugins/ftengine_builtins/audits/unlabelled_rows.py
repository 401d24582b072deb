"""Audit `unlabelled-rows`."""

from collections.abc import Collection, Iterator
from itertools import islice

import numpy as np

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import capitalized, number, percent
from ftengine_builtins.audits.counting import SHOWN_PLACES, share_within, split_name
from ftengine_builtins.audits.split_shift import EXPLAINED, SAMPLE, area_error, areas, shortened
from ftengine_builtins.audits.word_scores import WordRidge, choose_rows, tf_idf

APART = 0.1
"""By how much larger the share of rows without any label is in one split than in another, between the near ends of both
95 % intervals, for a note."""
ALIKE, FEWEST, PENALTY = 0.6, 30, 1.0
"""ROC AUC with which words tell the rows of training that have no label from those that have, up to which they are
alike (interval's near end), and rows of both from which that is known: where no label applies, words are others."""


class UnlabelledRows(Audit):
    """Finds rows without any label in one split of data with several labels a row.

    An alarm if the split is training, and the words of these rows are those of labelled rows.
    """

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
    shares = (
        f"{percent(many / of_more)} of the {split_name(more)} rows ({many:,} of {of_more:,}) have no label, of the "
    )
    shares += f"{split_name(fewer)} rows {percent(few / of_fewer)}"
    figures = {"split": more, "other": fewer, "share": many / of_more, "other_share": few / of_fewer, "rows": many}
    places = tuple(data.splits[more].where(row) for row in rows[:SHOWN_PLACES])
    if more != "train" or (auc := _separability(data, set(rows))) is None or auc[0] > ALIKE:
        text = f"The shares of rows without a label differ: {shares}."
        return Finding(kind="data", level="note", text=text, figures=figures, places=places)
    lead = f"leave out training rows that were never given labels: {shares}"
    text = f"{capitalized(lead)}, and words do not distinguish them from labelled rows (AUC {number(auc[1], 2)}): in "
    text += "training such a row teaches that no label applies."
    return Finding(kind="data", level="alarm", text=text, brief=lead, explains=EXPLAINED,
                   figures={**figures, "auc": auc[1]}, places=places)  # fmt: skip


def _separability(data: AuditedData, bare: Collection[int]) -> tuple[float, float] | None:
    """Return how well words separate unlabelled training rows from labelled ones: near end and value of the ROC AUC.

    Each row is scored out of sample; None if there are few.
    """
    chosen = choose_rows(data.distinct["train"], np.ones(len(data.splits["train"]), dtype=bool), SAMPLE)
    texts = {i: shortened(text) for i, text in enumerate(data.splits["train"].texts()) if i in chosen and text.strip()}
    labelled = np.array([i not in bare for i in texts], dtype=float)
    if min(labelled.sum(), (1 - labelled).sum()) < FEWEST:
        return None
    scores = WordRidge(tf_idf([*texts.values()])).leave_one_out(labelled[:, None], PENALTY)
    auc, n = float(areas(scores, labelled[:, None])[0]), int(labelled.sum())
    return auc - 1.96 * area_error(auc, len(labelled) - n, n), auc
