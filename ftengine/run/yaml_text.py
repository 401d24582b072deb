"""Reading `key=value` options, and a limit on YAML whose aliases multiply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ftengine.errors import RecipeError, load_yaml

MOST_VALUES = 100_000
"""Most values of a recipe; aliases of aliases can make billions of values from a few lines."""


def key_and_value(pair: str, option: str, example: str) -> tuple[str, Any]:
    """Read `key=value` of a command's option, the value in YAML (RecipeError: no key, or invalid YAML)."""
    key, equals, raw = pair.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{option} {pair!r}: write key=value, for example {example}.")
    try:
        return key.strip(), load_yaml(raw)
    except yaml.YAMLError:
        raise RecipeError(f"{option} {pair!r}: {raw!r} is not a YAML value.") from None


def require_bounded(content: Any, origin: str) -> None:
    """Refuse a recipe with too many values (RecipeError)."""
    left, count = [content], 0
    while left:
        value, count = left.pop(), count + 1
        if count > MOST_VALUES:
            raise RecipeError(
                f"{origin}: more than {MOST_VALUES:,} values, as aliases repeat them. Write the recipe without aliases."
            )
        left += value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
