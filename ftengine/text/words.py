"""Wording of messages: counts, lists, quotations, sizes and times, safe to print."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from ftengine.errors import InputError
from ftengine.text.personal import redact

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)?\s*")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that can move the cursor, change colours or reverse the direction of writing."""
JOINERS = "\u200c\u200d"
"""Harmless format characters that writing systems and emoji need."""
MOST = 60
"""Characters shown of a text from the data, or of a path."""
NOTHING = "(nothing but blanks)"
"""Shown in place of an empty answer."""


def printable(text: str, keep: str = "\n\t") -> str:
    """Return text with characters that could control a terminal escaped, except those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    keep += JOINERS
    return "".join(
        c if c in keep or unicodedata.category(c) not in UNSAFE else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str) -> str:
    """Return text on one line, safe to print, with likely personal data redacted."""
    return printable(redact(" ".join(text.split())), keep="")


def listed(words: Sequence[str], conjunction: str = "and") -> str:
    """Return "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def capitalized(text: str) -> str:
    """Return text with a capital at its beginning; a first word with capitals, such as nDCG, stays as it is."""
    return text if any(map(str.isupper, text.partition(" ")[0])) else f"{text[:1].upper()}{text[1:]}"


def uncapitalized(text: str) -> str:
    """Return text with a small letter at its beginning; a first word with further capitals stays as it is."""
    return text if any(map(str.isupper, text.partition(" ")[0][1:])) else f"{text[:1].lower()}{text[1:]}"


def quoted(value: Any) -> str:
    """Return a text from the data in quotes, on one line and short."""
    return f"“{short(value)}”"


def short(value: Any) -> str:
    """Return a text from the data on one line of at most 60 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"


def short_place(value: Any) -> str:
    """Return places of rows ("train.jsonl:12 ≈ test.jsonl:3") of at most 60 characters each.

    A path is shortened in its folders, or in the middle of its name, and keeps its end and its line.
    """
    parts = re.split(r"( [=≈&≠] )", " ".join(str(value).split()))
    return "".join(part if i % 2 else _short_path(part) for i, part in enumerate(parts))


def _short_path(text: str) -> str:
    if len(text) <= MOST:
        return text
    folders, slash, name = text.rpartition("/")
    if not slash or len(name) > MOST - 2:
        return f"{text[: MOST // 4]}…{text[-(MOST - 1 - MOST // 4) :]}"
    room = MOST - len(name) - 2
    return f"{folders[:room]}…/{name}"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return "1 example", "2 examples", "1,200 examples"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


LARGE = 1e6
"""Numbers from here on are written with a power of ten, as a mean squared error of prices may have ten digits."""


def number(value: float | None, places: int | None = None) -> str:
    """Return a number with `places` decimals, or with four digits: 0.9512, 12.3, 1,234; "–" for None, NaN and infinity.

    Numbers from LARGE on have three digits: "3.57e9". Negative `places` keep more: 3,566,206,268 has four digits with
    -6.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= LARGE:
        power = math.floor(math.log10(abs(value)))
        left = power + places if places is not None and places < 0 else 2
        mantissa, _, exponent = f"{value:.{min(6, max(2, left))}e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    elif places is None and abs(value) < 999.95:
        text = f"{value:.4g}"
    else:
        text = f"{value:,.{max(0, places or 0)}f}"
    text = text if float(text.replace(",", "")) else text.lstrip("-")  # no minus before nothing
    return "−" + text[1:] if text.startswith("-") else text


def percent(value: float) -> str:
    """Return a share in percent: "78 %", below ten "3.2 %"."""
    share = 100 * value
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.2g} %"


def duration(seconds: float) -> str:
    """Return seconds in words: "0.4 s", "12 s", "1 min 20 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def speed(examples: float | None, tokens: float | None) -> str:
    """Return rates: "26 examples/s, 1,664 tokens/s"; one that is None or 0 is left out."""
    rates = {"examples": examples, "tokens": tokens}
    return ", ".join(f"{number(rate)} {what}/s" for what, rate in rates.items() if rate)


def size(count: float) -> str:
    """Return bytes in binary units: "512 B", "310 MiB", "1.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1023.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def size_in(variable: str, default: str) -> float:
    """Return the bytes of an environment variable such as 5GB (InputError: it is not a size)."""
    text = os.environ.get(variable) or default
    match = _SIZE.fullmatch(text.upper())
    if match is None:
        raise InputError(f"{variable}={text}: write bytes, or a number with KB, MB, GB or TB, as in 5GB.")
    return float(match[1]) * _UNITS[match[2] or ""]


def cut(text: str, most: int) -> str:
    """Return at most `most` characters of a text, followed by the number of those left out."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} characters more)"


def cut_middle(text: str, most: int) -> str:
    """Return the beginning and the end of a text, at most `most` characters."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"
