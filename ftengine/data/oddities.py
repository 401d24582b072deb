"""Rows that can be read but look wrong: empty, repetitive, of unusual length, or badly encoded."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

import numpy as np

from ftengine.data.mojibake import is_mojibake

ODDITIES = {
    "empty": "no text but white space",
    "repeated": "nothing but one character or word over and over",
    "short": "a length far below that of most",
    "long": "a length far above that of most",
    "replacement": "the replacement character �, left by a wrong decoding",
    "mojibake": "UTF-8 read as Latin-1 or Windows-1252, such as 'Ã©'",
    "control": "control characters",
    "scripts": "letters of two scripts within a word",
}

REPEATED_CHARACTERS, REPEATED_WORDS = 10, 5
"""So many of the same and nothing else make a row repetitive."""
OUTLYING_FENCES, OUTLYING_RATIO, OUTLYING_FEWEST = 3.0, 8.0, 50
"""A length is outlying beyond 3 quartile distances on a log scale (Tukey's outer fence) and 8 times the median, in
splits of 50 rows and more."""
MINORITY, SCRIPT_FEWEST = 0.05, 20
"""A script that less than 5 % of the rows are written in is told; in fewer than 20 rows one is already 5 %."""

# Controls as code points, so that none stands in this file; tab, line feed, form feed and carriage return are text.
_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f]")
_WORD = re.compile(r"[^\W\d_]+")
# Each is written in one script with Latin letters that look the same, so that a mixed word is an accident or a trick.
_LOOKALIKES = frozenset({"LATIN", "CYRILLIC", "GREEK"})
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO"})
_NO_SCRIPT = frozenset({"MODIFIER", "FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "FEMININE", "MASCULINE", "MICRO", "OHM"})


def find_oddities(text: str) -> list[str]:
    """Return the keys of `ODDITIES` that a row's text shows; outlying lengths are told by `outlying`."""
    if not text or text.isspace():
        return ["empty"]
    found = []
    words = text.split()
    characters = set().union(*map(set, words[:1000]))
    one_character = len(characters) == 1 and sum(map(len, words)) >= REPEATED_CHARACTERS
    if one_character or (len(words) >= REPEATED_WORDS and len(set(words)) == 1):
        found.append("repeated")
    if _CONTROL.search(text):
        found.append("control")
    if not text.isascii():
        if "\ufffd" in text:
            found.append("replacement")
        if is_mojibake(text):
            found.append("mojibake")
        if _mixes_scripts(text):
            found.append("scripts")
    return found


def script_of(text: str) -> str | None:
    """Return the script of most letters in the first 1,000 characters, as Unicode names it; None without letters."""
    if text.isascii():
        return "LATIN" if _WORD.search(text) else None
    count = Counter(script for character in text[:1000] if (script := _script(character)))
    return count.most_common(1)[0][0] if count else None


@lru_cache(1 << 16)
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "").split(" ", 1)[0].split("-", 1)[0]
    if not name or name in _NO_SCRIPT:
        return None
    return "CJK" if name in _EAST_ASIAN else name


def _mixes_scripts(text: str) -> bool:
    if len({_script(character) for character in set(text)} & _LOOKALIKES) < 2:
        return False
    scripts = ({_script(character) for character in word} & _LOOKALIKES for word in _WORD.findall(text))
    return any(len(found) > 1 for found in scripts)


def outlying(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find rows whose length is far from the others'.

    Args:
        lengths: (rows,) characters; rows of length 0 are left alone.

    Returns:
        Indices of the far shorter and of the far longer rows.
    """
    some = lengths[lengths > 0]
    if len(some) < OUTLYING_FEWEST:
        return np.array([], dtype=np.int64), np.array([], dtype=np.int64)
    logs = np.log(np.maximum(lengths, 1))
    low, middle, high = np.quantile(np.log(some), [0.25, 0.5, 0.75])
    fence, ratio = OUTLYING_FENCES * (high - low), np.log(OUTLYING_RATIO)
    short = (lengths > 0) & (logs < min(low - fence, middle - ratio))
    return np.flatnonzero(short), np.flatnonzero(logs > max(high + fence, middle + ratio))
