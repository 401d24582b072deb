"""Words left out and words in other places: two of the operations of EDA."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine_builtins.augmenters.words import join, split_words

EDA = "Wei and Zou 2019, arXiv:1901.11196"


class DeleteWordsConfig(AugmenterConfig):
    """Options of augmenter delete-words."""

    rate: float = Field(0.1, ge=0, le=1, description="probability with which each word is left out")


class DeleteWords(TextAugmenter):
    """Leave words out of texts at random.

    Each word goes with probability `rate`, together with the blanks on one side of it; one word always stays. Words
    are what blanks separate, and single characters in Chinese and Japanese.
    """

    name = "delete-words"
    citation = EDA
    Config = DeleteWordsConfig

    def change(self, text: str, rng: RandomSource) -> str:
        words, gaps = split_words(text)
        kept = [i for i in range(len(words)) if rng.random() >= self.config.rate]
        if len(kept) == len(words):
            return text
        kept = kept or [rng.randrange(len(words))]
        # Between two words that stay, the gap with most line breaks stays: paragraphs remain apart.
        inner = [max(gaps[a + 1 : b + 1], key=_breaks) for a, b in pairwise(kept)]
        return join([words[i] for i in kept], [gaps[0], *inner, gaps[-1]])


class SwapWordsConfig(AugmenterConfig):
    """Options of augmenter swap-words."""

    rate: float = Field(0.1, ge=0, le=1, description="swaps for each word of a text; rounded, but at least one")
    distance: int | None = Field(None, ge=1, description="most words from one to the other; null: any")


class SwapWords(TextAugmenter):
    """Swap words of texts at random.

    A text of n words has `rate` · n swaps of two words (at least one, unless `rate` is 0). Blanks and line breaks
    stay where they are. Words are what blanks separate, and single characters in Chinese and Japanese.
    """

    name = "swap-words"
    citation = EDA
    Config = SwapWordsConfig

    def change(self, text: str, rng: RandomSource) -> str:
        words, gaps = split_words(text)
        if len(words) < 2 or not self.config.rate:
            return text
        for _ in range(max(1, round(self.config.rate * len(words)))):
            a = rng.randrange(len(words))
            b = self._other(a, len(words), rng)
            words[a], words[b] = words[b], words[a]
        return join(words, gaps)

    def _other(self, a: int, count: int, rng: RandomSource) -> int:
        reach = self.config.distance or count
        first, last = max(0, a - reach), min(count - 1, a + reach)
        b = rng.randrange(first, last)  # one fewer than there are, as `a` itself is left out
        return b + (b >= a)


def _breaks(gap: str) -> tuple[int, int]:
    return gap.count("\n"), len(gap)
