"""Transcripts in one form, so that case, punctuation and spelling of numbers are no errors."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")


def normalised(text: str, way: str, language: str = "en") -> str:
    """Return a text's words, separated by single blanks.

    Args:
        way: "whisper": Whisper's English normaliser (transformers', without the list of British spellings that a
            checkpoint brings) for English, else "basic"; "basic": small letters, no brackets, punctuation or symbols;
            "none": as it is.
        language: the code of the text's language.
    """
    if way == "none":
        return " ".join(text.split())
    if way == "whisper" and language == "en":
        return " ".join(_english()(text).split())
    return _basic(text)


def _basic(text: str) -> str:
    """Return a text in small letters without brackets, punctuation and symbols.

    Whisper's own normaliser replaces combining marks by blanks as well, which divides words of Hindi or Thai at their
    vowels; here they stay.
    """
    bare = _BRACKETS.sub(" ", unicodedata.normalize("NFKC", text.lower()))
    return " ".join("".join(" " if unicodedata.category(x)[0] in "PSC" else x for x in bare).split())


@cache
def _english() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})
