"""Values of rows in messages."""

from __future__ import annotations

from typing import Any

LONGEST = 60


def shown(value: Any) -> str:
    """Return a value as an error shows it: its repr, shortened."""
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
