"""What a page on several runs says of them together."""

from __future__ import annotations

from dataclasses import dataclass

from ftengine.api import Table


@dataclass(frozen=True)
class Overview:
    """What stands before the single runs.

    Args:
        title: of the page; "" for how many runs there are.
        lead: what the runs came to together, a paragraph each.
        tables: their figures together, or what lies between them.
        notes: what is to be known of that, a paragraph each.
        folds: whether each run is measured on other examples because the data were divided so.
    """

    title: str = ""
    lead: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    folds: bool = False
