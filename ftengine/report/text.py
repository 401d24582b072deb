"""Text for people: safe to print, numbers with the digits that matter."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftengine.run.records import TrainingResult

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move the cursor, change colours, or turn the direction of writing."""
JOINERS = "\u200c\u200d"
"""Format characters that writing systems and emoji need, and that do no harm."""
NOTHING = "(nothing but blanks)"
"""An answer in which there is nothing to see."""


def printable(text: str, keep: str = "\n\t") -> str:
    """Return text with whatever could steer a terminal written as an escape, but for control characters to keep."""
    if text.isascii() and text.isprintable():
        return text
    keep += JOINERS
    return "".join(
        c if c in keep or unicodedata.category(c) not in UNSAFE else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str) -> str:
    """Return text on one line, safe to print, with likely personal data redacted."""
    from ftengine.api import redact  # when something is said, so that --help stays quick

    return printable(redact(" ".join(text.split())), keep="")


def number(value: float | None) -> str:
    """Return a figure with four digits: 0.9512, 12.3, 1,234."""
    if value is None:
        return "–"
    if abs(value) >= 999.95:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def share(value: float) -> str:
    """Return a fraction as a percentage: 0.0324 is "3.2 %"."""
    percent = 100 * value
    return f"{percent:.1f} %" if percent >= 0.1 or percent == 0 else f"{percent:.2g} %"


def duration(seconds: float) -> str:
    """Return seconds as people say them: "0.4 s", "12 s", "1 min 20 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def speed(training: TrainingResult) -> str:
    """Return how fast a run trained: "26 examples/s, 1,664 tokens/s"; "" where it is of an older version."""
    rates = {"examples": training.examples_per_second, "tokens": training.tokens_per_second}
    return ", ".join(f"{number(rate)} {what}/s" for what, rate in rates.items() if rate)


def size(count: float) -> str:
    """Return bytes in binary units: "512 B", "310 MiB", "1.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1023.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def cut(text: str, most: int) -> str:
    """Return text of at most so many characters, and say how many more there were."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} characters more)"


def cut_middle(text: str, most: int) -> str:
    """Return text of at most so many characters, its beginning and its end."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"
