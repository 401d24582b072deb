"""Licence and name of a model, from its card in its folder or in the local cache of the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ftengine.api import Provenance

CARD = "README.md"
SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
"""Name of a model's folder in the hub's cache."""


def of_folder(folder: Path) -> Provenance:
    """Return the licence of the card in a folder, and the name on the hub if the folder is in the hub's cache."""
    cached = next(filter(None, (SNAPSHOT.fullmatch(part) for part in folder.absolute().parts)), None)
    return Provenance("/".join(cached.groups()) if cached else "", _license(folder / CARD))


def of_hub(name: str) -> Provenance:
    """Return the licence of a hub model's card, if the card is in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, CARD)
    return Provenance(name, _license(Path(file)) if isinstance(file, str) else "")


def _license(file: Path) -> str:
    """Return the licence of a card, or its name if it is "other"; "" if the card states none."""
    if not file.is_file():
        return ""
    match = re.match(r"---\r?\n(.*?)\r?\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        front: Any = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return ""
    if not isinstance(front, dict):
        return ""
    stated = front.get("license_name") if front.get("license") == "other" else front.get("license")
    return stated if isinstance(stated, str) else ""
