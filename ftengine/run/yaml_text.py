"""Reading recipe files and `key=value` options, and a limit on YAML whose aliases multiply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ftengine.errors import RecipeError, load_yaml, near_file, text_of_file

MOST_VALUES = 100_000
"""Most values of a recipe; aliases of aliases can make billions of values from a few lines."""

DATA_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
"""Suffixes of data files, which are never recipes."""


def content_of(path: Path) -> dict[str, Any]:
    """Return the content of a recipe file (RecipeError: it is missing, or no YAML mapping)."""
    if path.suffix.lower() in DATA_SUFFIXES and path.is_file():
        raise RecipeError(
            f"{path} is a data file (by its suffix), not a recipe; `ftengine init --data {path}` makes a recipe."
        )
    try:
        text = text_of_file(path)
    except FileNotFoundError:
        there = [file.name for ending in ("*.yaml", "*.yml") for file in path.parent.glob(ending)]
        near = near_file(path, there)
        raise RecipeError(f"no recipe file {str(path)!r}.{near} `ftengine init` writes one to start from.") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read recipe {str(path)!r}: {error}.") from None
    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{where}: not valid YAML: {problem}.") from None
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys, not {type(content).__name__}. If it is data, `ftengine init "
            f"--data {path}` makes a recipe."
        )
    return content


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
