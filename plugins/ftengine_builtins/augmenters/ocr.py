"""Characters that optical character recognition takes for others."""

from __future__ import annotations

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine_builtins.augmenters.characters import changed_at, stands_alone

ALIKE = (
    ("l", "1"), ("l", "I"), ("I", "1"), ("O", "0"), ("o", "0"), ("Q", "O"), ("S", "5"), ("s", "5"), ("B", "8"),
    ("Z", "2"), ("z", "2"), ("G", "6"), ("b", "6"), ("g", "9"), ("q", "g"), ("T", "7"), ("e", "c"), ("h", "b"),
    ("n", "u"), ("f", "t"), ("i", "j"), ("v", "y"), ("rn", "m"), ("cl", "d"), ("vv", "w"), ("li", "h"), ("ri", "n"),
)  # fmt: skip
"""Pairs that look alike in print; each is taken for the other."""

DOUBLES = {one: [b for pair in ALIKE for b in pair if one in pair and b != one] for pair in ALIKE for one in pair}
"""What each may be taken for."""


class OcrConfig(AugmenterConfig):
    """Options of augmenter ocr."""

    rate: float = Field(0.05, ge=0, le=1, description="share of characters with a double that are mistaken for it")


class Ocr(TextAugmenter):
    """Put recognition errors into texts, as scanned pages have them: l and 1, O and 0, rn and m.

    Where a text has one of the characters (or pairs) that look like another, it is mistaken with probability `rate`.
    """

    name = "ocr"
    Config = OcrConfig

    def change(self, text: str, rng: RandomSource) -> str:
        return changed_at(text, lambda at: self._seen(text, at, rng))

    def _seen(self, text: str, at: int, rng: RandomSource) -> tuple[str, int]:
        """Return what is recognised, and how many characters of the text it stands for."""
        source = next((text[at : at + n] for n in (2, 1) if text[at : at + n] in DOUBLES), None)
        if source and stands_alone(text, at + len(source)) and rng.random() < self.config.rate:
            return rng.choice(DOUBLES[source]), len(source)
        return text[at], 1
