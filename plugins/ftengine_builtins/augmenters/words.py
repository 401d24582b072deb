"""Augmenters that delete or swap words, insert punctuation, or change case."""

import unicodedata
from itertools import pairwise
from typing import Literal

import regex
from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine_builtins.augmenters.characters import stands_alone
from ftengine_builtins.augmenters.partial_config import PartialConfig

# Chinese and Japanese are written without blanks; each of their characters is a word here.
_CHARACTER = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_WORD = regex.compile(rf"{_CHARACTER}\p{{M}}*|(?:(?!{_CHARACTER})\S)+")

LEXICAL = regex.compile(r"[\p{L}\p{N}\p{M}_\u200c\u200d]+(?:[’'\-][\p{L}\p{N}\p{M}_]+)*")
"""A word without the punctuation around it."""

EDA = "Wei and Zou 2019, arXiv:1901.11196"

MARKS = (".", ";", "?", ":", "!", ",")
"""The six marks of the paper."""

STYLES = {
    "upper": str.upper,
    "lower": str.lower,
    "title": lambda text: LEXICAL.sub(lambda match: match[0][:1].upper() + match[0][1:].lower(), text),
    "swap": str.swapcase,
}


class DeleteWords(TextAugmenter):
    """Leave words out of texts at random.

    Each word goes with probability `rate`, together with the blanks on one side of it; one word always stays. Words
    are what blanks separate, and single characters in Chinese and Japanese.
    """

    name = "delete-words"
    paper = EDA

    class Config(AugmenterConfig):
        rate: float = Field(0.1, ge=0, le=1, description="probability with which each word is left out")

    def change(self, text: str, rng: RandomSource) -> str:
        words, gaps = split_words(text)
        left = [i for i in range(len(words)) if rng.random() >= self.config.rate]
        if len(left) == len(words):
            return text
        left = left or [rng.randrange(len(words))]
        # Keep the gap with most line breaks between two remaining words, so that paragraphs stay separate.
        inner = [max(gaps[a + 1 : b + 1], key=lambda gap: (gap.count("\n"), len(gap))) for a, b in pairwise(left)]
        return join([words[i] for i in left], [gaps[0], *inner, gaps[-1]])


class SwapWords(TextAugmenter):
    """Swap words of texts at random.

    A text of n words has `rate` · n swaps of two words (at least one, unless `rate` is 0). Blanks and line breaks
    stay where they are. Words are what blanks separate, and single characters in Chinese and Japanese.
    """

    name = "swap-words"
    paper = EDA

    class Config(AugmenterConfig):
        rate: float = Field(
            0.1, ge=0, le=1, description="number of swaps per word of a text; rounded, but at least one"
        )
        distance: int | None = Field(None, ge=1, description="largest distance of the two words; null: any")

    def change(self, text: str, rng: RandomSource) -> str:
        words, gaps = split_words(text)
        if len(words) < 2 or not self.config.rate:
            return text
        for _ in range(max(1, round(self.config.rate * len(words)))):
            a = rng.randrange(len(words))
            reach = self.config.distance or len(words)
            # One fewer choice, as `a` itself is excluded.
            b = rng.randrange(max(0, a - reach), min(len(words) - 1, a + reach))
            b += b >= a
            words[a], words[b] = words[b], words[a]
        return join(words, gaps)


class Punctuation(TextAugmenter):
    """Put punctuation marks between words at random, or leave marks out.

    A text of n words gets between 1 and `insert` · n marks of . ; ? : ! , before words at random, each a word of its
    own. With `drop`, marks go first, except inside of words and numbers (don't, 3.5).
    """

    name = "punctuation"
    paper = "Karimi et al. 2021 (AEDA), arXiv:2108.13230"

    class Config(AugmenterConfig):
        insert: float = Field(0.3, ge=0, le=1, description="most marks inserted per word, at random; 0: none")
        drop: float = Field(0.0, ge=0, le=1, description="probability with which each mark of the text is left out")

    def change(self, text: str, rng: RandomSource) -> str:
        if self.config.drop:
            text = "".join(c for i, c in enumerate(text) if not (_is_mark(text, i) and rng.random() < self.config.drop))
        words, gaps = split_words(text)
        if not words or not self.config.insert:
            return text
        most = max(1, int(self.config.insert * len(words)))
        for _ in range(rng.randrange(1, most + 1)):
            at = rng.randrange(len(words))
            if words[at][:1] not in MARKS or words[at][1:2] != " ":  # a word takes one mark
                words[at] = f"{rng.choice(MARKS)} {words[at]}"
        return join(words, gaps)


def _is_mark(text: str, at: int) -> bool:
    if not unicodedata.category(text[at]).startswith("P") or not stands_alone(text, at + 1):
        return False
    return not (text[at - 1 : at].isalnum() and text[at + 1 : at + 2].isalnum())


class Case(TextAugmenter):
    """Write texts in upper, lower, title or swapped case.

    Each text that is changed takes one of those `styles` at random in which it looks different. A model whose tokenizer
    ignores case reads the same as before.
    """

    name = "case"

    class Config(PartialConfig):
        styles: list[Literal["upper", "lower", "title", "swap"]] = Field(
            ["upper", "lower", "title", "swap"],
            min_length=1,
            description="cases that a text may be written in; swap inverts every letter's",
        )

    def change(self, text: str, rng: RandomSource) -> str:
        written = [STYLES[style](text) for style in self.config.styles]
        different = [other for other in written if other != text]
        return rng.choice(different) if different else text


def split_words(text: str) -> tuple[list[str], list[str]]:
    """Cut a text at blanks.

    Returns:
        (words, gaps): gaps are what stands before, between and after the words, one more than there are words, so
        that gap, word, gap, …, word, gap is the text.
    """
    words, gaps, at = [], [], 0
    for match in _WORD.finditer(text):
        gaps.append(text[at : match.start()])
        words.append(match.group())
        at = match.end()
    return words, [*gaps, text[at:]]


def join(words: list[str], gaps: list[str]) -> str:
    """Join words and gaps to a text."""
    return "".join(part for pair in zip(gaps, [*words, ""], strict=True) for part in pair)
