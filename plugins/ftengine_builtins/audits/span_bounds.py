"""Audit `span-bounds`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ftengine.api import Audit, AuditedData, Finding
from ftengine.text import percent
from ftengine_builtins.audits.counting import share_within, split_name
from ftengine_builtins.audits.split_shift import EXPLAINED

LOOKED_AT = 2_000
"""Rows of a split that are looked at, the first."""
FEWEST, CUT, MOST = 8, 0.05, 0.5
"""Spans that begin or end within a word, and their share at the interval's near end, from which they are reported; and
the share from which positions may all be one off (a few are parts of words, as of compounds)."""
REPAIRED = 0.8
"""Share of such spans that begin and end at words once counted in another way, from which that way is named."""
LETTERS = re.compile(r"[A-Za-z\u00c0-\u02af\u0370-\u052f]{2}")
"""Two letters of one word, in scripts whose words stand between spaces; particles are written on to words in others."""

Span = tuple[str, int, int]
"""A text, and a span's start and end in it."""


class SpanBounds(Audit):
    """Finds spans that begin or end within a word: positions that are not counted in characters, or are off by one.

    Bytes of UTF-8 (as of Rust, Go and many APIs) and units of UTF-16 (JavaScript, Java, C#) are tried, as are starts
    that are one off and ends that are the last character's. Without such a way it is a note: entities may be parts of
    words. Only scripts with spaces between all words are looked at (Latin, Greek, Cyrillic).
    """

    name = "span-bounds"

    def examine(self, data: AuditedData) -> Iterator[Finding]:
        for split, rows in data.splits.items():
            spans = list(_spans(islice(rows.values(("text", "spans")), LOOKED_AT)))
            cut = [span for span in spans if _is_cut(*span)]
            if len(cut) < FEWEST or share_within(len(cut), len(spans))[0] < CUT:
                continue
            ways = WAYS if share_within(len(cut), len(spans))[0] >= MOST else COUNTED
            way = next((way for way in ways if _repaired(WAYS[way], cut) >= REPAIRED * len(cut)), "")
            text, start, end = cut[0]
            lead = f"{percent(len(cut) / len(spans))} of the {split_name(split)} spans begin or end within a word"
            fact = f"{lead}, e.g. {text[start:end]!r} in {text[max(0, start - 10) : end + 10]!r}"
            advice = f"Positions seem to be {way}: convert them to characters" if way else "Check how spans are counted"
            yield Finding(
                kind="splits" if split != "train" else "labels",
                level="alarm" if way else "note",
                text=f"{advice}; {fact}. `start` is the first character, `end` the one behind the last.",
                brief=f"{advice[:1].lower()}{advice[1:]}: {lead}",
                explains=(*EXPLAINED, "data"),
                figures={"split": split, "cut": len(cut), "spans": len(spans), "counted": way},
            )
            return


def _spans(rows: Iterator[Sequence[Any]]) -> Iterator[Span]:
    """Yield the spans of rows that have such, within their texts."""
    for text, spans in rows:
        for span in spans if isinstance(text, str) and isinstance(spans, Sequence) else ():
            if isinstance(span, Mapping) and all(type(span.get(key)) is int for key in ("start", "end")):
                yield text, span["start"], span["end"]


def _is_cut(text: str, start: int, end: int) -> bool:
    """Return whether a span begins or ends within a word."""
    return any(LETTERS.fullmatch(text[place - 1 : place + 1]) for place in (start, end) if 0 < place < len(text))


def _fits(text: str, start: int, end: int) -> bool:
    """Return whether a span begins and ends at words, neither within one nor at white space."""
    inside = text[start:end]
    return 0 <= start < end <= len(text) and inside == inside.strip() and not _is_cut(text, start, end)


def _of_units(encoding: str, size: int) -> Callable[[str, int, int], Span]:
    """Return what reads positions as units of an encoding, each of so many bytes."""

    def move(text: str, start: int, end: int) -> Span:
        units = text.encode(encoding, "surrogatepass")
        places = (len(units[: place * size].decode(encoding, "ignore")) for place in (start, end))
        return (text, *places)  # type: ignore[return-value]

    return move


WAYS: dict[str, Callable[[str, int, int], Span]] = {
    "bytes of UTF-8": _of_units("utf-8", 1),
    "units of UTF-16": _of_units("utf-16-le", 2),
    "those of the last character": lambda text, start, end: (text, start, end + 1),
    "one too large": lambda text, start, end: (text, start - 1, end - 1),
    "one too small": lambda text, start, end: (text, start + 1, end + 1),
}
"""Other ways to count, the more specific ones first."""
COUNTED = tuple(WAYS)[:2]
"""Ways that change only spans behind characters of several units."""


def _repaired(move: Callable[[str, int, int], Span], spans: Sequence[Span]) -> int:
    return sum(_fits(*move(*span)) for span in spans)
