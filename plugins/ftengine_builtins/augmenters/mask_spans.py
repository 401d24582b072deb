"""Spans of words hidden behind a mask token."""

import math
from typing import Any, Literal

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine.errors import RecipeError
from ftengine_builtins.augmenters.words import join, split_words


class MaskSpans(TextAugmenter):
    """Hide spans of words behind a mask, as in the pre-training of BART and SpanBERT.

    Spans begin at random words; their lengths are Poisson with mean `mean_length`, lengths of 0 drawn again. They do
    not overlap (those that touch are one) and hide `rate` of a text's words, on average. BART puts one mask for a
    span, SpanBERT one for a word.
    """

    name = "mask-spans"
    paper = "Lewis et al. 2020 (BART), arXiv:1910.13461; Joshi et al. 2020 (SpanBERT), arXiv:1907.10529"

    class Config(AugmenterConfig):
        rate: float = Field(0.15, ge=0, le=1, description="share of words that are masked; one word always stays")
        mean_length: float = Field(3.0, gt=0, le=100, description="words of a span: mean of a Poisson distribution")
        mask: str | None = Field(
            None, min_length=1, description="the mask that replaces hidden words, e.g. '_'; null: the tokenizer's own"
        )
        masks: Literal["span", "word"] = Field("span", description="one mask for a span, or one for each of its words")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._mask = self.config.mask

    def set_processor(self, processor: Any) -> None:
        self._mask = self.config.mask or getattr(processor, "mask_token", None)
        if self._mask is None:
            raise RecipeError(
                f"augmenter {self.name!r} needs a mask token, and the model's tokenizer ({type(processor).__name__}) "
                "has none. Name one with option mask, e.g. {name: mask-spans, mask: _}."
            )

    def change(self, text: str, rng: RandomSource) -> str:
        words, gaps = split_words(text)
        hidden = self._hidden(len(words), rng)
        if self.config.masks == "word":
            return join([self._mask if h else w for w, h in zip(words, hidden, strict=True)], gaps)
        shown = [i for i, h in enumerate(hidden) if not h or i == 0 or not hidden[i - 1]]
        pieces = [self._mask if hidden[i] else words[i] for i in shown]
        return join(pieces, [*(gaps[i] for i in shown), gaps[-1]])

    def _hidden(self, count: int, rng: RandomSource) -> list[bool]:
        """Choose words to hide: `rate` · `count` of them on average, in spans."""
        exact = self.config.rate * count
        budget = min(int(exact) + (rng.random() < exact % 1), count - 1)
        hidden, free = [False] * count, list(range(count))
        while budget > 0:
            at = rng.randrange(len(free))
            free[at], free[-1] = free[-1], free[at]
            start = stop = free.pop()  # every remaining word has the same probability
            if hidden[start]:
                continue
            end = min(start + min(self._length(rng), budget), count)
            while stop < end and not hidden[stop]:
                hidden[stop] = True
                stop += 1
            budget -= stop - start
        return hidden

    def _length(self, rng: RandomSource) -> int:
        """Draw from a Poisson distribution until the number is not 0 (Knuth's product of uniform numbers)."""
        floor = math.exp(-self.config.mean_length)
        while True:
            length, product = 0, rng.random()
            while product > floor:
                length, product = length + 1, product * rng.random()
            if length:
                return length
