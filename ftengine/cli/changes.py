"""Training examples before and after their augmenters, on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ftengine.cli.page import facts
from ftengine.report.text import number, one_line

if TYPE_CHECKING:
    from rich.console import Console

CONTEXT = 30
"""Characters shown before the first change and after the last."""

SHOWN = 240
"""Characters shown of a text, from the first change on; `--json` has all."""


def show_changes(out: Console, augmented: Sequence[Mapping[str, Any]]) -> None:
    """Print what `Plan.augmented` holds."""
    out.print("What augmenting makes of training examples, in the first epoch:")
    lines: list[tuple[str, str]] = []
    for entry in augmented:
        before, after = _sides(entry)
        lines += [("", entry["place"]), ("before", before), ("after", after)]
    out.print(facts(lines))


def excerpts(before: str, after: str) -> tuple[str, str]:
    """Return two texts on one line each, shortened to what is different and a little around it."""
    before, after = one_line(before), one_line(after)
    start = _shared(before, after)
    end = _shared(before[start:][::-1], after[start:][::-1])
    return _around(before, start, end), _around(after, start, end)


def _shared(a: str, b: str) -> int:
    """Return how many characters two texts have in common at their beginnings."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _around(text: str, start: int, end: int) -> str:
    first = max(0, start - CONTEXT)
    last = min(len(text) - max(0, end - CONTEXT), first + SHOWN)
    return ("…" if first else "") + text[first:last] + ("…" if last < len(text) else "")


def _sides(entry: Mapping[str, Any]) -> tuple[str, str]:
    before, after = entry["before"], entry["after"]
    if isinstance(before, Mapping):
        return str(before["labels"]), str(after["labels"])
    if "difference" in entry:
        sizes = [", ".join(f"{image['width']} × {image['height']}" for image in images) for images in (before, after)]
        return sizes[0], f"{sizes[1]}, pixels differ by {number(entry['difference'])} of 255 on average"
    return excerpts(_joined(before), _joined(after))


def _joined(texts: Sequence[str]) -> str:
    """Put the texts of an example together: words as a sentence, turns and pairs apart."""
    return (" ⏐ " if any(" " in text for text in texts) else " ").join(texts)
