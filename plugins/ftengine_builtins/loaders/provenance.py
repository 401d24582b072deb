"""What a model's own card, in its folder or in the hub's cache on this machine, states of its licence and its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ftengine.api import Provenance

CARD = "README.md"
SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
"""The hub's cache calls the folder of a model by its name."""


def of_folder(folder: Path) -> Provenance:
    """Return what the card in a folder states; the name on the hub is known of a folder of the hub's cache."""
    cached = next(filter(None, (SNAPSHOT.fullmatch(part) for part in folder.absolute().parts)), None)
    return Provenance("/".join(cached.groups()) if cached else "", _license(folder / CARD))


def of_hub(name: str) -> Provenance:
    """Return what the card of a model of the hub states, where it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, CARD)
    return Provenance(name, _license(Path(found)) if isinstance(found, str) else "")


def _license(file: Path) -> str:
    """Return the licence that a card states, its name where that is "other"; "" where it states none."""
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
