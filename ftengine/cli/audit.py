"""The data audit as lines of a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftengine.text import cut

SHOWN_LABELS = 8
SHOWN_LINE = 300
"""Characters of a line of labels; `--json` has all."""

_ODD = {
    "empty": "empty",
    "repeated": "repetitive",
    "short": "very short",
    "long": "very long",
    "replacement": "with �",
    "mojibake": "wrongly decoded",
    "control": "with control characters",
    "scripts": "with mixed scripts",
}
_PERSONAL = {"email": "e-mail", "phone": "telephone", "card": "payment card", "iban": "IBAN"}


def audit_lines(audit: dict[str, Any], unit: str) -> list[tuple[str, str]]:
    """Return what was found in the data, as (name, text); what needs attention is among the warnings besides."""
    lines = [("duplicates", _duplicates(audit))]
    for part, of_split in (("labels", _labels(audit)), ("lengths", _lengths(audit, unit)), ("oddities", _odd(audit))):
        lines += [(part if i == 0 else "", text) for i, text in enumerate(of_split)]
    return lines


def _duplicates(audit: dict[str, Any]) -> str:
    splits, near = audit["splits"].values(), audit["near_duplicates"]
    equal, rows = sum(split["duplicates"] for split in splits), sum(split["rows"] for split in splits)
    parts = [f"{equal:,} of {rows:,} rows repeat another of their split"]
    if near is None:
        parts.append("near duplicates were not looked for")
    else:
        close = sum(split["near_duplicates"] for split in splits)
        parts.append(f"{close:,} nearly do (similarity ≥ {near['threshold']:g})")
    from_training = [leak for leak in audit["leaks"] if leak["between"][0] == "train"]
    count = sum(leak["count"] + leak["near"] for leak in from_training)
    parts.append(f"{count:,} held-out rows are (nearly) in training too" if count else "no held-out row is in training")
    if dropped := max((leak["dropped"] for leak in from_training), default=0):
        parts[-1] += f", for which {dropped:,} rows of training are left out"
    if audit["contradictions"]:
        parts.append(f"{audit['contradictions']['texts']:,} examples with contradicting labels")
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
        at = split["percentiles"]
        limit = f"; the model takes {split['limit']:,}" if split["limit"] is not None else ""
        yield (
            f"{name}: half have up to {at['50']:,} {unit}, 95 % up to {at['95']:,}, 99 % up to {at['99']:,}, the "
            f"longest {at['100']:,}{limit}"
        )


def _odd(audit: dict[str, Any]) -> Iterator[str]:
    for name in audit["splits"]:
        found = [f"{entry['count']:,} {_ODD[kind]}" for kind, entry in audit["oddities"][name].items()]
        found += [
            f"{entry['count']:,} with likely personal data ({_PERSONAL[kind]})"
            for kind, entry in audit["personal"][name].items()
        ]
        if found:
            yield f"{name}: {', '.join(found)}"
