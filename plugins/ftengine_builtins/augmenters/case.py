"""Upper and lower case."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ftengine.api import RandomSource, TextAugmenter
from ftengine_builtins.augmenters.seldom import SeldomConfig
from ftengine_builtins.augmenters.words import LEXICAL

STYLES = {
    "upper": str.upper,
    "lower": str.lower,
    "title": lambda text: LEXICAL.sub(lambda match: match[0][:1].upper() + match[0][1:].lower(), text),
    "swap": str.swapcase,
}


class CaseConfig(SeldomConfig):
    """Options of augmenter case."""

    styles: list[Literal["upper", "lower", "title", "swap"]] = Field(
        ["upper", "lower", "title", "swap"],
        min_length=1,
        description="what a whole text may be written in; swap turns every letter round",
    )


class Case(TextAugmenter):
    """Write texts in upper, lower, title or swapped case.

    Each text that is changed takes one of those `styles` at random in which it looks different. A model whose tokenizer
    ignores case reads the same as before.
    """

    name = "case"
    Config = CaseConfig

    def change(self, text: str, rng: RandomSource) -> str:
        written = [STYLES[style](text) for style in self.config.styles]
        different = [other for other in written if other != text]
        return rng.choice(different) if different else text
