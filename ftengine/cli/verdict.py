"""The verdict on a run, on a terminal."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from ftengine.report.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from ftengine.run.records import Verdict

WIDEST = 110
"""Columns of running text; longer lines are hard to read."""


def show_verdict(out: Console, verdict: Verdict) -> None:
    """Print the headline and the findings, the alarms first; headline first of all."""
    width = min(out.width, WIDEST)
    out.print(fill(one_line(verdict.headline), width), style="bold", soft_wrap=True)
    for finding in verdict.findings[1:]:
        lead = {"alarm": "ALARM", "note": "note ", "good": "good "}[finding.level]
        text = fill(
            one_line(finding.text),
            width,
            initial_indent=f"  {lead}  ",
            subsequent_indent=" " * 9,
            break_long_words=False,
        )
        out.print(text, soft_wrap=True)
