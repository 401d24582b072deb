"""Characters that optical character recognition takes for others."""

from __future__ import annotations

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine_builtins.augmenters.characters import stands_alone

ALIKE = (
    ("l", "1"), ("l", "I"), ("I", "1"), ("O", "0"), ("o", "0"), ("Q", "O"), ("S", "5"), ("s", "5"), ("B", "8"),
    ("Z", "2"), ("z", "2"), ("G", "6"), ("b", "6"), ("g", "9"), ("q", "g"), ("T", "7"), ("e", "c"), ("h", "b"),
    ("n", "u"), ("f", "t"), ("i", "j"), ("v", "y"), ("rn", "m"), ("cl", "d"), ("vv", "w"), ("li", "h"), ("ri", "n"),
)  # fmt: skip
"""Pairs that look alike in print; each is taken for the other."""


class OcrConfig(AugmenterConfig):
    """Options of augmenter ocr."""

    rate: float = Field(0.05, ge=0, le=1, description="share of characters with a double that are mistaken for it")


class Ocr(TextAugmenter):
    """Put recognition errors into texts, as scanned pages have them: l and 1, O and 0, rn and m.

    Where a text has one of the characters (or pairs) that look like another, it is mistaken with probability `rate`.
    """

    name = "ocr"
    Config = OcrConfig

    def __init__(self, config: OcrConfig | None = None) -> None:
        super().__init__(config)
        self._doubles: dict[str, list[str]] = {}
        for a, b in ALIKE:
            self._doubles.setdefault(a, []).append(b)
            self._doubles.setdefault(b, []).append(a)

    def change(self, text: str, rng: RandomSource) -> str:
        pieces, at = [], 0
        while at < len(text):
            seen, size = text[at], 1
            source = next((text[at : at + n] for n in (2, 1) if text[at : at + n] in self._doubles), None)
            if source and stands_alone(text, at + len(source)) and rng.random() < self.config.rate:
                seen, size = rng.choice(self._doubles[source]), len(source)
            pieces.append(seen)
            at += size
        return "".join(pieces)
