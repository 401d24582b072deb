"""In which languages examples are, told by py3langid (Lui & Baldwin 2012, "langid.py") on a sample of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

SAMPLE = 1000
"""Rows of a split that are looked at; with fewer, all."""
LETTERS, CHARACTERS = 40, 500
"""Letters that a text needs, and characters of it that are read."""
SURE = 0.9
"""Probability from which a language is taken as known. Of 7,500 sentences of BBC news with 40 characters and more, none
is given another language than English with 0.5."""
_NO_LANGUAGE = "zxx"
FEWEST, MINORITY_FEWEST, MINORITY = 20, 2, 0.05
"""Of 20 examples and more, a language is told that at least two and less than 5 % are in."""

# Languages that are taken for each other; `py3langid` knows them as ISO 639 has them.
_CLOSE = (
    {"bs", "hr", "sh", "sr"},
    {"da", "nb", "nn", "no"},
    {"id", "jv", "ms", "su"},
    {"gl", "pt", "es", "ast", "an"},
    {"cs", "sk"},
    {"af", "nl", "fy"},
    {"hi", "mr", "ne", "bho", "mai"},
    {"be", "ru", "uk"},
    {"bg", "mk"},
    {"ar", "arz"},
    {"az", "tr"},
    {"xh", "zu"},
    {"fa", "ps", "ur"},
)


def long_enough(text: str) -> bool:
    """Say whether a text has enough letters for its language to be told."""
    return sum(map(str.isalpha, text[:CHARACTERS])) >= LETTERS


def language_of(text: str) -> str | None:
    """Return the language of a text's beginning as its ISO 639 code; None where that is not sure."""
    language, probability = _identifier().classify(text[:CHARACTERS])
    return language if probability >= SURE and language != _NO_LANGUAGE else None


def minorities(counts: Mapping[str, int]) -> list[str]:
    """Return the languages of few examples, beside a main one for which they are not easily taken."""
    total = sum(counts.values())
    if total < FEWEST:
        return []
    main = Counter(counts).most_common(1)[0][0]
    return [
        language
        for language, count in counts.items()
        if MINORITY_FEWEST <= count < MINORITY * total and not any({main, language} <= close for close in _CLOSE)
    ]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
