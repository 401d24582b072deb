"""Audit `reading`."""

from __future__ import annotations

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine.api.figures import counted


class Reading(Audit):
    """Rows that could not be read, files that are read otherwise than usual, splits of another size than asked for."""

    name = "reading"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield a finding for each source with malformed rows or a reader's note, each split of quite another size."""
        for source in data.facts["sources"]:
            if source["note"]:
                yield Finding(kind="data", level="good", text=f"{source['source']} {source['note']}.")
            if count := source["skipped"]["count"]:
                were = counted(count, "malformed row was", "malformed rows were")
                first = source["skipped"]["first"]
                text = f"{source['source']}: {were} left out, the first: {first[0].removesuffix('.')}."
                yield Finding(kind="data", level="note", text=text, figures={"skipped": count}, places=tuple(first[:5]))
        for name, size in data.facts["sizes"].items():
            rows, of, asked = size["rows"], size["of"], size["asked"]
            if abs(rows - asked * of) > max(1, asked * of / 2):
                text = (
                    f"{size['source']}: {name} has {rows:,} of {of:,} rows ({rows / of:.0%}) where {asked:.0%} was "
                    "asked for, as copies and groups stay in one split."
                )
                yield Finding(kind="data", level="note", text=text, figures={"split": name, **size})
