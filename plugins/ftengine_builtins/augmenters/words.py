"""Words of a text, and what stands between them."""

from __future__ import annotations

import regex

# Chinese and Japanese are written without blanks; each of their characters is a word here.
_ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_WORD = regex.compile(rf"{_ALONE}\p{{M}}*|(?:(?!{_ALONE})\S)+")

LEXICAL = regex.compile(r"[\p{L}\p{N}\p{M}_\u200c\u200d]+(?:[’'\-][\p{L}\p{N}\p{M}_]+)*")
"""A word as a dictionary has it: without the punctuation around it."""


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
    """Put a text together again."""
    return "".join(part for pair in zip(gaps, [*words, ""], strict=True) for part in pair)
