"""Audit `duplicates`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine.api import Audit, AuditedData, Finding

ALARM = 0.5
"""Share of rows that repeat another, from which it is an alarm: the set is less than half of what it looks like."""


class Duplicates(Audit):
    """Rows that repeat another one of their source, or nearly do."""

    name = "duplicates"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield a finding for each source with equal rows, and for each with near duplicates."""
        near = data.facts["near_duplicates"]
        split = data.settings["split"]
        together = split["duplicates"] == "together" and split["by"] != "time"
        for source in data.facts["sources"]:
            stay = "; copies stay in one split" if together and len(source["splits"]) > 1 else ""
            if source["distinct"] < source["rows"]:
                yield _equal(source, stay)
            if source["near_duplicates"]:
                yield _near(source, near["threshold"], stay)
        counts = data.facts["splits"].values()
        if not any(split["duplicates"] for split in counts):
            looked = near is not None and not any(split["near_duplicates"] for split in counts)
            text = f"No row repeats another of its split{', or nearly does' if looked else ''}."
            yield Finding(kind="data", level="good", text=text)
        if near and near["mostly_shared"]:
            text = (
                f"{near['mostly_shared']:,} of {near['distinct']:,} distinct rows say little beyond what most rows "
                "say too (a fifth of their words or less); near duplicates among them are not looked for."
            )
            yield Finding(kind="data", level="note", text=text, figures=dict(near))


def _equal(source: Mapping[str, Any], stay: str) -> Finding:
    count, rows = source["rows"] - source["distinct"], source["rows"]
    text = (
        f"{count:,} of {rows:,} rows of {source['source']} {'repeats' if count == 1 else 'repeat'} another; "
        f"{source['distinct']:,} {'is' if source['distinct'] == 1 else 'are'} distinct{stay}."
    )
    figures = {"duplicates": count, "rows": rows, "distinct": source["distinct"]}
    return Finding(kind="data", level="alarm" if count >= ALARM * rows else "note", text=text, figures=figures)


def _near(source: Mapping[str, Any], threshold: float, stay: str) -> Finding:
    count, of = source["near_duplicates"], source["distinct"]
    place = f", e.g. {source['places'][0]}" if source["places"] else ""
    text = (
        f"{count:,} of {of:,} distinct rows of {source['source']} nearly {'repeats' if count == 1 else 'repeat'} "
        f"another (Jaccard similarity ≥ {threshold:g}{place}){stay}."
    )
    return Finding(
        kind="data",
        level="alarm" if count >= ALARM * of else "note",
        text=text,
        figures={"near_duplicates": count, "distinct": of, "threshold": threshold},
        places=tuple(source["places"]),
    )
