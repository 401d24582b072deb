"""Wrong characters, as from typing errors or optical character recognition."""

import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Literal

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter

LAYOUTS = {
    "qwerty": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "qwertz": ("qwertzuiopü", "asdfghjklöä", "yxcvbnm"),
    "azerty": ("azertyuiop", "qsdfghjklm", "wxcvbn"),
}
"""Rows of letters of keyboard layouts, from the top."""

OFFSETS = (0.0, 0.25, 0.75)
"""Shift of each row to the right, in keys."""

REACH = 1.26
"""Keys with centres within this distance are neighbours: left and right, two above and two below."""


class Keyboard(TextAugmenter):
    """Put typing errors into texts: neighbouring keys, letters left out or swapped.

    At each letter that the layout has, a finger slips with probability `rate`, in one of `kinds` at random. Upper and
    lower case stay; digits, punctuation and other scripts are left alone, and so are letters that carry an accent
    of their own.
    """

    name = "keyboard"
    paper = "Belinkov and Bisk 2018, arXiv:1711.02173"

    class Config(AugmenterConfig):
        rate: float = Field(0.05, ge=0, le=1, description="share of letters at which a finger slips")
        layout: Literal["qwerty", "qwertz", "azerty"] = Field("qwerty", description="which keys are neighbours")
        kinds: list[Literal["replace", "insert", "drop", "swap"]] = Field(
            ["replace", "insert", "drop", "swap"],
            min_length=1,
            description="a neighbouring key instead of a letter or before it, a letter left out, two letters swapped",
        )

    def change(self, text: str, rng: RandomSource) -> str:
        return changed_at(text, lambda at: self._typed(text, at, rng))

    def _is_key(self, text: str, at: int) -> bool:
        return at < len(text) and text[at] in neighbours(self.config.layout) and stands_alone(text, at + 1)

    def _typed(self, text: str, at: int, rng: RandomSource) -> tuple[str, int]:
        """Return the typed text, and the number of letters that it replaces."""
        letter = text[at]
        if not self._is_key(text, at) or rng.random() >= self.config.rate:
            return letter, 1
        kind, near = rng.choice(self.config.kinds), rng.choice(neighbours(self.config.layout)[letter])
        if kind == "drop":
            return "", 1
        if kind == "insert":
            return near + letter, 1
        if kind == "swap" and self._is_key(text, at + 1) and text[at + 1] != letter:
            return text[at + 1] + letter, 2
        return near, 1  # also if there is no other letter to swap with


@cache
def neighbours(layout: str) -> dict[str, str]:
    """Return for each letter, in both cases, the letters on neighbouring keys."""
    places = {
        letter: (column + offset, row)
        for row, (letters, offset) in enumerate(zip(LAYOUTS[layout], OFFSETS, strict=True))
        for column, letter in enumerate(letters)
    }
    near = {
        a: "".join(b for b, (u, v) in places.items() if b != a and (x - u) ** 2 + (y - v) ** 2 <= REACH**2)
        for a, (x, y) in places.items()
    }
    return near | {letter.upper(): around.upper() for letter, around in near.items()}


ALIKE = (
    ("l", "1"), ("l", "I"), ("I", "1"), ("O", "0"), ("o", "0"), ("Q", "O"), ("S", "5"), ("s", "5"), ("B", "8"),
    ("Z", "2"), ("z", "2"), ("G", "6"), ("b", "6"), ("g", "9"), ("q", "g"), ("T", "7"), ("e", "c"), ("h", "b"),
    ("n", "u"), ("f", "t"), ("i", "j"), ("v", "y"), ("rn", "m"), ("cl", "d"), ("vv", "w"), ("li", "h"), ("ri", "n"),
)  # fmt: skip
"""Pairs that look alike in print; each may be recognised as the other."""

DOUBLES = {a: [b for pair in ALIKE for b in pair if a in pair and b != a] for pair in ALIKE for a in pair}
"""For each character or pair, what it may be recognised as."""


class Ocr(TextAugmenter):
    """Put recognition errors into texts, as scanned pages have them: l and 1, O and 0, rn and m.

    Where a text has one of the characters (or pairs) that look like another, it is mistaken with probability `rate`.
    """

    name = "ocr"

    class Config(AugmenterConfig):
        rate: float = Field(
            0.05, ge=0, le=1, description="share of characters with a lookalike that are replaced by it"
        )

    def change(self, text: str, rng: RandomSource) -> str:
        return changed_at(text, lambda at: self._recognised(text, at, rng))

    def _recognised(self, text: str, at: int, rng: RandomSource) -> tuple[str, int]:
        """Return the recognised text, and the number of characters that it replaces."""
        source = next((text[at : at + n] for n in (2, 1) if text[at : at + n] in DOUBLES), None)
        if source and stands_alone(text, at + len(source)) and rng.random() < self.config.rate:
            return rng.choice(DOUBLES[source]), len(source)
        return text[at], 1


# Boundaries of characters as readers see them.

_TIED = {"\u200d", *map(chr, range(0x1F3FB, 0x1F400))}
"""The joiner and the skin tones of emoji sequences."""


def is_tied(character: str) -> bool:
    """Return whether a character belongs to the one before it, as accents, vowel signs and emoji joiners do."""
    return character in _TIED or unicodedata.category(character).startswith("M")


def stands_alone(text: str, stop: int) -> bool:
    """Return whether no combining character follows at `stop`."""
    return stop >= len(text) or not is_tied(text[stop])


def changed_at(text: str, change: Callable[[int], tuple[str, int]]) -> str:
    """Return the text joined from `change`, which gives a piece and the number of characters that it replaces."""
    pieces, at = [], 0
    while at < len(text):
        piece, size = change(at)
        pieces.append(piece)
        at += size
    return "".join(pieces)
