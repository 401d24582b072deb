"""Audit `lengths`."""

from __future__ import annotations

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Display, Finding, Table
from ftengine_builtins.audits.counting import counted

SHOWN = ("50", "95", "99", "100")


class Lengths(Audit):
    """How long examples are as the model reads them, and what is cut or cannot be trained on."""

    name = "lengths"

    def look(self, data: AuditedData) -> Iterator[Finding | Display]:
        """Yield what was cut, left out or skipped, and a table of lengths."""
        rows = {split: len(rows) for split, rows in data.splits.items()}
        for key, what in (
            ("truncated", "are cut to the length limit"),
            ("untrained_rows", "have nothing to train on and are left out"),
            ("skipped", "cannot be used and are left out"),
        ):
            if found := {split: counts[key] for split, counts in data.encoded.items() if counts.get(key)}:
                reasons = [reason for counts in data.encoded.values() for reason in counts.get(f"{key}_first", ())]
                of = {split: rows[split] + (count if key == "skipped" else 0) for split, count in found.items()}
                first = f", e.g. {reasons[0].removesuffix('.')}" if reasons else ""
                text = f"{counted(found, of, what)}{first}."
                yield Finding(kind="data", level="note", text=text, figures={key: found}, places=tuple(reasons[:5]))
        if any(counts["percentiles"]["5"] < counts["longest"] for counts in data.encoded.values()):
            yield _table(data)


def _table(data: AuditedData) -> Table:
    cells = []
    for split, counts in data.encoded.items():
        limit = counts.get("limit")
        whole = counts.get("uncut") or {**counts["percentiles"], "100": counts["longest"]}
        cells.append((split, *(whole[share] for share in SHOWN), counts["truncated"], limit))
    columns = ("split", "half up to", "95 % up to", "99 % up to", "longest", "cut", "limit of the model")
    cut = [counts for counts in data.encoded.values() if counts["truncated"]]
    caption = f"Lengths are those {'before' if all(counts.get('uncut') for counts in cut) else 'after'} cutting."
    return Table(title="Lengths", columns=columns, rows=tuple(cells), caption=caption if cut else "")
