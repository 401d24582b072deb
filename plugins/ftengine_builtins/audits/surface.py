"""The surface of texts: cheap features such as capitals, ends of sentences, digits, line breaks and speaker marks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from ftengine.text import listed, quoted
from ftengine_builtins.audits.word_scores import TOKEN

SPEAKER = re.compile(r"^[ \t]*(\w[\w .-]{0,19}:)[ \t]", re.MULTILINE)
"""The beginning of a line as a written conversation has it: "User: "."""
MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|&[a-z]+;|\*\*|```|^#{1,6} |^[-*] |\[[^\]]*\]\([^)]*\)", re.MULTILINE)
ADDRESS = re.compile(r"https?://|www\.|@\w+")
QUOTES = re.compile('["“”«»„]')
PUNCTUATION, DIGIT, CAPITAL = re.compile(r"[^\w\s]"), re.compile(r"\d"), re.compile(r"[A-ZÀ-ÖØ-ÞΑ-ΩА-Я]")
SPACED = re.compile(r"\w\w [.,](?:\s|$)")
BEYOND_ASCII = re.compile(r"(?![\x00-\x7f])[^\W\d_]")
ENDS = (".", "!", "?", "…", "。", "！", "？")
CLOSING = "\"'”’»)] \n"
SHORT_WORD, FREQUENT = 5, 0.2
"""Letters of a short frequent word at most, and the share of one side's texts that have it at least. They are the
data's own, so a list of stop words of any language shows that was applied to one side."""


@dataclass(frozen=True)
class Feature:
    """A feature of texts: present or absent, or an amount.

    Args:
        name: for figures.
        does: verb phrases for one text and for several, such as "begins" and "begin"; None for an amount.
        measure: returns 0 or 1, or the amount, of a text, or of a text and another one of its row.
        is_share: whether an amount is a proportion.
    """

    name: str
    does: tuple[str, str] | None
    measure: Callable[[Any], float]
    is_share: bool = False


def _having(name: str, pattern: re.Pattern[str], what: str = "") -> Feature:
    what = what or name
    return Feature(name, (f"has {what}", f"have {what}"), lambda text: float(pattern.search(text) is not None))


def _share_of(name: str, pattern: re.Pattern[str]) -> Feature:
    def measure(text: str) -> float:
        return len(pattern.findall(text)) / max(1, len("".join(text.split())))

    return Feature(f"share of {name}", None, measure, is_share=True)


class Echo(str):
    """An answer that begins with its prompt, or texts of which the second begins with the first."""


HAS = (
    Feature("prompt", ("begins with its prompt or first text", "begin with their prompts or first texts"),
            lambda text: float(isinstance(text, Echo))),
    _having("speaker", SPEAKER, "a line that begins as one of a conversation does"),
    _having("markup", MARKUP),
    _having("address", ADDRESS, "a link or an address"),
    Feature("lower case", ("is in lower case", "are in lower case"), lambda text: float(text.islower())),
    Feature("upper case", ("is in capitals", "are in capitals"), lambda text: float(text.isupper())),
    Feature("small first letter", ("begins with a small letter", "begin with a small letter"),
            lambda text: float(text[:1].islower())),
    Feature("end of a sentence", ("ends with . ! or ?", "end with . ! or ?"),
            lambda text: float(text.rstrip(CLOSING).endswith(ENDS))),
    Feature("question", ("ends with a question mark", "end with a question mark"),
            lambda text: float(text.endswith(("?", "？")))),
    _having("punctuation", PUNCTUATION, "a punctuation mark"),
    _having("spaced punctuation", SPACED, "a space before a comma or a full stop"),
    _having("digit", DIGIT, "a digit"),
    _having("line break", re.compile("\n"), "several lines"),
    _having("quotation marks", QUOTES),
    _having("brackets", re.compile(r"[(\[]")),
    _having("beyond ASCII", BEYOND_ASCII, "a letter beyond a to z"),
)  # fmt: skip
"""What a text has or has not; of two that tell sides as well, the first is named."""

NUMBER_OF_WORDS = "number of words"
AMOUNTS = (
    _share_of("capitals", CAPITAL), _share_of("punctuation marks", PUNCTUATION), _share_of("digits", DIGIT),
    Feature(NUMBER_OF_WORDS, None, lambda text: float(len(text.split()))),
    Feature("length of words", None, lambda text: len("".join(words := text.split())) / max(1, len(words))),
)  # fmt: skip
"""What a text has more or less of."""


def short_frequent_words(*sides: Sequence[str]) -> Feature:
    """Return the share of a text's words that are short and occur in many of the compared texts."""
    counted = [Counter(word for text in texts for word in _short_words(text)) for texts in sides]
    found = {word for texts, counts in zip(sides, counted, strict=True) for word, count in counts.items()
             if count >= FREQUENT * len(texts)}  # fmt: skip

    def measure(text: str) -> float:
        words = TOKEN.findall(text.lower())
        return sum(word in found for word in words) / max(1, len(words))

    every = sum(counted, Counter[str]())
    shown = f" such as {listed([quoted(word) for word, _ in every.most_common() if word in found][:3])}" * bool(found)
    return Feature(f"share of short frequent words{shown}", None, measure, is_share=True)


def _short_words(text: str) -> Set[str]:
    return {word for word in TOKEN.findall(text.lower()) if len(word) <= SHORT_WORD and word.isalpha()}


def longer_words(text: str) -> str:
    """Return a text's words that are not stop words, in lower case."""
    return " ".join(word for word in TOKEN.findall(text.lower()) if len(word) > SHORT_WORD)


def described(feature: Feature, texts: Sequence[str], *, several: bool) -> str:
    """Return in words what texts with a feature do, with the speaker of most of their lines."""
    does = feature.does[int(several)] if feature.does else feature.name
    if feature.name == "speaker" and (marks := Counter(mark for text in texts for mark in SPEAKER.findall(text))):
        does = f"{'have' if several else 'has'} a line that begins with {quoted(marks.most_common(1)[0][0])}"
    return does
