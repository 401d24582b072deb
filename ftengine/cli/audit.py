"""What the audits say that is no warning: what is in order, and their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftengine.cli.page import facts, table
from ftengine.report.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_ROWS = 8
"""Rows of a table that a page shows; `--json` has all."""


def show_audit(out: Console, audit: dict[str, Any]) -> None:
    """Print findings that are good, and tables; warnings are left to the page.

    Args:
        out: where to.
        audit: the content of an `AuditResult`.
    """
    good = [(finding["kind"], finding["text"]) for finding in audit["findings"] if finding["level"] == "good"]
    if good:
        out.print()
        out.print(facts(good))
    for display in audit["displays"]:
        if "rows" in display:
            out.print()
            out.print(one_line(f"{display['title']}:"))
            shown = [[_cell(cell) for cell in row] for row in display["rows"][:SHOWN_ROWS]]
            out.print(table(display["columns"], shown))
            if left := len(display["rows"]) - len(shown):
                out.print(f"… and {left:,} more")
            if display["caption"]:
                out.print(one_line(display["caption"]))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
