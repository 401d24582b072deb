"""YAML that may come from anywhere: what it can do beside saying what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ftengine.errors import RecipeError, load_yaml

MOST_VALUES = 100_000
"""Values of a recipe; aliases that repeat aliases make billions of a few lines."""


def key_and_value(pair: str, option: str, example: str) -> tuple[str, Any]:
    """Read `key=value` of a command's option, the value in YAML (RecipeError: there is no key, or it is no YAML)."""
    key, equals, raw = pair.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{option} {pair!r}: write key=value, for example {example}.")
    try:
        return key.strip(), load_yaml(raw)
    except yaml.YAMLError:
        raise RecipeError(f"{option} {pair!r}: {raw!r} is not a YAML value.") from None


def require_bounded(content: Any, origin: str) -> None:
    """Refuse a recipe with too many values (RecipeError)."""
    left, seen = [content], 0
    while left:
        value, seen = left.pop(), seen + 1
        if seen > MOST_VALUES:
            raise RecipeError(f"{origin}: more than {MOST_VALUES:,} values, as aliases repeat them. Write it out.")
        left += value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
