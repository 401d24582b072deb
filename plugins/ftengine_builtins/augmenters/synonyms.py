"""Words replaced from a list that the user gives."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

from pydantic import Field

from ftengine.api import AugmenterConfig, RandomSource, TextAugmenter
from ftengine_builtins.augmenters.word_list import key_of, read_word_list
from ftengine_builtins.augmenters.words import LEXICAL


class SynonymsConfig(AugmenterConfig):
    """Options of augmenter synonyms."""

    file: str = Field(
        min_length=1,
        description="the word list: .tsv, .csv or .txt with a word and its replacements on each line, or .json with "
        "{word: [replacements]}",
    )
    rate: float = Field(0.3, ge=0, le=1, description="share of the words of the list in a text that are replaced")
    both_ways: bool = Field(False, description="words of a line may each replace the others")


class Synonyms(TextAugmenter):
    """Replace words from a word list of yours.

    Whole words and phrases are looked up whatever their case, the longest phrase first, and each is replaced with
    probability `rate`. A replacement is written as the word was: BIG becomes LARGE, Big becomes Large.
    """

    name = "synonyms"
    citation = "Zhang et al. 2015, arXiv:1509.01626; Wei and Zou 2019, arXiv:1901.11196"
    Config = SynonymsConfig

    def check_options(self) -> None:
        """Read the word list. Raises DataError where it is missing or malformed."""
        assert self._list

    @cached_property
    def _list(self) -> dict[str, list[str]]:
        return read_word_list(self.config.file, both_ways=self.config.both_ways)

    @cached_property
    def _longest(self) -> int:
        """Words of the longest phrase."""
        return max(len(key.split()) for key in self._list)

    def change(self, text: str, rng: RandomSource) -> str:
        spans = [match.span() for match in LEXICAL.finditer(text)]
        pieces, at, i = [], 0, 0
        while i < len(spans):
            count, others = self._find(text, spans, i)
            start, stop = spans[i][0], spans[i + max(1, count) - 1][1]
            if others and rng.random() < self.config.rate:
                pieces += [text[at:start], in_case_of(text[start:stop], rng.choice(others))]
                at = stop
            i += max(1, count)
        return "".join([*pieces, text[at:]])

    def _find(self, text: str, spans: list[tuple[int, int]], i: int) -> tuple[int, list[str]]:
        """Return how many words the longest phrase of the list at word i has, and its replacements."""
        for count in range(min(self._longest, len(spans) - i), 0, -1):
            phrase = spans[i : i + count]
            apart = all(text[a[1] : b[0]].isspace() for a, b in pairwise(phrase))
            if apart and (others := self._list.get(key_of(text[phrase[0][0] : phrase[-1][1]]))):
                return count, others
        return 0, []


def in_case_of(word: str, other: str) -> str:
    """Write `other` in upper case, or with a capital, where `word` is; else as it stands."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other
