"""Punctuation put in at random, or left out."""

from __future__ import annotations

import unicodedata

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine_builtins.augmenters.characters import stands_alone
from ftengine_builtins.augmenters.words import join, split_words

MARKS = (".", ";", "?", ":", "!", ",")
"""The six marks of the paper."""


class PunctuationConfig(AugmenterConfig):
    """Options of augmenter punctuation."""

    insert: float = Field(
        0.3, ge=0, le=1, description="most marks put in, for each word; from one to so many, at random; 0: none"
    )
    drop: float = Field(0.0, ge=0, le=1, description="probability with which each mark of the text is left out")


class Punctuation(TextAugmenter):
    """Put punctuation marks between words at random, or leave marks out.

    A text of n words gets between 1 and `insert` · n marks of . ; ? : ! , before words at random, each a word of its
    own. With `drop`, marks go first, except inside of words and numbers (don't, 3.5).
    """

    name = "punctuation"
    citation = "Karimi et al. 2021 (AEDA), arXiv:2108.13230"
    Config = PunctuationConfig

    def change(self, text: str, rng: RandomSource) -> str:
        if self.config.drop:
            text = "".join(c for i, c in enumerate(text) if not (_is_mark(text, i) and rng.random() < self.config.drop))
        return self._with_marks(text, rng) if self.config.insert else text

    def _with_marks(self, text: str, rng: RandomSource) -> str:
        words, gaps = split_words(text)
        if not words:
            return text
        most = max(1, int(self.config.insert * len(words)))
        for _ in range(rng.randrange(1, most + 1)):
            at = rng.randrange(len(words))
            if words[at][:2] not in _MARKED:  # a word takes one mark
                words[at] = f"{rng.choice(MARKS)} {words[at]}"
        return join(words, gaps)


_MARKED = {f"{mark} " for mark in MARKS}


def _is_mark(text: str, at: int) -> bool:
    if not unicodedata.category(text[at]).startswith("P") or not stands_alone(text, at + 1):
        return False
    return not (text[at - 1 : at].isalnum() and text[at + 1 : at + 2].isalnum())
