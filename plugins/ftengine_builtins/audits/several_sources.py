"""Audit of several sources: how much of each an epoch takes."""

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Display, Finding, Table
from ftengine.text import percent

OFTEN = 4
"""Times an epoch has each example of a source, from which it is an alarm: as many epochs on the same rows."""


class SeveralSources(Audit):
    """Several sources of training: what each has, and what an epoch repeats or leaves out."""

    name = "several-sources"

    def examine(self, data: AuditedData) -> Iterator[Finding | Display]:
        sources = data.encoded.get("train", {}).get("sources", ())
        for one in sources:
            times = one["an_epoch"] / one["examples"]
            if times == 1:
                continue
            of = f"the {one['examples']:,} examples of {one['source']} (weight {one['weight']:g})"
            text = f"An epoch takes {one['an_epoch']:,} of {of}: " + (
                f"each comes {times:.2g} times on average."
                if times > 1
                else f"{percent(times)} of them, others in the epochs that follow."
            )
            level = "alarm" if times >= OFTEN else "note"
            yield Finding(kind="data", level=level, text=text, figures={"source": one["source"], "times": times})
        if sources:
            columns = ("source", "rows", "examples", "an epoch", "tokens", "trained tokens")
            keys = ("source", "rows", "examples", "an_epoch", "tokens", "trained_tokens")
            rows = tuple(tuple(one[key] for key in keys) for one in sources)
            yield Table(title="Sources of training", columns=columns, rows=rows)
