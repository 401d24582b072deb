"""Sizes in bytes, as people write them, and how much room the rows of a file may take."""

from __future__ import annotations

import os
import re

from ftengine.api.reader import BrokenRow
from ftengine.errors import InputError

UNFOLDED_VARIABLE = "FTENGINE_UNFOLDED"
UNFOLDED_TIMES, UNFOLDED_LEAST = 100, 256 << 20
"""Rows may take so many times the bytes of their file, and so many bytes in any case. Text is rarely compressed to less
than a twentieth."""

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)?\s*")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_in(variable: str, default: str) -> float:
    """Return the bytes that an environment variable gives, as in 5GB (InputError: it is no size)."""
    text = os.environ.get(variable) or default
    found = _SIZE.fullmatch(text.upper())
    if found is None:
        raise InputError(f"{variable}={text}: write bytes, or a number with KB, MB, GB or TB, as in 5GB.")
    return float(found[1]) * _UNITS[found[2] or ""]


def check_unfolded(source: str, rows: int) -> None:
    """Refuse a file whose rows take far more bytes than it has (BrokenRow).

    A few kilobytes of a compressed format may stand for more than memory and disk hold. To be called before rows are
    unfolded where the file says how many bytes they take, and it is while they are kept.
    """
    size = os.path.getsize(source)
    allowed = size_in(UNFOLDED_VARIABLE, str(max(UNFOLDED_TIMES * size, UNFOLDED_LEAST)))
    if rows > allowed:
        raise BrokenRow(
            "",
            f"has {_written(size)}, and its rows take {_written(rows)} or more; {_written(allowed)} are allowed. Where "
            f"that is no mistake, allow as much with {UNFOLDED_VARIABLE}, as in {UNFOLDED_VARIABLE}=5GB",
        )


def _written(size: float) -> str:
    unit, of = next((unit for unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)) if size >= unit[1]), ("bytes", 1))
    return f"{size / of:,.0f} {unit}" if size / of >= 10 or of == 1 else f"{size / of:.1f} {unit}"
