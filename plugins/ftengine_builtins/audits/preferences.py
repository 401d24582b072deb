"""Audit of preferences: whether length alone tells the chosen answer."""

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import percent

SURELY, MOSTLY = 0.6, 0.8
"""Shares of the pairs, at the interval's near end, from which the longer, or shorter, answer is said to be the chosen
one, and from which that is an alarm: a loss then mostly learns how long to write."""


class PreferenceLengths(Audit):
    """How often the longer of two answers is the chosen one."""

    name = "preference-lengths"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        counts = data.encoded.get("train", {}).get("counts", {})
        longer, shorter = counts.get("longer_chosen", 0), counts.get("longer_rejected", 0)
        total = longer + shorter
        if not total:
            return
        from scipy.stats import binomtest  # a second of importing, which lists of audits do without

        most, name = max((longer, "longer"), (shorter, "shorter"))
        low = float(binomtest(most, total).proportion_ci(method="wilson").low)
        if low < SURELY:
            return
        text = f"The {name} answer is the chosen one in {percent(most / total)} of {total:,} training pairs of unequal "
        text += "length: a model may learn to write so long, and little else. Compare accuracy with what length alone "
        text += "reaches, or balance the pairs."
        figures = {"share": most / total, "pairs": total, "preferred": name}
        yield Finding(kind="data", level="alarm" if low >= MOSTLY else "note", text=text, figures=figures)
