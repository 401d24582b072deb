"""Characters that may be changed without tearing apart what a reader sees as one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

_TIED = {"\u200d", *map(chr, range(0x1F3FB, 0x1F400))}
"""The joiner and the skin tones of emoji sequences."""


def is_tied(character: str) -> bool:
    """Say whether a character belongs to the one before it: an accent, a vowel sign, an emoji's joiner."""
    return character in _TIED or unicodedata.category(character).startswith("M")


def stands_alone(text: str, stop: int) -> bool:
    """Say whether what ends before `stop` is a whole character as a reader sees it."""
    return stop >= len(text) or not is_tied(text[stop])


def changed_at(text: str, change: Callable[[int], tuple[str, int]]) -> str:
    """Return a text of what `change` gives at each position: a piece, and how many characters it stands for."""
    pieces, at = [], 0
    while at < len(text):
        piece, size = change(at)
        pieces.append(piece)
        at += size
    return "".join(pieces)
