"""Paths of a recipe that exist in its folder and not in the working directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PATHS = (
    "model.source",
    *(f"data.{name}" for name in ("train", "validation", "test", "exclude")),
    "evaluation.forgetting",
    "evaluation.refusal",
)
"""Keys whose paths may be relative to the recipe's folder."""


def found_beside(recipe: Path, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Resolve paths that exist only in the recipe's folder; a run's own recipe is left as it is.

    Returns the content with these paths relative to the working directory, and the paths by key.
    """
    folder, beside = recipe.parent, dict[str, str]()
    if folder.resolve() == Path.cwd() or (folder / "environment.json").exists():
        return content, beside
    places = list[tuple[str, Any, Any]]()
    for key in PATHS:
        section, name = key.split(".")
        place = content.get(section)
        if isinstance(place, dict) and isinstance(place.get(name), dict):
            place, name = place[name], "data"
        places.append((key, place, name))
        train = _in_list(place.get(name)) if key == "data.train" and isinstance(place, dict) else []
        places += [(f"{key}.{i}", holder, at) for i, (holder, at) in enumerate(train)]
    for key, place, name in places:
        value = place[name] if isinstance(place, list) else place.get(name) if isinstance(place, dict) else None
        if not isinstance(value, str) or not value or "://" in value:
            continue
        if not os.path.exists(os.path.expanduser(value)) and os.path.exists(folder / value):
            place[name] = beside[key] = str(folder / value)
    return content, beside


def _in_list(train: Any) -> list[tuple[Any, Any]]:
    """Return the places of paths in a recipe's `data.train`, as (mapping or list, key)."""
    if not isinstance(train, list):
        return []
    places = [(train, i) if isinstance(entry, str) else (entry, "source") for i, entry in enumerate(train)]
    return [(holder, key) for holder, key in places if isinstance(holder, (list, dict))]
