"""Characters that may be changed without tearing apart what a reader sees as one."""

from __future__ import annotations

import unicodedata

_TIED = {"\u200d", *map(chr, range(0x1F3FB, 0x1F400))}
"""The joiner and the skin tones of emoji sequences."""


def is_tied(character: str) -> bool:
    """Say whether a character belongs to the one before it: an accent, a vowel sign, an emoji's joiner."""
    return character in _TIED or unicodedata.category(character).startswith("M")


def stands_alone(text: str, stop: int) -> bool:
    """Say whether what ends before `stop` is a whole character as a reader sees it."""
    return stop >= len(text) or not is_tied(text[stop])
