"""The data audit as lines of a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftengine.report.text import cut

SHOWN_LABELS = 8
SHOWN_LINE = 300
"""Characters of a line of labels; `--json` has all."""


def audit_lines(audit: dict[str, Any], unit: str) -> list[tuple[str, str]]:
    """Return what was found in the data, as (name, text); what needs attention is not, as the warnings tell it."""
    lines = [("duplicates", text) for text in filter(None, [_duplicates(audit)])]
    for part, of_split in (("labels", _labels(audit)), ("lengths", _lengths(audit, unit))):
        lines += [(part if i == 0 else "", text) for i, text in enumerate(of_split)]
    return lines


def _duplicates(audit: dict[str, Any]) -> str:
    """Say what of it is in order; "" where nothing is."""
    splits, near = audit["splits"].values(), audit["near_duplicates"]
    equal = any(split["duplicates"] for split in splits)
    close = any(split["near_duplicates"] for split in splits)
    parts = []
    if not equal:
        parts.append("no row repeats another of its split" + ("" if near is None or close else ", or nearly does"))
    if near is None:
        parts.append("near duplicates were not looked for")
    if len(splits) > 1 and not any(leak["between"][0] == "train" for leak in audit["leaks"]):
        parts.append("no held-out row is in training")
    return "; ".join(parts)


def _labels(audit: dict[str, Any]) -> Iterator[str]:
    for name, split in audit["labels"].items():
        shown = [f"{label} {count:,}" for label, count in list(split["counts"].items())[:SHOWN_LABELS]]
        if split["labels"] > len(shown):
            label, count = split["rarest"]
            shown.append(f"… {split['labels']:,} in all, the rarest {label} {count:,}")
        yield cut(f"{name}: {', '.join(shown)}", SHOWN_LINE)


def _lengths(audit: dict[str, Any], unit: str) -> Iterator[str]:
    if unit != "tokens":  # images all have the size that the model takes
        return
    for name, split in audit["lengths"].items():
        at, how = split["percentiles"], ""
        if split["truncated"] and split["uncut"]:
            at, how = split["uncut"], f" before cutting to {at['100']:,}"
        elif split["truncated"]:
            how = " after cutting"
        limit = f"; the model takes {split['limit']:,}" if split["limit"] is not None else ""
        yield (
            f"{name}: half have up to {at['50']:,} {unit}{how}, 95 % up to {at['95']:,}, 99 % up to {at['99']:,}, the "
            f"longest {at['100']:,}{limit}"
        )
