"""Slips of the finger on a keyboard."""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine_builtins.augmenters.characters import changed_at, stands_alone

LAYOUTS = {
    "qwerty": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "qwertz": ("qwertzuiopü", "asdfghjklöä", "yxcvbnm"),
    "azerty": ("azertyuiop", "qsdfghjklm", "wxcvbn"),
}
"""The rows of letters, from the top."""

OFFSETS = (0.0, 0.25, 0.75)
"""How far to the right each row begins, in keys."""

REACH = 1.26
"""Keys whose centres are this near are neighbours: left and right, and two above and below."""

Kind = Literal["replace", "insert", "drop", "swap"]


class KeyboardConfig(AugmenterConfig):
    """Options of augmenter keyboard."""

    rate: float = Field(0.05, ge=0, le=1, description="share of letters at which a finger slips")
    layout: Literal["qwerty", "qwertz", "azerty"] = Field("qwerty", description="which keys are neighbours")
    kinds: list[Kind] = Field(
        ["replace", "insert", "drop", "swap"],
        min_length=1,
        description="a neighbouring key instead of a letter or before it, a letter left out, two letters swapped",
    )


class Keyboard(TextAugmenter):
    """Put typing errors into texts: neighbouring keys, letters left out or swapped.

    At each letter that the layout has, a finger slips with probability `rate`, in one of `kinds` at random. Upper and
    lower case stay; digits, punctuation and other scripts are left alone, and so are letters that carry an accent
    of their own.
    """

    name = "keyboard"
    citation = "Belinkov and Bisk 2018, arXiv:1711.02173"
    Config = KeyboardConfig

    def change(self, text: str, rng: RandomSource) -> str:
        return changed_at(text, lambda at: self._typed(text, at, rng))

    def _is_key(self, text: str, at: int) -> bool:
        return at < len(text) and text[at] in neighbours(self.config.layout) and stands_alone(text, at + 1)

    def _typed(self, text: str, at: int, rng: RandomSource) -> tuple[str, int]:
        """Return what is typed, and how many letters of the text it stands for."""
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
        return near, 1  # also where there is no other letter to swap with


@cache
def neighbours(layout: str) -> dict[str, str]:
    """Return for each letter, in both cases, those on the keys around it."""
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
