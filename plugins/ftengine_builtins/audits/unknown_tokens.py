"""Audit `unknown-tokens`."""

from __future__ import annotations

from collections.abc import Iterator

from ftengine.api import Audit, AuditedData, Finding
from ftengine.api.figures import listed, percent
from ftengine_builtins.audits.counting import split_name

NOTE, ALARM = 0.001, 0.05
"""Share of a split's tokens that are unknown, from which it is said, and from which it is an alarm: one token in twenty
is about one in every sentence."""


class UnknownTokens(Audit):
    """Text that the model's tokenizer has no token for: it reads one and the same [UNK] in its place."""

    name = "unknown-tokens"

    def look(self, data: AuditedData) -> Iterator[Finding]:
        """Yield one finding over all splits, where enough tokens of one are unknown."""
        shares = {
            split: counts["unknown"] / counts["tokens"]
            for split, counts in data.encoded.items()
            if counts.get("unknown") and counts["unknown"] >= NOTE * counts["tokens"]
        }
        if not shares:
            return
        parts = [f"{percent(share)} of the {split_name(split)} tokens" for split, share in shares.items()]
        places = [place for split in shares for place in data.encoded[split]["unknown_first"]]
        yield Finding(
            kind="data",
            level="alarm" if max(shares.values()) >= ALARM else "note",
            text=f"{listed(parts)} are [UNK] (e.g. in {places[0]}): the tokenizer does not know what stands there, so "
            "the model cannot tell one such text from another.",
            figures={"shares": shares},
            places=tuple(places[:5]),
        )
